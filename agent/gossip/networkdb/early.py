"""Events that arrived before what they depend on: the owner's membership, or its attachment.

Datagrams overtake each other, and engines work on their queues last in, first out. Whoever drops
an entry because its owner's attachment has not been heard of yet may never hear the entry again.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_EVENTS: Final = 4096
MAX_BYTES: Final = 4 << 20


class Early:
    """Encoded events by owner, for a short time, bounded; the oldest give way."""

    __slots__ = ("_bytes", "_events", "_serial", "dropped")

    def __init__(self) -> None:
        self._events: OrderedDict[int, tuple[float, str, bytes, bool]] = OrderedDict()
        self._serial = 0
        self._bytes = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._events)

    def keep(self, owner: str, event: bytes, *, until: float, bulk: bool) -> None:
        """Keep one event; ``bulk`` says that it came in a bulk sync."""
        self._serial += 1
        self._events[self._serial] = (until, owner, event, bulk)
        self._bytes += len(event)
        while len(self._events) > MAX_EVENTS or self._bytes > MAX_BYTES:
            _, (_, _, oldest, _) = self._events.popitem(last=False)
            self._bytes -= len(oldest)
            self.dropped += 1

    def take(self, owner: str) -> list[tuple[bytes, bool]]:
        """Return the events of one owner in order of arrival, and forget them."""
        serials = [serial for serial, event in self._events.items() if event[1] == owner]
        return [(event, bulk) for _, _, event, bulk in map(self._pop, serials)]

    def expire(self, now: float) -> None:
        """Forget what has waited long enough."""
        for serial in [serial for serial, event in self._events.items() if event[0] <= now]:
            self._pop(serial)

    def _pop(self, serial: int) -> tuple[float, str, bytes, bool]:
        event = self._events.pop(serial)
        self._bytes -= len(event[2])
        return event
