"""Lamport clocks. Source: Lamport, "Time, Clocks, and the Ordering of Events" (rules IR1, IR2)."""

from __future__ import annotations


class LamportClock:
    """A counter that is always ahead of everything witnessed."""

    __slots__ = ("time",)

    def __init__(self) -> None:
        self.time = 0

    def increment(self) -> int:
        """Return a time for a new event."""
        self.time += 1
        return self.time

    def witness(self, time: int) -> None:
        """Take note of another node's time."""
        if time >= self.time:
            self.time = time + 1
