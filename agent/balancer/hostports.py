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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from agent.balancer.balancer import HOST, Balancer
from agent.balancer.table import Backend, Port, Target
from agent.dataplane import names, sysctl
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
        address: the host's only address where it is published; None: all of them.
    """

    protocol: str
    published: int
    target: int
    address: ipaddress.IPv4Address | None = None

    def __str__(self) -> str:
        place = "" if self.address is None else f"{self.address}:"
        return f"{place}{self.published}:{self.target}/{self.protocol}"

    @property
    def front(self) -> Port:
        """As the table of ports has it."""
        return Port(4, self.protocol, self.published, self.address)

    def meets(self, other: HostPort) -> bool:
        """Tell whether both cannot be published on one host."""
        return (self.protocol, self.published) == (other.protocol, other.published) and (
            self.address == other.address or None in {self.address, other.address}
        )


def parse(text: str) -> HostPort:
    """Read ``[ADDRESS:]PUBLISHED:TARGET/PROTOCOL``.

    Raises:
        InvalidArgumentError: it is none.
    """
    address, text = _address(text)
    published, colon, rest = text.partition(":")
    target, slash, protocol = rest.partition("/")
    if not (colon and slash and published.isdecimal() and target.isdecimal()):
        raise InvalidArgumentError(f"{text!r:.60} is not PUBLISHED:TARGET/PROTOCOL")
    if protocol not in PROTOCOLS:
        raise InvalidArgumentError(f"{protocol!r:.20} is not tcp, udp or sctp")
    if int(published) > 0xFFFF or not 0 < int(target) <= 0xFFFF:
        raise InvalidArgumentError(f"{text!r:.60} names a port beyond 65535")
    return HostPort(
        protocol=protocol, published=int(published), target=int(target), address=address
    )


def _address(text: str) -> tuple[ipaddress.IPv4Address | None, str]:
    """Split the host's address off; all addresses count as none."""
    if text.startswith("["):
        raise InvalidArgumentError(
            f"{text!r:.60}: a container's way out has IPv4 alone; services publish on IPv6 on"
            " every node, by an ingress network that has it"
        )
    if text.count(":") < 2:
        return None, text
    place, _, rest = text.partition(":")
    try:
        found = ipaddress.IPv4Address(place)
    except ValueError as error:
        raise InvalidArgumentError(f"{place!r:.60} is not an address of this host") from error
    return (None if found.is_unspecified else found), rest


class HostPorts:
    """The ports published on this host alone.

    Args:
        balancer: keeps the host's table of ports.
        answer_loopback: has answers to this host's loopback addresses taken in from an endpoint's leg.
    """

    def __init__(
        self, balancer: Balancer, *, answer_loopback: Callable[[str], None] | None = None
    ) -> None:
        self._balancer = balancer
        self._answer_loopback = answer_loopback or _answer_loopback
        self._held: dict[str, list[tuple[HostPort, socket.socket | None]]] = {}

    def holds(self, protocol: str, number: int) -> bool:
        """Tell whether a port is published in host mode here."""
        wanted = HostPort(protocol=protocol, published=number, target=1)
        return any(port.meets(wanted) for held in self._held.values() for port, _ in held)

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
            if any(port.address is not None and port.address.is_loopback for port in ports):
                self._answer_loopback(key)
        except BaseException:
            self.withdraw(key)
            raise
        for port, _ in held:
            target = Target(address, port.target)
            self._balancer.put(HOST, _place(key, port), Backend(vip=port.front, ip=target))
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
            any(held.meets(port) for each in self._held.values() for held, _ in each)
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
            holder.bind((str(port.address or ""), port.published))
        except OSError as error:
            holder.close()
            if error.errno == errno.EADDRINUSE:
                raise ConflictError(f"{what} is in use on this node") from error
            if error.errno == errno.EADDRNOTAVAIL:
                raise InvalidArgumentError(
                    f"{port.address} is not an address of this node"
                ) from error
            raise HostError(f"{what} cannot be reserved: {error.strerror}") from error
        number: int = holder.getsockname()[1]
        return replace(port, published=number), holder


def _answer_loopback(key: str) -> None:
    sysctl.write(f"net/ipv4/conf/{names.exit_name(key)}/route_localnet", "1")


def _place(key: str, port: HostPort) -> str:
    return f"host {key} {port}"
