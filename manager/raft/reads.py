"""Linearisable read points without a log entry (ReadIndex, dissertation 6.4).

The leader notes its commit index, then proves with one heartbeat round that it still led after
the read arrived. Reads that arrive together share a round, and a lost heartbeat is made good by
any later one, because rounds are numbered and confirming one confirms all before it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

Asked: TypeAlias = tuple[int, int]
"""(raft id of the asking member, its context)."""


@dataclass(slots=True)
class Reads:
    """Both sides: what a leader has to confirm, and what this member waits for."""

    waiting: dict[Asked, None] = field(default_factory=dict)
    """Leader: not part of a round yet, in order of arrival."""
    rounds: deque[tuple[int, int, tuple[Asked, ...]]] = field(default_factory=deque)
    """Leader: (round, commit index at its start, reads), ascending."""
    round: int = 0
    """Leader: number of the last round started in this term."""
    pending: dict[int, int] = field(default_factory=dict)
    """Own reads not answered yet: context to age in ticks."""
    size: int = 0
    """Leader: reads in ``waiting`` and ``rounds``."""

    def reset(self) -> None:
        """Forget what a former leadership had to confirm."""
        self.waiting.clear()
        self.rounds.clear()
        self.round = self.size = 0

    def ask(self, asked: Asked) -> None:
        """Take in a read; the same one again (a follower repeats) needs no second place."""
        if asked not in self.waiting:
            self.waiting[asked] = None
            self.size += 1

    def start_round(self, commit: int) -> bool:
        """Put all waiting reads into a new round; False when there are none."""
        if not self.waiting:
            return False
        self.round += 1
        self.rounds.append((self.round, commit, tuple(self.waiting)))
        self.waiting.clear()
        return True

    def confirm(self, confirmed: int) -> list[tuple[Asked, int]]:
        """Return the reads of all rounds up to ``confirmed`` with their read points."""
        done: list[tuple[Asked, int]] = []
        while self.rounds and self.rounds[0][0] <= confirmed:
            _, index, asked = self.rounds.popleft()
            done += [(one, index) for one in asked]
        self.size -= len(done)
        return done
