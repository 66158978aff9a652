"""The way out of the overlay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.dataplane import Wanted
from swarm.errors import ConflictError

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def plug_out(world: Any, node: Any, net: Any, address: str, box: Any = None) -> Any:
    """Plug a container that wants a default route."""
    box = box or world.box()
    endpoint = replace(world.endpoint(net, box, address), default_route=True)
    node.plane("plug", endpoint)
    world.endpoints[endpoint.id] = (node, endpoint)
    return box


def test_a_container_reaches_the_outside_with_the_hosts_address(world: Any, network: Any) -> None:
    """Masqueraded; nothing outside reaches it unasked, nor do containers reach each other so."""
    net = network(1)
    one, two = world.pair(planes=1)
    one.plane("put_network", net)
    a = plug_out(world, one, net, "10.0.1.2/24")
    b = plug_out(world, one, net, "10.0.1.3/24")
    two.call("serve", "192.0.2.2")
    assert a.call("fetch", "192.0.2.2", 1_000_000) == ("192.0.2.1", 1_000_000)
    assert b.ping("192.0.2.2", size=1500) == 1
    assert a.ping("10.0.1.3") == 1, "the overlay is as before"
    assert a.ping("172.30.0.3", timeout=0.1) == 0
    assert "172.30.0.2/16" in a.sh("ip addr show dev gw0")
    two.sh("ip route add 172.30.0.0/16 via 192.0.2.1; ip route add 198.51.100.0/24 via 192.0.2.1")
    assert two.ping("172.30.0.2", timeout=0.1) == 0
    # The host did not forward before us: it does not become a router for others.
    third = world.box()
    one.sh(
        f"ip link add t0 type veth peer name t0 netns {third.process.pid}; ip link set t0 up; "
        "ip addr add 198.51.100.1/24 dev t0"
    )
    third.sh(
        "ip link set t0 up; ip addr add 198.51.100.2/24 dev t0; ip route add default via 198.51.100.1"
    )
    assert third.ping("198.51.100.1") == 1
    assert third.ping("192.0.2.2", timeout=0.1) == 0


def test_a_container_cannot_speak_vxlan_as_its_host(world: Any, network: Any) -> None:
    """Its packets leave with the tunnel address, which the other nodes trust."""
    net = network(1)
    one, two = world.pair(planes=1)
    one.plane("put_network", net)
    a = plug_out(world, one, net, "10.0.1.2/24")
    for port, arrives in ((4789, False), (4790, True)):
        two.call("udp_count_start", "192.0.2.2", port)
        a.call("send_udp", "172.30.0.2", "192.0.2.2", port)
        assert bool(two.call("finish", "count")) is arrives


def test_ways_out_survive_a_restart_and_go_with_the_last(world: Any, network: Any) -> None:
    """Addresses in use are kept whatever the order; in the end the host is as it was."""
    net = network(1)
    one, two = world.pair(planes=1)
    two.call("serve", "192.0.2.2")
    clean = one.sh(
        "ip -o link | cut -d: -f2; nft list ruleset; ip route; cat /proc/sys/net/ipv4/ip_forward"
    )
    one.plane("put_network", net)
    boxes = [plug_out(world, one, net, f"10.0.1.{i}/24") for i in (2, 3, 4)]
    endpoints = [endpoint for _, endpoint in world.endpoints.values()]
    one.plane("unplug", endpoints[0].id)
    boxes[2].call("stream_start", "192.0.2.2")
    one.restart()
    wanted = Wanted(networks=(net,), endpoints=(endpoints[2], endpoints[1]))
    assert one.plane("reconcile", wanted).operations == 0
    assert one.plane("check").drift == 0
    assert boxes[2].call("finish", "stream") > 0
    one.sh(
        "nft delete table inet overswarm; ip link del $(ip -o link show group 28534 | cut -d: -f2 | cut -d@ -f1 | head -1)"
    )
    assert one.plane("check").drift > 0
    assert one.plane("check").drift == 0
    for box in boxes[1:]:
        assert box.call("fetch", "192.0.2.2", 1000) == ("192.0.2.1", 1000)
    one.plane("put_network", network(2))
    with pytest.raises(ConflictError):
        plug_out(world, one, network(2), "10.0.2.2/24", boxes[1])
    for endpoint in endpoints:
        one.plane("unplug", endpoint.id)
    assert clean == one.sh(
        "ip -o link | cut -d: -f2; nft list ruleset; ip route; cat /proc/sys/net/ipv4/ip_forward"
    )
    inner = network(3, internal=True)
    one.plane("put_network", inner)
    shut = plug_out(world, one, inner, "10.0.3.2/24")
    assert shut.ping("192.0.2.2", timeout=0.1) == 0
