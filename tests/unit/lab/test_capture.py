"""What a capture makes of frames on the wire."""

from __future__ import annotations

import struct
from collections import Counter

from swarm.lab.capture import Sight

ETHERNET = bytes(12)


def ipv4(protocol: int, payload: bytes, fragment: int = 0) -> bytes:
    """An IPv4 frame."""
    head = struct.pack("!BBHHHBBH8x", 0x45, 0, 20 + len(payload), 0, fragment, 64, protocol, 0)
    return ETHERNET + b"\x08\x00" + head + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    """An IPv6 frame."""
    head = struct.pack("!IHBB32x", 6 << 28, len(payload), protocol, 64)
    return ETHERNET + b"\x86\xdd" + head + payload


def vxlan(vni: int, port: int = 4789) -> bytes:
    """A UDP datagram with a VXLAN header."""
    return struct.pack("!HHHHII", 40000, port, 24, 0, 0x08000000, vni << 8) + bytes(8)


def test_frames_are_counted_by_kind() -> None:
    """ESP with its association, VXLAN by VNI, fragments; the rest is nothing."""
    sight = Sight()
    for frame in (
        ipv4(50, struct.pack("!II", 0xABCD, 1)),
        ipv6(50, struct.pack("!II", 0xABCE, 1)),
        ipv4(17, vxlan(4097)),
        ipv6(17, vxlan(4097)),
        ipv6(17, vxlan(70001)),
        ipv4(17, vxlan(4098, port=4790)),
        ipv4(17, vxlan(4099), fragment=0x2000),
        ipv6(44, bytes(40)),
        ipv4(6, bytes(40)),
        ETHERNET + b"\x08\x06" + bytes(46),
        ipv4(17, vxlan(5000))[:40],
        b"",
    ):
        sight.note(frame, 4789)
    assert sight.esp == 2
    assert sight.spis == {0xABCD, 0xABCE}
    assert sight.vxlan == Counter({4097: 2, 70001: 1})
    assert sight.fragments == 2


def test_another_port_is_another_tunnel() -> None:
    """Only the cluster's data path port counts."""
    sight = Sight()
    sight.note(ipv4(17, vxlan(4098, port=4790)), 4790)
    sight.note(ipv4(17, vxlan(4098)), 4790)
    assert sight.vxlan == Counter({4098: 1})
