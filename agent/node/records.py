"""What this node tells others of one of its endpoints, and the names it has here. Pure.

One endpoint has one record in each table, under its id. The tables know one address a record; an IPv6
address beside the IPv4 one travels under a second key made out of the first, so that engines which
know nothing of it see an ordinary endpoint.

Source: libnetwork ``agent.proto``, ``drivers/overlay/overlay.proto``.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Final

from agent.discovery.names import IPAddress, NameRecord
from agent.gossip.records import (
    ENDPOINT_TABLE,
    PEER_TABLE,
    Balancing,
    EndpointRecord,
    PeerRecord,
    PortConfig,
    Protocol,
)
from agent.node.state import Attachment, ServicePart, Stage

SHORT_ID: Final = 12
"""Digits of a container id that also are a name of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a gossip table."""

    table: str
    key: str
    value: bytes


def mac_of(address: str) -> str:
    """Return the MAC of an endpoint: 02:42 and the IPv4 address; hashed out of an IPv6 one.

    Args:
        address: CIDR form or bare.

    Source: libnetwork's netutils, so that a container keeps its MAC as long as its address.
    """
    ip = ipaddress.ip_interface(address).ip
    raw = ip.packed if ip.version == 4 else hashlib.sha256(ip.packed).digest()[:4]
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *raw))


def second_key(endpoint_id: str) -> str:
    """Return the key under which an endpoint's IPv6 address travels."""
    return hashlib.sha256(f"ipv6 {endpoint_id}".encode()).hexdigest()


def task_aliases(attachment: Attachment) -> tuple[str, ...]:
    """Return the further names of a container: the user's, then its short id."""
    return (*attachment.aliases, attachment.container_id[:SHORT_ID])


def entries(attachment: Attachment, vtep: str) -> list[Entry]:
    """Return an endpoint's entries in the order they are put; they are deleted in reverse."""
    found: list[Entry] = []
    for address, (key, _) in zip(attachment.addresses, keys(attachment), strict=True):
        interface = ipaddress.ip_interface(address)
        peer = PeerRecord(
            endpoint_ip=str(interface), endpoint_mac=attachment.mac, tunnel_endpoint_ip=vtep
        )
        found.append(Entry(table=PEER_TABLE, key=key, value=peer.encode()))
        endpoint = endpoint_record(attachment, interface.ip)
        if endpoint is not None:
            found.append(Entry(table=ENDPOINT_TABLE, key=key, value=endpoint.encode()))
    return found


def keys(attachment: Attachment) -> list[tuple[str, IPAddress]]:
    """Return the key of each of an endpoint's addresses in the tables."""
    found = []
    for address in attachment.addresses:
        ip = ipaddress.ip_interface(address).ip
        first = ip.version == 4 or len(attachment.addresses) == 1
        key = attachment.endpoint_id if first else second_key(attachment.endpoint_id)
        found.append((key, ip))
    return found


def endpoint_record(attachment: Attachment, ip: IPAddress) -> EndpointRecord | None:
    """Return what one address of an endpoint is called; None while nobody is to know of it."""
    part = attachment.service or ServicePart(stage=Stage.SERVING)
    if part.stage is Stage.STARTING:
        return None
    virtual = [text for text in part.virtual_ips if _version(text) == ip.version]
    return EndpointRecord(
        name=attachment.container_name,
        service_name=part.service_name,
        service_id=part.service_id,
        virtual_ip=virtual[0] if virtual else "",
        endpoint_ip=str(ip),
        ingress_ports=tuple(map(parse_port, part.ports)),
        aliases=part.aliases,
        task_aliases=task_aliases(attachment),
        service_disabled=part.stage is Stage.DRAINING,
        balancing=_balancing(part),
    )


def _balancing(part: ServicePart) -> Balancing | None:
    """Return what is not as usual of the spread of flows: engines' records stay as they were."""
    found = Balancing(weight=part.weight, sticky=part.sticky, prefer_local=part.prefer_local)
    return None if found == Balancing() else found


def parse_port(text: str) -> PortConfig:
    """Read ``PUBLISHED:TARGET/PROTOCOL``, as an attachment's file has it."""
    published, _, rest = text.partition(":")
    target, _, protocol = rest.partition("/")
    return PortConfig(
        protocol=Protocol[protocol.upper()],
        target_port=int(target),
        published_port=int(published),
    )


def _version(text: str) -> int:
    return ipaddress.ip_address(text).version


def names_of(attachment: Attachment) -> NameRecord | None:
    """Return what an endpoint contributes to this node's own table of names; None: nothing yet."""
    part = attachment.service or ServicePart(stage=Stage.SERVING)
    if part.stage is Stage.STARTING:
        return None
    return NameRecord(
        name=attachment.container_name,
        addresses=tuple(ipaddress.ip_interface(address).ip for address in attachment.addresses),
        service_name=part.service_name,
        service_id=part.service_id,
        virtual_ips=tuple(ipaddress.ip_address(text) for text in part.virtual_ips),
        aliases=part.aliases,
        task_aliases=task_aliases(attachment),
        disabled=part.stage is Stage.DRAINING,
    )
