"""A wish to put a namespace on a network, and what makes it one. Pure."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from agent.node.state import ServicePart
from swarm.errors import InvalidArgumentError

MAX_ALIASES: Final = 64
MAX_NAME: Final = 253
"""Characters of a container's name or alias, as of any name in DNS."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """A wish to put a namespace on a network."""

    target: str
    """Name, id or id prefix of the network, as typed."""
    container_id: str
    container_name: str
    netns: str
    interface: str = ""
    """Empty: the first free of eth0, eth1, ..."""
    ipv4: str = ""
    ipv6: str = ""
    aliases: tuple[str, ...] = ()
    foreign: bool = False
    """A namespace made by somebody else: its default route is not touched."""
    upstreams: tuple[str, ...] = ()
    """Name servers for all other names."""
    publish: tuple[str, ...] = ()
    """Ports of this host to lead to the container, as ``PUBLISHED:TARGET/PROTOCOL``; they are
    published with the endpoint that is its way out, and not at all if there is none."""
    service: ServicePart | None = None
    """Of a service's task."""

    @property
    def wishes(self) -> tuple[str, ...]:
        """The addresses asked for."""
        return tuple(each for each in (self.ipv4, self.ipv6) if each)


def check(request: AttachRequest) -> None:
    """Refuse a request that makes no sense.

    Raises:
        InvalidArgumentError: the text says which part.
    """
    if not request.target:
        raise InvalidArgumentError("no network was named")
    if not 0 < len(request.container_name) <= MAX_NAME:
        raise InvalidArgumentError(f"a container name has 1 to {MAX_NAME} characters")
    if len(request.aliases) > MAX_ALIASES:
        raise InvalidArgumentError(f"there are more than {MAX_ALIASES} aliases")
    for alias in request.aliases:
        if not 0 < len(alias) <= MAX_NAME:
            raise InvalidArgumentError(f"an alias has 1 to {MAX_NAME} characters")
    for text, version in ((request.ipv4, 4), (request.ipv6, 6)):
        try:
            right = not text or ipaddress.ip_address(text).version == version
        except ValueError:
            right = False
        if not right:
            raise InvalidArgumentError(f"{text!r:.80} is not an IPv{version} address")
