"""Remote endpoints out of gossip records."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane.model import IPAddress, Network, Peer, Subnet
from agent.gossip.records import PeerRecord
from agent.node.peers import PeerChange, PeerTable, Refusal

VTEP = ipaddress.ip_address("192.0.2.10")
NETWORK = Network(
    id="n1",
    name="backend",
    subnets=(
        Subnet(
            cidr=ipaddress.ip_network("10.0.1.0/24"),
            gateway=ipaddress.ip_address("10.0.1.1"),
            vni=4097,
        ),
    ),
)


def _record(
    ip: str = "10.0.1.9/24", vtep: str = "192.0.2.20", mac: str = "02:42:0a:00:01:09"
) -> PeerRecord:
    return PeerRecord(endpoint_ip=ip, endpoint_mac=mac, tunnel_endpoint_ip=vtep)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (_record(vtep="192.0.2.10"), Refusal.OWN_TUNNEL),
        (_record(vtep="2001:db8::1"), Refusal.TUNNEL_FAMILY),
        (_record(vtep="224.0.0.1"), Refusal.BAD_TUNNEL),
        (_record(vtep="0.0.0.0"), Refusal.BAD_TUNNEL),
        (_record(vtep="127.0.0.1"), Refusal.BAD_TUNNEL),
        (_record(vtep="255.255.255.255"), Refusal.BAD_TUNNEL),
        (_record(ip="10.0.2.9/24"), Refusal.FOREIGN_SUBNET),
        (_record(ip="10.0.1.9/16"), Refusal.PREFIX_LENGTH),
        (_record(ip="10.0.1.1/24"), Refusal.GATEWAY),
        (_record(mac="01:00:5e:00:00:01"), Refusal.BAD_MAC),
    ],
)
def test_what_cannot_be_true_is_refused_with_its_reason(
    record: PeerRecord, reason: Refusal
) -> None:
    """Hostile or broken records never reach the kernel."""
    table = PeerTable(NETWORK, VTEP)
    assert table.put("k", record) == []
    assert table.refused == {reason: 1}
    assert table.peers() == []


def test_a_record_that_turns_bad_withdraws_the_good_one() -> None:
    """The owner's last word counts."""
    table = PeerTable(NETWORK, VTEP)
    table.put("k", _record())
    assert table.put("k", _record(vtep="0.0.0.0")) == [
        PeerChange(remove=ipaddress.ip_address("10.0.1.9"))
    ]


def test_the_first_of_two_records_for_one_address_stays_until_it_goes() -> None:
    """As in every engine: no flapping between two claims."""
    table = PeerTable(NETWORK, VTEP)
    table.put("a", _record(vtep="192.0.2.20"))
    assert table.put("b", _record(vtep="192.0.2.30")) == []
    (change,) = table.delete("a")
    assert change.put is not None
    assert str(change.put.vtep) == "192.0.2.30"


def test_a_faded_record_gives_way_at_once() -> None:
    """An address that was given again reaches its new owner without waiting for the dead one's record."""
    table = PeerTable(NETWORK, VTEP)
    table.put("dead", _record(vtep="192.0.2.20"))
    assert table.fade("dead") == []
    assert len(table.peers()) == 1
    (change,) = table.put("new", _record(vtep="192.0.2.30"))
    assert change.put is not None
    assert str(change.put.vtep) == "192.0.2.30"
    assert table.delete("dead") == []


def test_fading_the_first_of_two_brings_the_second_forward() -> None:
    """A living claim beats a silent one."""
    table = PeerTable(NETWORK, VTEP)
    table.put("a", _record(vtep="192.0.2.20"))
    table.put("b", _record(vtep="192.0.2.30"))
    (change,) = table.fade("a")
    assert change.put is not None
    assert str(change.put.vtep) == "192.0.2.30"


def test_own_addresses_cannot_be_claimed_by_others() -> None:
    """A record for an address of ours waits until ours is gone."""
    table = PeerTable(NETWORK, VTEP)
    own = ipaddress.ip_address("10.0.1.9")
    table.put("k", _record())
    assert table.claim([own]) == [PeerChange(remove=own)]
    assert table.peers() == []
    assert table.put("k", _record(vtep="192.0.2.30")) == []
    assert table.refused == {Refusal.OWN_ADDRESS: 1}
    (change,) = table.release([own])
    assert change.put is not None


_KEYS = st.sampled_from("abcd")
_STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("put"), _KEYS, st.integers(8, 10), st.sampled_from(["192.0.2.20", "192.0.2.30"])
        ),
        st.tuples(st.just("delete"), _KEYS),
        st.tuples(st.just("fade"), _KEYS),
        st.tuples(st.just("claim"), st.integers(8, 10)),
        st.tuples(st.just("release"), st.integers(8, 10)),
    ),
    max_size=30,
)


@given(_STEPS)
def test_applying_the_changes_gives_the_table(steps: list[tuple[object, ...]]) -> None:
    """What the data plane was told, step by step, is always what the table says as a whole."""
    table = PeerTable(NETWORK, VTEP)
    kernel: dict[IPAddress, Peer] = {}
    for step in steps:
        match step:
            case ("put", str(key), int(host), str(vtep)):
                changes = table.put(key, _record(ip=f"10.0.1.{host}/24", vtep=vtep))
            case ("delete", str(key)):
                changes = table.delete(key)
            case ("fade", str(key)):
                changes = table.fade(key)
            case ("claim", int(host)):
                changes = table.claim([ipaddress.ip_address(f"10.0.1.{host}")])
            case (_, host):
                changes = table.release([ipaddress.ip_address(f"10.0.1.{host}")])
        for change in changes:
            if change.put is not None:
                kernel[change.put.ip] = change.put
            elif change.remove is not None:
                kernel.pop(change.remove, None)
        assert kernel == {peer.ip: peer for peer in table.peers()}
