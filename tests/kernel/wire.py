"""Frames on the underlay: what is in a captured one, and how an attacker makes one."""

from __future__ import annotations

import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable
from typing import Any

ETH_IPV4, ETH_IPV6 = 0x0800, 0x86DD
UDP, ESP, FRAGMENT = 17, 50, 44


def kinds(frames: Iterable[bytes], port: int = 4789) -> Counter[str]:
    """Count frames: ``esp``, ``vxlan <VNI>``, ``fragment``; what is neither is not counted."""
    found: Counter[str] = Counter()
    for frame in frames:
        (ethertype,) = struct.unpack_from("!H", frame, 12)
        if ethertype == ETH_IPV4:
            proto, rest = frame[23], frame[14 + (frame[14] & 15) * 4 :]
            if struct.unpack_from("!H", frame, 20)[0] & 0x3FFF:
                proto = FRAGMENT
        elif ethertype == ETH_IPV6:
            proto, rest = frame[20], frame[54:]
        else:
            continue
        if proto == ESP:
            found["esp"] += 1
        elif proto == FRAGMENT:
            found["fragment"] += 1
        elif proto == UDP and port in struct.unpack_from("!HH", rest):
            found[f"vxlan {int.from_bytes(rest[12:15], 'big')}"] += 1
    return found


def spis(frames: Iterable[bytes], source: Any) -> set[int]:
    """Return the SPIs that ``source`` has sent."""
    found = set()
    for frame in frames:
        if frame[12:14] == b"\x08\0" and frame[23] == ESP and frame[26:30] == source.packed:
            found.add(int.from_bytes(frame[34:38], "big"))
        elif frame[12:14] == b"\x86\xdd" and frame[20] == ESP and frame[22:38] == source.packed:
            found.add(int.from_bytes(frame[54:58], "big"))
    return found


def _sum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _ipv4(source: Any, target: Any, proto: int, payload: bytes, part: int = 0) -> bytes:
    """Return an IPv4 packet; ``part`` is the field of fragment flags and offset."""
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(payload), 7, part, 64, proto)
    addresses = source.packed + target.packed
    return head + struct.pack("!H", _sum(head + b"\0\0" + addresses)) + addresses + payload


def datagram(
    source: str, target: str, macs: tuple[str, str], port: int, text: bytes = b"hello"
) -> bytes:
    """Return an Ethernet frame with a UDP datagram from one container to another (no checksum)."""
    udp = struct.pack("!HHHH", 4000, port, 8 + len(text), 0) + text
    body = _ipv4(ipaddress.ip_address(source), ipaddress.ip_address(target), UDP, udp)
    return _mac(macs[1]) + _mac(macs[0]) + b"\x08\0" + body


def vxlan(vni: int, inner: bytes) -> bytes:
    """Return the UDP payload that carries a frame."""
    return struct.pack("!II", 0x08000000, vni << 8) + inner


def outer(
    source: Any, target: Any, macs: tuple[str, str], port: int, payload: bytes, cut: int = 0
) -> list[bytes]:
    """Return the underlay frames that carry a UDP payload.

    Args:
        source: outer source address, anybody's.
        target: outer destination.
        macs: on the underlay, from and to.
        port: destination.
        payload: of the datagram.
        cut: byte of the IP payload where the first of two fragments ends (IPv4, a multiple of 8).
    """
    udp = struct.pack("!HHHH", 0xF123, port, 8 + len(payload), 0) + payload
    head = _mac(macs[1]) + _mac(macs[0])
    if source.version == 6:
        pseudo = source.packed + target.packed + struct.pack("!II", len(udp), UDP)
        padded = pseudo + udp + b"\0" * (len(udp) & 1)
        udp = udp[:6] + struct.pack("!H", _sum(padded) or 0xFFFF) + udp[8:]
        packet = struct.pack("!IHBB", 6 << 28, len(udp), UDP, 64) + source.packed + target.packed
        return [head + b"\x86\xdd" + packet + udp]
    if not cut:
        return [head + b"\x08\0" + _ipv4(source, target, UDP, udp)]
    return [
        head + b"\x08\0" + _ipv4(source, target, UDP, udp[:cut], 0x2000),
        head + b"\x08\0" + _ipv4(source, target, UDP, udp[cut:], cut // 8),
    ]
