"""The Scheduler service: tasks made in batches, ended, given back; and why not.

Every request is one store transaction. A request id makes its retries harmless: the ids of the tasks
derive from it, so a second attempt finds what the first one made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from manager.api.access import Caller
from manager.api.attachments import release
from manager.api.backend import Backend
from manager.api.checks import MAX_ID
from manager.api.placements import Placer, RefusedError
from manager.api.server import Context
from manager.api.servicespecs import MAX_SPEC
from manager.api.watches import Refusals, Watches
from manager.store import RepeatedError, Transaction
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import InvalidArgumentError, WireError
from swarm.identity.ids import ID_LENGTH
from swarm.model import Task, TaskState
from swarm.scheduler.model import Placed, Placement, Reason, Refusal, Result
from swarm.scheduler.wire import (
    placement_from_untrusted,
    refusal_to,
    result_to,
    task_state_untrusted,
)

MAX_PLACEMENTS: Final = 1000
"""Tasks in one request: the event loop stands still while they are made."""

MAX_TASKS: Final = 2000
"""Tasks whose desired state one request changes."""

_WANTED: Final = frozenset(
    {TaskState.READY, TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE}
)


class _NotCommittedError(Exception):
    """Ends a build that must leave nothing behind, with what it found out."""

    def __init__(self, results: tuple[Result, ...]) -> None:
        super().__init__()
        self.results = results


class Scheduler:
    """The RPCs of Scheduler."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store
        self._refusals = Refusals()
        self._watches = Watches(backend, self._refusals)

    async def CreateTasks(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Make tasks: all of them or none, or as many as can be served."""
        placements = _placements_untrusted(request.placements)
        key = _request_key(request.request_id, caller, "CreateTasks")
        ids = self._ids(key, len(placements))
        now, atomic = self._backend.clock.wall(), bool(request.atomic)

        def build(tx: Transaction) -> tuple[Result, ...]:
            results = place_all(tx, placements, ids, now=now)
            if any(isinstance(each, Refusal) for each in results) and (
                atomic or not any(isinstance(each, Placed) for each in results)
            ):
                raise _NotCommittedError(results)
            return results

        repeated = committed = True
        try:
            results = await self._store.transact(build, request_id=key)
            repeated = False
        except RepeatedError:
            results = self._found(placements, ids)
        except _NotCommittedError as nothing:
            results = nothing.results
            repeated = committed = False
            if atomic:
                results = tuple(each if isinstance(each, Refusal) else None for each in results)
        if not repeated:
            for each in results:
                if isinstance(each, Refusal):
                    self._refusals.record(now, each)
        return scheduler_pb2.CreateTasksResponse(
            results=map(result_to, results),
            committed=committed,
            repeated=repeated,
            version=self._version_of(results),
        )

    async def Explain(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Say what CreateTasks would answer now; each placement counts on those before it."""
        placements = _placements_untrusted(request.placements)
        ids, now = self._ids("", len(placements)), self._backend.clock.wall()

        def build(tx: Transaction) -> None:
            raise _NotCommittedError(place_all(tx, placements, ids, now=now))

        try:
            await self._store.transact(build)
        except _NotCommittedError as found:
            return scheduler_pb2.ExplainResponse(results=map(result_to, found.results))
        return scheduler_pb2.ExplainResponse()

    async def SetDesiredState(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Raise what is wanted of tasks."""
        task_ids = _task_ids_untrusted(request.task_ids)
        wanted = task_state_untrusted(request.desired_state)
        if wanted not in _WANTED:
            raise InvalidArgumentError(f"{wanted.name.lower()} is nothing to want of a task")

        def build(tx: Transaction) -> list[Refusal]:
            return [each for task_id in task_ids if (each := _want(tx, task_id, wanted))]

        key = _request_key(request.request_id, caller, "SetDesiredState")
        try:
            refused = await self._store.transact(build, request_id=key)
        except RepeatedError:
            refused = []
        return scheduler_pb2.SetDesiredStateResponse(
            refused=map(refusal_to, refused), version=self._store.index
        )

    async def Release(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Give tasks back: ended and then deleted, or deleted at once; those that are gone count as done."""
        task_ids, force = _task_ids_untrusted(request.task_ids), bool(request.force)

        def build(tx: Transaction) -> None:
            for task_id in task_ids:
                task = tx.tasks.get(task_id)
                if task is None:
                    continue
                if force or over(tx, task):
                    release(tx, task)
                elif task.desired_state < TaskState.REMOVE:
                    tx.update(replace(task, desired_state=TaskState.REMOVE))

        key = _request_key(request.request_id, caller, "Release")
        with suppress(RepeatedError):
            await self._store.transact(build, request_id=key)
        return scheduler_pb2.ReleaseResponse(version=self._store.index)

    async def Watch(self, request: Any, caller: Caller, context: Context) -> None:  # noqa: ARG002, N802
        """Stream what there is and what changes, until the caller goes."""
        await self._watches.serve(request, context)

    def _ids(self, key: str, count: int) -> list[str]:
        """Return the ids of a request's tasks: of chance, or those that its request id determines."""
        if not key:
            return [self._backend.make_id() for _ in range(count)]
        return [_derived_id(f"{key}/{number}") for number in range(count)]

    def _version_of(self, results: Sequence[Result]) -> int:
        """Return the version that shows the tasks made."""
        found = (
            self._store.view.tasks.get(each.task_id) for each in results if isinstance(each, Placed)
        )
        return max((task.meta.version.index for task in found if task), default=self._store.index)

    def _found(self, placements: Sequence[Placement], ids: Sequence[str]) -> tuple[Result, ...]:
        """Answer a request that took effect before with what is left of it."""
        tasks = self._store.view.tasks
        return tuple(
            _repeated(placement, task_id)
            if (task := tasks.get(task_id)) is None
            else placed_as(task)
            for placement, task_id in zip(placements, ids, strict=True)
        )


def _derived_id(text: str) -> str:
    """Return the id that a text determines: 100 bits of its hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def place_all(
    tx: Transaction, placements: Sequence[Placement], ids: Sequence[str], *, now: int
) -> tuple[Result, ...]:
    """Make the tasks that can be served; every other placement has its refusal."""
    placer = Placer(tx, now=now)

    def one(placement: Placement, task_id: str) -> Result:
        if (task := tx.tasks.get(task_id)) is not None:  # by a request too old to be remembered
            return placed_as(task)
        try:
            return placed_as(placer.place(placement, task_id))
        except RefusedError as error:
            return error.refusal

    return tuple(map(one, placements, ids))


def placed_as(task: Task) -> Placed:
    """Return what a scheduler is told of a task it made."""
    return Placed(
        task_id=task.id,
        node_id=task.node_id,
        networks={each.network.id: each.addresses for each in task.networks},
    )


def over(tx: Transaction, task: Task) -> bool:
    """Say whether nothing can run any more for a task: it ended, or its node is no member now."""
    return task.status.state > TaskState.RUNNING or task.node_id not in tx.nodes


def _want(tx: Transaction, task_id: str, wanted: TaskState) -> Refusal | None:
    task = tx.tasks.get(task_id)
    if task is None:
        return Refusal(
            reason=Reason.TASK_NOT_FOUND,
            message=f"task {task_id} not found",
            help="it was released, or its node was removed",
            task_id=task_id,
        )
    if wanted < task.desired_state:
        return Refusal(
            reason=Reason.STATE_BACKWARDS,
            message=f"task {task_id} is already wanted {task.desired_state.name.lower()}",
            help="make a new task; what is wanted of one only rises",
            task_id=task_id,
            node_id=task.node_id,
            service_id=task.service_id,
        )
    tx.update(replace(task, desired_state=wanted))
    return None


def _repeated(placement: Placement, task_id: str) -> Refusal:
    return Refusal(
        reason=Reason.REPEATED,
        message="an earlier call with this request id did not place it, or it was released since",
        help="send it again under another request id",
        node_id=placement.node_id,
        service_id=placement.service_id,
        task_id=task_id,
    )


def _placements_untrusted(messages: Sequence[Any]) -> list[Placement]:
    if not messages:
        raise InvalidArgumentError("the request names no placement")
    if len(messages) > MAX_PLACEMENTS:
        raise InvalidArgumentError(f"a request may hold {MAX_PLACEMENTS} placements; split it")
    found = []
    for number, message in enumerate(messages):
        try:
            _check_bounds(message)
            found.append(placement_from_untrusted(message))
        except (InvalidArgumentError, WireError) as error:
            raise InvalidArgumentError(f"placement {number}: {error}") from error
    return found


def _check_bounds(message: Any) -> None:
    if message.ByteSize() > MAX_SPEC:
        raise InvalidArgumentError(f"larger than {MAX_SPEC} bytes")
    if len(message.node_id) > MAX_ID or len(message.service_id) > MAX_ID:
        raise InvalidArgumentError("an id in it is too long")
    if not message.node_id:
        raise InvalidArgumentError("it names no node")


def _task_ids_untrusted(task_ids: Sequence[str]) -> list[str]:
    if not task_ids:
        raise InvalidArgumentError("the request names no task")
    if len(task_ids) > MAX_TASKS:
        raise InvalidArgumentError(f"a request may name {MAX_TASKS} tasks; split it")
    if any(not each or len(each) > MAX_ID for each in task_ids):
        raise InvalidArgumentError(f"a task id has 1 to {MAX_ID} characters")
    return list(dict.fromkeys(task_ids))


def _request_key(request_id: str, caller: Caller, method: str) -> str:
    """Return the name under which the store remembers a request.

    The caller's own, which no other caller can use, of any length; else the one that this call has
    while managers pass it on to each other.
    """
    who = caller.peer.identity.node_id if caller.peer.identity is not None else ""
    if not request_id:
        return f"{who}/{caller.request_id}" if caller.request_id else ""
    if len(request_id) > MAX_ID:
        raise InvalidArgumentError(f"a request id may have {MAX_ID} characters")
    return hashlib.sha256(f"{who}/{method}/{request_id}".encode()).hexdigest()
