"""What this node tells others of one of its endpoints, and the names it has here. Pure.

One endpoint has one record in each table, under its id. The tables know one address a record; an IPv6
address beside the IPv4 one travels under a second key made out of the first, so that engines which
know nothing of it see an ordinary endpoint.

Source: ``reference/gossip-wire.md`` 3.1 to 3.3.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass
from typing import Final

from agent.discovery.names import NameRecord
from agent.gossip.records import ENDPOINT_TABLE, PEER_TABLE, EndpointRecord, PeerRecord
from agent.node.state import Attachment

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
    for address in attachment.addresses:
        interface = ipaddress.ip_interface(address)
        first = interface.version == 4 or len(attachment.addresses) == 1
        key = attachment.endpoint_id if first else second_key(attachment.endpoint_id)
        peer = PeerRecord(
            endpoint_ip=str(interface), endpoint_mac=attachment.mac, tunnel_endpoint_ip=vtep
        )
        endpoint = EndpointRecord(
            name=attachment.container_name,
            endpoint_ip=str(interface.ip),
            task_aliases=task_aliases(attachment),
        )
        found.append(Entry(table=PEER_TABLE, key=key, value=peer.encode()))
        found.append(Entry(table=ENDPOINT_TABLE, key=key, value=endpoint.encode()))
    return found


def names_of(attachment: Attachment) -> NameRecord:
    """Return what an endpoint contributes to this node's own table of names."""
    return NameRecord(
        name=attachment.container_name,
        addresses=tuple(ipaddress.ip_interface(address).ip for address in attachment.addresses),
        task_aliases=task_aliases(attachment),
    )
