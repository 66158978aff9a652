"""Packets past the router's IP stack: which ones, and that all others go the usual way.

A router that a packet passes lowers its TTL, but for the last one on a shortcut: so the TTL that arrives tells.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace
from typing import Any

import pytest

from agent.dataplane import Wanted

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SHORT, LONG = 63, 62
BASES = ("10.0.1.", "fd00:1::")


def ttl(box: Any, address: str, *words: str) -> int:
    """Return the TTL of an answer as it arrived."""
    text = box.sh(f"ping -n -c 1 -W 2 {' '.join(words)} {address}")
    found = re.search(r"ttl=(\d+)", text)
    assert found is not None, text
    return int(found[1])


def in_router(node: Any, net: Any, command: str) -> str:
    """Run a shell command in a network's router on a node."""
    path = f"{node.settings.run_dir}/netns/{net.id[:12]}"
    text: str = node.sh(f"nsenter --net={path} sh -c '{command}'")
    return text


def joined(world: Any, network: Any, **more: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return network, two nodes and a container on each, in IPv4 and IPv6."""
    net = network(1, "10.0.1.0/24", "fd00:1::/64")
    one, two = world.pair(**more)
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24", "fd00:1::2/64")
    b = world.plug(two, net, "10.0.1.3/24", "fd00:1::3/64")
    world.gossip()
    return net, one, two, a, b


@pytest.mark.parametrize("underlay6", [False, True])
def test_plain_packets_take_it_and_others_do_not(world: Any, network: Any, underlay6: bool) -> None:
    """Fragments and options go through the stack, and arrive all the same."""
    net, one, _, a, b = joined(world, network, v6=underlay6)
    c = world.plug(one, net, "10.0.1.4/24", "fd00:1::4/64")
    for base in BASES:
        assert ttl(a, f"{base}3") == SHORT
        assert ttl(b, f"{base}2") == SHORT
        assert ttl(a, f"{base}4") == SHORT, "on one node there is one router"
        assert ttl(c, f"{base}2", "-s 1300") == SHORT
        assert ttl(a, f"{base}3", "-s 4000") == LONG, "fragments"
        assert a.ping(f"{base}1") == 1, "the gateway"
        b.call("serve", f"{base}3")
        assert a.call("fetch", f"{base}3", 1_000_000) == (f"{base}2", 1_000_000)
    assert ttl(a, "10.0.1.3", "-R") == LONG, "record route"


def test_what_ends_in_the_router_is_answered_by_it(world: Any, network: Any) -> None:
    """Too many hops, no such address: the router says so."""
    _, _, _, a, _ = joined(world, network)
    assert "Time to live exceeded" in a.sh("ping -n -c 1 -W 2 -t 1 10.0.1.3 || true")
    assert "Hop limit" in a.sh("ping -n -c 1 -W 2 -t 1 fd00:1::3 || true")
    assert "unreachable" in a.sh("ping -n -c 1 -W 2 fd00:1::99 || true")


def test_it_is_closed_while_services_are_translated(world: Any, network: Any) -> None:
    """Answers must pass connection tracking; with the last service it opens again."""
    net, one, two, a, _ = joined(world, network)
    vips = [ipaddress.ip_address("10.0.1.200"), ipaddress.ip_address("10.0.1.201")]
    for vip in vips:
        for node in (one, two):
            node.plane("change_vips", net.id, (vip,), ())
        assert ttl(a, "10.0.1.3") == LONG
        assert one.plane("check").drift == 0
    for vip, want in zip(vips, (LONG, SHORT), strict=True):
        for node in (one, two):
            node.plane("change_vips", net.id, (), (vip,))
        assert ttl(a, "10.0.1.3") == want
    for some, want in ((vips, LONG), ([], SHORT)):
        for node in (one, two):
            node.plane("set_vips", net.id, some)
        assert ttl(a, "fd00:1::3") == want


def test_a_translated_connection_is_answered(world: Any, network: Any) -> None:
    """With the rules that load balancing puts, from the first packet on."""
    net, one, _, a, b = joined(world, network)
    b.call("serve", "10.0.1.3")
    one.plane("change_vips", net.id, (ipaddress.ip_address("10.0.1.200"),), ())
    hook = "type nat hook prerouting priority -100"
    in_router(
        one,
        net,
        f"nft add table ip overswarm-services; "
        f'nft "add chain ip overswarm-services p {{ {hook}; }}"; '
        "nft add rule ip overswarm-services p ip daddr 10.0.1.200 dnat to 10.0.1.3",
    )
    assert a.call("fetch", "10.0.1.200", 100_000) == ("10.0.1.2", 100_000)


def test_another_daemon_finds_it_and_one_without_takes_it_away(world: Any, network: Any) -> None:
    """Nothing is to do for the one; nothing is left by the other, and packets pass."""
    net, one, two, a, _ = joined(world, network)
    state = [endpoint for node, endpoint in world.endpoints.values() if node is one]
    peers = [
        peer
        for node, endpoint in world.endpoints.values()
        if node is two
        for peer in world.peers_of(two, endpoint)
    ]
    wanted = Wanted(networks=(net,), endpoints=tuple(state), peers=tuple(peers))
    one.restart()
    assert one.plane("reconcile", wanted).operations == 0
    assert ttl(a, "10.0.1.3") == SHORT
    one.stop()
    one.settings = replace(one.settings, shortcuts=False)
    one.start()
    report = one.plane("reconcile", wanted)
    assert report.failed == ()
    assert report.operations > 0
    assert "block" not in in_router(one, net, "tc qdisc show")
    assert ttl(a, "10.0.1.3") == LONG


def test_a_tunnel_device_is_made_anew(world: Any, network: Any) -> None:
    """The block is gone with it; the programs are put again in the same step."""
    net, one, two, a, _ = joined(world, network)
    changed = replace(net, encrypted=False, mtu=1400)
    for node in (one, two):
        node.plane("put_network", changed)
    assert ttl(a, "10.0.1.3", "-s 1200") == SHORT
    in_router(one, net, "ip link del vx-001010")
    assert one.plane("check").failures == ()
    assert ttl(a, "10.0.1.3") == SHORT
    assert one.plane("check").drift == 0


def test_nothing_is_relayed(world: Any, network: Any) -> None:
    """Neither from one node to another nor between two tunnels of one network."""
    net = network(1, "10.0.1.0/24", "10.0.2.0/24")
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24")
    world.plug(two, net, "10.0.2.3/24")
    world.gossip()
    assert a.ping("10.0.2.3") == 1
    assert ttl(a, "10.0.2.3") == LONG, "its way back is the other tunnel"
    # Node two is told that the container of its own is node one's: packets would go back.
    two.plane("unplug", next(e.id for n, e in world.endpoints.values() if n is two))
    two.plane(
        "set_peer",
        replace(
            world.peers_of(one, world.endpoints[next(iter(world.endpoints))][1])[0],
            ip=ipaddress.ip_address("10.0.2.3"),
            mac="02:42:0a:00:02:03",
        ),
    )
    before = two.plane("counters", net.id).tx_packets
    assert a.ping("10.0.2.3", timeout=0.3) == 0
    assert two.plane("counters", net.id).tx_packets == before
