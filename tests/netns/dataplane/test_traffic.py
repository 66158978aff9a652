"""Packets between containers on two nodes."""

from __future__ import annotations

from typing import Any

import pytest

from swarm.errors import ConflictError

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def two_nodes(world: Any, net: Any, **more: Any) -> tuple[Any, Any]:
    """Return two nodes with the network on both."""
    one, two = world.pair(**more)
    for node in (one, two):
        node.plane("put_network", net)
    return one, two


def inside(node: Any, command: str) -> None:
    """Run a shell command in the routers of a node."""
    node.sh(
        f"for n in {node.settings.run_dir}/netns/*; do nsenter --net=$n sh -c '{command}'; done"
    )


def test_containers_reach_each_other_on_one_node_and_across(world: Any, network: Any) -> None:
    """Full-size packets pass without fragmentation; a byte more does not leave the interface."""
    net = network(1)
    one, two = two_nodes(world, net)
    a = world.plug(one, net, "10.0.1.2/24")
    b = world.plug(one, net, "10.0.1.3/24")
    c = world.plug(two, net, "10.0.1.4/24")
    world.gossip()
    assert a.ping("10.0.1.3", size=1450) == 1, "first packet, same node"
    assert a.ping("10.0.1.4", size=1450) == 1, "first packet, other node"
    assert a.ping("10.0.1.4", size=1451) == 0
    assert c.ping("10.0.1.2", count=20) == 20
    assert b.ping("10.0.1.1") == 1, "the gateway is the router"
    assert a.ping("10.0.1.99", timeout=0.1) == 0
    c.call("serve", "10.0.1.4")
    assert a.call("fetch", "10.0.1.4", 3_000_000) == ("10.0.1.2", 3_000_000)
    counters = one.plane("counters", net.id)
    assert counters.tx_bytes > 3_000_000
    assert counters.rx_bytes > 3_000_000
    assert "10.0.1.2/24" in a.sh("ip -4 -o addr show dev eth0")
    assert "mtu 1450" in a.sh("ip link show dev eth0")
    assert a.call("read", "/proc/sys/net/ipv6/conf/eth0/disable_ipv6") == "1"


@pytest.mark.parametrize("v6", [False, True])
def test_subnets_of_a_network_are_routed_and_carry_ipv6(world: Any, network: Any, v6: bool) -> None:
    """Two IPv4 ranges and one IPv6 range, each reachable from everywhere; over either underlay."""
    net = network(1, "10.0.1.0/24", "10.0.2.0/24", "fd00:1::/64")
    one, two = two_nodes(world, net, v6=v6)
    a = world.plug(one, net, "10.0.1.2/24", "fd00:1::2/64")
    b = world.plug(one, net, "10.0.2.2/24", "fd00:1::3/64")
    c = world.plug(two, net, "10.0.2.3/24", "fd00:1::4/64")
    d = world.plug(two, net, "10.0.1.4/24")
    world.gossip()
    for address in ("10.0.2.2", "10.0.2.3", "10.0.1.4", "fd00:1::3", "fd00:1::4", "fd00:1::1"):
        assert a.ping(address, size=1430 if v6 else 1450, timeout=1.0) == 1, address
    assert c.ping("fd00:1::2", count=5) == 5
    assert d.ping("10.0.2.2") == 1
    assert b.ping("fd00:1::99", timeout=0.1) == 0
    c.call("serve", "fd00:1::4")
    assert a.call("fetch", "fd00:1::4", 500_000) == ("fd00:1::2", 500_000)


def test_an_ipv6_underlay_carries_less(world: Any, network: Any) -> None:
    """The outer header is 20 bytes longer, so the MTU is 1430, and such packets pass."""
    net = network(1)
    one, two = world.pair(v6=True)
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24")
    world.plug(two, net, "10.0.1.3/24")
    world.gossip()
    assert one.plane("path_mtu") == 1430
    assert "mtu 1430" in a.sh("ip link show dev eth0")
    assert a.ping("10.0.1.3", size=1430) == 1


def test_the_mtu_follows_the_underlay(world: Any, network: Any) -> None:
    """A jumbo network gets what the underlay carries, and shrinks with it while running."""
    net = network(1, mtu=8900)
    one, two = world.pair(mtu=9000)
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24")
    b = world.plug(two, net, "10.0.1.3/24")
    world.gossip()
    assert a.ping("10.0.1.3", size=8900) == 1
    for node in (one, two):
        node.sh("ip link set eth0 mtu 1400")
        node.plane("check")
    assert "mtu 1350" in a.sh("ip link show dev eth0")
    assert a.ping("10.0.1.3", size=1350) == 1
    assert b.ping("10.0.1.2", size=1350) == 1


def test_networks_are_apart(world: Any, network: Any) -> None:
    """A container reaches the networks it is on and no other, not even through its neighbour."""
    red, blue = network(1), network(2)
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", red)
        node.plane("put_network", blue)
    a = world.plug(one, red, "10.0.1.2/24")
    b = world.plug(one, blue, "10.0.2.2/24")
    both = world.plug(two, red, "10.0.1.3/24")
    world.plug(two, blue, "10.0.2.3/24", box=both, ifname="eth1")
    world.gossip()
    assert a.ping("10.0.1.3") == 1
    assert b.ping("10.0.2.3") == 1
    assert both.ping("10.0.1.2") == 1
    assert both.ping("10.0.2.2") == 1
    for box, gateway, target in ((a, "10.0.1.1", "10.0.2.2"), (b, "10.0.2.1", "10.0.1.2")):
        assert box.ping(target, timeout=0.1) == 0
        box.sh(f"ip route add default via {gateway}")
        assert box.ping(target, timeout=0.1) == 0
        assert box.ping("192.0.2.1", timeout=0.1) == 0, "the host is not reachable either"


def test_a_removed_peer_is_unreachable_and_comes_back(world: Any, network: Any) -> None:
    """Peer records switch reachability on and off, and a moved endpoint is followed."""
    net = network(1)
    one, two = two_nodes(world, net)
    a = world.plug(one, net, "10.0.1.2/24")
    world.plug(two, net, "10.0.1.3/24")
    world.gossip()
    _, far = world.endpoints[list(world.endpoints)[1]]
    for _ in range(3):
        assert a.ping("10.0.1.3") == 1
        one.plane("remove_peer", net.id, far.addresses[0].ip)
        assert a.ping("10.0.1.3", timeout=0.1) == 0
        world.gossip()
    # The address moves to this node: the record of the old place lies dormant, then rules again.
    near = world.box()
    moved = world.endpoint(net, near, "10.0.1.3/24")
    one.plane("plug", moved)
    near.call("serve", "10.0.1.3")
    assert a.call("fetch", "10.0.1.3")[0] == "10.0.1.2"
    one.plane("unplug", moved.id)
    assert a.ping("10.0.1.3") == 1


@pytest.mark.parametrize("shortcuts", [False, True])
@pytest.mark.parametrize("v6", [False, True])
def test_nobody_speaks_with_anothers_address(
    world: Any, network: Any, v6: bool, shortcuts: bool
) -> None:
    """Spoofed packets are dropped at the container's own link and at the tunnel."""
    net = network(1, "10.0.1.0/24", "fd00:1::/64")
    one, two = two_nodes(world, net, shortcuts=shortcuts)
    a = world.plug(one, net, "10.0.1.2/24", "fd00:1::2/64")
    b = world.plug(one, net, "10.0.1.3/24", "fd00:1::3/64")
    c = world.plug(two, net, "10.0.1.4/24", "fd00:1::4/64")
    world.gossip()
    base, bits = ("fd00:1::", 128) if v6 else ("10.0.1.", 32)
    assert a.ping(f"{base}3") == 1
    assert c.ping(f"{base}3") == 1
    b.call("udp_count_start", f"{base}3")
    # The spoofers take the addresses on as their own, so that their kernels send them.
    nodad = "nodad" if v6 else ""  # else it may not be used before a kernel thread has run
    a.sh(f"ip addr add {base}4/{bits} dev lo {nodad}; ip addr add {base}77/{bits} dev lo {nodad}")
    for source in ("4", "77", "2"):
        a.call("send_udp", f"{base}{source}", f"{base}3")
    assert b.call("finish", "count") == [f"{base}2"]
    # The other node is not ours to trust: nothing filters there.
    inside(two, "nft delete table ip6 overswarm")
    inside(two, "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done")
    c.sh(f"ip addr add {base}2/{bits} dev lo {nodad}")
    b.call("udp_count_start", f"{base}3", 7779)
    for source in ("2", "4"):
        c.call("send_udp", f"{base}{source}", f"{base}3", 7779)
    assert b.call("finish", "count") == [f"{base}4"]
    # The same without our guard, to know that it was the guard; a check puts it back.
    inside(
        one,
        "nft -a list chain netdev overswarm vx-001010 | grep saddr | while read rule; do "
        'nft delete rule netdev overswarm vx-001010 handle "${rule##* }"; done',
    )
    b.call("udp_count_start", f"{base}3", 7780)
    c.call("send_udp", f"{base}2", f"{base}3", 7780)
    assert b.call("finish", "count") == [f"{base}2"]
    assert one.plane("check").drift > 0
    b.call("udp_count_start", f"{base}3", 7781)
    c.call("send_udp", f"{base}2", f"{base}3", 7781)
    assert b.call("finish", "count") == []
    assert one.plane("check").drift == 0


def test_segments_are_clamped_to_what_the_tunnel_carries(world: Any, network: Any) -> None:
    """Also when both containers have raised the MTU of their interfaces."""
    net = network(1, "10.0.1.0/24", "fd00:1::/64")
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24", "fd00:1::2/64")
    b = world.plug(two, net, "10.0.1.3/24", "fd00:1::3/64")
    world.gossip()
    for address, headers in (("10.0.1.3", 20), ("fd00:1::3", 40)):
        b.call("serve", address)
        usual = a.call("segment", address)
        assert usual == 1450 - headers - 20 - 12  # TCP and its time stamps
        for box in (a, b):
            box.sh("ip link set eth0 mtu 1500")
        assert a.call("segment", address) == usual
        assert a.call("fetch", address, 200_000)[1] == 200_000
        for box in (a, b):
            box.sh("ip link set eth0 mtu 1450")


def test_a_subnet_of_the_hosts_own_is_refused(world: Any, network: Any) -> None:
    """Before anything is made; the text names subnet, route and device."""
    one, _ = world.pair(planes=1)
    one.sh("ip link add lan0 type veth peer name lan1; ip addr add 10.0.1.5/24 dev lan0")
    one.sh("ip link set lan0 up; ip link set lan1 up; ip route add 10.8.0.0/16 via 10.0.1.9")
    for net in (network(1), network(2, "10.8.0.0/16")):
        with pytest.raises(ConflictError, match="this host reaches by lan0"):
            one.plane("put_network", net)
    assert not list((one.settings.run_dir / "netns").glob("*"))
    one.plane("put_network", network(3, "10.8.1.0/24"))
