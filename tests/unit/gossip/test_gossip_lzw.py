"""The wire's compression agrees with Go's and survives anything."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gossip.swim import lzw
from swarm.errors import WireError

HELLO = b" ".join([b"hello"] * 5)


def test_agrees_with_the_reference_vector() -> None:
    """Both directions give what Go's library gives."""
    packed = bytes.fromhex("00d19461c3e60d0881040d222c787020c3856f0202")
    assert lzw.compress(HELLO) == packed
    assert lzw.decompress_untrusted(packed, limit=100) == HELLO


@given(st.binary(max_size=4096) | st.text("ab", max_size=6000).map(str.encode))
def test_round_trip(data: bytes) -> None:
    """What is compressed comes back."""
    assert lzw.decompress_untrusted(lzw.compress(data), limit=8192) == data


@pytest.mark.parametrize("size", [*range(253, 260), *range(3830, 3845), 20_000])
def test_round_trip_around_changes_of_code_width(size: int) -> None:
    """Code widths and the table's clearing change at the same place in both directions."""
    data = random.Random(size).randbytes(size)
    assert lzw.decompress_untrusted(lzw.compress(data), limit=size) == data


def full_table_without_clear(data: bytes) -> bytes:
    """Compress as a writer that never clears a full table: legal, though Go's writer is not it."""
    codes, table, prefix, widths = [256], {bytes((i,)): i for i in range(256)}, b"", [9]
    newest = 257

    def width() -> int:
        return min(12, max(9, newest.bit_length()))

    for value in data:
        if prefix + bytes((value,)) in table:
            prefix += bytes((value,))
            continue
        codes.append(table[prefix])
        widths.append(width())
        if newest < 4095:
            newest += 1
            table[prefix + bytes((value,))] = newest
        prefix = bytes((value,))
    codes += [table[prefix], 257]
    widths.append(width())
    newest = min(newest + 1, 4095)
    widths.append(width())
    bits = shift = 0
    for code, size in zip(codes, widths, strict=True):
        bits |= code << shift
        shift += size
    return bits.to_bytes((shift + 7) // 8, "little")


def test_reader_keeps_twelve_bits_when_the_table_is_full() -> None:
    """With all 4096 codes taken, nothing is added and nothing widens."""
    data = random.Random(1).randbytes(6000)
    assert lzw.decompress_untrusted(full_table_without_clear(data), limit=6000) == data


@given(st.binary(max_size=600))
def test_any_bytes_decompress_or_are_refused(data: bytes) -> None:
    """No other outcome, and never more than the limit."""
    with contextlib.suppress(WireError):
        assert len(lzw.decompress_untrusted(data, limit=1000)) <= 1000


def test_every_truncation_is_refused() -> None:
    """The end code is required."""
    packed = lzw.compress(HELLO)
    for length in range(len(packed)):
        with pytest.raises(WireError):
            lzw.decompress_untrusted(packed[:length], limit=1000)


def test_a_bomb_is_refused_at_the_limit() -> None:
    """A megabyte in a few hundred bytes does not unfold beyond what is allowed."""
    bomb = lzw.compress(bytes(1 << 20))
    assert len(bomb) < 3000
    with pytest.raises(WireError, match="unfolds to more"):
        lzw.decompress_untrusted(bomb, limit=(1 << 20) - 1)
