"""DNS messages to and from bytes. What comes in is hostile; what goes out is bounded.

Source: RFC 1035 (messages), RFC 6891 (EDNS), RFC 2308 (negative answers).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from agent.discovery.names import IPAddress
from swarm.errors import WireError

MAX_MESSAGE: Final = 65535
"""Bytes of a message over TCP; the length field has 16 bits."""
MIN_UDP: Final = 512
"""Bytes of a reply over UDP to a client that says nothing about its buffer."""
MAX_UDP: Final = 4096
"""Bytes of a reply over UDP at most, whatever the client says; loopback does not fragment."""
MAX_ADDITIONAL: Final = 3
"""Additional records a query may carry (EDNS, TSIG or SIG(0), and one to spare)."""

_HEADER: Final = struct.Struct(">HHHHHH")  # id, flags, and the four counts
_QR: Final = 0x8000
_RA: Final = 0x0080
_OPCODE: Final = 0x7800
_KEEP: Final = 0x7910  # opcode, RD and CD go back to the client as they came
_RECORD: Final = struct.Struct(">HHHIH")  # owner, type, class, TTL, length of the data that follows
_QUESTION_NAME: Final = 0xC000 | _HEADER.size  # an owner that is the question's name, compressed


class NotAQueryError(WireError):
    """The packet must be met with silence: it is a response, or has not even a header."""


class BadQueryError(WireError):
    """The packet deserves a refusal, which is ready in :attr:`reply`."""

    def __init__(self, text: str, reply: bytes) -> None:
        super().__init__(text)
        self.reply = reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One well-formed question."""

    message: dns.message.Message
    data: bytes
    """The message as it came, to be forwarded."""
    name: str
    """The queried name, folded to lower case, without the final dot; empty for the root."""
    owner: dns.name.Name
    kind: dns.rdatatype.RdataType
    internet: bool
    """Class IN."""
    udp_limit: int
    """Bytes the client takes over UDP."""


def parse_query_untrusted(data: bytes) -> Query:
    """Read one query.

    Raises:
        NotAQueryError: answer nothing.
        BadQueryError: answer with its ``reply``.
    """
    if len(data) < _HEADER.size:
        raise NotAQueryError("shorter than a DNS header")
    _, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if flags & _QR:
        raise NotAQueryError("a response, not a query")
    if flags & _OPCODE:
        raise BadQueryError("not a standard query", refusal(data, dns.rcode.NOTIMP))
    if questions != 1 or answers or authorities or additionals > MAX_ADDITIONAL:
        raise BadQueryError("record counts no query has", refusal(data, dns.rcode.FORMERR))
    try:
        message = dns.message.from_wire(data)
        question = message.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
    except (dns.exception.DNSException, ValueError, struct.error, IndexError) as error:
        raise BadQueryError("malformed query", refusal(data, dns.rcode.FORMERR)) from error
    if message.edns > 0:
        response = dns.message.make_response(message, recursion_available=True, our_payload=MAX_UDP)
        response.set_rcode(dns.rcode.BADVERS)
        raise BadQueryError("EDNS version above 0", response.to_wire())
    payload = message.payload if message.edns == 0 else MIN_UDP
    return Query(
        message=message,
        data=data,
        name="" if name in {".", "@"} else name,
        owner=question.name,
        kind=question.rdtype,
        internet=question.rdclass == dns.rdataclass.IN,
        udp_limit=max(MIN_UDP, min(payload, MAX_UDP)),
    )


def refusal(data: bytes, rcode: dns.rcode.Rcode) -> bytes:
    """Return a bare reply (a header, no question) with an error code; works for malformed queries."""
    identity, flags, *_ = _HEADER.unpack_from(data)
    return _HEADER.pack(identity, _QR | _RA | (flags & _KEEP) | rcode, 0, 0, 0, 0)


def reply_code(query: Query, rcode: dns.rcode.Rcode, limit: int) -> bytes:
    """Return a reply without records: NXDOMAIN, SERVFAIL, or NOERROR for a name without data."""
    response = _response(query)
    response.set_rcode(rcode)
    return response.to_wire(max_size=limit, prefer_truncation=True)


def reply_addresses(query: Query, addresses: Sequence[IPAddress], ttl: int, limit: int) -> bytes:
    """Return a reply with A or AAAA records, as many as ``limit`` bytes hold; TC if not all do.

    Over TCP there is nothing to fall back to, so a cut answer does not say TC there.
    """
    response = _response(query)
    response.flags |= dns.flags.AA
    empty = response.to_wire()
    room = (limit - len(empty)) // (_RECORD.size + addresses[0].max_prefixlen // 8)
    if room < len(addresses) and limit < MAX_MESSAGE:
        response.flags |= dns.flags.TC
        empty = response.to_wire()
    # Packed here: dnspython takes 50 us for an address, and a service may have thousands of them. It
    # would also leave out all addresses when not all fit; a client that ignores TC should get some.
    records = bytearray()
    for address in addresses[:room]:
        packed = address.packed
        records += _RECORD.pack(_QUESTION_NAME, query.kind, dns.rdataclass.IN, ttl, len(packed))
        records += packed
    header = bytearray(empty[: _HEADER.size])
    header[6:8] = min(len(addresses), room).to_bytes(2, "big")
    question_end = _HEADER.size + sum(len(label) + 1 for label in query.owner.labels) + 4
    return bytes(header + empty[_HEADER.size : question_end] + records + empty[question_end:])


def reply_pointer(query: Query, target: str, ttl: int, limit: int) -> bytes:
    """Return a reply with one PTR record.

    Raises:
        WireError: ``target`` cannot be written as a domain name.
    """
    response = _response(query)
    response.flags |= dns.flags.AA
    try:
        text = dns.name.from_text(target).to_text()
        response.answer.append(
            dns.rrset.from_text(query.owner, ttl, dns.rdataclass.IN, dns.rdatatype.PTR, text)
        )
    except dns.exception.DNSException as error:
        raise WireError(f"{target!r} is no domain name") from error
    return response.to_wire(max_size=limit, prefer_truncation=True)


def _response(query: Query) -> dns.message.Message:
    return dns.message.make_response(query.message, recursion_available=True, our_payload=MAX_UDP)


def with_identity(data: bytes, identity: int) -> bytes:
    """Return a message with another transaction id."""
    return identity.to_bytes(2, "big") + data[2:]


def identity_of(data: bytes) -> int:
    """Return a message's transaction id; ``data`` has at least two bytes."""
    return int.from_bytes(data[:2], "big")


def upstream_code_untrusted(data: bytes, query: Query, identity: int) -> int:
    """Check that ``data`` answers ``query`` under ``identity`` and return its response code.

    Raises:
        WireError: it does not: another id or question, not a response, or malformed.
    """
    if len(data) < _HEADER.size or identity_of(data) != identity:
        raise WireError("not the reply that is waited for")
    _, flags, questions, *_ = _HEADER.unpack_from(data)
    if not flags & _QR:
        raise WireError("a query came instead of a reply")
    code: int = flags & 0xF
    if not questions and code:
        return code  # some servers refuse without repeating the question
    try:
        message = dns.message.from_wire(data, question_only=True)
    except (dns.exception.DNSException, ValueError, struct.error, IndexError) as error:
        raise WireError("malformed reply") from error
    if message.question != query.message.question:
        raise WireError("reply to another question")
    return code


def clip(data: bytes, query: Query, limit: int) -> bytes:
    """Return an upstream's reply as it is, or cut to its question with TC set if it is too long."""
    if len(data) <= limit:
        return data
    response = _response(query)
    response.flags |= dns.flags.TC
    return response.to_wire(max_size=limit, prefer_truncation=True)
