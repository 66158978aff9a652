"""Which addresses a node listens on, advertises, and sends VXLAN from.

Pure: what the host has and how it would reach the manager it joins are passed in.

Source: the rules and texts of dockerd's ``--listen-addr``, ``--advertise-addr`` and ``--data-path-addr``;
unlike dockerd, an address this host does not have is refused here and not found out later.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swarm.errors import InvalidArgumentError, PreconditionError
from swarm.identity.sockets import join_address

DEFAULT_PORT: Final = 2377
ANY_V4: Final = "0.0.0.0"
MAX_TEXT: Final = 280

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class HostAddress:
    """One address of this host."""

    interface: str
    ip: IPAddress
    candidate: bool = True
    """Whether it may be advertised unasked (not loopback, not a bridge of containers)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The addresses of a node, settled once and kept for its life in the cluster."""

    listen: str
    """``ip:port`` the manager serves on; its host is also where gossip listens."""
    advertise: str
    """Address others reach this node at, without port."""
    advertise_port: int
    data_path: str
    """Tunnel address: outer source of all VXLAN of this node."""


def split_wish(text: str, default_port: int = DEFAULT_PORT) -> tuple[str, int]:
    """Take ``host``, ``host:port``, ``[v6]``, ``[v6]:port`` or a bare IPv6 address apart.

    Raises:
        InvalidArgumentError: the text is none of them.
    """
    if len(text) > MAX_TEXT:
        raise InvalidArgumentError(f"an address of {len(text)} characters is too long")
    if _ip(text) is not None:
        return text, default_port
    if text.startswith("["):
        host, closed, rest = text[1:].partition("]")
        if not closed or _ip(host) is None or (rest and not rest.startswith(":")):
            raise InvalidArgumentError(f"{text!r} is not an address")
        return host, _port(rest[1:], text) if rest else default_port
    host, colon, port = text.rpartition(":")
    if not colon:
        host, port = text, ""
    if not host or ":" in host:
        raise InvalidArgumentError(f"{text!r} is not an address")
    return host, _port(port, text) if colon else default_port


def resolve(
    *,
    listen: str = "",
    advertise: str = "",
    data_path: str = "",
    host: Sequence[HostAddress],
    route: IPAddress | None = None,
) -> Addresses:
    """Settle a node's addresses.

    Args:
        listen: ``ip[:port]`` or ``interface[:port]``; empty means 0.0.0.0:2377.
        advertise: likewise; empty means the listen address, else the address that leads to the
            manager being joined, else this host's only address.
        data_path: address or interface without port; empty means the advertised address.
        host: every address of this host.
        route: the local address packets to the manager being joined would have; None for a new cluster.

    Raises:
        InvalidArgumentError: a text is malformed, or names an address or interface this host lacks.
        PreconditionError: there is nothing, or more than one address, to choose from.
    """
    listen_host, listen_port = split_wish(listen or ANY_V4)
    listen_ip = _named(listen_host, "listen", host)
    if advertise:
        advertise_host, advertise_port = split_wish(advertise, listen_port)
        advertise_ip = _named(advertise_host, "advertise", host)
        if advertise_ip.is_unspecified:
            raise InvalidArgumentError("advertise address must be a non-zero IP address")
    else:
        advertise_port = listen_port
        advertise_ip = listen_ip if not listen_ip.is_unspecified else (route or _only(host))
    data_ip = advertise_ip
    if data_path:
        data_ip = _named(data_path, "data path", host)
        if data_ip.is_unspecified:
            raise InvalidArgumentError("data path address must be a non-zero IP address")
    return Addresses(
        listen=join_address(str(listen_ip), listen_port),
        advertise=str(advertise_ip),
        advertise_port=advertise_port,
        data_path=str(data_ip),
    )


def _named(text: str, what: str, host: Sequence[HostAddress]) -> IPAddress:
    """Resolve an address or interface name to an address this host has."""
    ip = _ip(text)
    if ip is not None:
        if ip.is_unspecified or any(entry.ip == ip for entry in host):
            return ip
        raise InvalidArgumentError(f"the {what} address {ip} is not an address of this host")
    found = [entry.ip for entry in host if entry.interface == text]
    if not found:
        raise InvalidArgumentError(
            f"the {what} address {text!r} is neither an IP address nor an interface with an address"
        )
    usable = _preferred(found)
    if len(usable) > 1:
        raise PreconditionError(
            f"interface {text} has more than one address ({usable[0]} and {usable[1]}): "
            f"give the {what} address itself"
        )
    return usable[0]


def _only(host: Sequence[HostAddress]) -> IPAddress:
    """Return this host's only address worth advertising; IPv4 goes before IPv6."""
    candidates = [entry for entry in host if entry.candidate]
    wanted = set(_preferred([entry.ip for entry in candidates]))
    usable = [entry for entry in candidates if entry.ip in wanted]
    if not usable:
        raise PreconditionError(
            "could not find the system's IP address - specify one with --advertise-addr"
        )
    if len(usable) == 1:
        return usable[0].ip
    one, other = usable[:2]
    if one.interface == other.interface:
        where = f"on interface {one.interface} ({one.ip} and {other.ip})"
    else:
        where = (
            f"on different interfaces ({one.ip} on {one.interface} and "
            f"{other.ip} on {other.interface})"
        )
    raise PreconditionError(
        "could not choose an IP address to advertise since this system has multiple addresses "
        f"{where} - specify one with --advertise-addr"
    )


def _preferred(found: Sequence[IPAddress]) -> list[IPAddress]:
    """IPv4 addresses; without any, IPv6 ones that are not link-local; without any, all."""
    v4: list[IPAddress] = [ip for ip in found if ip.version == 4]
    return v4 or [ip for ip in found if not ip.is_link_local] or list(found)


def _ip(text: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _port(text: str, whole: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise InvalidArgumentError(f"{whole!r} has no valid port")
    return int(text)
