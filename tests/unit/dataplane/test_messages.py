"""Netlink bytes: golden vectors from the kernel's headers, and parsers that survive anything."""

from __future__ import annotations

import contextlib
import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import netlink
from agent.dataplane.model import Peer, host_route
from agent.dataplane.netlink import Message
from swarm.errors import WireError

IP = ipaddress.ip_address("10.0.1.4")
MAC = "02:42:0a:00:01:04"


def test_a_neighbour_entry_is_permanent_and_replaces() -> None:
    """Byte by byte: ndmsg, NDA_DST, NDA_LLADDR padded to 4."""
    message = netlink.neighbour(7, IP, MAC, add=True)
    assert message.kind == 28
    assert message.flags == 0x500
    assert message.body == bytes.fromhex(
        "020000000700000080000000080001000a0001040a00020002420a0001040000"
    )
    packed = netlink.pack(message, 5)
    assert packed[:16] == struct.pack("=IHHII", 16 + 32, 28, 0x505, 5, 0)


def test_a_forwarding_entry_is_on_the_device_itself() -> None:
    """AF_BRIDGE, NTF_SELF, permanent, towards the VTEP; IPv6 VTEPs take 16 bytes."""
    vtep = ipaddress.ip_address("2001:db8::2")
    message = netlink.fdb(7, MAC, vtep, add=True)
    family, index, state, flags, _ = struct.unpack_from("=BxxxiHBB", message.body)
    assert (family, index, state, flags) == (7, 7, 0x80, 2)
    entry = netlink.parse_entry(message.body)
    assert (entry.mac, entry.ip, entry.device) == (MAC, vtep, 7)


def test_routes_read_back_as_written() -> None:
    """Unicast to a device, unreachable to none, local to lo; removal matches any scope."""
    for text, index, kind in (
        ("10.0.1.4/32", 9, netlink.RTN_UNICAST),
        ("10.0.1.0/24", None, netlink.RTN_UNREACHABLE),
        ("fd00::5/128", 1, netlink.RTN_LOCAL),
    ):
        target = ipaddress.ip_network(text)
        message = netlink.route(target, index=index, kind=kind, add=True)
        row = netlink.parse_route(message.body)
        assert (row.target, row.device, row.kind) == (target, index or 0, kind)
        assert row.protocol == 83
        removal = netlink.route(target, index=index, kind=kind, add=False)
        assert removal.kind == netlink.RTM_DELROUTE
        assert removal.body[6] == netlink.RT_SCOPE_NOWHERE


def test_addresses_read_back_as_written() -> None:
    """IPv6 without duplicate detection; both ends of a broadcast address are the address."""
    for text in ("10.0.1.2/24", "fd00::2/64"):
        value = ipaddress.ip_interface(text)
        message = netlink.address(3, value, add=True)
        assert netlink.parse_address(message.body) == (3, value)
        flags = netlink.attrs(message.body, 8)[netlink.IFA_FLAGS]
        assert flags == struct.pack("=I", 2 if value.version == 6 else 0)


def test_messages_split_as_they_were_joined() -> None:
    """Several in one datagram, padded."""
    bodies = [b"", b"abc", b"defgh"]
    data = b""
    for i, body in enumerate(bodies):
        packed = netlink.pack(Message(16, 0, body), i)
        data += packed + b"\0" * (-len(packed) & 3)
    assert [(s, b) for _, _, s, b in netlink.split(data)] == list(enumerate(bodies))


@given(st.binary(max_size=200))
def test_any_bytes_split_or_raise(data: bytes) -> None:
    """Nothing but WireError leaves the parsers of headers and attributes."""
    for parse in (lambda: list(netlink.split(data)), lambda: netlink.attrs(data)):
        with contextlib.suppress(WireError):
            parse()


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("vteps", [("192.0.2.2", "192.0.2.3"), ("2001:db8::2", "2001:db8::3")])
@pytest.mark.parametrize("base", ["10.0.1.0", "fd00:1::"])
def test_many_remote_endpoints_are_the_messages_of_each(
    base: str, vteps: tuple[str, str], add: bool
) -> None:
    """Neighbour, forwarding entry, route: byte for byte what the single encoders make."""
    peers = [
        Peer(
            network_id="n",
            ip=ipaddress.ip_address(base) + number,
            prefixlen=24,
            mac=f"02:42:0a:00:01:{number:02x}",
            vtep=ipaddress.ip_address(vteps[number // 3 % 2]),
        )
        for number in range(2, 12)
    ]
    assert netlink.remotes(7, peers, add=add) == [
        b"".join(
            netlink.pack(message, 0, netlink.NLM_F_REQUEST)
            for message in (
                netlink.neighbour(7, peer.ip, peer.mac, add=add),
                netlink.fdb(7, peer.mac, peer.vtep, add=add),
                netlink.route(host_route(peer.ip), index=7, kind=netlink.RTN_UNICAST, add=add),
            )
        )
        for peer in peers
    ]
    assert netlink.remotes(7, (), add=add) == []
