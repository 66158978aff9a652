"""What a container's query is answered with: from the name table, or by somebody else."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import dns.exception
import dns.rcode
import dns.rdatatype
import dns.reversename

from agent.discovery import wire
from agent.discovery.names import TASKS_PREFIX, IPAddress, NameTable, parse_address
from swarm.errors import WireError


def answer(
    query: wire.Query, table: NameTable, networks: Sequence[str], rng: Random, limit: int
) -> bytes | None:
    """Answer a query from the table.

    Args:
        query: what was asked.
        table: the names.
        networks: the asking container's networks, in its order.
        rng: shuffles the addresses.
        limit: bytes the reply may have.

    Returns:
        The reply, or None when the query is to be forwarded. A name known here is never forwarded,
        whatever type is asked, and neither is an unknown name of a single label (or ``tasks.`` and a
        single label): those can only be names of containers, which are nobody else's business.
    """
    if not query.internet:
        return wire.reply_code(query, dns.rcode.REFUSED, limit)
    if query.kind == dns.rdatatype.PTR:
        address = _reversed_address(query)
        if address is not None:
            target = table.reverse(networks, address)
            return None if target is None else _pointer(query, target, table.ttl, limit)
    found = table.lookup(
        networks, query.name, "A" if query.kind == dns.rdatatype.A else "AAAA", rng
    )
    if found.known:
        if found.addresses and query.kind in {dns.rdatatype.A, dns.rdatatype.AAAA}:
            return wire.reply_addresses(query, found.addresses, found.ttl, limit)
        return wire.reply_code(query, dns.rcode.NOERROR, limit)
    if _only_internal(query.name):
        return wire.reply_code(query, dns.rcode.NXDOMAIN, limit)
    return None


def _only_internal(name: str) -> bool:
    rest = name.removeprefix(TASKS_PREFIX)
    return bool(name) and "." not in rest


def _reversed_address(query: wire.Query) -> IPAddress | None:
    try:
        return parse_address(dns.reversename.to_address(query.owner))
    except (dns.exception.DNSException, ValueError):
        return None


def _pointer(query: wire.Query, target: str, ttl: int, limit: int) -> bytes:
    try:
        return wire.reply_pointer(query, target, ttl, limit)
    except WireError:
        # A container name that is too long for a label has no PTR; it still exists.
        return wire.reply_code(query, dns.rcode.NOERROR, limit)
