"""Virtual time: what happens next happens at once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Runs what was put off, in order of time, then of asking.

    Attributes:
        now: milliseconds since the world began.
        steps: things that have happened.
    """

    def __init__(self) -> None:
        self.now = 0
        self.steps = 0
        self._queue: list[tuple[int, int, Callable[[], object]]] = []
        self._sequence = itertools.count()

    def after(self, delay: int, what: Callable[[], object]) -> None:
        """Do something later (milliseconds)."""
        heapq.heappush(self._queue, (self.now + delay, next(self._sequence), what))

    def run(self, duration: int) -> None:
        """Let virtual time pass."""
        end = self.now + duration
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            self.steps += 1
            what()
        self.now = end
