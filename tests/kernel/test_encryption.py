"""Encrypted networks under a kernel that has ESP: what passes, what never does."""

from __future__ import annotations

from typing import Any

import pytest
from kernel import wire
from netns.dataplane.test_docker import Engine, introduce

from agent.dataplane import IpsecKey, Wanted
from agent.dataplane.crypto import spi

KEYS = [IpsecKey(lamport=1000 + n, key=bytes([n + 1]) * 16) for n in range(13)]
SECRET, PLAIN = 0x1010, 0x1020
"""VNIs of network 1, which is encrypted, and network 2, which is not."""
SLOW = 5.0
"""Seconds that an answer may take here: the machine is emulated."""


class Site:
    """Nodes on a switch; a and b are on the encrypted network, c and d on the plain one."""

    def __init__(
        self,
        world: Any,
        network: Any,
        *,
        keys: Any = KEYS[:3],
        v6: bool = False,
        port: int = 4789,
        nodes: int = 2,
    ) -> None:
        self.world, self.port = world, port
        self.hub, (self.one, self.two, *self.others) = world.site(nodes, v6=v6, port=port)
        self.secret, self.plain = network(1, encrypted=True), network(2)
        for node in (self.one, self.two):
            node.plane("put_network", self.secret)
            node.plane("put_network", self.plain)
            if keys is not None:
                node.plane("set_keys", keys)
        self.a = world.plug(self.one, self.secret, "10.0.1.2/24")
        self.b = world.plug(self.two, self.secret, "10.0.1.3/24")
        self.c = world.plug(self.one, self.plain, "10.0.2.2/24")
        self.d = world.plug(self.two, self.plain, "10.0.2.3/24")

    def capture(self) -> None:
        """Watch node one's cable."""
        self.hub.call("capture_start", "p1")

    def frames(self) -> list[bytes]:
        """Return what was on the cable, after a check that it was really watched."""
        assert self.c.ping("10.0.2.3", count=3, timeout=SLOW) == 3, "the plain network passes"
        frames: list[bytes] = self.hub.call("finish", "capture")
        assert wire.kinds(frames, self.port)[f"vxlan {PLAIN}"] >= 6, "and in clear"
        return frames

    def wanted(self, node: Any) -> Wanted:
        """Return what a data plane that starts anew on a node is told."""
        owned = self.world.endpoints.values()
        return Wanted(
            networks=(self.secret, self.plain),
            endpoints=tuple(endpoint for owner, endpoint in owned if owner is node),
            peers=tuple(
                peer
                for owner, endpoint in owned
                if owner is not node
                for peer in self.world.peers_of(owner, endpoint)
            ),
        )


@pytest.mark.parametrize(("v6", "port", "mtu"), [(False, 4789, 1424), (True, 4790, 1404)])
def test_only_esp_is_on_the_wire(world: Any, network: Any, v6: bool, port: int, mtu: int) -> None:
    """Under Docker's SPIs, full-size packets in one piece each; a byte more does not leave."""
    site = Site(world, network, v6=v6, port=port)
    world.gossip()
    site.capture()
    assert site.a.ping("10.0.1.3", count=3, timeout=SLOW) == 3
    assert site.a.ping("10.0.1.3", size=mtu, timeout=SLOW) == 1
    assert site.a.ping("10.0.1.3", size=mtu + 1, timeout=0.2) == 0
    assert f"mtu {mtu}" in site.a.sh("ip link show dev eth0")
    site.b.call("serve", "10.0.1.3")
    assert site.a.call("fetch", "10.0.1.3", 200_000, timeout=30) == ("10.0.1.2", 200_000)
    frames = site.frames()
    kinds = wire.kinds(frames, port)
    assert kinds["esp"] >= 8
    assert kinds[f"vxlan {SECRET}"] == kinds["fragment"] == 0
    assert max(map(len, frames)) == 1514, "a full-size packet fills the underlay to the byte"
    one, two, tag = site.one.vtep, site.two.vtep, KEYS[1].tag
    assert wire.spis(frames, one) == {spi(one, two, tag)}
    assert wire.spis(frames, two) == {spi(two, one, tag)}
    for node in (site.one, site.two):
        assert node.plane("check").drift == 0
        shown = node.plane("encryption")
        assert shown.vnis == {SECRET}
        assert shown.associations == (4 if v6 else 7)
        assert shown.dropped_in == shown.dropped_out == 0


def test_keys_rotate_under_traffic_without_loss(
    world: Any, network: Any, record_property: Any
) -> None:
    """Ten rotations, one node after the other; each key transmits in its turn, nothing in clear."""
    site = Site(world, network)
    world.gossip()
    assert site.a.ping("10.0.1.3", timeout=SLOW) == 1
    site.capture()
    site.a.call("ping_start", "10.0.1.3", 0.01, 30.0)
    site.b.call("ping_start", "10.0.1.2", 0.01, 30.0)
    for first in range(1, 11):
        for node in (site.one, site.two):
            node.plane("set_keys", KEYS[first : first + 3])
            assert site.c.ping("10.0.2.3", count=20, timeout=SLOW) == 20
    results = [site.a.call("ping_stop"), site.b.call("ping_stop")]
    record_property("pings sent and answered", results)
    for sent, got in results:
        assert sent == got
        assert sent > 50
    frames = site.frames()
    assert wire.kinds(frames)[f"vxlan {SECRET}"] == 0
    one, two = site.one.vtep, site.two.vtep
    assert wire.spis(frames, one) == {spi(one, two, key.tag) for key in KEYS[1:12]}
    record_property("frames", dict(wire.kinds(frames)))
    for node in (site.one, site.two):
        errors = node.sh("grep -v '\t0$' /proc/net/xfrm_stat || true")
        record_property("IPsec errors", errors)
    assert site.one.plane("check").drift == 0
    # Three live and three withdrawn keys, two forms each; the way out and three former ones.
    assert site.one.plane("encryption").associations == 16


def test_without_common_keys_nothing_passes(world: Any, network: Any) -> None:
    """No keys, other keys, withdrawn keys: silence, not clear text; with them it works at once."""
    site = Site(world, network, keys=None)
    world.gossip()
    site.capture()
    for steps in ((None, None), (KEYS[:3], None), (KEYS[:3], KEYS[6:9]), ((), ())):
        for node, keys in zip((site.one, site.two), steps, strict=True):
            if keys is not None:
                node.plane("set_keys", keys)
        assert site.a.ping("10.0.1.3", count=2, timeout=0.2) == 0
        assert site.b.ping("10.0.1.2", count=2, timeout=0.2) == 0
    site.one.plane("set_keys", KEYS[:3])
    site.two.plane("set_keys", KEYS[:3])
    assert site.a.ping("10.0.1.3", count=2, timeout=SLOW) == 2
    kinds = wire.kinds(site.frames())
    assert kinds["esp"] >= 4
    assert kinds[f"vxlan {SECRET}"] == 0


@pytest.mark.parametrize(("v6", "port"), [(False, 4789), (True, 4790)])
def test_clear_frames_of_a_third_host_are_dropped(
    world: Any, network: Any, v6: bool, port: int, record_property: Any
) -> None:
    """Before keys, alone, and with peers; with its own address and the peer's; also in fragments.

    CVE-2023-28840 (an administrator's earlier accept), 28842 (no peers yet), 28841 and the
    non-default port.
    """
    site = Site(world, network, keys=None, v6=v6, port=port, nodes=3)
    (third,) = site.others
    third.ping(str(site.two.vtep), timeout=SLOW)
    macs = (mac_of(third), mac_of(site.two))
    site.two.sh(
        "nft add table inet admin; nft 'add chain inet admin in "
        "{ type filter hook input priority -400; }'; "
        f"nft add rule inet admin in udp dport {port} accept"
    )
    total = 0

    def attack() -> int:
        """Inject every kind of frame; returns how many were whole datagrams."""
        number = 0
        for source in (third.vtep, site.one.vtep):
            for cut in (0,) if v6 else (0, 8, 16, 24):
                for net, box in ((SECRET, "10.0.1"), (PLAIN, "10.0.2")):
                    middle = "01" if net == SECRET else "02"
                    pair = tuple(f"02:42:0a:00:{middle}:{n:02x}" for n in (2, 3))
                    inner = wire.datagram(f"{box}.2", f"{box}.3", pair, 7778)
                    frames = wire.outer(
                        source, site.two.vtep, macs, port, wire.vxlan(net, inner), cut
                    )
                    third.call("inject", "eth0", frames * 5)
                    number += 5 if net == SECRET else 0
        return number

    for stage in ("before keys", "alone", "with peers"):
        if stage == "alone":
            for node in (site.one, site.two):
                node.plane("set_keys", KEYS[:3])
        elif stage == "with peers":
            world.gossip()
            assert site.a.ping("10.0.1.3", timeout=SLOW) == 1
        before = site.two.plane("counters", site.secret.id).rx_packets
        site.b.call("udp_count_start", "10.0.1.3")
        site.d.call("udp_count_start", "10.0.2.3")
        count = attack()
        total += count
        wait_for(site.two, total)
        plain = site.d.call("finish", "count")
        assert len(plain) == count, f"{stage}: a plain network takes anybody's frames"
        assert site.b.call("finish", "count") == [], stage
        assert site.two.plane("counters", site.secret.id).rx_packets == before, stage
        assert site.two.plane("encryption").dropped_in == total, stage
        record_property(f"{stage}: injected, dropped, taken by plain", (count, count, len(plain)))


def wait_for(node: Any, dropped: int) -> None:
    """Ask a node until it has dropped that many frames; each turn is a call to another process."""
    for _ in range(300):
        if node.plane("encryption").dropped_in >= dropped:
            return
    pytest.fail("the frames never came")


def mac_of(node: Any) -> str:
    """Return the MAC of a node's underlay interface."""
    text: str = node.sh("ip -o link show eth0 | sed 's/.*ether //; s/ .*//'")
    return text.strip()


def test_esp_of_somebody_else_is_no_way_in(world: Any, network: Any) -> None:
    """Frames inside valid ESP of another program's association on this host are dropped."""
    site = Site(world, network, nodes=3)
    (third,) = site.others
    world.gossip()
    aead = f"aead 'rfc4106(gcm(aes))' 0x{'42' * 20} 64"
    state = (
        f"ip xfrm state add src {third.vtep} dst {site.two.vtep} proto esp spi 0x4242 reqid 7 "
        f"mode transport {aead}"
    )
    site.two.sh(state)
    third.sh(
        f"{state}; ip xfrm policy add dir out src {third.vtep} dst {site.two.vtep} proto udp "
        f"tmpl src {third.vtep} dst {site.two.vtep} proto esp reqid 7 mode transport"
    )
    pair = ("02:42:0a:00:01:02", "02:42:0a:00:01:03")
    payload = wire.vxlan(SECRET, wire.datagram("10.0.1.2", "10.0.1.3", pair, 7778))
    site.b.call("udp_count_start", "10.0.1.3")
    third.call("send_payload", str(site.two.vtep), 4789, payload, 5)
    wait_for(site.two, 5)
    assert site.b.call("finish", "count") == []
    assert site.two.plane("check").drift == 0
    assert "spi 0x00004242" in site.two.sh("ip xfrm state"), "another's association is left alone"


DAMAGE = {
    "inet table": ("nft delete table inet overswarm-ipsec", True),
    "netdev table": ("nft delete table netdev overswarm-ipsec", True),
    "all of nftables": ("nft flush ruleset", True),
    "elements": ("nft flush set inet overswarm-ipsec vnis", True),
    "association": ("ip xfrm state flush", False),
    "policies": ("ip xfrm policy flush", False),
    "allow policy": (
        "ip xfrm policy del dir out index "  # noqa: ISC004  # one command
        "$(ip -s xfrm policy | sed -n 's/.*index \\([0-9]*\\) priority 0 .*/\\1/p' | head -1)",
        False,
    ),
}


def test_no_damage_by_hand_opens_it(world: Any, network: Any, record_property: Any) -> None:
    """Without any agent to repair: whichever layer is lost, the other holds; then it is repaired."""
    site = Site(world, network)
    world.gossip()
    assert site.a.ping("10.0.1.3", timeout=SLOW) == 1
    site.one = world.successor(site.one)
    for what, (command, passes) in DAMAGE.items():
        site.capture()
        site.one.sh(command)
        got = site.a.ping("10.0.1.3", count=5, timeout=2.0 if passes else 0.2)
        kinds = wire.kinds(site.frames())
        record_property(what, (got, dict(kinds)))
        assert kinds[f"vxlan {SECRET}"] == 0, what
        assert got == (5 if passes else 0), what
        assert (kinds["esp"] > 0) is passes, what
        site.one.start()
        site.one.plane("set_keys", KEYS[:3])
        assert site.one.plane("reconcile", site.wanted(site.one)).operations > 0, what
        assert site.one.plane("check").drift == 0, what
        site.one.stop()
        assert site.a.ping("10.0.1.3", timeout=SLOW) == 1, what


def test_a_flush_is_repaired_at_once(world: Any, network: Any) -> None:
    """The data plane hears of it; it does not wait for the slow comparison (an hour here)."""
    site = Site(world, network)
    world.gossip()
    for command in ("nft flush ruleset", "ip xfrm policy flush", "ip xfrm state flush"):
        site.one.sh(command)
        for _ in range(200):
            shown = site.one.plane("encryption")
            if (shown.vnis, len(shown.peers), shown.associations) == ({SECRET}, 1, 7):
                break
        else:
            pytest.fail(f"{command} was not repaired: {shown}")
        assert site.a.ping("10.0.1.3", timeout=SLOW) == 1
    assert site.one.plane("check").drift == 0


@pytest.mark.parametrize("keys_first", [True, False])
def test_a_killed_agent_is_not_missed(
    world: Any, network: Any, keys_first: bool, record_property: Any
) -> None:
    """SIGKILL and a new one under traffic: no packet lost, none in clear, nothing to do."""
    site = Site(world, network)
    world.gossip()
    assert site.a.ping("10.0.1.3", timeout=SLOW) == 1
    site.capture()
    site.a.call("ping_start", "10.0.1.3", 0.01, 30.0)
    site.one = world.successor(site.one)
    site.one.start()
    if keys_first:
        site.one.plane("set_keys", KEYS[:3])
    report = site.one.plane("reconcile", site.wanted(site.one))
    site.one.plane("set_keys", KEYS[:3])
    assert report.operations == 0
    assert report.failed == ()
    assert site.one.plane("check").drift == 0
    sent, got = site.a.call("ping_stop")
    record_property("pings sent and answered", (sent, got))
    assert sent == got > 10
    assert wire.kinds(site.frames())[f"vxlan {SECRET}"] == 0


def test_a_network_may_stop_to_be_encrypted(world: Any, network: Any) -> None:
    """Removed, nothing stays; its VNI then carries a plain network, and may be encrypted again."""
    site = Site(world, network)
    world.gossip()
    nodes = (site.one, site.two)
    for encrypted in (False, True):
        for node in nodes:
            node.plane("put_network", network(1, encrypted=encrypted))
        site.capture()
        assert site.a.ping("10.0.1.3", count=3, timeout=SLOW) == 3
        kinds = wire.kinds(site.frames())
        assert (kinds["esp"] > 0) is encrypted
        assert (kinds[f"vxlan {SECRET}"] > 0) is not encrypted
        for node in nodes:
            left = node.sh("ip xfrm state; ip xfrm policy; nft list tables")
            assert bool(left) is encrypted, left
            assert node.plane("check").drift == 0
    site.one.plane("destroy")
    assert site.one.sh("ip xfrm state; ip xfrm policy; nft list tables") == ""


@pytest.mark.parametrize("short", [False, True])
def test_docker_s_engine_is_understood(world: Any, network: Any, short: bool) -> None:
    """The other end as moby sets it up, its SPIs in either form; both directions."""
    net = network(1, encrypted=True)
    ours, theirs = world.pair(planes=1)
    ours.plane("set_keys", KEYS[:3])
    ours.plane("put_network", net)
    engine = Engine(world, theirs, net)
    theirs.sh(docker_ipsec(ours.vtep, theirs.vtep, short=short))
    a = world.plug(ours, net, "10.0.1.2/24")
    c = engine.container("10.0.1.4/24")
    introduce(world, ours, engine)
    theirs.call("capture_start", "eth0")
    if short:  # 29.0 to 29.2 hear only their own form, so only what they say arrives
        for _ in range(20):  # the first waits for the other node's ARP
            a.call("udp_count_start", "10.0.1.2")
            c.call("send_udp", "10.0.1.4", "10.0.1.2")
            if seen := a.call("finish", "count"):
                break
        assert seen == ["10.0.1.4"]
    else:
        assert c.ping("10.0.1.2", count=3, timeout=SLOW) == 3
        assert a.ping("10.0.1.4", count=3, size=1424, timeout=SLOW) == 3
    kinds = wire.kinds(theirs.call("finish", "capture"))
    assert kinds["esp"] > 0
    assert kinds[f"vxlan {SECRET}"] == 0


def docker_ipsec(ours: Any, theirs: Any, *, short: bool) -> str:
    """Return what moby's overlay driver sets up towards one peer (marks, not source ports)."""
    lines = []

    def state(source: Any, target: Any, key: IpsecKey) -> int:
        number = spi(source, target, key.tag, short=short)
        lines.append(
            f"ip xfrm state add src {source} dst {target} proto esp spi {number:#x} "
            f"reqid 0xd0c4e3 mode transport aead 'rfc4106(gcm(aes))' "
            f"0x{key.key.hex()}{number:08x} 64"
        )
        return number

    for key in KEYS[:3]:
        state(ours, theirs, key)
    number = state(theirs, ours, KEYS[1])
    lines.append(
        f"ip xfrm policy add dir out src {theirs}/32 dst {ours}/32 proto udp dport 4789 "
        f"mark 0xd0c4e3 mask 0xffffffff tmpl src {theirs} dst {ours} proto esp "
        f"spi {number:#x} reqid 0xd0c4e3 mode transport"
    )
    rule = f"udp dport 4789 @th,96,24 {SECRET:#x}"
    lines += [
        "nft add table ip docker-overlay",
        "nft 'add chain ip docker-overlay enc-out { type route hook output priority mangle; }'",
        f"nft add rule ip docker-overlay enc-out {rule} meta mark set 0xd0c4e3",
        "nft 'add chain ip docker-overlay enc-in { type filter hook input priority raw; }'",
        f"nft add rule ip docker-overlay enc-in {rule} meta ipsec missing drop",
    ]
    return "; ".join(lines)
