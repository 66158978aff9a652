"""Connection tracking of the calling thread's network namespace: count flows, forget flows.

Source: Linux ``include/uapi/linux/netfilter/nfnetlink_conntrack.h``; the shape of messages is that of
``net/netfilter/nf_conntrack_netlink.c``.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from swarm.errors import HostError

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NETLINK_NETFILTER: Final = 12
_GET: Final = (1 << 8) | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_DELETE: Final = (1 << 8) | 2
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ACK: Final = 0x5  # NLM_F_REQUEST | NLM_F_ACK
_ERROR, _DONE = 2, 3
_ORIGINAL, _REPLY, _PROTOINFO, _MARK, _ID, _ZONE = 1, 2, 4, 8, 12, 18
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_BUFFER: Final = 1 << 16
_SECONDS: Final = 5.0
_CHUNK: Final = 64

_TCP: Final = socket.IPPROTO_TCP
_TCP_OVER: Final = frozenset({0, 7, 8})  # NONE, TIME_WAIT, CLOSE
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One tracked connection.

    Attributes:
        protocol: number in the IP header.
        backend: where it leads: the source of its replies.
        tcp_state: as the kernel numbers them; 0 for other protocols.
        mark: of the connection.
        identity: the attributes by which it is deleted.
    """

    protocol: int
    backend: IPAddress
    tcp_state: int
    mark: int = 0
    identity: bytes

    @property
    def live(self) -> bool:
        """Whether it is a TCP connection that has not ended. Of UDP nobody can tell."""
        return self.protocol == _TCP and self.tcp_state not in _TCP_OVER


def count(backends: Collection[IPAddress]) -> int:
    """Count the live TCP connections that lead to these addresses.

    Raises:
        HostError: the kernel did not tell.
    """
    return sum(flow.live for flow in _flows(backends))


def forget(backends: Collection[IPAddress]) -> int:
    """Forget every flow that leads to these addresses; return how many there were.

    Raises:
        HostError: the kernel refused.
    """
    return _delete(list(_flows(backends)))


def forget_marks(marks: Collection[int]) -> int:
    """Forget every flow that carries one of these marks; return how many there were.

    Raises:
        HostError: the kernel refused.
    """
    found = [flow for version in _FAMILIES for flow in _listed(version) if flow.mark in marks]
    return _delete(found)


def _delete(found: Collection[Flow]) -> int:
    by_family: dict[int, list[Flow]] = {}
    for flow in found:
        by_family.setdefault(_FAMILIES[flow.backend.version], []).append(flow)
    with _open() as channel:
        for family, flows in by_family.items():
            for start in range(0, len(flows), _CHUNK):
                part = flows[start : start + _CHUNK]
                for number, flow in enumerate(part):
                    channel.send(_message(_DELETE, _ACK, number, family, flow.identity))
                for _ in part:
                    _acknowledged(channel.recv(_BUFFER))
    return len(found)


def _acknowledged(data: bytes) -> None:
    (number,) = struct.unpack_from("=i", data, _HEADER.size)
    if number not in {0, -errno.ENOENT}:  # it may have ended meanwhile
        raise HostError(f"the kernel does not forget a connection: {os.strerror(-number)}")


def _flows(backends: Collection[IPAddress]) -> Iterator[Flow]:
    wanted = {ip.packed for ip in backends}
    for version in {ip.version for ip in backends}:
        yield from _listed(version, wanted)


def _listed(version: int, backends: Collection[bytes] | None = None) -> Iterator[Flow]:
    with _open() as channel:
        channel.send(_message(_GET, _DUMP, 1, _FAMILIES[version], b""))
        while True:
            data = channel.recv(_BUFFER)
            done = False
            for kind, body in _messages(data):
                if kind == _ERROR:
                    (number,) = struct.unpack_from("=i", body)
                    raise HostError(f"cannot list connections: {os.strerror(-number)}")
                if kind == _DONE:
                    done = True
                elif (flow := parse(body[4:], backends)) is not None:
                    yield flow
            if done:
                break


def parse(body: bytes, backends: Collection[bytes] | None) -> Flow | None:
    """Read one entry, as the kernel lists it; None if it does not lead to one of ``backends``.

    Args:
        body: its attributes.
        backends: packed addresses; None for any.
    """
    found = dict(_attributes(body))
    reply = dict(_attributes(found.get(_REPLY, b"")))
    address = dict(_attributes(reply.get(1, b"")))
    source = address.get(1) or address.get(3)  # CTA_IP_V4_SRC, CTA_IP_V6_SRC
    if (
        source is None
        or len(source) not in {4, 16}
        or (backends is not None and source not in backends)
    ):
        return None
    protocol = dict(_attributes(reply.get(2, b""))).get(1, b"\0")[0]
    state = 0
    for _, tcp in _attributes(found.get(_PROTOINFO, b"")):
        state = dict(_attributes(tcp)).get(1, b"\0")[0]
        break
    mark = found.get(_MARK, b"")
    identity = _pack(_ORIGINAL | 0x8000, found.get(_ORIGINAL, b""))
    for number in (_ID, _ZONE):
        if number in found:
            identity += _pack(number, found[number])
    return Flow(
        protocol=protocol,
        backend=ipaddress.ip_address(source),
        tcp_state=state if protocol == _TCP else 0,
        mark=int.from_bytes(mark) if len(mark) == 4 else 0,
        identity=identity,
    )


def _open() -> socket.socket:
    channel = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
    )
    channel.settimeout(_SECONDS)
    channel.bind((0, 0))
    return channel


def _message(kind: int, flags: int, number: int, family: int, body: bytes) -> bytes:
    size = _HEADER.size + 4 + len(body)
    return _HEADER.pack(size, kind, flags, number, 0) + struct.pack("=BBH", family, 0, 0) + body


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if size < _HEADER.size:
            return
        yield kind, data[offset + _HEADER.size : offset + size]
        offset += (size + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[offset + _ATTRIBUTE.size : offset + size]
        offset += (size + 3) & ~3


def _pack(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)
