"""The connection of a scheduler to the cluster: any manager over TLS, or this host's socket.

Every call is made again, at the next manager if need be, until it is answered or ``patience`` is over;
each has a request id, under which the cluster carries it out once however often it arrives.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from swarm import errors
from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2
from swarm.api.docker.swarmkit.control_pb2_grpc import ControlStub
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.api.overswarm.v1.scheduler_pb2_grpc import SchedulerStub
from swarm.identity.certs import Credentials
from swarm.identity.dialer import TlsDialer
from swarm.model import Network, Node, Service, ServiceSpec, TaskState, Version
from swarm.scheduler.model import Kind, Placement, Placing, Refusal, Result, Update
from swarm.scheduler.wire import (
    placement_to,
    placing_from,
    refusal_from,
    result_from,
    update_from,
)

PATIENCE: Final = 30.0
"""Seconds a call is tried for; an election takes one or two."""

ATTEMPT: Final = 10.0
"""Seconds one attempt gets."""

PAUSE: Final = 0.2
MAX_PAUSE: Final = 2.0
"""Seconds between attempts, the first and the longest pause."""

REQUEST_ID: Final = "request-id"
"""Metadata key under which managers find a call's request id."""

MAX_MESSAGE: Final = 64 << 20
BATCH: Final = 1000
"""Placements in one request; managers take no more."""

_AGAIN: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
    }
)
_OPTIONS: Final = (
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_http_proxy", 0),
)

Open = Callable[[str], grpc.aio.Channel]


class SchedulerClient:
    """A scheduler's connection; made by :func:`connect` or :func:`connect_local`.

    Args:
        targets: managers, tried in turn.
        open_: opens a channel to one.
        patience: seconds a call is tried for.
    """

    def __init__(self, targets: Sequence[str], open_: Open, *, patience: float = PATIENCE) -> None:
        if not targets:
            raise errors.InvalidArgumentError("a scheduler needs at least one manager to talk to")
        self._targets = list(targets)
        self._open = open_
        self._patience = patience
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._turns = 0

    # Tasks

    async def create_tasks(
        self, placements: Iterable[Placement], *, atomic: bool = False, request_id: str = ""
    ) -> Placing:
        """Make tasks.

        Args:
            placements: at most :data:`BATCH`.
            atomic: all or none of them.
            request_id: names the request over restarts of this program too; made up when empty.

        Raises:
            InvalidArgumentError: the request can never be right.
            UnavailableError: no manager answered in time; it may or may not have been carried out,
                and may be sent again under the same request id.
            SwarmError: it was refused as a whole.
        """
        request = scheduler_pb2.CreateTasksRequest(
            request_id=request_id or secrets.token_hex(16),
            placements=map(placement_to, placements),
            atomic=atomic,
        )
        return placing_from(await self._call(lambda c: SchedulerStub(c).CreateTasks, request))

    async def explain(self, placements: Iterable[Placement]) -> tuple[Result, ...]:
        """Return what :meth:`create_tasks` would answer now; raises as that."""
        request = scheduler_pb2.ExplainRequest(placements=map(placement_to, placements))
        answer = await self._call(lambda c: SchedulerStub(c).Explain, request)
        return tuple(map(result_from, answer.results))

    async def set_desired_state(
        self, task_ids: Iterable[str], state: TaskState, *, request_id: str = ""
    ) -> tuple[Refusal, ...]:
        """Raise what is wanted of tasks; return what was refused. Raises as :meth:`create_tasks`."""
        request = scheduler_pb2.SetDesiredStateRequest(
            request_id=request_id or secrets.token_hex(16),
            task_ids=task_ids,
            desired_state=int(state),  # type: ignore[arg-type]  # same numbers
        )
        answer = await self._call(lambda c: SchedulerStub(c).SetDesiredState, request)
        return tuple(map(refusal_from, answer.refused))

    async def release(
        self, task_ids: Iterable[str], *, force: bool = False, request_id: str = ""
    ) -> int:
        """Give tasks back; return the version at which that is visible. Raises as :meth:`create_tasks`.

        Args:
            task_ids: those that are gone already count as given back.
            force: delete them now: the caller knows that nothing runs any more.
            request_id: as for :meth:`create_tasks`.
        """
        request = scheduler_pb2.ReleaseRequest(
            request_id=request_id or secrets.token_hex(16), task_ids=task_ids, force=force
        )
        answer = await self._call(lambda c: SchedulerStub(c).Release, request)
        return int(answer.version)

    async def watch(
        self, *, since: int = 0, kinds: Iterable[Kind] = (), services: Iterable[str] = ()
    ) -> AsyncIterator[Update]:
        """Yield what there is and what changes, over every change of leader, until closed.

        Args:
            since: the caller knows everything up to this version; 0 when it knows nothing.
            kinds: what to tell of; none means all.
            services: ids; tell only of their tasks.

        Yields:
            Updates; one that resets means: forget everything, all comes anew.

        Raises:
            SwarmError: the watch was refused for good.
        """
        kinds, services, pause = tuple(kinds), tuple(services), PAUSE
        while True:
            request = scheduler_pb2.WatchRequest(
                since=since,
                kinds=[int(kind) for kind in kinds],  # type: ignore[misc]  # same numbers
                service_ids=services,
            )
            turn, channel = self._connection()
            call: Any = SchedulerStub(channel).Watch(request)
            try:
                async for message in call:
                    update = update_from(message)
                    # Half a reset is worth nothing: only its end may be resumed from.
                    since = update.version or (0 if update.reset else since)
                    pause = PAUSE
                    yield update
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    raise _translated(error) from error
            finally:
                call.cancel()
            self._pass(turn)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)

    # Services

    async def create_service(self, spec: ServiceSpec) -> Service:
        """Make a service; its virtual addresses and ports are in its endpoint.

        Raises:
            ConflictError: its name is taken.
            SwarmError: as said by the manager.
        """
        request = control_pb2.CreateServiceRequest(spec=_encoded(spec))
        answer = await self._call(lambda c: ControlStub(c).CreateService, request)
        return codec.decode(Service, answer.service)

    async def update_service(self, service: Service, spec: ServiceSpec) -> Service:
        """Replace a service's spec; ``service`` is what the caller read.

        Raises:
            SwarmError: it changed meanwhile, or as said by the manager.
        """
        request = control_pb2.UpdateServiceRequest(
            service_id=service.id,
            service_version=_encoded(Version(index=service.meta.version.index)),
            spec=_encoded(spec),
        )
        answer = await self._call(lambda c: ControlStub(c).UpdateService, request)
        return codec.decode(Service, answer.service)

    async def remove_service(self, service_id: str) -> None:
        """Remove a service; its tasks end.

        Raises:
            NotFoundError: there is none.
        """
        request = control_pb2.RemoveServiceRequest(service_id=service_id)
        await self._call(lambda c: ControlStub(c).RemoveService, request)

    async def services(self, *names: str) -> tuple[Service, ...]:
        """Return the services, or those with these names."""
        request = control_pb2.ListServicesRequest()
        request.filters.names.extend(names)
        answer = await self._call(lambda c: ControlStub(c).ListServices, request)
        return tuple(codec.decode(Service, each) for each in answer.services)

    async def nodes(self) -> tuple[Node, ...]:
        """Return the nodes."""
        answer = await self._call(
            lambda c: ControlStub(c).ListNodes, control_pb2.ListNodesRequest()
        )
        return tuple(codec.decode(Node, each) for each in answer.nodes)

    async def networks(self) -> tuple[Network, ...]:
        """Return the networks."""
        answer = await self._call(
            lambda c: ControlStub(c).ListNetworks, control_pb2.ListNetworksRequest()
        )
        return tuple(codec.decode(Network, each) for each in answer.networks)

    async def close(self) -> None:
        """Close the connection."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    def _connection(self) -> tuple[int, grpc.aio.Channel]:
        """Return the channel to the manager whose turn it is, and which turn that is."""
        target = self._targets[self._turns % len(self._targets)]
        channel = self._channels.get(target)
        if channel is None:
            channel = self._channels[target] = self._open(target)
        return self._turns, channel

    def _pass(self, turn: int) -> None:
        """Let the next manager have its turn, unless that has happened since."""
        if self._turns == turn:
            self._turns += 1

    async def _call(
        self, method: Callable[[grpc.aio.Channel], Callable[..., Awaitable[Any]]], request: Any
    ) -> Any:
        """Make a call, again and elsewhere until it is answered."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + self._patience, PAUSE
        metadata = ((REQUEST_ID, secrets.token_hex(12)),)
        while True:
            left = deadline - loop.time()
            turn, channel = self._connection()
            try:
                return await method(channel)(request, timeout=min(ATTEMPT, left), metadata=metadata)
            except grpc.aio.AioRpcError as error:
                left = deadline - loop.time()
                if error.code() not in _AGAIN or left <= pause:
                    raise _translated(error) from error
            self._pass(turn)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MAX_PAUSE)


@asynccontextmanager
async def connect(
    targets: Sequence[str], credentials: Credentials, *, directory: Path, patience: float = PATIENCE
) -> AsyncIterator[SchedulerClient]:
    """Connect to the managers of a cluster with a client certificate.

    Args:
        targets: ``host:port`` of managers; one is enough while it lives.
        credentials: as ``swarm client-cert create`` made them; see :func:`load_credentials`.
        directory: private, for sockets; of this client alone.
        patience: seconds a call is tried for.

    Raises:
        HostError: the credentials cannot be loaded.
    """
    dialer = TlsDialer(directory=directory, credentials=credentials)

    def open_(target: str) -> grpc.aio.Channel:
        return dialer.channel(target, options=_OPTIONS)

    async with asyncio.TaskGroup() as group:
        running = group.create_task(dialer.run())
        client = SchedulerClient(targets, open_, patience=patience)
        try:
            yield client
        finally:
            await client.close()
            running.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.shield(asyncio.gather(running, return_exceptions=True))


@asynccontextmanager
async def connect_local(
    path: Path, *, patience: float = PATIENCE
) -> AsyncIterator[SchedulerClient]:
    """Connect as root of a manager's host: to its daemon's socket, or its manager's own.

    Args:
        path: the socket.
        patience: seconds a call is tried for.
    """

    def open_(target: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(target, options=_OPTIONS)

    client = SchedulerClient([f"unix:{path}"], open_, patience=patience)
    try:
        yield client
    finally:
        await client.close()


def load_credentials(directory: Path) -> Credentials:
    """Read what ``swarm client-cert create`` wrote: ``ca.pem``, ``cert.pem``, ``key.pem``.

    Raises:
        HostError: a file is missing or cannot be read.
    """
    try:
        root, cert, key = (
            (directory / name).read_bytes() for name in ("ca.pem", "cert.pem", "key.pem")
        )
    except OSError as error:
        raise errors.HostError(f"no client certificate in {directory}: {error}") from error
    return Credentials(root_pem=root, cert_pem=cert, key_pem=key)


def load_managers(directory: Path) -> tuple[str, ...]:
    """Read the managers' addresses that ``swarm client-cert create`` wrote, one a line.

    Raises:
        HostError: the file is missing or cannot be read.
    """
    try:
        lines = (directory / "managers").read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise errors.HostError(f"no list of managers in {directory}: {error}") from error
    return tuple(lines)


def _translated(error: grpc.aio.AioRpcError) -> errors.SwarmError:
    return errors.error_of(error.code().name, error.details() or "")


def _encoded(value: object) -> Any:
    """Return a model object's message, typed loosely: which one follows from the object's class."""
    return codec.encode(value)
