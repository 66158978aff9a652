"""Deadlines of the cores, on a time line that neither runs backwards nor leaps.

A process that was stopped, or a machine that slept, finds all its deadlines overdue on waking:
every suspicion would end in death although nobody had a chance to be heard. So the line advances
by at most ``max_step`` seconds between two calls, and not at all when the clock steps back.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

GRAIN: Final = (
    1e-6  # seconds; deadlines this close count as due, or rounding would keep them at bay
)
MAX_STEP: Final = 2.0  # seconds; far above the longest pause between two ticks of a healthy node


class Timer:
    """One deadline; cancelled ones stay in the heap until they surface."""

    __slots__ = ("action", "deadline")

    def __init__(self, deadline: float, action: Callable[[], None]) -> None:
        self.deadline = deadline
        self.action: Callable[[], None] | None = action

    def cancel(self) -> None:
        """Make sure the action does not run (any more)."""
        self.action = None


class Timers:
    """Timers in order of deadline; those of the same instant run in the order they were set."""

    __slots__ = ("_heap", "_outside", "_serial", "now", "stalled")

    def __init__(self, now: float) -> None:
        self.now = now
        self._outside = now
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = 0
        self.stalled = 0.0  # seconds left out of the line so far

    def begin(self, outside: float) -> None:
        """Take the caller's clock reading for the present, whatever was before."""
        self._outside = outside

    def advance(self, outside: float) -> None:
        """Move on to the caller's clock reading, within what the line allows."""
        step = outside - self._outside
        self._outside = outside
        if step > MAX_STEP:
            self.stalled += step - MAX_STEP
            step = MAX_STEP
        if step > 0:
            self.now += step

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Run ``action`` once that many seconds have passed."""
        return self.at(self.now + seconds, action)

    def at(self, deadline: float, action: Callable[[], None]) -> Timer:
        """Run ``action`` at a point of the line."""
        timer = Timer(deadline, action)
        self._serial += 1
        heapq.heappush(self._heap, (deadline, self._serial, timer))
        return timer

    def run_due(self) -> None:
        """Run every action whose time has come, those they set for now included."""
        while self._heap and self._heap[0][0] <= self.now + GRAIN:
            action = heapq.heappop(self._heap)[2].action
            if action is not None:
                action()

    def next_deadline(self) -> float | None:
        """Return when ``run_due`` has something to do, on the caller's clock."""
        while self._heap and self._heap[0][2].action is None:
            heapq.heappop(self._heap)
        if not self._heap:
            return None
        return self._outside + (self._heap[0][0] - self.now)
