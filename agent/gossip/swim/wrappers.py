"""Wrappers around messages: several in one, a checksum, compression.

They nest in any order; depth, number of parts and unfolded size are bounded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final

from agent.gossip.swim import lzw
from agent.gossip.swim.fields import Reader, pack
from agent.gossip.swim.messages import Kind
from swarm.errors import WireError

MAX_DEPTH: Final = 8  # wrappers within wrappers
MAX_PARTS: Final = 1024  # messages in one datagram, all compounds together
MAX_DATAGRAM_UNFOLDED: Final = 256 << 10  # bytes of one datagram after decompression
COMPOUND_HEADER: Final = 2
COMPOUND_PART: Final = 2
CRC_SIZE: Final = 5


def compound(parts: Sequence[bytes]) -> bytes:
    """Return up to 255 messages as one; a single message stays as it is."""
    if len(parts) == 1:
        return parts[0]
    lengths = struct.pack(f">{len(parts)}H", *map(len, parts))
    return bytes((Kind.COMPOUND, len(parts))) + lengths + b"".join(parts)


def with_crc(message: bytes) -> bytes:
    """Return ``message`` behind its checksum."""
    return struct.pack(">BI", Kind.CRC, zlib.crc32(message)) + message


def compressed(message: bytes) -> bytes:
    """Return ``message`` inside the compression wrapper."""
    return bytes((Kind.COMPRESS,)) + pack({"Algo": 0, "Buf": lzw.compress(message)})


class _Unfolding:
    """Takes the wrappers off one datagram, within bounds."""

    __slots__ = ("_budget", "leaves", "truncated")

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.leaves: list[bytes] = []
        self.truncated = 0

    def unfold(self, data: bytes, depth: int) -> None:
        if not data:
            raise WireError("message is empty")
        if depth > MAX_DEPTH:
            raise WireError(f"wrappers nest deeper than {MAX_DEPTH}")
        kind = data[0]
        if kind == Kind.CRC:
            if len(data) < CRC_SIZE or int.from_bytes(data[1:5], "big") != zlib.crc32(data[5:]):
                raise WireError("checksum does not match")
            self.unfold(data[5:], depth + 1)
        elif kind == Kind.COMPRESS:
            inner = decompress_untrusted(data[1:], self._budget)
            self._budget -= len(inner)
            self.unfold(inner, depth + 1)
        elif kind == Kind.COMPOUND:
            self._parts(data, depth)
        elif len(self.leaves) >= MAX_PARTS:
            raise WireError(f"datagram holds more than {MAX_PARTS} messages")
        else:
            self.leaves.append(data)

    def _parts(self, data: bytes, depth: int) -> None:
        count = data[1] if len(data) > 1 else 0
        start = 2 + 2 * count
        if len(data) < start or not count:
            raise WireError("compound message is cut short")
        for length in struct.unpack_from(f">{count}H", data, 2):
            if start + length > len(data):
                self.truncated += 1
                continue
            part = data[start : start + length]
            start += length
            if part:
                self.unfold(part, depth + 1)
            else:
                self.truncated += 1


def unfold_untrusted(data: bytes) -> tuple[list[bytes], int]:
    """Return the messages of an opened datagram, and how many cut or empty parts were dropped.

    Raises:
        WireError: a wrapper is malformed or a bound exceeded; the datagram counts as a whole.
    """
    unfolding = _Unfolding(MAX_DATAGRAM_UNFOLDED)
    unfolding.unfold(data, 0)
    return unfolding.leaves, unfolding.truncated


def decompress_untrusted(body: bytes, limit: int) -> bytes:
    """Return what the body of a compression wrapper holds.

    Raises:
        WireError: malformed, empty, or larger than ``limit``.
    """
    fields = Reader(body).fields()
    if fields.number(b"Algo", 255) != 0:
        raise WireError("compression algorithm is unknown")
    plain = lzw.decompress_untrusted(fields.raw(b"Buf", len(body)), limit=limit)
    if not plain:
        raise WireError("compression wrapper is empty")
    return plain
