"""The Dispatcher service: one thin gRPC method per RPC over the hub.

Source: SwarmKit ``api/dispatcher.proto``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from manager.api.access import Caller
from manager.api.checks import present
from manager.api.server import Context
from manager.api.wire import encoded
from manager.dispatcher.feed import Batch, BatchKind, assignable, load_balancers
from manager.dispatcher.hub import Channel, Hub
from manager.store import Transaction
from swarm.api import codec
from swarm.api.docker.swarmkit import dispatcher_pb2
from swarm.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    StaleError,
    UnimplementedError,
)
from swarm.model import (
    EncryptionKey,
    Meta,
    Node,
    NodeDescription,
    NodeStatus,
    Peer,
    Task,
    TaskStatus,
    WeightedPeer,
)

WEIGHT: Final = 10
"""Weight of every manager in the nodes' choice."""

MAX_DESCRIPTION: Final = 256 * 1024
"""Largest node description, bytes encoded; an engine's has about 3 KiB."""

MAX_STATUSES: Final = 4096
"""Task statuses in one call; engines send one."""

MAX_STATUS_TEXT: Final = 4096
"""Characters kept of a task's message and error."""

MAX_REOPENS: Final = 16
"""Assignments streams in one session. An engine that lost count of the references reopens
hundreds of times a second, and only a new session ends that."""

_UPDATE: Final = dispatcher_pb2.AssignmentChange.UPDATE
_REMOVE: Final = dispatcher_pb2.AssignmentChange.REMOVE
_KINDS: Final = {
    BatchKind.COMPLETE: dispatcher_pb2.AssignmentsMessage.COMPLETE,
    BatchKind.INCREMENTAL: dispatcher_pb2.AssignmentsMessage.INCREMENTAL,
}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionState:
    """Everything a session message says; sent whole, whenever any of it changes.

    Engines forget managers that one message leaves out, so there is no such thing as a partial one.
    """

    session_id: str
    node: Node
    managers: tuple[WeightedPeer, ...]
    keys: tuple[EncryptionKey, ...]
    root: bytes


class Dispatcher:
    """The RPCs of Dispatcher."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def Session(self, request: Any, caller: Caller, context: Context) -> None:  # noqa: N802
        """Register the node, then tell it about itself, the managers, the keys and the root."""
        hub, node_id = self._hub, caller.node_id
        hub.require_running()
        description = _description_untrusted(request)
        hub.store.view.nodes.require(node_id)
        channel = hub.open_session(node_id, request.session_id, description)
        try:
            await hub.note_ready(node_id, description, caller.address)
            log.info("session.opened", node=node_id, address=caller.address)
            await self._serve_session(channel, context)
        finally:
            hub.close_session(channel)
            log.info("session.closed", node=node_id)

    async def _serve_session(self, channel: Channel, context: Context) -> None:
        told: SessionState | None = None
        while True:
            channel.session_wake.clear()
            if channel.farewell and told is not None:
                # The last word: where the managers are, one of which leads now.
                await context.write(session_message(self._state(channel)))
            channel.check()
            again: int | None = None
            state = self._state(channel)
            if told is None or _essence(state) != _essence(told):
                again = channel.feed.may_announce(state.node, self._hub.now())
                if again is None:
                    await context.write(session_message(state))
                    channel.feed.announced(state.node, self._hub.now())
                    channel.assignments_wake.set()
                    told = state
                    continue
            await self._wait(channel.session_wake, again)

    def _state(self, channel: Channel) -> SessionState:
        view = self._hub.store.view
        node = view.nodes.get(channel.node_id)
        if node is None:
            raise NotFoundError(f"node {channel.node_id} was removed from this cluster")
        cluster = view.clusters.only()
        managers = tuple(
            WeightedPeer(peer=Peer(node_id=node_id, addr=status.addr), weight=WEIGHT)
            for node_id, status in sorted(self._hub.backend.managers().items())
        )
        return SessionState(
            session_id=channel.session_id,
            node=node,
            managers=managers,
            keys=cluster.network_bootstrap_keys,
            root=cluster.root_ca.ca_cert,
        )

    async def Heartbeat(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Note that the node lives; tell it when to say so again."""
        self._hub.require_running()
        period = self._hub.sessions.beat(caller.node_id, request.session_id, self._hub.now())
        answer = dispatcher_pb2.HeartbeatResponse()
        answer.period.FromNanoseconds(period)
        return answer

    async def Assignments(self, request: Any, caller: Caller, context: Context) -> None:  # noqa: N802
        """Stream the node's tasks: everything once, then what changes, without a gap."""
        channel = self._open_assignments(caller, request.session_id)
        mine = channel.assignments_opened
        while True:
            channel.assignments_wake.clear()
            channel.check()
            if channel.assignments_opened != mine:
                raise StaleError("the node opened another assignments stream")
            got = self._next_batch(channel)
            if isinstance(got, Batch):
                await context.write(assignments_message(got))
                channel.session_wake.set()  # a withdrawn address may have waited for this
            else:
                await self._wait(channel.assignments_wake, got)

    def _open_assignments(self, caller: Caller, session_id: str) -> Channel:
        channel = self._hub.channel_of(caller.node_id, session_id)
        channel.assignments_opened += 1
        if channel.assignments_opened > MAX_REOPENS:
            channel.close(StaleError("the assignments stream was opened too often"))
        channel.feed.reopen()
        channel.assignments_wake.set()  # the stream before this one shall notice
        return channel

    def _next_batch(self, channel: Channel) -> Batch | int | None:
        view = self._hub.store.view
        addresses = self._addresses(channel)
        if not channel.feed.opened:
            tasks = view.tasks.by_node(channel.node_id)
            return channel.feed.complete(tasks, addresses, self._hub.now())
        return channel.feed.take(view.tasks.get, addresses, self._hub.now())

    def _addresses(self, channel: Channel) -> Mapping[str, str]:
        node = self._hub.store.view.nodes.get(channel.node_id)
        return {} if node is None else load_balancers(node)

    async def Tasks(self, request: Any, caller: Caller, context: Context) -> None:  # noqa: N802
        """Stream the whole list of tasks at each change; for clients that lack Assignments."""
        channel = self._open_assignments(caller, request.session_id)
        mine = channel.assignments_opened
        told: list[Task] | None = None
        while True:
            channel.assignments_wake.clear()
            channel.check()
            if channel.assignments_opened != mine:
                raise StaleError("the node opened another assignments stream")
            tasks = [
                task
                for task in self._hub.store.view.tasks.by_node(channel.node_id)
                if assignable(task, channel.node_id)
            ]
            if tasks != told:
                await context.write(dispatcher_pb2.TasksMessage(tasks=map(encoded, tasks)))
                told = tasks
            else:
                await channel.assignments_wake.wait()

    async def UpdateTaskStatus(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Take in what became of tasks: states only rise, unknown tasks are ignored."""
        hub = self._hub
        hub.require_running()
        hub.sessions.require(caller.node_id, request.session_id)
        updates = _statuses_untrusted(request)
        self._check_owner(updates, caller.node_id)
        if any(self._news(task_id, status) for task_id, status in updates):
            now, manager = hub.backend.clock.wall(), ", ".join(sorted(hub.backend.managers()))

            def build(tx: Transaction) -> None:
                for task_id, status in updates:
                    task = tx.tasks.get(task_id)
                    if task is not None and task.node_id == caller.node_id and _rises(task, status):
                        stamped = replace(status, applied_by=manager, applied_at=now)
                        tx.update(replace(task, status=stamped))

            await hub.store.transact(build)
        return dispatcher_pb2.UpdateTaskStatusResponse()

    def _check_owner(self, updates: list[tuple[str, TaskStatus]], node_id: str) -> None:
        for task_id, _ in updates:
            task = self._hub.store.view.tasks.get(task_id)
            if task is not None and task.node_id != node_id:
                raise PermissionDeniedError(f"cannot update a task of another node: {task_id}")

    def _news(self, task_id: str, status: TaskStatus) -> bool:
        task = self._hub.store.view.tasks.get(task_id)
        return task is not None and _rises(task, status)

    async def UpdateVolumeStatus(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Take in nothing: there are no cluster volumes, so nobody has a status to send."""
        self._hub.require_running()
        self._hub.sessions.require(caller.node_id, request.session_id)
        if request.updates:
            raise UnimplementedError("this manager has no cluster volumes")
        return dispatcher_pb2.UpdateVolumeStatusResponse()

    async def _wait(self, event: asyncio.Event, until: int | None) -> None:
        """Wait for an event, or until a monotonic time in nanoseconds."""
        if until is None:
            await event.wait()
            return
        try:
            async with asyncio.timeout(max(until - self._hub.now(), 0) / 1e9):
                await event.wait()
        except TimeoutError:
            return


def session_message(state: SessionState) -> dispatcher_pb2.SessionMessage:
    """Write a session message; all five parts, always."""
    message = dispatcher_pb2.SessionMessage(session_id=state.session_id, root_ca=state.root)
    message.node.CopyFrom(encoded(state.node))
    message.managers.extend(map(encoded, state.managers))
    message.network_bootstrap_keys.extend(map(encoded, state.keys))
    return message


def assignments_message(batch: Batch) -> dispatcher_pb2.AssignmentsMessage:
    """Write an assignments message; a removal carries just the id."""
    message = dispatcher_pb2.AssignmentsMessage(
        type=_KINDS[batch.kind], applies_to=batch.applies_to, results_in=batch.results_in
    )
    for task in batch.updates:
        change = message.changes.add(action=_UPDATE)
        change.assignment.task.CopyFrom(encoded(task))
    for task_id in batch.removals:
        change = message.changes.add(action=_REMOVE)
        change.assignment.task.id = task_id
    return message


def _essence(state: SessionState) -> SessionState:
    """Return what a node acts on: its own status and description, and bookkeeping, are left out."""
    node = replace(state.node, meta=Meta(), status=NodeStatus(), description=None)
    return replace(state, node=node)


def _rises(task: Task, status: TaskStatus) -> bool:
    """Say whether a status is news: not a lower state, and not what is known already."""
    if status.state < task.status.state:
        return False
    known = replace(task.status, applied_by=status.applied_by, applied_at=status.applied_at)
    return status != known


def _description_untrusted(request: Any) -> NodeDescription:
    description = present(request, "description")
    if description.ByteSize() > MAX_DESCRIPTION:
        raise InvalidArgumentError(f"the node description is larger than {MAX_DESCRIPTION} bytes")
    return codec.decode(NodeDescription, description)


def _statuses_untrusted(request: Any) -> list[tuple[str, TaskStatus]]:
    if len(request.updates) > MAX_STATUSES:
        raise InvalidArgumentError(f"there are more than {MAX_STATUSES} task statuses in one call")
    found = []
    for update in request.updates:
        if not update.HasField("status"):
            continue  # engines send such; there is nothing to learn from it
        status = codec.decode(TaskStatus, update.status)
        text, problem = status.message[:MAX_STATUS_TEXT], status.err[:MAX_STATUS_TEXT]
        found.append((update.task_id, replace(status, message=text, err=problem)))
    return found
