"""Bulk syncs: what they hold, how they are split, and which reply belongs to which request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from agent.gossip.networkdb.table import Key
from agent.gossip.networkdb.wire import MAX_TIME, compound

MAX_CHUNK: Final = 1 << 20  # bytes of events in one message; engines refuse streams above 20 MiB
MAX_PENDING: Final = 4096


class Chunker:
    """Splits the events of one bulk sync into payloads.

    Every payload begins with the attachments of the entries' owners: a receiver that missed one
    would refuse the entries for good.
    """

    __slots__ = ("_attachments", "_overhead", "_part", "_size", "_used")

    def __init__(self, attachments: list[bytes], *, size: int = MAX_CHUNK) -> None:
        self._attachments = attachments
        self._overhead = sum(map(len, attachments))
        self._size = size
        self._part: list[bytes] = []
        self._used = self._overhead

    def add(self, event: bytes) -> bytes | None:
        """Take one more event; return a payload when it no longer fits into the one begun."""
        full = None
        if self._part and self._used + len(event) > self._size:
            full = self.finish()
        self._part.append(event)
        self._used += len(event)
        return full

    def finish(self) -> bytes:
        """Return the payload begun, which may hold no entries."""
        payload = compound([*self._attachments, *self._part])
        self._part, self._used = [], self._overhead
        return payload


@dataclass(slots=True, kw_only=True, eq=False)
class Pending:
    """One unsolicited bulk sync whose reply is awaited.

    Attributes:
        time: table time of the request, known once its last part is sent; the reply's is greater.
        own: own visible entries the request carried, with their times.
        seen: own entries the reply held alive.
        replied: a reply has begun to arrive.
    """

    peer: str
    networks: tuple[str, ...]
    own: dict[tuple[str, Key], int]
    done: Callable[[], None]
    time: int = MAX_TIME
    seen: dict[tuple[str, Key], int] = field(default_factory=dict)
    replied: bool = False


class PendingSyncs:
    """All awaited replies; several per peer may be under way."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending: list[Pending] = []

    def __len__(self) -> int:
        return len(self._pending)

    def add(self, pending: Pending) -> None:
        """Await one more; the oldest is given up when there are too many."""
        self._pending.append(pending)
        if len(self._pending) > MAX_PENDING:
            self._pending.pop(0).done()

    def waiting(self, pending: Pending) -> bool:
        """Tell whether it is still awaited."""
        return pending in self._pending

    def close(self, pending: Pending) -> None:
        """Stop to await it."""
        if pending in self._pending:
            self._pending.remove(pending)

    def answered(self, peer: str, time: int) -> list[Pending]:
        """Return the requests to ``peer`` that a reply of that time answers, newly answered or not."""
        return [p for p in self._pending if p.peer == peer and p.time < time]

    def saw(self, peer: str, network: str, key: Key, time: int) -> None:
        """Note that ``peer`` holds an own entry alive."""
        for pending in self._pending:
            if pending.peer == peer and pending.replied:
                place = (network, key)
                pending.seen[place] = max(time, pending.seen.get(place, 0))
