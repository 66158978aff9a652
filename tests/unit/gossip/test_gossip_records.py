"""Values of the two tables."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gossip.records import (
    ENDPOINT_TABLE,
    PEER_TABLE,
    EndpointRecord,
    PeerRecord,
    PortConfig,
    Protocol,
    decode_endpoint_untrusted,
    decode_peer_untrusted,
    is_draining,
)
from swarm.errors import WireError

FULL = EndpointRecord(
    name="web.1.x",
    service_name="web",
    service_id="s1",
    virtual_ip="10.1.0.2",
    endpoint_ip="10.1.0.3",
    ingress_ports=(
        PortConfig(name="p", protocol=Protocol.UDP, target_port=53, published_port=5353),
    ),
    aliases=("w",),
    task_aliases=("0123456789ab",),
    service_disabled=True,
)


def test_records_round_trip() -> None:
    """Every field survives."""
    assert decode_endpoint_untrusted(FULL.encode()) == FULL
    peer = PeerRecord(
        endpoint_ip="10.1.0.3/24", endpoint_mac="02:42:0a:01:00:03", tunnel_endpoint_ip="192.0.2.7"
    )
    assert decode_peer_untrusted(peer.encode()) == peer


def test_record_bytes_are_as_engines_write_them() -> None:
    """Field by field; a missing virtual address is a text."""
    plain = EndpointRecord(name="c1", endpoint_ip="10.1.0.3", task_aliases=("ab",))
    assert plain.encode() == (
        b"\x0a\x02c1" + b"\x22\x05<nil>" + b"\x2a\x0810.1.0.3" + b"\x42\x02ab"
    )
    assert decode_endpoint_untrusted(plain.encode()).virtual_ip == ""


@pytest.mark.parametrize(
    "record",
    [
        EndpointRecord(name="", endpoint_ip="10.1.0.3"),
        EndpointRecord(name="c", endpoint_ip=""),
        EndpointRecord(name="c", endpoint_ip="10.1.0.3/24"),
        EndpointRecord(name="c" * 2000, endpoint_ip="10.1.0.3"),
        EndpointRecord(name="c", endpoint_ip="10.1.0.3", aliases=("a",) * 2000),
        EndpointRecord(
            name="c", endpoint_ip="10.1.0.3", ingress_ports=(PortConfig(target_port=70000),)
        ),
    ],
)
def test_unusable_endpoint_records_are_refused(record: EndpointRecord) -> None:
    """No name, no address, or beyond a bound."""
    with pytest.raises(WireError):
        decode_endpoint_untrusted(record.encode())


@pytest.mark.parametrize(
    ("ip", "mac", "tunnel"),
    [
        ("10.1.0.3", "02:42:0a:01:00:03", "192.0.2.7"),
        ("10.1.0.3/99", "02:42:0a:01:00:03", "192.0.2.7"),
        ("x/24", "02:42:0a:01:00:03", "192.0.2.7"),
        ("10.1.0.3/24", "02:42:0a:01:00", "192.0.2.7"),
        ("10.1.0.3/24", "02:42:0a:01:00:03:04", "192.0.2.7"),
        ("10.1.0.3/24", "02:42:0a:01:00:03", ""),
    ],
)
def test_unusable_peer_records_are_refused(ip: str, mac: str, tunnel: str) -> None:
    """Prefix length, MAC and tunnel address are all needed."""
    record = PeerRecord(endpoint_ip=ip, endpoint_mac=mac, tunnel_endpoint_ip=tunnel)
    with pytest.raises(WireError):
        decode_peer_untrusted(record.encode())


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    """Nothing but WireError leaves the parsers."""
    for parse in (decode_endpoint_untrusted, decode_peer_untrusted):
        for length in range(len(data) + 1):
            with contextlib.suppress(WireError):
                parse(data[:length])


@pytest.mark.parametrize(
    ("table", "value", "draining"),
    [
        (ENDPOINT_TABLE, FULL.encode(), True),
        (ENDPOINT_TABLE, EndpointRecord(name="c", endpoint_ip="10.1.0.3").encode(), False),
        (PEER_TABLE, FULL.encode(), False),
        (ENDPOINT_TABLE, b"\xff\xff", False),
    ],
)
def test_draining(table: str, value: bytes, draining: bool) -> None:
    """Only a disabled endpoint drains."""
    assert is_draining(table, value) is draining
