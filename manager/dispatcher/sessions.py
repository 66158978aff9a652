"""Which nodes have a session, and until when each is believed to be up.

Sans-IO: times are nanoseconds of a monotonic clock, chance is passed in. States of the table:

- *expected*: known from before this manager took over; its node has six periods to come back;
- *registered*: holds a session id; three missed heartbeats make it *down*;
- *down*: reported once; after a day its tasks are given up.

Source: SwarmKit ``manager/dispatcher/dispatcher.go``.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Final

from swarm.errors import InvalidArgumentError, NotFoundError, UnavailableError

SECOND: Final = 1_000_000_000
DEFAULT_PERIOD: Final = 5 * SECOND
JITTER: Final = SECOND // 2
"""A period is drawn from the configured one plus or minus this, so that heartbeats spread out."""

MISSED: Final = 3
"""Periods without a heartbeat after which a node is down."""

GRACE: Final = 6
"""Periods a node has to come back after another manager took over."""

RATE_WINDOW: Final = 8 * SECOND
RATE_LIMIT: Final = 3
"""New sessions of one node within the window; one more is told to come later."""

ORPHAN_AFTER: Final = 24 * 3600 * SECOND
"""How long a node is down before its tasks are given up."""

STALE_FACTOR: Final = 8
"""Heap entries per node, stale ones included, above which the heap is rebuilt."""


class Phase(Enum):
    """Where a node stands."""

    EXPECTED = auto()
    REGISTERED = auto()
    DOWN = auto()
    ORPHANED = auto()


class Lapse(Enum):
    """What running out of time means for a node."""

    DOWN = auto()
    ORPHAN = auto()


@dataclass(slots=True, kw_only=True)
class _Entry:
    phase: Phase
    session_id: str = ""
    period: int = 0
    """The period last given to the node, nanoseconds."""
    deadline: int = 0
    """When this phase lapses; 0 for never."""
    registrations: deque[int] = field(default_factory=deque)
    """When the last sessions began; at most RATE_LIMIT of them, within RATE_WINDOW."""


class Sessions:
    """The session table of a leader.

    Args:
        rng: draws the heartbeat periods.
        make_id: makes session ids.
        period: the configured heartbeat period, nanoseconds.
    """

    def __init__(
        self, rng: random.Random, make_id: Callable[[], str], *, period: int = DEFAULT_PERIOD
    ) -> None:
        self._rng = rng
        self._make_id = make_id
        self._period = period
        self._entries: dict[str, _Entry] = {}
        self._due: list[tuple[int, str]] = []  # may hold stale deadlines; entries know better

    def configure(self, period: int) -> None:
        """Use another heartbeat period from each node's next heartbeat on."""
        self._period = period

    def expect(self, nodes: Iterable[str], now: int) -> None:
        """Start watching nodes that had a session with the manager before this one."""
        for node_id in nodes:
            if node_id not in self._entries:
                entry = self._entries[node_id] = _Entry(phase=Phase.EXPECTED, period=self._period)
                self._arm(node_id, entry, now + GRACE * self._period)

    def presume_down(self, nodes: Iterable[str], now: int) -> None:
        """Start watching nodes that were down already when this manager took over."""
        for node_id in nodes:
            if node_id not in self._entries:
                entry = self._entries[node_id] = _Entry(phase=Phase.DOWN, period=self._period)
                self._arm(node_id, entry, now + ORPHAN_AFTER)

    def forget(self, node_id: str) -> None:
        """Drop a node that was removed from the cluster."""
        self._entries.pop(node_id, None)

    def phase(self, node_id: str) -> Phase | None:
        """Return where a node stands; None for one never seen."""
        entry = self._entries.get(node_id)
        return None if entry is None else entry.phase

    def open(self, node_id: str, session_id: str, now: int) -> str:
        """Begin a session, or go on with the one the node still holds; return its id.

        Raises:
            UnavailableError: the node begins sessions too fast.
        """
        entry = self._entries.get(node_id)
        if entry is None:
            entry = self._entries[node_id] = _Entry(phase=Phase.EXPECTED)
        if not (entry.phase is Phase.REGISTERED and session_id == entry.session_id):
            while entry.registrations and now - entry.registrations[0] >= RATE_WINDOW:
                entry.registrations.popleft()
            if len(entry.registrations) >= RATE_LIMIT:
                raise UnavailableError(f"node {node_id} attempted registration too recently")
            entry.registrations.append(now)
            entry.session_id = self._make_id()
        entry.phase = Phase.REGISTERED
        self._renew(node_id, entry, now)
        return entry.session_id

    def require(self, node_id: str, session_id: str) -> None:
        """Check that a call belongs to the node's session.

        Raises:
            NotFoundError: the node has no session.
            InvalidArgumentError: it has another one.
        """
        self._registered(node_id, session_id)

    def beat(self, node_id: str, session_id: str, now: int) -> int:
        """Take in a heartbeat; return the time until the next one, nanoseconds.

        Raises:
            NotFoundError: the node has no session; it shall begin one.
            InvalidArgumentError: it has another one.
        """
        entry = self._registered(node_id, session_id)
        self._renew(node_id, entry, now)
        return entry.period

    def lapse(self, now: int) -> list[tuple[str, Lapse]]:
        """Return the nodes whose time ran out, and move them on; each lapse is reported once."""
        lapsed: list[tuple[str, Lapse]] = []
        while self._due and self._due[0][0] <= now:
            deadline, node_id = heapq.heappop(self._due)
            entry = self._entries.get(node_id)
            if entry is None or entry.deadline != deadline:
                continue
            if entry.phase is Phase.DOWN:
                entry.phase = Phase.ORPHANED
                entry.deadline = 0
                lapsed.append((node_id, Lapse.ORPHAN))
            else:
                entry.phase = Phase.DOWN
                entry.session_id = ""
                self._arm(node_id, entry, now + ORPHAN_AFTER)
                lapsed.append((node_id, Lapse.DOWN))
        return lapsed

    def next_deadline(self) -> int | None:
        """Return when :meth:`lapse` may have something to say; None while nothing is watched."""
        while self._due:
            deadline, node_id = self._due[0]
            entry = self._entries.get(node_id)
            if entry is not None and entry.deadline == deadline:
                return deadline
            heapq.heappop(self._due)
        return None

    def _registered(self, node_id: str, session_id: str) -> _Entry:
        entry = self._entries.get(node_id)
        if entry is None or entry.phase is not Phase.REGISTERED:
            raise NotFoundError(f"node {node_id} not registered")
        if entry.session_id != session_id:
            raise InvalidArgumentError("session invalid")
        return entry

    def _renew(self, node_id: str, entry: _Entry, now: int) -> None:
        jitter = min(JITTER, self._period // 10)
        entry.period = self._period + self._rng.randint(-jitter, jitter)
        self._arm(node_id, entry, now + MISSED * entry.period)

    def _arm(self, node_id: str, entry: _Entry, deadline: int) -> None:
        """Set a deadline. The heap keeps the old one, which is recognised as stale when it comes up."""
        entry.deadline = deadline
        heapq.heappush(self._due, (deadline, node_id))
        if len(self._due) > STALE_FACTOR * len(self._entries) + 64:
            self._due = [
                (each.deadline, name) for name, each in self._entries.items() if each.deadline
            ]
            heapq.heapify(self._due)
