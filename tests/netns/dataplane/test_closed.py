"""What keeps encrypted networks closed, as far as a kernel without ESP can show it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.dataplane import crypto, guards
from agent.dataplane.model import IpsecKey
from agent.dataplane.objects import Cover, Drop, Object, Policy, Put
from agent.dataplane.planner import keyed, plan_add_first
from swarm.errors import HostError

pytestmark = [pytest.mark.netns, pytest.mark.slow]

VNI = 0x1010


def shut(node: Any, port: int = 4789) -> list[Object]:
    """Return the guards and the block that close VNI 4112 on a node."""
    index = int(node.sh("ip -o link show eth0").split(":")[0])
    version = node.vtep.version
    return [
        guards.wanted(port, [(index, "eth0")]),
        Cover(vni=VNI),
        crypto.block(port, version),
    ]


def test_a_kernel_without_esp_is_refused_with_a_reason(world: Any, network: Any) -> None:
    """The text names the modules; nothing is left, and a plain network is none the worse."""
    one, _ = world.pair(planes=1)
    one.plane("set_keys", [IpsecKey(lamport=1, key=bytes(16))])
    levels = {finding.name: finding.level for finding in one.plane("preflight")}
    if levels["esp"] == "ok":
        pytest.skip("this kernel has ESP")
    for _ in range(2):
        with pytest.raises(HostError, match=r"net1 is encrypted: .*ESP.*modprobe .*esp4"):
            one.plane("put_network", network(1, encrypted=True))
    assert one.sh("nft list tables; ip xfrm policy") == ""
    assert list((one.settings.run_dir / "netns").glob("*")) == []
    assert one.plane("encryption").keys == 1
    one.plane("put_network", network(1))
    with pytest.raises(HostError):
        one.plane("put_network", network(1, encrypted=True))
    assert one.plane("check").drift == 0
    assert one.plane("stats").networks == 1


@pytest.mark.parametrize("v6", [False, True])
def test_policies_and_guards_are_what_the_kernel_shows(world: Any, v6: bool) -> None:
    """What is put is observed; a second plan is empty; a policy is replaced in place."""
    one, two = world.pair(v6=v6, planes=0)
    version = one.vtep.version
    wanted = keyed(shut(one))
    allow = Policy(local=one.vtep, remote=two.vtep, port=4789, version=version, spi=0x1234)
    wanted[allow.key] = allow
    ops = plan_add_first(wanted, {})
    assert [type(op.object).__name__ for op in ops] == ["Guards", "Cover", "Policy", "Policy"]
    held, _ = one.call("ipsec", one.settings, ops)
    assert held == wanted
    assert plan_add_first(wanted, held) == ()
    shown = one.sh("ip xfrm policy")
    assert "action block priority 1000" in shown
    assert f"src {one.vtep}/{one.vtep.max_prefixlen}" in shown
    assert "proto esp spi 0x00001234 reqid 13681891 mode transport" in shown
    other = replace(allow, spi=0x9999)
    foreign = (
        f"ip xfrm policy add dir out src {one.vtep} dst {two.vtep} proto udp dport 4789 "
        "mark 0xd0c4e3 mask 0xffffffff priority 7; nft add table inet admin"
    )
    one.sh(foreign)
    held, _ = one.call("ipsec", one.settings, [Put(other)])
    assert held == wanted | {other.key: other}
    # Another port once: a daemon that was told 4790 before finds and removes it.
    stray = replace(allow, port=4790)
    held, _ = one.call("ipsec", one.settings, [Put(stray), Put(Cover(vni=7))])
    held, _ = one.call("ipsec", one.settings, plan_add_first({}, held))
    assert held == {}
    assert "priority 7" in one.sh("ip xfrm policy"), "another program's is left alone"
    assert one.sh("nft list tables") == "table inet admin\n"
    held, _ = one.call("ipsec", one.settings, [Drop(allow)])
    assert held == {}, "to remove what is not there is no error"


@pytest.mark.parametrize(
    "damage",
    [
        "nft delete table inet overswarm-ipsec",
        "nft delete table netdev overswarm-ipsec",
        "nft flush chain inet overswarm-ipsec guard-in",
        "nft 'insert rule inet overswarm-ipsec guard-in accept'",
        "nft delete element inet overswarm-ipsec vnis '{ 0x1010 }'",
        "nft flush set netdev overswarm-ipsec vnis",
        "ip link add x0 type veth peer name x1; ip link del eth0; ip link set x0 name eth0",
    ],
)
def test_damaged_guards_are_seen(world: Any, damage: str) -> None:
    """Whatever is missing or added, the plan makes them whole in one transaction."""
    one, _ = world.pair(planes=0)
    wanted = keyed(shut(one))
    held, _ = one.call("ipsec", one.settings, plan_add_first(wanted, {}))
    assert held == wanted
    one.sh(damage)
    held, _ = one.call("ipsec", one.settings)
    wanted = keyed(shut(one))
    ops = plan_add_first(wanted, held)
    assert ops
    held, _ = one.call("ipsec", one.settings, ops)
    assert held == wanted


@pytest.mark.parametrize("port", [4789, 4790])
def test_the_guards_drop_both_ways(world: Any, network: Any, port: int) -> None:
    """A plain network in place of one without associations: not in, not out, counted; another passes."""
    _, (one, two) = world.site(2, port=port)
    for node in (one, two):
        node.plane("put_network", network(1))
        node.plane("put_network", network(2))
    a = world.plug(one, network(1), "10.0.1.2/24")
    b = world.plug(two, network(1), "10.0.1.3/24")
    c = world.plug(one, network(2), "10.0.2.2/24")
    world.plug(two, network(2), "10.0.2.3/24")
    world.gossip()
    assert a.ping("10.0.1.3") == c.ping("10.0.2.3") == 1
    two.call("ipsec", two.settings, [Put(item) for item in shut(two, port)])
    assert a.ping("10.0.1.3", count=3, timeout=0.1) == 0
    _, status = two.call("ipsec", two.settings)
    assert (status.dropped_in, status.dropped_out) == (3, 0)
    assert b.ping("10.0.1.2", count=3, timeout=0.1) == 0
    _, status = two.call("ipsec", two.settings)
    assert (status.dropped_in, status.dropped_out) == (3, 3)
    # Without the first table the second one still holds.
    two.sh("nft delete table inet overswarm-ipsec")
    one.call("udp_count_start", str(one.vtep), 9999)
    assert b.ping("10.0.1.2", count=3, timeout=0.1) == 0
    assert two.call("ipsec", two.settings)[1].dropped_out == 3
    two.sh("nft delete table netdev overswarm-ipsec")
    assert b.ping("10.0.1.2") == 1, "to know that it was the guards"
    assert c.ping("10.0.2.3") == 1
    one.call("finish", "count")


def test_another_container_cannot_borrow_the_tunnel_address(world: Any) -> None:
    """Clear VXLAN of a guarded VNI that this host would forward and translate goes nowhere."""
    one, two = world.pair(planes=0)
    box = world.box()
    one.sh(
        f"ip link add t0 type veth peer name t0 netns {box.process.pid}; ip link set t0 up; "
        "ip addr add 198.51.100.1/24 dev t0; echo 1 > /proc/sys/net/ipv4/ip_forward; "
        "nft add table ip nat; nft 'add chain ip nat p { type nat hook postrouting priority 100; }'; "
        "nft add rule ip nat p masquerade"
    )
    box.sh(
        "ip link set t0 up; ip addr add 198.51.100.2/24 dev t0; "
        "ip route add default via 198.51.100.1"
    )
    for expected, ops in ((3, []), (0, [Put(item) for item in shut(one)])):
        one.call("ipsec", one.settings, ops)
        two.call("udp_count_start", str(two.vtep), 4789)
        box.call("send_payload", str(two.vtep), 4789, bytes(4) + VNI.to_bytes(3, "big") + b"\0", 3)
        assert two.call("finish", "count") == [str(one.vtep)] * expected
        two.sh("true")
    assert one.call("ipsec", one.settings)[1].dropped_out == 3


def test_the_block_needs_no_nftables(world: Any) -> None:
    """From an encrypted network's source ports nothing leaves; from others all does."""
    one, two = world.pair(planes=0)
    one.sh(
        f"ip link add secret type vxlan id {VNI} dstport 4789 local {one.vtep} srcport 61440 65535; "
        f"ip link add plain type vxlan id 99 dstport 4789 local {one.vtep} srcport 32768 60999; "
        "for d in secret plain; do ip link set $d up; "
        f"bridge fdb append 02:00:00:00:00:01 dev $d dst {two.vtep}; done; "
        "ip addr add 10.5.0.1/24 dev secret; ip addr add 10.6.0.1/24 dev plain; "
        "ip neigh add 10.5.0.2 lladdr 02:00:00:00:00:01 dev secret; "
        "ip neigh add 10.6.0.2 lladdr 02:00:00:00:00:01 dev plain"
    )
    one.call("ipsec", one.settings, [Put(crypto.block(4789, 4))])
    two.call("capture_start", "eth0")
    for last in range(40):  # many source ports
        for net in (5, 6):
            one.call("send_payload", f"10.{net}.0.2", 7000 + last, b"x")
    frames = [frame for frame in two.call("finish", "capture") if frame[23:24] == b"\x11"]
    vnis = [int.from_bytes(frame[46:49], "big") for frame in frames]
    assert vnis.count(99) == 40
    assert VNI not in vnis
    assert len({frame[34:36] for frame in frames}) > 20, "the ports do vary"
