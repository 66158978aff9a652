"""What is found on the way to other nodes, and what follows from it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

pytestmark = [pytest.mark.netns, pytest.mark.slow]


class Routed:
    """Two nodes with a router between them, and a container on each."""

    def __init__(self, world: Any, network: Any, *, v6: bool = False) -> None:
        self.hub, (self.one, self.two) = world.site(2, v6=v6)
        self.v6 = v6
        net = network(1)
        for node in (self.one, self.two):
            node.plane("put_network", net)
        self.a = world.plug(self.one, net, "10.0.1.2/24")
        self.b = world.plug(self.two, net, "10.0.1.3/24")
        world.gossip()

    def probe(self) -> None:
        """Let both try: the first time one asks, the other may not be there to answer."""
        self.one.plane("probe_paths")
        assert self.two.plane("probe_paths") == 1
        assert self.one.plane("probe_paths") == 1

    def swallow(self, size: int) -> None:
        """Let the switch lose larger packets without a word, as some paths do."""
        self.hub.sh(
            "nft add table bridge small; nft 'add chain bridge small f "
            "{ type filter hook forward priority 0; }'; "
            f"nft add rule bridge small f meta length gt {size} drop"
        )


@pytest.mark.parametrize("v6", [False, True])
def test_a_path_that_takes_less_lowers_the_mtu_until_it_takes_more(
    world: Any, network: Any, v6: bool
) -> None:
    """Nobody says that packets are lost: they are sought and found, to four bytes."""
    site = Routed(world, network, v6=v6)
    usual, overhead = (1430, 70) if v6 else (1450, 50)
    site.probe()
    for node in (site.one, site.two):
        assert node.plane("path_mtu") == usual
        assert node.plane("stats").path_mtu == 0
    site.swallow(1402)
    assert site.a.ping("10.0.1.3", size=usual, timeout=0.2) == 0
    site.probe()
    for node, box in ((site.one, site.a), (site.two, site.b)):
        found = node.plane("stats").path_mtu
        assert 1402 - 4 < found <= 1402
        assert node.plane("path_mtu") == found - overhead
        assert f"mtu {found - overhead}" in box.sh("ip link show dev eth0")
    assert site.a.ping("10.0.1.3", size=found - overhead) == 1
    site.hub.sh("nft delete table bridge small")
    site.probe()
    for node, box in ((site.one, site.a), (site.two, site.b)):
        assert node.plane("path_mtu") == usual
        assert f"mtu {usual}" in box.sh("ip link show dev eth0")
    assert site.a.ping("10.0.1.3", size=usual) == 1


def test_of_a_node_that_says_nothing_nothing_is_concluded(world: Any, network: Any) -> None:
    """As with a Docker engine, and with a node that is gone."""
    site = Routed(world, network)
    site.probe()
    site.hub.sh("ip link set p2 down")
    assert site.one.plane("probe_paths") == 0
    assert site.one.plane("path_mtu") == 1450
    assert not site.one.plane("stats").software_checksums


@pytest.mark.parametrize("after", [0.0, 0.02])
def test_everything_may_go_while_a_path_is_tried(world: Any, network: Any, after: float) -> None:
    """As when a host leaves right after it has joined: no socket of the trial is used once it is closed."""
    site = Routed(world, network)
    site.hub.sh("ip link set p2 down")
    assert site.one.call("destroy_amid_probe", after) == "cancelled"


def seed(size: int, source: str, target: str) -> int:
    """Return what the kernel leaves in a UDP checksum field for a device to complete."""
    packed = b"".join(bytes(map(int, ip.split("."))) for ip in (source, target))
    total = sum(struct.unpack("!4H", packed)) + 17 + size
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_a_device_that_spoils_checksums_is_found_out(world: Any, network: Any) -> None:
    """Its work is done before then; containers that were cut off reach each other again."""
    site = Routed(world, network)
    # The device is node one's: of checksums left to it, it makes wrong ones. Those of these packets are
    # known by the seed that stands in the field until then.
    seeds = ", ".join(
        f"{seed(size, *ends):#06x}"
        for ends in (("192.0.2.1", "192.0.2.2"), ("10.0.1.2", "10.0.1.3"))
        for size in (108, 13)
    )
    site.one.call("sums_by_device", "eth0", on=False)
    site.one.sh(
        "nft add table netdev spoil; "
        "nft 'add chain netdev spoil out { type filter hook egress device eth0 priority 0; }'; "
        # Behind outer UDP (8), VXLAN (8), Ethernet (14) and IP (20) is UDP, its checksum at byte 6.
        f"nft 'add rule netdev spoil out udp dport 4789 @th,448,16 {{ {seeds} }} "
        "@th,448,16 set 0xdead'"
    )
    site.b.call("serve", "10.0.1.3")
    assert not site.a.call("udp_from", "10.0.1.2", "10.0.1.3"), "so it is without this"
    site.probe()
    assert site.one.plane("stats").software_checksums
    assert not site.two.plane("stats").software_checksums
    assert site.a.call("udp_from", "10.0.1.2", "10.0.1.3")
    assert site.one.plane("check").drift == 0


def test_a_newcomer_is_answered_as_soon_as_it_is_known(world: Any, network: Any) -> None:
    """A container that answers before its node knows where to does not wait for a second afterwards."""
    net = network(1)
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", net)
    a = world.plug(one, net, "10.0.1.2/24")
    b = world.plug(two, net, "10.0.1.3/24")
    (a_endpoint, b_endpoint) = (endpoint for _, endpoint in world.endpoints.values())
    (b_peer,), (a_peer,) = world.peers_of(two, b_endpoint), world.peers_of(one, a_endpoint)
    one.plane("set_peer", b_peer)
    a.call("ping_start", "10.0.1.3", 0.0, 0.9)
    b.sh("for i in $(seq 100); do ip neigh show 10.0.1.2 | grep -q INCOMPLETE && break; done")
    two.plane("set_peer", a_peer)
    sent, got = a.call("ping_stop")
    assert sent == got, "the answers waited, and none for the next second"
