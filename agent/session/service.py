"""The session's shell: gRPC over a TLS tunnel, one loop that drives the core.

Each connection attempt has its own group of tasks (Session stream, Assignments stream, one heartbeat
or status call at a time); they put what they hear into one queue, and the loop hands it to the core.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc
import grpc.aio
import structlog

from agent.session import wire
from agent.session.core import SessionCore
from agent.session.messages import (
    Beat,
    Dropped,
    Hangup,
    News,
    OpenAssignments,
    Output,
    Phase,
    Register,
    Report,
    SessionLost,
    SessionOpened,
)
from swarm.api import codec
from swarm.api.docker.swarmkit import (
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
)
from swarm.errors import (
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    SwarmError,
    UnavailableError,
    WireError,
)
from swarm.identity.certs import MANAGER_NAME
from swarm.model import (
    EncryptionKey,
    NetworkAttachmentConfig,
    Node,
    NodeDescription,
    Peer,
    Task,
    TaskStatus,
)

HEARTBEAT_TIMEOUT: Final = 5.0
STATUS_TIMEOUT: Final = 20.0
CALL_TIMEOUT: Final = 20.0
"""Seconds that AttachNetwork and DetachNetwork may take; engines wait as long."""

log = structlog.get_logger(component="session")

_OPTIONS: Final = (("grpc.max_receive_message_length", wire.MAX_MESSAGE),)
_BY_CODE: Final[dict[grpc.StatusCode, type[SwarmError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.FAILED_PRECONDITION: PreconditionError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
}


class Dialer(Protocol):
    """Where channels come from: ``swarm.identity.dialer.TlsDialer``."""

    def channel(
        self, target: str, *, server_name: str = ..., options: Sequence[tuple[str, int | str]] = ...
    ) -> grpc.aio.Channel:
        """Open a channel to a manager."""
        ...

    def last_error(self, target: str) -> SwarmError | None:
        """Say why the last connection to a manager failed."""
        ...


def manager_error(error: grpc.aio.AioRpcError, where: str) -> SwarmError:
    """Return a failed call to a manager as one of our errors, the manager's words kept."""
    text = error.details() or error.code().name.lower().replace("_", " ")
    kind = _BY_CODE.get(error.code())
    if kind is not None:
        return kind(text if kind is not UnavailableError else f"manager {where}: {text}")
    matching = [each for each in SwarmError.__subclasses__() if each.status == error.code().name]
    return (matching[0] if matching else SwarmError)(text)


@dataclass(slots=True, kw_only=True, eq=False)
class _Connection:
    """One epoch: its channel and the tasks that use it."""

    epoch: int
    peer: Peer
    channel: grpc.aio.Channel
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Session:
    """One node's session with its managers.

    Args:
        core: the state machine; nobody else touches it.
        dialer: opens channels.
        describe: what this node says of itself; asked at each registration.
        on_news: called on the loop for each event, in order; must not block.
    """

    def __init__(
        self,
        core: SessionCore,
        *,
        dialer: Dialer,
        describe: Callable[[], NodeDescription],
        on_news: Callable[[News], None],
    ) -> None:
        self._core = core
        self._dialer = dialer
        self._describe = describe
        self._on_news = on_news
        self._inbox: asyncio.Queue[Callable[[float], None]] = asyncio.Queue()
        self._connection: _Connection | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._active = asyncio.Event()
        self._described: NodeDescription | None = None

    @property
    def phase(self) -> Phase:
        """Where the session stands."""
        return self._core.phase

    @property
    def session_id(self) -> str:
        """The id the manager gave; empty before the first session."""
        return self._core.session_id

    @property
    def node(self) -> Node | None:
        """The manager's last word on this node."""
        return self._core.node

    @property
    def keys(self) -> tuple[EncryptionKey, ...]:
        """The network keys in force."""
        return self._core.keys

    @property
    def managers(self) -> tuple[Peer, ...]:
        """The managers known."""
        return self._core.managers.peers

    @property
    def last_error(self) -> str:
        """Why there is no session; empty while there is one."""
        return self._core.last_error

    def task(self, task_id: str) -> Task | None:
        """Return an assigned task."""
        return self._core.tasks.get(task_id)

    def tasks(self) -> tuple[Task, ...]:
        """Return all assigned tasks."""
        return tuple(self._core.tasks.values())

    async def active(self) -> None:
        """Wait until a manager has accepted the session."""
        await self._active.wait()

    def report(self, task_id: str, status: TaskStatus) -> None:
        """Report a task's state, now or as soon as there is a session."""
        self._inbox.put_nowait(lambda _: self._core.report(task_id, status))

    def forget(self, task_id: str) -> None:
        """Stop reporting a task."""
        self._inbox.put_nowait(lambda _: self._core.forget(task_id))

    def redescribe(self) -> None:
        """Register again if what this node says of itself changed since the last registration."""
        if self._described is not None and self._describe() != self._described:
            self._inbox.put_nowait(self._core.restart)

    async def attach_network(
        self, target: str, container_id: str, addresses: tuple[str, ...] = ()
    ) -> str:
        """Ask a manager to attach a container to a network; return the attachment's (task) id.

        Raises:
            NotFoundError: no such network.
            PermissionDeniedError: the network is not attachable.
            UnavailableError: no manager can be reached.
            SwarmError: whatever else the manager says.
        """
        stub, where = self._resource_stub()
        request = resource_pb2.AttachNetworkRequest(container_id=container_id)
        config = NetworkAttachmentConfig(target=target, addresses=addresses)
        request.config.MergeFromString(codec.dumps(config))
        with self._translated(where):
            answer = await stub.AttachNetwork(request, timeout=CALL_TIMEOUT)
        attachment_id: str = answer.attachment_id
        if not 0 < len(attachment_id) <= wire.MAX_ID:
            raise WireError("the manager gave no usable attachment id")
        return attachment_id

    async def detach_network(self, attachment_id: str) -> None:
        """Tell a manager that an attachment has ended. Raises as :meth:`attach_network`."""
        stub, where = self._resource_stub()
        with self._translated(where):
            await stub.DetachNetwork(
                resource_pb2.DetachNetworkRequest(attachment_id=attachment_id),
                timeout=CALL_TIMEOUT,
            )

    async def run(self) -> None:
        """Keep a session until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                self._core.start(loop.time())
                while True:
                    for output in self._core.take_outputs():
                        self._perform(output, group)
                    await self._next_input(loop)
        finally:
            self._active.clear()
            self._core.close()
            if self._connection is not None:
                await self._connection.channel.close()
                self._connection = None

    async def _next_input(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand one input, or the passing of time, to the core."""
        deadline = self._core.deadline()
        try:
            async with asyncio.timeout_at(deadline):
                handle = await self._inbox.get()
        except TimeoutError:
            self._core.tick(loop.time())
            return
        handle(loop.time())
        while not self._inbox.empty():
            self._inbox.get_nowait()(loop.time())

    def _perform(self, output: Output, group: asyncio.TaskGroup) -> None:
        match output:
            case Register():
                self._register(output, group)
            case Hangup():
                self._hang_up(output, group)
            case OpenAssignments():
                self._spawn(group, output.epoch, self._assignments(output))
            case Beat():
                self._spawn(group, output.epoch, self._heartbeat(output))
            case Report():
                self._spawn(group, output.epoch, self._send_report(output))
            case _:
                self._tell(output)

    def _tell(self, news: News) -> None:
        match news:
            case SessionOpened():
                self._active.set()
                log.info("session.opened", manager=news.peer.addr, session=news.session_id)
            case SessionLost():
                self._active.clear()
                log.warning(
                    "session.lost",
                    manager=None if news.peer is None else news.peer.addr,
                    reason=news.reason,
                    retry_within=round(news.retry_within, 2),
                )
            case Dropped():
                log.debug("session.input.dropped", reason=news.reason, detail=news.detail)
            case _:
                pass
        self._on_news(news)

    def _register(self, output: Register, group: asyncio.TaskGroup) -> None:
        try:
            channel = self._dialer.channel(
                output.peer.addr, server_name=MANAGER_NAME, options=_OPTIONS
            )
        except SwarmError as error:
            reason = str(error)
            self._inbox.put_nowait(lambda now: self._core.on_lost(output.epoch, reason, now))
            return
        self._active.clear()
        self._connection = _Connection(epoch=output.epoch, peer=output.peer, channel=channel)
        self._spawn(group, output.epoch, self._stream(output))

    def _hang_up(self, output: Hangup, group: asyncio.TaskGroup) -> None:
        connection = self._connection
        if connection is None or connection.epoch != output.epoch:
            return
        self._connection = None
        self._active.clear()
        for task in connection.tasks:
            task.cancel()
        closing = group.create_task(_close(connection.channel))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    def _spawn(self, group: asyncio.TaskGroup, epoch: int, work: Awaitable[None]) -> None:
        connection = self._connection
        assert connection is not None and connection.epoch == epoch  # noqa: PT018, S101  # outputs come in order
        task = group.create_task(self._guard(epoch, connection.peer.addr, work))
        connection.tasks.add(task)
        task.add_done_callback(connection.tasks.discard)

    async def _guard(self, epoch: int, where: str, work: Awaitable[None]) -> None:
        """Run one call; its failure is the end of the session, never of the agent."""
        try:
            await work
        except grpc.aio.AioRpcError as error:
            reason = self._reason(error, where)
        except WireError as error:
            reason = str(error)
        else:
            return
        self._inbox.put_nowait(lambda now: self._core.on_lost(epoch, reason, now))

    def _reason(self, error: grpc.aio.AioRpcError, where: str) -> str:
        if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
            dialed = self._dialer.last_error(where)
            if dialed is not None:
                return str(dialed)
        return f"manager {where}: {error.details() or error.code().name.lower()}"

    async def _stream(self, output: Register) -> None:
        stub = dispatcher_pb2_grpc.DispatcherStub(self._channel(output.epoch))
        self._described = self._describe()
        request = dispatcher_pb2.SessionRequest(session_id=output.session_id)
        request.description.MergeFromString(codec.dumps(self._described))
        # Retried inside the channel, a refused connection would look like a silent manager.
        async for message in stub.Session(request, wait_for_ready=False):
            update = wire.session_untrusted(message)
            self._put(functools.partial(self._core.on_session, output.epoch, update))
        raise WireError("the manager ended the session")

    async def _assignments(self, output: OpenAssignments) -> None:
        stub = dispatcher_pb2_grpc.DispatcherStub(self._channel(output.epoch))
        request = dispatcher_pb2.AssignmentsRequest(session_id=output.session_id)
        async for message in stub.Assignments(request):
            update = wire.assignments_untrusted(message)
            self._put(functools.partial(self._core.on_assignments, output.epoch, update))
        raise WireError("the manager ended the assignments")

    async def _heartbeat(self, output: Beat) -> None:
        stub = dispatcher_pb2_grpc.DispatcherStub(self._channel(output.epoch))
        answer = await stub.Heartbeat(
            dispatcher_pb2.HeartbeatRequest(session_id=output.session_id),
            timeout=HEARTBEAT_TIMEOUT,
        )
        period = answer.period.seconds + answer.period.nanos / 1e9
        self._put(lambda now: self._core.on_heartbeat(output.epoch, period, now))

    async def _send_report(self, output: Report) -> None:
        stub = dispatcher_pb2_grpc.DispatcherStub(self._channel(output.epoch))
        request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=output.session_id)
        for task_id, status in output.statuses:
            update = request.updates.add(task_id=task_id)
            update.status.MergeFromString(codec.dumps(status))
        try:
            await stub.UpdateTaskStatus(request, timeout=STATUS_TIMEOUT)
        except grpc.aio.AioRpcError as error:
            # A manager that does not know the node (any more) says so on the heartbeat as well.
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
        self._put(lambda _: self._core.on_reported(output.epoch))

    def _put(self, handle: Callable[[float], Any]) -> None:
        self._inbox.put_nowait(handle)

    def _channel(self, epoch: int) -> grpc.aio.Channel:
        connection = self._connection
        if connection is None or connection.epoch != epoch:
            raise WireError("the session is over")
        return connection.channel

    def _resource_stub(self) -> tuple[resource_pb2_grpc.ResourceAllocatorAsyncStub, str]:
        connection = self._connection
        if connection is None or not self._active.is_set():
            detail = self._core.last_error or "not connected yet"
            raise UnavailableError(f"no manager of the swarm can be reached: {detail}")
        return (
            resource_pb2_grpc.ResourceAllocatorStub(connection.channel),
            connection.peer.addr,
        )

    @contextlib.contextmanager
    def _translated(self, where: str) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise manager_error(error, where) from error


async def _close(channel: grpc.aio.Channel) -> None:
    await channel.close()
