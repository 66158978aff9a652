"""Ports published on one host only: a container's, or a task's in host mode.

The port is reserved by a bound socket that nobody listens on: another program cannot take it, nor can
we take another's. What comes to it is translated to the container's leg to the outside
(:mod:`agent.dataplane.exits`), which is IPv4 alone.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from agent.balancer.balancer import HOST, Balancer
from agent.balancer.table import Backend, Port, Target
from swarm.errors import ConflictError, HostError, InvalidArgumentError

PROTOCOLS: Final = ("tcp", "udp", "sctp")
MAX_PORTS: Final = 1024
"""Published ports of one container."""

_KINDS: Final = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, 132),  # IPPROTO_SCTP
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPort:
    """One published port.

    Attributes:
        protocol: ``tcp``, ``udp`` or ``sctp``.
        published: on the host; 0 for any that is free.
        target: in the container.
    """

    protocol: str
    published: int
    target: int

    def __str__(self) -> str:
        return f"{self.published}:{self.target}/{self.protocol}"


def parse(text: str) -> HostPort:
    """Read ``PUBLISHED:TARGET/PROTOCOL``.

    Raises:
        InvalidArgumentError: it is none.
    """
    published, colon, rest = text.partition(":")
    target, slash, protocol = rest.partition("/")
    if not (colon and slash and published.isdecimal() and target.isdecimal()):
        raise InvalidArgumentError(f"{text!r:.60} is not PUBLISHED:TARGET/PROTOCOL")
    if protocol not in PROTOCOLS:
        raise InvalidArgumentError(f"{protocol!r:.20} is not tcp, udp or sctp")
    if int(published) > 0xFFFF or not 0 < int(target) <= 0xFFFF:
        raise InvalidArgumentError(f"{text!r:.60} names a port beyond 65535")
    return HostPort(protocol=protocol, published=int(published), target=int(target))


class HostPorts:
    """The ports published on this host alone.

    Args:
        balancer: keeps the host's table of ports.
    """

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._held: dict[str, list[tuple[HostPort, socket.socket | None]]] = {}

    def holds(self, protocol: str, number: int) -> bool:
        """Tell whether a port is published in host mode here."""
        return any(
            (port.protocol, port.published) == (protocol, number)
            for held in self._held.values()
            for port, _ in held
        )

    def publish(
        self, key: str, ports: Sequence[HostPort], address: ipaddress.IPv4Address
    ) -> tuple[HostPort, ...]:
        """Publish ports of one container, all or none; return them with the numbers they got.

        Args:
            key: for :meth:`withdraw`; what it published before is withdrawn.
            ports: what to publish.
            address: of the container's leg to the outside.

        Raises:
            ConflictError: a port is in use on this host.
            InvalidArgumentError: there are too many.
            HostError: the host cannot reserve it.
        """
        if len(ports) > MAX_PORTS:
            raise InvalidArgumentError(f"a container publishes at most {MAX_PORTS} ports")
        self.withdraw(key)
        held = self._held.setdefault(key, [])
        try:
            for port in ports:
                held.append(self._reserve(port))  # withdrawn on failure
        except BaseException:
            self.withdraw(key)
            raise
        for port, _ in held:
            self._balancer.put(
                HOST,
                _place(key, port),
                Backend(
                    vip=Port(4, port.protocol, port.published), ip=Target(address, port.target)
                ),
            )
        self._balancer.ensure(HOST)
        return tuple(port for port, _ in held)

    def withdraw(self, key: str) -> None:
        """Give a container's ports back; an unknown one is fine."""
        for port, holder in self._held.pop(key, ()):
            self._balancer.remove(HOST, _place(key, port))
            if holder is not None:
                holder.close()

    async def run(self) -> None:
        """Hold the reservations until cancelled; the rules stay."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for held in self._held.values():
                for _, holder in held:
                    if holder is not None:
                        holder.close()
            self._held.clear()

    def _reserve(self, port: HostPort) -> tuple[HostPort, socket.socket | None]:
        what = f"port {port.published}/{port.protocol}"
        if port.published and (
            self.holds(port.protocol, port.published)
            or self._balancer.serves(HOST, Port(4, port.protocol, port.published))
        ):
            raise ConflictError(f"{what} is already published on this node")
        try:
            holder = socket.socket(socket.AF_INET, *_KINDS[port.protocol])
        except OSError as error:
            if port.published:
                return port, None  # a kernel without the protocol: nobody else can take it either
            raise HostError(f"this host's kernel has no {port.protocol}") from error
        try:
            holder.bind(("", port.published))
        except OSError as error:
            holder.close()
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(f"{what} is in use on this node") from error
            raise HostError(f"{what} cannot be reserved: {error.strerror}") from error
        number: int = holder.getsockname()[1]
        return HostPort(protocol=port.protocol, published=number, target=port.target), holder


def _place(key: str, port: HostPort) -> str:
    return f"host {key} {port}"
