"""LZW as the wire compresses: least significant bit first, 8-bit literals, 9 to 12 bit codes.

Source: Go's ``compress/lzw`` behaviour. Code 256 clears the table, 257 ends the data, the first
free code is 258. The reader widens when the next free code reaches 2^width (GIF style, no TIFF
early change); with a full table it keeps 12 bits and adds nothing.
"""

from __future__ import annotations

from swarm.errors import WireError

_CLEAR = 256
_END = 257
_FIRST_FREE = 258
_MAX_WIDTH = 12
_TABLE_FULL = 1 << _MAX_WIDTH
_LITERALS = tuple(bytes((value,)) for value in range(256))
_ALPHABET: dict[bytes, int] = {literal: code for code, literal in enumerate(_LITERALS)}


def compress(data: bytes) -> bytes:
    """Return ``data`` compressed, as Go's writer would: a clear code first, the end code last."""
    out = bytearray()
    bits, count, width = _CLEAR, 9, 9
    table = dict(_ALPHABET)
    newest = _END  # the code assigned last
    prefix = b""
    for value in data:
        candidate = prefix + _LITERALS[value]
        if candidate in table:
            prefix = candidate
            continue
        bits |= table[prefix] << count
        count += width
        newest += 1
        if newest == 1 << width:
            width += 1
        if newest == _TABLE_FULL - 1:
            # Go's writer never assigns the last code: it clears instead, at 12 bits.
            bits |= _CLEAR << count
            count += width
            table, newest, width = dict(_ALPHABET), _END, 9
        else:
            table[candidate] = newest
        prefix = _LITERALS[value]
        while count >= 8:
            out.append(bits & 0xFF)
            bits >>= 8
            count -= 8
    if prefix:
        bits |= table[prefix] << count
        count += width
        newest += 1
        if newest == 1 << width:
            width += 1
        if newest == _TABLE_FULL - 1:
            bits |= _CLEAR << count
            count += width
            width = 9
    bits |= _END << count
    count += width
    out += bits.to_bytes((count + 7) // 8, "little")
    return bytes(out)


def decompress_untrusted(data: bytes, *, limit: int) -> bytes:
    """Return ``data`` decompressed.

    Args:
        data: compressed bytes; whatever follows the end code is ignored, as Go does.
        limit: the most bytes the result may have.

    Raises:
        WireError: the end code is missing, a code is invalid, or the result exceeds ``limit``.
    """
    parts: list[bytes] = []
    total = 0
    table: list[bytes] = [*_LITERALS, b"", b""]
    width, mask = 9, 0x1FF
    bits = count = position = 0
    size = len(data)
    previous = b""
    while True:
        while count < width:
            if position >= size:
                raise WireError("compressed data ends without its end code")
            bits |= data[position] << count
            position += 1
            count += 8
        code = bits & mask
        bits >>= width
        count -= width
        if code < _CLEAR:
            entry = _LITERALS[code]
        elif code == _CLEAR:
            del table[_FIRST_FREE:]
            width, mask, previous = 9, 0x1FF, b""
            continue
        elif code == _END:
            return b"".join(parts)
        elif code < len(table):
            entry = table[code]
        elif code == len(table) and previous and code < _TABLE_FULL:
            entry = previous + previous[:1]
        else:
            raise WireError("compressed data holds a code that was never assigned")
        total += len(entry)
        if total > limit:
            raise WireError(f"compressed data unfolds to more than {limit} bytes")
        parts.append(entry)
        if previous and len(table) < _TABLE_FULL:
            table.append(previous + entry[:1])
        previous = entry
        if len(table) > mask and width < _MAX_WIDTH:
            width += 1
            mask = (1 << width) - 1
