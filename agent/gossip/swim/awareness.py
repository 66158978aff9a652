"""Lifeguard's health score: how much this node trusts its own view.

Source: Dadgar, Phillips, Currey, "Lifeguard: Local Health Awareness for More Accurate Failure
Detection", section IV.A (LHA-Probe); limits as memberlist uses them.
"""

from __future__ import annotations


class Awareness:
    """A score from 0 (well) to ``limit - 1``; probing slows down with it."""

    __slots__ = ("_limit", "score")

    def __init__(self, *, limit: int) -> None:
        self._limit = limit
        self.score = 0

    def apply(self, delta: int) -> None:
        """Move the score: down after a success, up after missing nacks or a refutation."""
        self.score = max(0, min(self._limit - 1, self.score + delta))

    def stretch(self, seconds: float) -> float:
        """Return an interval or time-out stretched by the score."""
        return seconds * (self.score + 1)
