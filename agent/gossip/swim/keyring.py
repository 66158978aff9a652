"""The cluster's gossip keys: which one sends, which ones are accepted.

Managers hold three keys, tagged with rising Lamport times, and every 12 hours drop the oldest and
add one. The middle key sends, so a node that is one rotation behind or ahead still understands
everyone. A whole set replaces a whole set at once, however many rotations lie between; keys that
vanish are still accepted until the set changes again, for nodes that were away.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from swarm.errors import InvalidArgumentError

KEYS_PER_SET = 3
KEY_SIZES = (16, 24, 32)  # bytes; Swarm's are 16


@dataclass(slots=True, kw_only=True, frozen=True, order=True)
class GossipKey:
    """One key as managers hand it out.

    Attributes:
        lamport: rises with every key made; orders a set.
        key: 16, 24 or 32 bytes.
    """

    lamport: int
    key: bytes

    def fingerprint(self) -> str:
        """Return 16 hex digits that name the key without revealing it."""
        return hashlib.sha256(b"gossip-key:" + self.key).hexdigest()[:16]


class Keyring:
    """A set of three keys, and the ones it replaced."""

    __slots__ = ("_ciphers", "_current", "_retired")

    def __init__(self, keys: Iterable[GossipKey]) -> None:
        self._current = _ordered(keys)
        self._retired: tuple[GossipKey, ...] = ()
        self._ciphers = self._make()

    def replace(self, keys: Iterable[GossipKey]) -> bool:
        """Install a whole set; return False if it is the one already installed.

        Raises:
            InvalidArgumentError: not exactly three distinct keys of a legal size; nothing changed.
        """
        wanted = _ordered(keys)
        if wanted == self._current:
            return False
        fresh = {key.key for key in wanted}
        self._retired = tuple(key for key in self._current if key.key not in fresh)
        self._current = wanted
        self._ciphers = self._make()
        return True

    @property
    def sending(self) -> AESGCM:
        """The cipher of the middle key."""
        return self._ciphers[0]

    @property
    def accepting(self) -> tuple[AESGCM, ...]:
        """Every cipher that opens what others send, the likeliest first."""
        return self._ciphers

    def fingerprints(self) -> tuple[str, ...]:
        """Return the fingerprints of the current set: the previous key, the sending one, the next."""
        return tuple(key.fingerprint() for key in self._current)

    def _make(self) -> tuple[AESGCM, ...]:
        oldest, middle, newest = self._current
        return tuple(AESGCM(key.key) for key in (middle, newest, oldest, *self._retired))


def _ordered(keys: Iterable[GossipKey]) -> tuple[GossipKey, GossipKey, GossipKey]:
    ordered = sorted(keys)
    if len(ordered) != KEYS_PER_SET:
        raise InvalidArgumentError(f"a gossip key set has {KEYS_PER_SET} keys, not {len(ordered)}")
    if len({key.lamport for key in ordered}) != KEYS_PER_SET or (
        len({key.key for key in ordered}) != KEYS_PER_SET
    ):
        raise InvalidArgumentError("a gossip key set holds the same key or Lamport time twice")
    if any(len(key.key) not in KEY_SIZES for key in ordered):
        raise InvalidArgumentError("a gossip key has 16, 24 or 32 bytes")
    return ordered[0], ordered[1], ordered[2]
