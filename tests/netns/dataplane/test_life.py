"""Failure, restart, drift and the end: what stays, what is repaired, what is gone."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.dataplane import Peer, Wanted
from swarm.errors import (
    ConflictError,
    HostError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    UnimplementedError,
)

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def wanted_of(world: Any, node: Any, net: Any) -> Wanted:
    """Return what a daemon that starts anew on ``node`` is told."""
    mine = [endpoint for owner, endpoint in world.endpoints.values() if owner is node]
    peers = [
        peer
        for owner, endpoint in world.endpoints.values()
        if owner is not node
        for peer in world.peers_of(owner, endpoint)
    ]
    return Wanted(networks=(net,), endpoints=tuple(mine), peers=tuple(peers))


def inventory(node: Any) -> str:
    """Return everything a node's routers hold, as text."""
    return node.sh(
        f"for n in {node.settings.run_dir}/netns/*; do for c in 'ip -d link' 'ip addr' 'ip route' "
        "'ip -6 route' 'ip neigh show nud permanent' 'bridge fdb' 'tc qdisc' "
        "'nft -s list ruleset'; do "
        "nsenter --net=$n $c | sed 's/valid_lft.*//; s/ openvswitch.*//'; done; done"
    )


@pytest.mark.parametrize("how", ["in order", "killed"])
def test_a_new_daemon_adopts_what_runs(world: Any, network: Any, how: str) -> None:
    """While the daemon ends and another takes over, no packet is lost and nothing is touched."""
    net = network(1, "10.0.1.0/24", "fd00:1::/64")
    one, two = world.pair(planes=1)
    two.start()
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24", "fd00:1::2/64")
    b = world.plug(two, net, "10.0.1.3/24", "fd00:1::3/64")
    world.gossip()
    b.call("serve", "10.0.1.3")
    before = inventory(one)
    a.call("ping_start", "10.0.1.3")
    a.call("stream_start", "10.0.1.3")
    wanted = wanted_of(world, one, net)
    if how == "in order":
        one.restart()
    else:
        one = world.successor(one)  # the old process dies by SIGKILL with its descriptors
        one.start()
    report = one.plane("reconcile", wanted)
    assert report.adopted == tuple(endpoint.id for endpoint in wanted.endpoints)
    assert report.operations == 0
    assert report.failed == ()
    assert one.plane("reconcile", wanted).operations == 0
    assert one.plane("check").drift == 0
    sent, got = a.call("ping_stop")
    assert sent == got
    assert sent > 10
    assert a.call("finish", "stream") > 0, "the connection still carries data"
    assert inventory(one) == before
    one.plane("unplug", wanted.endpoints[0].id)
    assert a.ping("10.0.1.3", timeout=0.1) == 0


def test_reconcile_removes_the_unwanted_and_attaches_the_missing(world: Any, network: Any) -> None:
    """Of two networks one is no longer wanted; of three endpoints one is new and one has ended."""
    red, blue = network(1), network(2)
    one, _ = world.pair(planes=1)
    one.plane("put_network", red)
    one.plane("put_network", blue)
    a = world.plug(one, red, "10.0.1.2/24")
    dead = world.plug(one, red, "10.0.1.3/24")
    world.plug(one, blue, "10.0.2.2/24")
    endpoints = [endpoint for _, endpoint in world.endpoints.values()]
    fresh = world.box()
    new = world.endpoint(red, fresh, "10.0.1.4/24")
    one.call("plane_stop")
    dead.kill()
    one.start()
    wanted = Wanted(networks=(red,), endpoints=(endpoints[0], endpoints[1], new))
    report = one.plane("reconcile", wanted)
    assert report.adopted == (endpoints[0].id,)
    assert report.gone == (endpoints[1].id,)
    assert report.attached == (new.id,)
    assert report.removed == (blue.id[:12],)
    assert report.failed == ()
    assert a.ping("10.0.1.4") == 1
    assert [path.name for path in (one.settings.run_dir / "netns").iterdir()] == [red.id[:12]]
    left = replace(wanted, endpoints=(endpoints[0], new))
    assert one.plane("reconcile", left).operations == 0


def test_a_failed_plug_leaves_nothing(world: Any, network: Any) -> None:
    """Each way to fail has its own error, and the router is as it was."""
    net = network(1)
    one, _ = world.pair(planes=1)
    with pytest.raises(NotFoundError):
        world.plug(one, net, "10.0.1.2/24")
    one.plane("put_network", net)
    world.plug(one, net, "10.0.1.2/24")
    before = inventory(one)
    taken = world.box()
    taken.sh("ip link add eth0 type veth peer name other")
    for box, address, error in (
        (taken, "10.0.1.3/24", ConflictError),
        (world.box(), "10.0.1.2/24", ConflictError),
        (world.box(), "10.0.1.1/24", InvalidArgumentError),
        (world.box(), "10.0.1.3/25", InvalidArgumentError),
        (world.box(), "10.9.1.3/24", InvalidArgumentError),
        (one, "10.0.1.3/24", InvalidArgumentError),
    ):
        with pytest.raises(error):
            world.plug(one, net, address, box=box)
    blocked = world.endpoint(net, world.box(), "10.0.1.4/24")
    with pytest.raises(InvalidArgumentError):
        one.plane("plug", replace(blocked, netns=replace(blocked.netns, path="/etc/passwd")))
    with pytest.raises(NotFoundError):
        one.plane("plug", replace(blocked, netns=replace(blocked.netns, path="/proc/0/ns/net")))
    assert inventory(one) == before
    assert "eth0" in taken.sh("ip -o link show dev eth0"), "the container's own interface stays"
    one.plane("plug", blocked)
    one.plane("plug", blocked)
    with pytest.raises(ConflictError):
        one.plane("plug", replace(blocked, ifname="eth9"))


def test_what_cannot_be_carried_is_refused(world: Any, network: Any) -> None:
    """Encryption and layer 2 are not there, a VNI is taken: no router stays behind."""
    one, _ = world.pair(planes=1)
    with pytest.raises(HostError, match="encrypted"):
        one.plane("put_network", network(1, encrypted=True))
    with pytest.raises(UnimplementedError):
        one.plane("put_network", network(1, l2=True))
    one.sh("ip link add dockers type vxlan id 4112 dstport 4789")
    with pytest.raises(ConflictError, match="4112"):
        one.plane("put_network", network(1))
    assert not list((one.settings.run_dir / "netns").iterdir())
    one.sh("ip link del dockers")
    one.plane("put_network", network(1))
    world.plug(one, network(1), "10.0.1.2/24")
    with pytest.raises(PreconditionError):
        one.plane("remove_network", network(1).id)


DAMAGE = {
    "routes": "ip route flush proto 83",
    "neighbours": "ip neigh flush nud permanent; ip -6 neigh flush nud permanent",
    "forwarding": "bridge fdb show dev vx-001010 | while read m d v x; do "
    "bridge fdb del $m dev vx-001010 dst $v self; done",
    "tunnel down": "ip link set vx-001010 down",
    "tunnel gone": "ip link del vx-001010",
    "tables": "nft flush ruleset",
    "elements": "nft flush set netdev overswarm macs",
    "ports": "for l in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do case $l in ep*) ip link del $l;; esac; done",
    "sysctl": "for l in /proc/sys/net/ipv4/conf/*/proxy_arp; do echo 0 > $l; done",
    "addresses": "ip addr flush dev lo",
    "shortcuts": "tc filter del block 2 prio 1",
    "taps": "tc qdisc del dev vx-001010 ingress",
}


@pytest.mark.parametrize("what", DAMAGE)
def test_drift_is_found_counted_and_repaired(world: Any, network: Any, what: str) -> None:
    """Whatever somebody breaks in a router, one check sets it right; the next finds nothing."""
    net = network(1, "10.0.1.0/24", "fd00:1::/64")
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24", "fd00:1::2/64")
    world.plug(two, net, "10.0.1.3/24", "fd00:1::3/64")
    world.gossip()
    assert one.plane("check").drift == 0
    before = one.plane("stats").drift
    one.sh(f"nsenter --net={one.settings.run_dir}/netns/{net.id[:12]} sh -c '{DAMAGE[what]}'")
    found = one.plane("check")
    assert found.drift > 0
    assert found.failures == ()
    assert one.plane("stats").drift == before + found.drift
    assert one.plane("check").drift == 0
    for address in ("10.0.1.3", "fd00:1::3", "10.0.1.1"):
        assert a.ping(address, count=2) == 2, address


def test_the_slow_loop_repairs_on_its_own(world: Any, network: Any) -> None:
    """Nobody has to ask; the callback and the counters tell."""
    net = network(1)
    one, _ = world.pair(planes=0)
    one.settings = replace(one.settings, check_interval=0.02)
    one.start()
    one.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24")
    one.sh(f"nsenter --net={one.settings.run_dir}/netns/{net.id[:12]} nft flush ruleset")
    checks = one.plane("stats").checks
    while (stats := one.plane("stats")).checks < checks + 2:
        pass  # each turn waits for the other process; the loop's interval is 20 ms
    assert stats.drift > 0
    assert a.ping("10.0.1.1") == 1
    a.kill()
    while not one.call("plane_gone"):
        pass
    assert one.plane("stats").endpoints == 0


def test_the_inside_is_repaired_and_what_users_add_stays(world: Any, network: Any) -> None:
    """MTU, address and routes of a container's interface come back; its own additions remain."""
    net = network(1, "10.0.1.0/24", "10.0.2.0/24")
    one, _ = world.pair(planes=1)
    one.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24")
    world.plug(one, net, "10.0.2.2/24")
    a.sh("ip link set eth0 mtu 1000; ip route flush proto 83; ip addr add 10.0.1.200/32 dev eth0")
    assert one.plane("check").drift == 1
    assert one.plane("check").drift == 0
    assert "10.0.1.200/32" in a.sh("ip addr show dev eth0")
    assert a.ping("10.0.2.2", size=1450) == 1


def test_a_container_that_ends_is_reported(world: Any, network: Any) -> None:
    """Its endpoint is forgotten, its address is free at once, the callback hears of it."""
    net = network(1)
    one, _ = world.pair(planes=1)
    one.plane("put_network", net)
    dead = world.plug(one, net, "10.0.1.2/24")
    alive = world.plug(one, net, "10.0.1.3/24")
    dead_id = next(iter(world.endpoints))
    dead.kill()
    while not (gone := one.plane("check").gone):
        pass  # the kernel ends a namespace in its own time; each turn asks the other process
    assert gone == (dead_id,)
    assert one.call("plane_gone") == [dead_id]
    assert one.plane("check").drift == 0
    world.plug(one, net, "10.0.1.2/24")
    assert alive.ping("10.0.1.2") == 1


def test_a_container_may_end_before_it_is_unplugged(world: Any, network: Any) -> None:
    """Unplugging it then is no error, and takes its MAC and addresses out of the tables."""
    net = network(1)
    one, _ = world.pair(planes=1)
    one.plane("put_network", net)
    before = inventory(one)
    dead = world.plug(one, net, "10.0.1.2/24")
    dead.kill()
    one.plane("unplug", next(iter(world.endpoints)))
    assert inventory(one) == before


def test_destroy_leaves_nothing(world: Any, network: Any) -> None:
    """No namespace, mount, link, table or file; a VNI is free at once."""
    one, _ = world.pair(planes=1)
    links = one.sh("ip -o link | cut -d: -f2; nft list ruleset")
    for number in (1, 2):
        one.plane("put_network", network(number))
        a = world.plug(one, network(number), f"10.0.{number}.2/24")
    one.restart()  # it must also remove what it has not made itself
    one.plane("destroy")
    assert not (one.settings.run_dir / "netns").exists()
    assert str(one.settings.run_dir) not in Path("/proc/self/mountinfo").read_text("utf-8")
    assert one.sh("ip -o link | cut -d: -f2; nft list ruleset") == links
    assert "eth0" not in a.sh("ip -o link")
    one.plane("put_network", network(1))
    one.plane("destroy")


def test_vips_are_answered_by_the_router(world: Any, network: Any) -> None:
    """A service address resolves and refuses at once while nothing translates it."""
    net = network(1)
    one, _ = world.pair(planes=1)
    one.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24")
    vip = net.subnets[0].cidr.network_address + 50
    one.plane("set_vips", net.id, [vip])
    with pytest.raises(ConnectionRefusedError):
        a.call("fetch", str(vip))
    assert one.plane("check").drift == 0
    one.plane("set_vips", net.id, [])
    assert a.ping(vip, timeout=0.1) == 0


def test_preflight_proves_the_features(world: Any) -> None:
    """A host that can do it gets findings; one without the tunnel address a warning."""
    one, _ = world.pair(planes=1)
    found = {finding.name: finding.level for finding in one.plane("preflight")}
    assert found["vxlan"] == found["nftables"] == found["vtep"] == "ok"
    one.sh(f"ip addr del {one.vtep}/24 dev eth0")
    found = {finding.name: finding.level for finding in one.plane("preflight")}
    assert found["vtep"] == "warning"


def test_of_many_remote_endpoints_the_one_refused_is_named(world: Any, network: Any) -> None:
    """Though they go to the kernel in batches; nothing of the batch stays."""
    net = network(1, "10.8.0.0/16")
    one, _ = world.pair(planes=1)
    one.plane("put_network", net)
    base = ipaddress.ip_address("10.8.1.0")
    peers = [
        Peer(
            network_id=net.id,
            ip=base + i,
            prefixlen=16,
            mac="02:42:" + (base + i).packed.hex(":"),
            vtep=ipaddress.ip_address("192.0.2.2"),
        )
        for i in range(600)
    ]
    path = f"{one.settings.run_dir}/netns/{net.id[:12]}"
    one.sh(f"nsenter --net={path} ip link set vx-001010 down")
    with pytest.raises(HostError, match=r"refused.*Route.*10\.8\.1\.0/32.*down"):
        one.plane("set_peers", net.id, peers)
    assert one.sh(f"nsenter --net={path} ip neigh show dev vx-001010") == ""
    assert one.plane("stats").peers == 0
    one.sh(f"nsenter --net={path} ip link set vx-001010 up")
    for some in (peers, [], peers[:300], peers):
        assert one.plane("set_peers", net.id, some) == ()
        assert one.plane("check").drift == 0
        seen = one.sh(f"nsenter --net={path} ip route show dev vx-001010")
        assert len(seen.splitlines()) == len(some)
