"""Ids of nodes, clusters, networks, tasks and everything else that has one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

ID_LENGTH: Final = 25
"""Characters in an id; each is one of :data:`DIGITS`."""

DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
FIPS_PREFIX: Final = "FIPS."
"""Comes before the id of a cluster whose nodes must all run in FIPS mode."""

_ENTROPY_BYTES: Final = 17


def base36(number: int, width: int = 0) -> str:
    """Write a non-negative number in lower-case base 36, padded with zeros on the left to ``width``."""
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 36)
        digits.append(DIGITS[digit])
    return "".join(reversed(digits)).rjust(max(width, 1), "0")


def new_id(entropy: Callable[[int], bytes] = secrets.token_bytes) -> str:
    """Make a new id: 25 characters of ``[0-9a-z]``, about 129 bits of chance.

    The top bit is set so that every number has 27 digits; the first digit is then hardly random
    and is dropped.

    Source: SwarmKit ``identity/randomid.go``.
    """
    raw = bytearray(entropy(_ENTROPY_BYTES))
    raw[0] |= 0x80
    return base36(int.from_bytes(raw, "big"))[1 : 1 + ID_LENGTH]


def is_id(text: str) -> bool:
    """Say whether a text has the form of an id (a cluster's FIPS prefix is not part of that)."""
    return len(text) == ID_LENGTH and all(character in DIGITS for character in text)
