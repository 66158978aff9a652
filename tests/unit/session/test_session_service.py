"""The session's shell against a real gRPC server."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.session.core import SessionCore
from agent.session.messages import (
    News,
    NodeChanged,
    SessionConfig,
    SessionLost,
    SessionOpened,
    TaskAssigned,
)
from agent.session.service import Session
from swarm.api.docker.swarmkit import (
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
    types_pb2,
)
from swarm.errors import NotFoundError, UnavailableError
from swarm.model import NodeDescription, NodeRole, Peer, TaskState, TaskStatus


@dataclass
class Manager:
    """A dispatcher that does as a test says."""

    beats: int = 0
    period: int = 5
    sessions: list[dispatcher_pb2.SessionRequest] = field(default_factory=list)
    statuses: list[tuple[str, int]] = field(default_factory=list)
    end: asyncio.Event = field(default_factory=asyncio.Event)
    beat_error: grpc.StatusCode | None = None

    async def Session(self, request: dispatcher_pb2.SessionRequest, context: Any) -> None:  # noqa: N802
        """Accept, and stay until told to end."""
        self.sessions.append(request)
        message = dispatcher_pb2.SessionMessage(session_id=f"s{len(self.sessions)}")
        message.node.id = "n1"
        message.managers.add(peer=types_pb2.Peer(node_id="m", addr="m:1"), weight=10)
        await context.write(message)
        await self.end.wait()
        self.end.clear()
        await context.abort(grpc.StatusCode.ABORTED, "leadership lost")

    async def Assignments(self, _: Any, context: Any) -> None:  # noqa: N802
        """Give one task."""
        message = dispatcher_pb2.AssignmentsMessage(results_in="1")
        message.changes.add().assignment.task.id = "t1"
        await context.write(message)
        await asyncio.get_running_loop().create_future()

    async def Heartbeat(self, _: Any, context: Any) -> dispatcher_pb2.HeartbeatResponse:  # noqa: N802
        """Count, or refuse."""
        self.beats += 1
        if self.beat_error is not None:
            code, self.beat_error = self.beat_error, None
            await context.abort(code, "node not registered")
        answer = dispatcher_pb2.HeartbeatResponse()
        answer.period.seconds = self.period
        return answer

    async def UpdateTaskStatus(  # noqa: N802
        self, request: dispatcher_pb2.UpdateTaskStatusRequest, _: Any
    ) -> dispatcher_pb2.UpdateTaskStatusResponse:
        """Note the states."""
        self.statuses += [(each.task_id, each.status.state) for each in request.updates]
        return dispatcher_pb2.UpdateTaskStatusResponse()

    UpdateVolumeStatus = Tasks = None

    async def AttachNetwork(  # noqa: N802
        self, request: resource_pb2.AttachNetworkRequest, context: Any
    ) -> resource_pb2.AttachNetworkResponse:
        """Know one network."""
        if request.config.target != "backend":
            await context.abort(grpc.StatusCode.NOT_FOUND, "network nope not found")
        return resource_pb2.AttachNetworkResponse(
            attachment_id=f"for {request.container_id} at {request.config.addresses[0]}"
        )

    async def DetachNetwork(self, _: Any, __: Any) -> resource_pb2.DetachNetworkResponse:  # noqa: N802
        """Agree."""
        return resource_pb2.DetachNetworkResponse()


@dataclass
class Dialer:
    """Channels to a unix socket, whatever the target."""

    path: Path

    def channel(
        self,
        target: str,
        *,
        server_name: str = "",
        options: Sequence[tuple[str, int | str]] = (),
    ) -> grpc.aio.Channel:
        """Open one; none of them shares a connection."""
        return grpc.aio.insecure_channel(
            f"unix:{self.path}", options=[*options, ("grpc.use_local_subchannel_pool", 1)]
        )

    def last_error(self, target: str) -> UnavailableError | None:
        """Know nothing."""
        return None


@dataclass
class World:
    """A session and the manager it talks to."""

    manager: Manager
    session: Session
    news: list[News] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for the server's answers; the fixture's time-out says if they never come."""
        while not condition():  # noqa: ASYNC110  # another end of a socket is awaited
            await asyncio.sleep(0.005)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A running session."""
    manager = Manager()
    server = grpc.aio.server()
    dispatcher_pb2_grpc.add_DispatcherServicer_to_server(manager, server)  # type: ignore[arg-type]
    resource_pb2_grpc.add_ResourceAllocatorServicer_to_server(manager, server)  # type: ignore[arg-type]
    server.add_insecure_port(f"unix:{tmp_path}/m.sock")
    await server.start()
    news: list[News] = []
    core = SessionCore(
        SessionConfig(backoff_max=0.05, backoff_base=0.01),
        node_id="n1",
        role=NodeRole.WORKER,
        managers=[Peer(node_id="m", addr="m:1")],
        root_pem=b"",
        rng=random.Random(1),
    )
    session = Session(
        core,
        dialer=Dialer(tmp_path / "m.sock"),
        describe=lambda: NodeDescription(hostname="h1"),
        on_news=news.append,
    )
    running = asyncio.ensure_future(session.run())
    try:
        async with asyncio.timeout(15):
            yield World(manager, session, news)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        await server.stop(None)


async def test_a_session_opens_beats_and_receives(world: World) -> None:
    """Everything that must follow a registration follows."""
    await world.session.active()
    await world.until(lambda: world.session.task("t1") is not None and world.manager.beats == 1)
    assert {SessionOpened, NodeChanged, TaskAssigned} <= {type(each) for each in world.news}
    assert world.manager.sessions[0].description.hostname == "h1"


async def test_an_ended_stream_is_opened_again_with_the_session_id(world: World) -> None:
    """And what was reported is reported again."""
    await world.session.active()
    world.session.report("t1", TaskStatus(state=TaskState.RUNNING))
    await world.until(lambda: ("t1", 512) in world.manager.statuses)
    world.manager.statuses.clear()
    world.manager.end.set()
    await world.until(lambda: len(world.manager.sessions) == 2)
    await world.until(lambda: ("t1", 512) in world.manager.statuses)
    assert world.manager.sessions[1].session_id == "s1"
    (lost,) = [each for each in world.news if isinstance(each, SessionLost)]
    assert "leadership lost" in lost.reason


async def test_a_refused_heartbeat_ends_the_session(world: World) -> None:
    """The manager has forgotten this node's session: it has to register."""
    world.manager.beat_error = grpc.StatusCode.NOT_FOUND
    await world.until(lambda: len(world.manager.sessions) == 2)
    assert any(
        isinstance(each, SessionLost) and "not registered" in each.reason for each in world.news
    )


async def test_attachments_are_asked_for_on_the_same_connection(world: World) -> None:
    """The manager's refusal arrives as an error of ours, in its words."""
    await world.session.active()
    answer = await world.session.attach_network("backend", "c1", ("10.0.0.5",))
    assert answer == "for c1 at 10.0.0.5"
    with pytest.raises(NotFoundError, match="network nope not found"):
        await world.session.attach_network("nope", "c1")
    await world.session.detach_network("t1")
