"""What this host is: its addresses, its way to another host, its size."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import socket
from pathlib import Path
from typing import Final

from agent.dataplane import netlink
from agent.dataplane.channel import Channel
from agent.dataplane.names import EXIT_PREFIX
from agent.node.address import HostAddress, IPAddress
from swarm.errors import HostError, InvalidArgumentError

_CONTAINER_SIDE: Final = re.compile(
    rf"(docker|br-|veth|virbr|cni|podman|{EXIT_PREFIX}[0-9a-f]{{12}}$)"
)
"""Names of interfaces whose addresses face containers and never other hosts."""


def addresses() -> list[HostAddress]:
    """List the addresses of this host (of the calling thread's network namespace).

    Raises:
        HostError: the kernel did not tell.
    """
    try:
        channel = Channel()
    except OSError as error:
        raise HostError(f"cannot ask the kernel for addresses: {error}") from error
    try:
        links = {
            link.index: link.name
            for link in map(netlink.parse_link, channel.dump(netlink.all_links()))
        }
        found = [netlink.parse_address(body) for body in channel.dump(netlink.all_addresses())]
    finally:
        channel.close()
    return [
        HostAddress(
            interface=links.get(index, ""),
            ip=interface.ip,
            candidate=_candidate(links.get(index, ""), interface.ip),
        )
        for index, interface in found
    ]


def _candidate(name: str, ip: IPAddress) -> bool:
    return not (
        ip.is_loopback or ip.is_link_local or ip.is_multicast or _CONTAINER_SIDE.match(name)
    )


def route_to(host: str, port: int) -> IPAddress | None:
    """Return the local address that packets to another host would carry; None when there is no way.

    Nothing is sent: a connected datagram socket only asks the routing table.

    Raises:
        InvalidArgumentError: the host's name cannot be resolved.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise InvalidArgumentError(f"cannot resolve the manager's address {host!r}") from error
    for family, kind, protocol, _, address in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(address)
            except OSError:
                continue
            return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])
    return None


def machine() -> tuple[str, str]:
    """Return architecture and operating system as engines write them (``x86_64``, ``linux``)."""
    return platform.machine(), platform.system().lower()


def resources() -> tuple[int, int]:
    """Return processors in 1e-9 cores, and memory in bytes."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (os.cpu_count() or 1) * 1_000_000_000, memory


def name_servers(path: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """Return the name servers this host asks, at most three (resolv.conf(5)); none when unreadable."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines]
    return tuple(each[1] for each in words if len(each) > 1 and each[0] == "nameserver")[:3]
