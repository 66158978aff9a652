"""The way out of the overlay in IPv6, and what it leaves of the host's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.dataplane import Wanted

pytestmark = [pytest.mark.netns, pytest.mark.slow]

OUTSIDE = "2001:db8:ffff::9"
LEG = "fd6f:7673:7761:726d::"
STATE = (
    "ip -o link | cut -d: -f2; ip -6 addr | grep inet6 | sed 's/tentative//; s/ *$//'; "
    "ip -6 route | sed s/expires.*sec//; ip route; nft list ruleset; "
    "cd /proc/sys/net/ipv6/conf; for d in *; do echo $d $(cat $d/forwarding $d/accept_ra); done; "
    "cat /proc/sys/net/ipv4/ip_forward"
)


class Site:
    """A host with a dual-stack network, and the world behind its link."""

    def __init__(self, world: Any, network: Any) -> None:
        self.world = world
        self.net = network(1, "10.0.1.0/24", "fd00:1::/64")
        self.host, self.out = world.pair(planes=0)
        self.host.sh("ip -6 addr add 2001:db8:1::1/64 dev eth0 nodad")
        self.out.sh(
            f"ip -6 addr add 2001:db8:1::2/64 dev eth0 nodad; ip link set lo up; "
            f"ip -6 addr add {OUTSIDE}/128 dev lo nodad"
        )
        self.host.sh("ip -6 route add default via 2001:db8:1::2")

    def start(self) -> None:
        """Start the data plane; what there is before it does can be looked at."""
        self.host.start()
        self.host.plane("put_network", self.net)

    def plug(self, number: int, *, v6: bool = True, net: Any = None, box: Any = None) -> Any:
        """Plug a container that wants a default route."""
        box = box or self.world.box()
        net = net or self.net
        prefix = net.subnets[0].cidr.network_address
        addresses = [f"{prefix + number}/24"]
        if v6:
            addresses.append(f"{net.subnets[1].cidr.network_address + number}/64")
        endpoint = replace(self.world.endpoint(net, box, *addresses), default_route=True)
        self.host.plane("plug", endpoint)
        self.world.endpoints[endpoint.id] = (self.host, endpoint)
        return box

    @property
    def endpoints(self) -> list[Any]:
        """All plugged."""
        return [endpoint for _, endpoint in self.world.endpoints.values()]


@pytest.fixture
def site(world: Any, network: Any) -> Site:
    return Site(world, network)


def test_a_container_reaches_the_world_with_the_hosts_address(site: Site) -> None:
    """In both IP versions; unasked nothing comes in, nor do containers reach each other so."""
    site.start()
    a, b = site.plug(2), site.plug(3)
    for address, seen in ((OUTSIDE, "2001:db8:1::1"), ("192.0.2.2", "192.0.2.1")):
        site.out.call("serve", address)
        assert a.call("fetch", address, 1_000_000) == (seen, 1_000_000)
        assert b.ping(address, size=1500, timeout=5) == 1
        assert a.call("segment", address) <= 1460
    assert f"{LEG}2/64" in a.sh("ip -6 addr show dev gw0")
    assert a.ping("fd00:1::3", timeout=5) == 1, "the overlay is as before"
    assert a.ping(f"{LEG}3", timeout=0.1) == 0
    site.out.sh(f"ip -6 route add {LEG}/64 via 2001:db8:1::1")
    assert site.out.ping(f"{LEG}2", timeout=0.1) == 0
    # The host did not forward before us: it does not become a router for others.
    third = site.world.box()
    site.host.sh(
        f"ip link add t0 type veth peer name t0 netns {third.process.pid}; ip link set t0 up; "
        "ip -6 addr add 2001:db8:3::1/64 dev t0 nodad"
    )
    third.sh(
        "ip link set t0 up; ip -6 addr add 2001:db8:3::2/64 dev t0 nodad; "
        "ip -6 route add default via 2001:db8:3::1"
    )
    site.out.sh("ip -6 route add 2001:db8:3::/64 via 2001:db8:1::1")
    assert third.ping("2001:db8:3::1", timeout=5) == 1
    assert third.ping(OUTSIDE, timeout=0.3) == 0
    site.plug(4, v6=False)
    assert "disable_ipv6 = 1" in site.host.sh("sysctl -a -r 'ipv6.conf.gw.*disable_ipv6'"), (
        "who has no IPv6 in the overlay has none outside"
    )


def test_a_container_cannot_pass_for_another_nor_speak_vxlan(site: Site) -> None:
    """Its own address only, no advertisements to the host, no tunnel packets as the host."""
    site.start()
    a = site.plug(2)
    a.sh(f"ip -6 addr add {LEG}77/128 dev gw0 nodad")
    for source, port, arrives in (
        (f"{LEG}2", 4790, True),
        (f"{LEG}2", 4789, False),
        (f"{LEG}77", 4790, False),
    ):
        site.out.call("udp_count_start", OUTSIDE, port)
        a.call("send_udp", source, OUTSIDE, port)
        assert bool(site.out.call("finish", "count")) is arrives, (source, port)
    leg = site.host.sh("ip -o link show group 28534 | cut -d: -f2 | cut -d@ -f1").strip()
    assert site.host.sh(f"cat /proc/sys/net/ipv6/conf/{leg}/accept_ra").strip() == "0"
    assert "fe80" not in site.host.sh(f"ip -6 addr show dev {leg}")


def test_without_a_route_on_the_host_a_container_hears_so_at_once(site: Site) -> None:
    """As from the host itself: programs go on with IPv4 without waiting."""
    site.host.sh("ip -6 route del default")
    site.start()
    a = site.plug(2)
    assert a.call("refusal", OUTSIDE) == "ENETUNREACH"
    assert a.call("refusal", "192.0.2.2") == "ECONNREFUSED"


def test_what_the_host_has_of_ipv6_stays_as_it_was(site: Site) -> None:
    """No device becomes a router's, and a default route from an advertisement stays; at the end nothing is left."""
    site.host.sh("ip -6 route del default")
    site.out.sh(
        "sysctl -qw net.ipv6.conf.eth0.forwarding=1; ip -6 addr add fe80::99/64 dev eth0 nodad"
    )
    site.out.call("advertise", "fe80::99", "eth0")
    site.host.sh(
        "for i in $(seq 300); do ip -6 route show default | grep -q . && break; sleep 0.01; done"
    )
    parts = "cd /proc/sys/net/ipv6/conf; for d in lo eth0 default; do cat $d/forwarding $d/accept_ra; done"
    before, clean = site.host.sh(parts), site.host.sh(STATE)
    assert before.split() == ["0", "1"] * 3
    site.start()
    site.plug(2)
    assert site.host.sh("cat /proc/sys/net/ipv6/conf/all/forwarding").strip() == "1"
    assert site.host.sh(parts) == before
    assert "proto ra" in site.host.sh("ip -6 route show default")
    site.out.call("serve", OUTSIDE)
    assert site.plug(3).call("fetch", OUTSIDE)[0] == "2001:db8:1::1"
    for endpoint in site.endpoints:
        site.host.plane("unplug", endpoint.id)
    site.host.plane("remove_network", site.net.id)
    assert site.host.sh(STATE) == clean


def test_a_host_that_was_a_router_stays_one(site: Site) -> None:
    """It goes on forwarding for others while we are there and after."""
    site.host.sh("sysctl -qw net.ipv6.conf.all.forwarding=1 net.ipv6.conf.eth0.accept_ra=2")
    clean = site.host.sh(STATE)
    third = site.world.box()
    site.start()
    site.plug(2)
    site.host.sh(
        f"ip link add t0 type veth peer name t0 netns {third.process.pid}; ip link set t0 up; "
        "ip -6 addr add 2001:db8:3::1/64 dev t0 nodad"
    )
    third.sh(
        "ip link set t0 up; ip -6 addr add 2001:db8:3::2/64 dev t0 nodad; "
        "ip -6 route add default via 2001:db8:3::1"
    )
    site.out.sh("ip -6 route add 2001:db8:3::/64 via 2001:db8:1::1")
    assert third.ping(OUTSIDE, timeout=5) == 1
    site.host.sh("ip link del t0")
    site.host.plane("unplug", site.endpoints[0].id)
    site.host.plane("remove_network", site.net.id)
    assert site.host.sh(STATE) == clean


def test_ways_out_survive_a_restart_and_are_mended(site: Site, network: Any) -> None:
    """Addresses in use are kept; what somebody takes away comes back; an internal network has none."""
    site.start()
    boxes = [site.plug(number) for number in (2, 3)]
    endpoints = site.endpoints
    site.out.call("serve", OUTSIDE)
    boxes[1].call("stream_start", OUTSIDE)
    site.host.restart()
    wanted = Wanted(networks=(site.net,), endpoints=(endpoints[1], endpoints[0]))
    assert site.host.plane("reconcile", wanted).operations == 0
    assert site.host.plane("check").drift == 0
    assert boxes[1].call("finish", "stream") > 0
    site.host.sh("sysctl -qw net.ipv6.conf.all.forwarding=0; nft delete table inet overswarm")
    boxes[0].sh("ip -6 route del default")
    assert site.host.plane("check").drift > 0
    assert site.host.plane("check").drift == 0
    for box in boxes:
        assert box.call("fetch", OUTSIDE)[0] == "2001:db8:1::1"
    inner = network(3, "10.0.3.0/24", "fd00:3::/64", internal=True)
    site.host.plane("put_network", inner)
    shut = site.plug(2, net=inner)
    assert shut.call("refusal", OUTSIDE) == "ENETUNREACH"
    assert shut.call("refusal", "192.0.2.2") == "ENETUNREACH"
    assert "default" not in shut.sh("ip -6 route; ip route")
