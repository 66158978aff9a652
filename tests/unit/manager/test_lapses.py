"""What happens to nodes nobody hears from; the monotonic clock is moved by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from manager.clock import Clock
from manager.dispatcher.hub import REAP_AFTER
from manager.dispatcher.sessions import ORPHAN_AFTER, SECOND
from swarm.api.docker.swarmkit import dispatcher_pb2, dispatcher_pb2_grpc
from swarm.api.overswarm.v1 import scheduler_pb2, scheduler_pb2_grpc
from swarm.model import NodeState, TaskState

pytestmark = pytest.mark.slow


class Shifted:
    """The real monotonic clock plus what the test adds."""

    def __init__(self) -> None:
        self.offset = 0

    def __call__(self) -> int:
        return time.monotonic_ns() + self.offset


@pytest.fixture
async def shifted(stopped_swarm: Any) -> Shifted:
    """A running manager whose time can be moved on."""
    made = Shifted()
    stopped_swarm.clock = Clock(monotonic=made)
    await stopped_swarm.start()
    return made


async def until(swarm: Any, wanted: Callable[[], bool]) -> None:
    """Wait for commits until something holds."""
    async with asyncio.timeout(10):
        watch = swarm.manager.store.watch()
        while not wanted():
            await anext(watch)


async def test_a_silent_node_goes_down_and_registers_again(
    stopped_swarm: Any, shifted: Shifted, code_of: Any
) -> None:
    swarm = stopped_swarm
    engine = await swarm.worker()
    session = await engine.register()
    shifted.offset += 17 * SECOND
    await until(
        swarm,
        lambda: swarm.view.nodes.require(engine.node_id).status.state is NodeState.DOWN,
    )
    status = swarm.view.nodes.require(engine.node_id).status
    assert status.message == "heartbeat failure"
    assert status.addr == "127.0.0.1"
    await session.session.until(lambda j: j.end)
    beat = dispatcher_pb2_grpc.DispatcherStub(engine.conn).Heartbeat(
        dispatcher_pb2.HeartbeatRequest(session_id=session.id)
    )
    assert (await code_of(beat))[0] == "NOT_FOUND"
    await engine.register(session.id)
    assert swarm.view.nodes.require(engine.node_id).status.state is NodeState.READY


async def test_a_disconnect_alone_marks_nothing_down(stopped_swarm: Any, shifted: Shifted) -> None:
    swarm = stopped_swarm
    engine = await swarm.worker()
    session = await engine.register()
    await session.close()
    await engine.register(session.id)
    assert swarm.view.nodes.require(engine.node_id).status.state is NodeState.READY


async def test_a_node_that_never_registers_goes_down(stopped_swarm: Any, shifted: Shifted) -> None:
    swarm = stopped_swarm
    engine = await swarm.worker()
    shifted.offset += 31 * SECOND
    await until(
        swarm,
        lambda: swarm.view.nodes.require(engine.node_id).status.state is NodeState.DOWN,
    )


async def test_a_day_down_frees_the_nodes_attachments(stopped_swarm: Any, shifted: Shifted) -> None:
    swarm = stopped_swarm
    await swarm.network("web")
    engine = await swarm.worker()
    session = await engine.register()
    task = await engine.attach("web")
    await session.close()
    shifted.offset += 17 * SECOND
    await until(
        swarm,
        lambda: swarm.view.nodes.require(engine.node_id).status.state is NodeState.DOWN,
    )
    assert swarm.view.tasks.get(task) is not None
    shifted.offset += ORPHAN_AFTER
    await until(swarm, lambda: swarm.view.tasks.get(task) is None)
    assert len(swarm.view.nodes.require(engine.node_id).attachments) == 1


async def test_a_task_of_a_node_that_never_returns_is_lost_and_its_address_free(
    stopped_swarm: Any, shifted: Shifted
) -> None:
    """For a day it may still be running there; a scheduler has long replaced it."""
    swarm = stopped_swarm
    blue = await swarm.network("blue")
    engine = await swarm.worker()
    session = await engine.register()
    stub = scheduler_pb2_grpc.SchedulerStub(swarm.local)
    placement = scheduler_pb2.Placement(node_id=engine.node_id)
    placement.spec.container.image = "nginx:1"
    placement.networks.add(target="blue", addresses=["10.0.1.9"])
    request = scheduler_pb2.CreateTasksRequest(placements=[placement], atomic=True)
    (result,) = (await stub.CreateTasks(request)).results
    task = result.placed.task_id
    await session.close()
    shifted.offset += 17 * SECOND
    await until(
        swarm,
        lambda: swarm.view.nodes.require(engine.node_id).status.state is NodeState.DOWN,
    )
    (pool,) = swarm.view.pools(blue.id)
    wished = int(ip_address("10.0.1.9"))
    assert pool.holders[wished] == f"task {task}"
    shifted.offset += ORPHAN_AFTER
    await until(swarm, lambda: swarm.view.tasks.require(task).status.state is TaskState.ORPHANED)
    assert wished not in pool.holders


async def test_an_ended_attachment_is_cleared_away_after_a_while(
    stopped_swarm: Any, shifted: Shifted
) -> None:
    swarm = stopped_swarm
    await swarm.network("web")
    engine = await swarm.worker()
    session = await engine.register()
    failed, running = await engine.attach("web"), await engine.attach("web")
    await engine.report(session.id, failed, 704)
    await engine.report(session.id, running, 512)
    assert swarm.view.tasks.get(failed) is not None
    stub = dispatcher_pb2_grpc.DispatcherStub(engine.conn)
    for _ in range(6):
        shifted.offset += REAP_AFTER // 6
        await stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=session.id))
    await until(swarm, lambda: swarm.view.tasks.get(failed) is None)
    assert swarm.view.tasks.get(running) is not None
    await session.assignments.until(lambda _: set(session.known()) == {running})


async def test_more_than_three_sessions_at_once_must_wait(
    stopped_swarm: Any, shifted: Shifted, code_of: Any
) -> None:
    engine = await stopped_swarm.worker()
    for _ in range(3):
        await engine.register()
    assert (await code_of(engine.register()))[0] == "UNAVAILABLE"
    shifted.offset += 8 * SECOND
    await engine.register()
