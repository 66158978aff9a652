"""Ports published on one host only: a container's, or a task's in host mode.

The port is reserved by a bound socket that nobody listens on: another program cannot take it, nor can
we take another's. What comes to it is translated to the container's leg to the outside
(:mod:`agent.dataplane.exits`), in the IP versions that the leg has.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from agent.balancer.balancer import HOST, Balancer
from agent.balancer.table import Backend, IPAddress, Port, Target
from agent.dataplane import names, netlink, sysctl
from agent.dataplane.channel import Channel
from swarm.errors import ConflictError, HostError, InvalidArgumentError

PROTOCOLS: Final = ("tcp", "udp", "sctp")
MAX_PORTS: Final = 1024
"""Published ports of one container."""

_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_TRIES: Final = 16
"""Numbers to try until one is free in both IP versions."""

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
        address: the host's only address where it is published; ``0.0.0.0`` and ``::``: all of one IP
            version; None: all of them.
    """

    protocol: str
    published: int
    target: int
    address: IPAddress | None = None

    def __str__(self) -> str:
        place = "" if self.address is None else f"{_shown(self.address)}:"
        return f"{place}{self.published}:{self.target}/{self.protocol}"

    @property
    def versions(self) -> tuple[int, ...]:
        """Of IP, that it may be published in."""
        return (4, 6) if self.address is None else (self.address.version,)

    @property
    def bound(self) -> IPAddress | None:
        """The host's only address where it is published."""
        return None if self.address is None or self.address.is_unspecified else self.address

    def front(self, version: int) -> Port:
        """As the table of ports has it."""
        return Port(version, self.protocol, self.published, self.bound)

    def meets(self, other: HostPort) -> bool:
        """Tell whether both cannot be published on one host."""
        return (
            (self.protocol, self.published) == (other.protocol, other.published)
            and not set(self.versions).isdisjoint(other.versions)
            and (self.bound == other.bound or None in {self.bound, other.bound})
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


def _address(text: str) -> tuple[IPAddress | None, str]:
    """Split the host's address off."""
    if text.startswith("["):
        place, bracket, rest = text[1:].partition("]:")
        kind: type[IPAddress] = ipaddress.IPv6Address
    elif text.count(":") < 2:
        return None, text
    else:
        place, bracket, rest = text.partition(":")
        kind = ipaddress.IPv4Address
    try:
        found = kind(place)
    except ValueError as error:
        raise InvalidArgumentError(f"{place!r:.60} is not an address of this host") from error
    if not bracket or (isinstance(found, ipaddress.IPv6Address) and found.scope_id is not None):
        raise InvalidArgumentError(f"{text!r:.60} names no address of this host before the ports")
    return found, rest


def _shown(address: IPAddress) -> str:
    return f"{address}" if address.version == 4 else f"[{address}]"


class HostPorts:
    """The ports published on this host alone.

    Args:
        balancer: keeps the host's table of ports.
        answer_loopback: has answers to this host's loopback addresses of an IP version taken in from an
            endpoint's leg.
    """

    def __init__(
        self, balancer: Balancer, *, answer_loopback: Callable[[str, int], None] | None = None
    ) -> None:
        self._balancer = balancer
        self._answer_loopback = answer_loopback or _answer_loopback
        self._held: dict[str, list[_Held]] = {}

    def holds(self, protocol: str, number: int) -> bool:
        """Tell whether a port is published in host mode here."""
        wanted = HostPort(protocol=protocol, published=number, target=1)
        return any(each.port.meets(wanted) for held in self._held.values() for each in held)

    def publish(
        self, key: str, ports: Sequence[HostPort], addresses: Sequence[IPAddress]
    ) -> tuple[HostPort, ...]:
        """Publish ports of one container, all or none; return them with the numbers they got.

        Args:
            key: for :meth:`withdraw`; what it published before is withdrawn.
            ports: what to publish.
            addresses: of the container's leg to the outside, one for each IP version that it has.

        Raises:
            ConflictError: a port is in use on this host.
            InvalidArgumentError: there are too many, or one is wished on an address of an IP version
                that the leg does not have.
            HostError: the host cannot reserve it.
        """
        if len(ports) > MAX_PORTS:
            raise InvalidArgumentError(f"a container publishes at most {MAX_PORTS} ports")
        self.withdraw(key)
        held = self._held.setdefault(key, [])
        try:
            for port in ports:
                legs = tuple(each for each in addresses if each.version in port.versions)
                held.append(self._reserve(port, legs))  # withdrawn on failure
            bound = {port.bound for port in ports if port.bound is not None}
            for version in {each.version for each in bound if each.is_loopback}:
                self._answer_loopback(key, version)
        except BaseException:
            self.withdraw(key)
            raise
        for each in held:
            for leg in each.legs:
                front, target = each.port.front(leg.version), Target(leg, each.port.target)
                self._balancer.put(HOST, each.place(key, leg), Backend(vip=front, ip=target))
        self._balancer.ensure(HOST)
        return tuple(each.port for each in held)

    def withdraw(self, key: str) -> None:
        """Give a container's ports back; an unknown one is fine."""
        for each in self._held.pop(key, ()):
            for leg in each.legs:
                self._balancer.remove(HOST, each.place(key, leg))
            each.close()

    async def run(self) -> None:
        """Hold the reservations until cancelled; the rules stay."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            for held in self._held.values():
                for each in held:
                    each.close()
            self._held.clear()

    def _reserve(self, port: HostPort, legs: tuple[IPAddress, ...]) -> _Held:
        if not legs:
            raise InvalidArgumentError(
                f"{port.address}: the container's way out has IPv4 alone; it is of the first network"
                " that is not internal, which needs IPv6 (network create --ipv6)"
            )
        if port.published and (
            any(held.port.meets(port) for each in self._held.values() for held in each)
            or any(
                self._balancer.serves(HOST, Port(leg.version, port.protocol, port.published))
                for leg in legs
            )
        ):
            raise ConflictError(
                f"port {port.published}/{port.protocol} is already published on this node"
            )
        for _ in range(_TRIES):
            try:
                return _hold(port, legs)
            except ConflictError:
                if port.published:
                    raise
        raise HostError(f"this host has no {port.protocol} port that is free in IPv4 and IPv6")


@dataclass(slots=True)
class _Held:
    """A reserved port.

    Attributes:
        port: with its number.
        legs: the container's addresses that it leads to, one for each IP version.
        holders: bound sockets.
    """

    port: HostPort
    legs: tuple[IPAddress, ...]
    holders: list[socket.socket] = field(default_factory=list)

    def place(self, key: str, leg: IPAddress) -> str:
        """Return the key of one leg's record in the table of ports."""
        return f"host {key} {leg.version} {self.port}"

    def close(self) -> None:
        """Give the port back."""
        for holder in self.holders:
            holder.close()


def _hold(port: HostPort, legs: tuple[IPAddress, ...]) -> _Held:
    """Reserve a port in the IP versions of the legs; the first decides about a number that is free."""
    held = _Held(port, legs)
    try:
        for leg in legs:
            holder = _bind(held.port, leg.version)
            if holder is not None:
                held.holders.append(holder)
                held.port = replace(port, published=holder.getsockname()[1])
    except BaseException:
        held.close()
        raise
    return held


def _bind(port: HostPort, version: int) -> socket.socket | None:
    what = f"port {port.published}/{port.protocol}"
    try:
        holder = socket.socket(_FAMILIES[version], *_KINDS[port.protocol])
    except OSError as error:
        if port.published:
            return None  # a kernel without the protocol: nobody else can take it either
        raise HostError(f"this host's kernel has no {port.protocol}") from error
    try:
        if version == 6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        holder.bind((str(port.bound or ""), port.published))
    except OSError as error:
        holder.close()
        if error.errno == errno.EADDRINUSE:
            raise ConflictError(f"{what} is in use on this node") from error
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidArgumentError(f"{port.address} is not an address of this node") from error
        raise HostError(f"{what} cannot be reserved: {error.strerror}") from error
    return holder


def _answer_loopback(key: str, version: int) -> None:
    leg = names.exit_name(key)
    if version == 4:
        sysctl.write(f"net/ipv4/conf/{leg}/route_localnet", "1")
    else:
        with contextlib.closing(Channel()) as channel:
            ((number, text),) = channel.run([netlink.loopback_route(channel.index(leg))])
            if number not in {0, errno.EEXIST}:
                raise HostError(f"[::1] cannot be published on: {text}")
