"""Two replicas of the store's state machine, driven one transaction at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

from manager.store import Transaction, View
from manager.store.entry import dump_attempt, dump_entry
from manager.store.machine import Machine
from manager.store.pools import Journal
from manager.store.state import State
from swarm.model import Version

T = TypeVar("T")


class Replicas:
    """Builds on the first machine as the store does, applies to both.

    Attributes:
        now: the clock, in nanoseconds; tests move it.
    """

    def __init__(self) -> None:
        self.machines = [Machine(), Machine()]
        self.now = 0
        self.index = 0

    @property
    def view(self) -> View:
        """The committed state."""
        return View(self.machines[0].state)

    def transact(self, build: Callable[[Transaction], T]) -> T:
        """Build, take back, commit; nothing is committed when ``build`` raises."""
        journal: Journal = []
        state = self.machines[0].state
        version = Version(index=self.index + 1)
        tx = Transaction(
            state, now=self.now, version=version, journal=journal, written={}, number=1
        )
        try:
            result = build(tx)
            attempt = tx.close(b"attempt %d" % self.index, "")
        finally:
            State.undo(journal)
        self.index += 1
        data = dump_entry([dump_attempt(attempt)])
        for machine in self.machines:
            assert machine.apply(self.index, data).results == (None,)
        return result

    def restore(self) -> None:
        """Replace the first machine by one restored from its snapshot."""
        snapshot = self.machines[0].snapshot()
        self.machines[0] = Machine()
        self.machines[0].restore(self.index, snapshot)

    def check(self) -> None:
        """Both machines hold the same bytes."""
        assert self.machines[0].snapshot() == self.machines[1].snapshot()


@pytest.fixture
def replicas() -> Replicas:
    """A fresh pair."""
    return Replicas()
