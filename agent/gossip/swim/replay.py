"""Which datagrams and frames have been opened before.

Encryption proves who could have sent something, not when. Incarnations and Lamport times make old
news harmless; what this adds is that a recorded request cannot be answered a second time, which
would let an outsider without any key make nodes dial each other and send whole tables.
"""

from __future__ import annotations

from typing import Final

GENERATION: Final = 1 << 14
"""Identities per generation; two are kept. At a hundred messages a second that is five minutes."""


class Replays:
    """Identities seen lately, bounded: the older half goes when the younger is full."""

    __slots__ = ("_former", "_limit", "_recent")

    def __init__(self, *, limit: int = GENERATION) -> None:
        self._limit = limit
        self._recent: set[bytes] = set()
        self._former: set[bytes] = set()

    def seen(self, identity: bytes) -> bool:
        """Tell whether this one was there before; from now on it was."""
        if identity in self._recent or identity in self._former:
            return True
        if len(self._recent) >= self._limit:
            self._former, self._recent = self._recent, set()
        self._recent.add(identity)
        return False
