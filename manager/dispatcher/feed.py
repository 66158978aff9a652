"""What one node was told, and what it still has to be told: the core of its two streams.

Sans-IO: times are nanoseconds of a monotonic clock. One feed lives as long as a session's streams.

Two orders matter to a real engine, and both cross the two streams:

- a task on a network must come after the node's load balancer address on that network, and some
  time after: the engine configures addresses in the background and rejects the task at once when
  it does not find one (``settle``; 0 for nodes that wait for it themselves);
- the removal of a network's last task must come before the Node without that address.

Assignments are numbered without a gap: a gap sends an engine into a loop of reopening.

Source: SwarmKit ``manager/dispatcher/assignments.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Final

from swarm.model import Meta, Node, Task, TaskState, TaskStatus

MILLISECOND: Final = 1_000_000
SETTLE: Final = 150 * MILLISECOND
"""From the Node with a new address to the task that needs it, for a stock engine (150 ms never failed)."""

BATCH_PAUSE: Final = 10 * MILLISECOND
"""Between two incremental messages. The first change after a quiet while goes out at once: somebody
waits for it. What changes during the pause goes out together ..."""

BATCH_SIZE: Final = 100
"""... or at this many changes, the most that one message carries."""

_NO_STATUS: Final = TaskStatus()
_NO_META: Final = Meta()

WITHDRAWAL_WAIT: Final = 500 * MILLISECOND
"""Longest wait of a Node for the removals that must come before it."""


class BatchKind(Enum):
    """Whether a batch is everything there is, or what changed."""

    COMPLETE = auto()
    INCREMENTAL = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One assignments message."""

    kind: BatchKind
    applies_to: str
    results_in: str
    updates: tuple[Task, ...] = ()
    removals: tuple[str, ...] = ()


def load_balancers(node: Node) -> dict[str, str]:
    """Return a node's load balancer address on each network, by network id."""
    return {each.network.id: each.addresses[0] for each in node.attachments if each.addresses}


def assignable(task: Task | None, node_id: str) -> bool:
    """Say whether a task is one the node must know of."""
    return task is not None and task.node_id == node_id and task.status.state >= TaskState.ASSIGNED


def differs(old: Task, new: Task) -> bool:
    """Say whether a node that knows ``old`` must be told ``new``: status and bookkeeping alone do not count."""
    if old is new:
        return False
    return replace(old, status=_NO_STATUS, meta=_NO_META) != replace(
        new, status=_NO_STATUS, meta=_NO_META
    )


class Feed:
    """The two streams of one node.

    Args:
        node_id: whose.
        settle: wait between an address and the tasks that need it, nanoseconds.
    """

    def __init__(self, node_id: str, *, settle: int = SETTLE) -> None:
        self.node_id = node_id
        self.settle = settle
        self._announced: dict[str, tuple[str, int]] = {}  # network -> (address, when)
        self._sequence = 0  # 0: no COMPLETE sent on the open stream
        self._sent: dict[str, Task] = {}
        self._dirty: dict[str, None] = {}  # ids of tasks that changed, in that order
        self._pause_ends = 0  # when the next incremental message may go out
        self._withdrawal: int | None = None  # since when a Node waits for removals

    # Session side

    def announced(self, node: Node, now: int) -> None:
        """Note that the node was sent itself, with its load balancer addresses."""
        addresses = load_balancers(node)
        self._announced = {
            network: (address, self._since(network, address, now))
            for network, address in addresses.items()
        }
        self._withdrawal = None

    def _since(self, network: str, address: str, now: int) -> int:
        known = self._announced.get(network)
        return known[1] if known is not None and known[0] == address else now

    def may_announce(self, node: Node, now: int) -> int | None:
        """Say whether the node may be sent itself now.

        Returns:
            None for yes, else the time to ask again: an address is being withdrawn, and the removal
            of the tasks that used it has not been sent yet.
        """
        withdrawn = self._announced.keys() - load_balancers(node).keys()
        if not withdrawn or not self._sequence or not self._uses(withdrawn):
            self._withdrawal = None
            return None
        if self._withdrawal is None:
            self._withdrawal = now
        limit = self._withdrawal + WITHDRAWAL_WAIT
        return None if now >= limit else limit

    def _uses(self, networks: set[str]) -> bool:
        return any(
            attachment.network.id in networks
            for task in self._sent.values()
            for attachment in task.networks
        )

    # Assignments side

    def reopen(self) -> None:
        """Start over: a new assignments stream was opened, which begins with everything."""
        self._sequence = 0
        self._sent = {}
        self._dirty = {}

    def mark(self, task_id: str) -> None:
        """Note that a task changed, appeared or went."""
        self._dirty[task_id] = None

    def known(self) -> tuple[str, ...]:
        """Return the ids of the tasks the node was told of."""
        return tuple(self._sent)

    def complete(
        self, tasks: Iterable[Task], addresses: Mapping[str, str], now: int
    ) -> Batch | int:
        """Return the first message of a stream, or the time to ask again while an address settles.

        Args:
            tasks: all tasks of the node.
            addresses: the node's load balancer addresses now, by network id.
            now: nanoseconds.
        """
        mine = [task for task in tasks if assignable(task, self.node_id)]
        ready = max((self._ready_at(task, addresses, now) for task in mine), default=now)
        if ready > now:
            return ready
        self._sent = {task.id: task for task in mine}
        self._dirty = {}
        return self._batch(BatchKind.COMPLETE, tuple(mine), ())

    @property
    def opened(self) -> bool:
        """Whether the stream has had its first message."""
        return self._sequence > 0

    def take(
        self, task_of: Callable[[str], Task | None], addresses: Mapping[str, str], now: int
    ) -> Batch | int | None:
        """Return the next incremental message, the time to ask again, or None while nothing changed.

        Args:
            task_of: finds a task; None for one that is gone.
            addresses: as for :meth:`complete`.
            now: nanoseconds.
        """
        if not self._dirty:
            return None
        if len(self._dirty) < BATCH_SIZE and now < self._pause_ends:
            return self._pause_ends
        updates: list[Task] = []
        removals: list[str] = []
        held: dict[str, None] = {}
        again: int | None = None
        for task_id in self._dirty:
            if len(updates) + len(removals) == BATCH_SIZE:
                held[task_id] = None
                again = now
                continue
            task = task_of(task_id)
            if task is None or not assignable(task, self.node_id):
                if task_id in self._sent:
                    removals.append(task_id)
                continue
            known = self._sent.get(task_id)
            if known is not None and not differs(known, task):
                continue
            ready = self._ready_at(task, addresses, now)
            if ready > now:
                held[task_id] = None
                again = ready if again is None else min(again, ready)
                continue
            updates.append(task)
        self._dirty = held
        if not updates and not removals:
            return again
        for task in updates:
            self._sent[task.id] = task
        for task_id in removals:
            del self._sent[task_id]
        self._pause_ends = now + BATCH_PAUSE
        return self._batch(BatchKind.INCREMENTAL, tuple(updates), tuple(removals))

    def _ready_at(self, task: Task, addresses: Mapping[str, str], now: int) -> int:
        """Return when a task may be sent: once every address it needs has been announced for a while.

        A task that started already needs nothing any more, and a network on which the node has no
        address cannot be waited for.
        """
        if task.status.state >= TaskState.STARTING or task.id in self._sent:
            return now
        ready = now
        for attachment in task.networks:
            wanted = addresses.get(attachment.network.id)
            if wanted is None:
                continue
            known = self._announced.get(attachment.network.id)
            if known is None or known[0] != wanted:
                return now + self.settle + BATCH_PAUSE  # the Node comes first; that wakes us too
            ready = max(ready, known[1] + self.settle)
        return ready

    def _batch(
        self, kind: BatchKind, updates: tuple[Task, ...], removals: tuple[str, ...]
    ) -> Batch:
        applies_to = str(self._sequence) if self._sequence else ""
        self._sequence += 1
        return Batch(
            kind=kind,
            applies_to=applies_to,
            results_in=str(self._sequence),
            updates=updates,
            removals=removals,
        )
