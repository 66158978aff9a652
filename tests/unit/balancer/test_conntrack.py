"""Entries of connection tracking, as the kernel lists them."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.balancer.conntrack import parse


def attribute(kind: int, value: bytes) -> bytes:
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def entry(
    source: str, *, protocol: int = 6, state: int = 3, zone: int | None = None, mark: int = 0
) -> bytes:
    """One TCP connection from 10.0.1.2 to a virtual address, answered by ``source``."""
    packed = ipaddress.ip_address(source).packed
    first = 1 if len(packed) == 4 else 3
    addresses = attribute(
        0x8001, attribute(first, packed) + attribute(first + 1, bytes(len(packed)))
    )
    ports = attribute(0x8002, attribute(1, bytes([protocol])) + attribute(2, b"\x1f\x90"))
    body = attribute(0x8001, attribute(0x8001, b"original"))
    body += attribute(0x8002, addresses + ports)
    body += attribute(0x8004, attribute(0x8001, attribute(1, bytes([state]))))
    body += attribute(12, b"\x01\x02\x03\x04")
    if mark:
        body += attribute(8, struct.pack("!I", mark))
    if zone is not None:
        body += attribute(18, struct.pack("!H", zone))
    return body


@pytest.mark.parametrize("source", ["10.0.1.11", "fd00:1::11"])
def test_a_flow_is_recognised_by_who_answers_it(source: str) -> None:
    wanted = {ipaddress.ip_address(source).packed}
    flow = parse(entry(source), wanted)
    assert flow is not None
    assert (str(flow.backend), flow.protocol, flow.live) == (source, 6, True)
    assert flow.identity == attribute(0x8001, attribute(0x8001, b"original")) + attribute(
        12, b"\x01\x02\x03\x04"
    )
    assert parse(entry(source), {b"\x0a\0\1\x0c"}) is None


@pytest.mark.parametrize(
    ("protocol", "state", "live"), [(6, 1, True), (6, 7, False), (6, 8, False), (17, 0, False)]
)
def test_only_tcp_connections_that_go_on_are_live(protocol: int, state: int, live: bool) -> None:
    packed = ipaddress.ip_address("10.0.1.11").packed
    flow = parse(entry("10.0.1.11", protocol=protocol, state=state), {packed})
    assert flow is not None
    assert flow.live is live


def test_a_zone_belongs_to_the_identity() -> None:
    packed = ipaddress.ip_address("10.0.1.11").packed
    flow = parse(entry("10.0.1.11", zone=7), {packed})
    assert flow is not None
    assert flow.identity.endswith(attribute(18, b"\0\7"))


def test_the_mark_tells_by_which_node_a_flow_came() -> None:
    for mark in (0, 0x10103):
        flow = parse(entry("10.0.1.11", mark=mark), None)
        assert flow is not None
        assert flow.mark == mark


@given(st.binary(max_size=300))
def test_any_bytes_are_read_to_their_end(data: bytes) -> None:
    parse(data, {b"\x0a\0\1\x0b"})
    parse(data, None)
