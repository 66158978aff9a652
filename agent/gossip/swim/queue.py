"""Broadcasts waiting for their share of retransmissions.

Order: fewest transmissions, then longest, then newest. A message is retired after
``mult * ceil(log10(n + 1))`` transmissions; a newer one under the same name replaces the older.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass


def retransmit_limit(mult: int, nodes: int) -> int:
    """Return how often a broadcast is sent in a cluster of ``nodes``."""
    return mult * math.ceil(math.log10(nodes + 1))


@dataclass(slots=True, kw_only=True)
class Broadcast:
    """One queued message."""

    name: str
    message: bytes
    serial: int
    transmits: int = 0

    @property
    def place(self) -> _Place:
        """What the queue sorts by; the serial number differs, so the rest is never compared."""
        return (self.transmits, -len(self.message), -self.serial, self)


_Place = tuple[int, int, int, Broadcast]


class BroadcastQueue:
    """Messages by name, bounded: the one sent most is dropped first when full."""

    __slots__ = ("_by_name", "_limit", "_order", "_serial", "dropped")

    def __init__(self, *, limit: int) -> None:
        self._by_name: dict[str, Broadcast] = {}
        self._order: list[_Place] = []
        self._serial = 0
        self._limit = limit
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def put(self, name: str, message: bytes) -> None:
        """Queue ``message``, replacing the one of the same name."""
        self.discard(name)
        if len(self._order) >= self._limit:
            self._remove(len(self._order) - 1)
            self.dropped += 1
        self._serial += 1
        item = Broadcast(name=name, message=message, serial=self._serial)
        self._by_name[name] = item
        insort(self._order, item.place)

    def discard(self, name: str) -> None:
        """Forget the message of that name, if any."""
        item = self._by_name.get(name)
        if item is not None:
            self._remove(bisect_left(self._order, item.place))

    def take(
        self, *, room: int, overhead: int, limit: int, count: int = 255, charge: int = 1
    ) -> list[bytes]:
        """Return messages that fit, each charged its transmissions.

        Args:
            room: bytes available.
            overhead: bytes each message costs besides its own.
            limit: transmissions after which a message is retired.
            count: the most messages to return.
            charge: how often each will be sent.
        """
        taken: list[Broadcast] = []
        tier = 0
        while len(taken) < count and self._order:
            # The longest message of this tier that still fits, else the next tier.
            index = bisect_left(self._order, (tier, overhead - room, -self._serial - 1))
            if index == len(self._order):
                break
            item = self._order[index][-1]
            if item.transmits > tier:
                tier = item.transmits
                continue
            room -= len(item.message) + overhead
            self._remove(index)
            taken.append(item)
        for item in taken:
            item.transmits += charge
            if item.transmits < limit:
                self._by_name[item.name] = item
                insort(self._order, item.place)
        return [item.message for item in taken]

    def _remove(self, index: int) -> None:
        item = self._order.pop(index)[-1]
        del self._by_name[item.name]
