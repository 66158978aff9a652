"""Which tasks a service lacks, has too many of, or must replace: the core of the spread scheduler.

Pure: the cluster and the time come in, a plan goes out; planning again after it was carried out, with
nothing else changed, plans nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import Final

from swarm.api.docker.swarmkit import specs_pb2
from swarm.model import Node, NodeAvailability, NodeState, Service, Task, TaskState
from swarm.scheduler.constraints import allows
from swarm.scheduler.mirror import Mirror
from swarm.scheduler.model import Placement

SECOND: Final = 1_000_000_000
RESTART_DELAY: Final = 5 * SECOND
"""Pause before a task that ended is followed by another, when its service does not say."""

LONGEST_DELAY: Final = 60 * SECOND
"""The pause doubles with each failure in a slot, up to this."""

Slot = tuple[int, str]
"""A replica's number and nothing; or 0 and a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do for one service.

    Attributes:
        place: tasks to make.
        shutdown: tasks to end; they stay as history.
        release: tasks to end and delete.
        again: when to plan again even if nothing changes, nanoseconds; None for never.
    """

    place: tuple[Placement, ...] = ()
    shutdown: tuple[str, ...] = ()
    release: tuple[str, ...] = ()
    again: int | None = None


@dataclass(slots=True)
class _Draft:
    place: list[Placement] = field(default_factory=list)
    shutdown: list[str] = field(default_factory=list)
    release: list[str] = field(default_factory=list)
    again: int | None = None

    def wait(self, until: int) -> None:
        self.again = until if self.again is None else min(self.again, until)


def plan(
    cluster: Mirror, service: Service, now: int, *, avoid: Container[str] = frozenset()
) -> Plan:
    """Return what a service needs.

    Args:
        cluster: as last seen.
        service: replicated or global; others need nothing.
        now: wall time, nanoseconds.
        avoid: ids of nodes that refused its tasks lately.
    """
    replicated = service.spec.replicated
    if replicated is None and service.spec.global_ is None:
        return Plan()
    nodes = [
        node
        for node in cluster.live_nodes()
        if node.id not in avoid and allows(service.spec.task.placement, node)
    ]
    if replicated is not None:
        wanted: list[Slot] = [(number, "") for number in range(1, replicated.replicas + 1)]
    else:
        wanted = [(0, node.id) for node in nodes]
    draft, slots = _Draft(), _by_slot(cluster.tasks_of(service.id))
    for slot in slots.keys() - set(wanted):
        draft.release += [
            task.id
            for task in slots[slot]
            if task.desired_state < TaskState.REMOVE and (slot[0] or _goes(cluster, task))
        ]
    update = specs_pb2.UpdateConfig.FromString(service.spec.update or b"")
    budget = (update.parallelism if service.spec.update else 1) or len(wanted)
    chooser = _Chooser(cluster, service, nodes)
    states = [_Slot(cluster, service, slots.get(slot, ())) for slot in wanted]
    budget -= sum(state.changing for state in states)
    for slot, state in zip(wanted, states, strict=True):
        draft.shutdown += [task.id for task in state.lost]
        draft.release += [task.id for task in state.surplus]
        if state.stale and state.fresh is None:
            if budget <= 0:
                continue
            budget -= 1
            if update.order != specs_pb2.UPDATE_ORDER_START_FIRST:
                draft.shutdown += [task.id for task in state.stale]
                continue
        elif state.stale and state.fresh is not None:
            if state.fresh.status.state is TaskState.RUNNING:
                draft.shutdown += [task.id for task in state.stale]
            continue
        elif state.fresh is not None or state.ending:
            continue
        due = _due(service, state.ended)
        if due is None:
            continue
        if due > now:
            draft.wait(due)
            continue
        node_id = slot[1] or chooser.choose()
        if node_id is not None:
            draft.place.append(Placement(node_id=node_id, service_id=service.id, slot=slot[0]))
    return Plan(
        place=tuple(draft.place),
        shutdown=tuple(draft.shutdown),
        release=tuple(draft.release),
        again=draft.again,
    )


def up_to_date(service: Service, task: Task) -> bool:
    """Say whether a task runs what its service says now; a changed scale or label alone changes no task."""
    if task.spec_version == service.spec_version:
        return True
    endpoint = task.endpoint.spec if task.endpoint else None
    wanted = service.endpoint.spec if service.endpoint else None
    return task.spec == service.spec.task and endpoint == wanted


class _Slot:
    """The tasks of one slot, sorted by what is to become of them.

    Attributes:
        fresh: the one that is as it should be, or None.
        stale: those of an older spec that still run.
        lost: those that will not run any more although it is wanted of them.
        surplus: more fresh ones than one.
        ending: whether an older one, asked to end, has not yet.
        ended: those that ended by themselves, oldest first.
    """

    def __init__(self, cluster: Mirror, service: Service, tasks: Iterable[Task]) -> None:
        self.fresh: Task | None = None
        self.stale: list[Task] = []
        self.lost: list[Task] = []
        self.surplus: list[Task] = []
        self.ended: list[Task] = []
        self.ending = False
        for task in tasks:
            current = up_to_date(service, task)
            over = task.status.state > TaskState.RUNNING
            if over:
                if current and task.desired_state <= TaskState.RUNNING:
                    self.ended.append(task)
            elif task.desired_state > TaskState.RUNNING:
                self.ending = self.ending or not (current or _is_gone(cluster, task))
            elif _goes(cluster, task):
                self.lost.append(task)
            elif not current:
                self.stale.append(task)
            elif self.fresh is None:
                self.fresh = task
            elif self.fresh.status.state < task.status.state:
                self.surplus.append(self.fresh)
                self.fresh = task
            else:
                self.surplus.append(task)

    @property
    def changing(self) -> bool:
        """Whether the slot has nothing that runs as it should, and not for want of an update.

        An update waits for such slots, so that one that brings tasks which crash stops by itself.
        """
        runs = self.fresh is not None and self.fresh.status.state is TaskState.RUNNING
        return not runs and (self.fresh is not None or not self.stale)


class _Chooser:
    """Picks the node with the fewest tasks of the service, then of all."""

    def __init__(self, cluster: Mirror, service: Service, nodes: Iterable[Node]) -> None:
        placement = specs_pb2.Placement.FromString(service.spec.task.placement or b"")
        self._limit = placement.max_replicas
        alive = [
            task
            for task in cluster.tasks.values()
            if task.desired_state <= TaskState.RUNNING and task.status.state <= TaskState.RUNNING
        ]
        self._own = Counter(  # those of an older spec are on their way out
            task.node_id
            for task in alive
            if task.service_id == service.id and up_to_date(service, task)
        )
        self._all = Counter(task.node_id for task in alive)
        self._nodes = [node.id for node in nodes]

    def choose(self) -> str | None:
        """Return a node and count one more task there; None when no node takes one."""
        free = [each for each in self._nodes if not self._limit or self._own[each] < self._limit]
        if not free:
            return None
        best = min(free, key=lambda each: (self._own[each], self._all[each], each))
        self._own[best] += 1
        self._all[best] += 1
        return best


def _by_slot(tasks: Iterable[Task]) -> dict[Slot, list[Task]]:
    slots: dict[Slot, list[Task]] = {}
    for task in tasks:
        slots.setdefault((task.slot, "" if task.slot else task.node_id), []).append(task)
    return slots


def _is_gone(cluster: Mirror, task: Task) -> bool:
    """Say whether nobody hears from a task's node."""
    node = cluster.nodes.get(task.node_id)
    return node is None or node.status.state is NodeState.DOWN


def _goes(cluster: Mirror, task: Task) -> bool:
    """Say whether a task must be replaced elsewhere: its node is lost, or is being emptied."""
    node = cluster.nodes.get(task.node_id)
    return _is_gone(cluster, task) or (
        node is not None and node.spec.availability is NodeAvailability.DRAIN
    )


def _due(service: Service, ended: list[Task]) -> int | None:
    """Return when the next task of a slot may start; None for never."""
    if not ended:
        return 0
    restart = service.spec.task.restart
    policy = specs_pb2.RestartPolicy.FromString(restart or b"")
    condition = policy.condition if restart is not None else specs_pb2.RESTART_CONDITION_ANY
    last = ended[-1]
    if condition == specs_pb2.RESTART_CONDITION_NONE:
        return None
    if (
        condition == specs_pb2.RESTART_CONDITION_ON_FAILURE
        and last.status.state is TaskState.COMPLETE
    ):
        return None
    if policy.max_attempts and len(ended) > policy.max_attempts:
        return None
    delay = policy.delay.ToNanoseconds() if policy.HasField("delay") else RESTART_DELAY
    delay = min(delay << min(len(ended) - 1, 16), max(delay, LONGEST_DELAY))
    return (last.status.timestamp or last.meta.updated_at or 0) + delay
