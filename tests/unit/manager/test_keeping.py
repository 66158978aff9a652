"""Schedulers at work over a real manager: the example program and the one of the command line."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from swarm.api.docker.swarmkit import (
    control_pb2,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    specs_pb2,
    types_pb2,
)
from swarm.model import NodeState, TaskState
from swarm.scheduler import Keeper, SchedulerClient, connect_local

pytestmark = pytest.mark.slow

DEADLINE = 30.0
EXAMPLE = Path(__file__).resolve().parents[3] / "deploy" / "examples" / "spread.py"
REPLICAS = 6


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("spread_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_stays_small() -> None:
    assert len(EXAMPLE.read_text().splitlines()) < 150


class Node:
    """An engine that runs whatever it is handed, and ends it when told."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.id = engine.node_id
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        session = await self.engine.register()
        stub = dispatcher_pb2_grpc.DispatcherStub(self.engine.conn)

        async def beat() -> None:
            while True:
                await stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=session.id))
                await asyncio.sleep(0.2)

        async def obey() -> None:
            told: dict[str, int] = {}
            while True:
                request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=session.id)
                for task in session.known().values():
                    over = task.desired_state > types_pb2.TASK_STATE_RUNNING
                    state = types_pb2.TASK_STATE_SHUTDOWN if over else types_pb2.TASK_STATE_RUNNING
                    if told.get(task.id) != state:
                        told[task.id] = state
                        request.updates.add(task_id=task.id).status.state = state
                if request.updates:
                    await stub.UpdateTaskStatus(request)
                session.assignments.changed.clear()
                await session.assignments.changed.wait()

        self._tasks = [asyncio.create_task(beat()), asyncio.create_task(obey())]
        self.session = session

    async def die(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.close()


@pytest.fixture
async def nodes(stopped_swarm: Any) -> AsyncIterator[list[Node]]:
    """Three nodes of a swarm that notices within three seconds that one is gone."""
    stopped_swarm.settings["heartbeat_ns"] = 1_000_000_000
    await stopped_swarm.start()
    made = [Node(await stopped_swarm.worker(f"w{number}")) for number in (1, 2, 3)]
    for node in made:
        await node.start()
    yield made
    for node in made:
        await node.die()


@contextlib.asynccontextmanager
async def scheduling(
    swarm: Any, run: Callable[[SchedulerClient], Any]
) -> AsyncIterator[asyncio.Task[None]]:
    """Run a scheduler over the manager's own socket."""

    async def main() -> None:
        async with connect_local(swarm.run_dir / "manager" / "control.sock") as client:
            await run(client)

    task = asyncio.create_task(main())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def create(swarm: Any, *, replicas: int) -> Any:
    spec = specs_pb2.ServiceSpec(annotations=types_pb2.Annotations(name="web"))
    spec.task.container.image = "nginx:1"
    spec.task.networks.add(target="blue")
    spec.replicated.replicas = replicas
    await swarm.network("blue")
    answer = await swarm.control.CreateService(control_pb2.CreateServiceRequest(spec=spec))
    return answer.service


def running(swarm: Any) -> Counter[str]:
    """Count the tasks that run and are wanted, by node."""
    return Counter(
        task.node_id
        for task in swarm.view.tasks.all()
        if task.desired_state is TaskState.RUNNING
        and task.status.state is TaskState.RUNNING
        and swarm.view.nodes.require(task.node_id).status.state is NodeState.READY
    )


async def until(swarm: Any, wanted: Callable[[], Any], watched: asyncio.Task[None]) -> None:
    """Wait until something is true of the store; a scheduler that died says why."""
    watch = swarm.manager.store.watch()
    async with asyncio.timeout(DEADLINE):
        while not wanted():
            if watched.done():
                watched.result()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await anext(watch)


def slots(swarm: Any) -> list[int]:
    return sorted(
        task.slot
        for task in swarm.view.tasks.all()
        if task.desired_state is TaskState.RUNNING and task.status.state <= TaskState.RUNNING
    )


@pytest.mark.parametrize("which", ["example", "keeper"])
async def test_replicas_live_on_through_the_loss_of_a_node(
    stopped_swarm: Any, nodes: list[Node], example: ModuleType, which: str
) -> None:
    swarm = stopped_swarm
    await create(swarm, replicas=REPLICAS)

    async def run(client: SchedulerClient) -> None:
        if which == "example":
            await example.run(client, "web", REPLICAS)
        else:
            await Keeper(client).run()

    async with scheduling(swarm, run) as task:
        await until(swarm, lambda: sum(running(swarm).values()) == REPLICAS, task)
        assert running(swarm) == {node.id: 2 for node in nodes}
        await nodes[2].die()
        await until(swarm, lambda: running(swarm) == {node.id: 3 for node in nodes[:2]}, task)
        assert slots(swarm) == list(range(1, REPLICAS + 1))
    addresses = [
        address
        for each in swarm.view.tasks.all()
        if each.status.state <= TaskState.RUNNING
        for attachment in each.networks
        for address in attachment.addresses
    ]
    assert len(set(addresses)) == len(addresses)


async def test_a_scheduler_killed_and_started_again_loses_and_doubles_nothing(
    stopped_swarm: Any, nodes: list[Node], example: ModuleType
) -> None:
    swarm = stopped_swarm
    await create(swarm, replicas=50)

    async def run(client: SchedulerClient) -> None:
        await example.run(client, "web", 50)

    for _ in range(4):
        async with scheduling(swarm, run) as task:
            await until(swarm, lambda: len(swarm.view.tasks) > 0, task)
    async with scheduling(swarm, run) as task:
        await until(swarm, lambda: sum(running(swarm).values()) == 50, task)
    assert slots(swarm) == list(range(1, 51))
    assert len(swarm.view.tasks) == 50


async def test_scaling_updating_and_removing_reach_the_nodes(
    stopped_swarm: Any, nodes: list[Node]
) -> None:
    swarm = stopped_swarm
    web = await create(swarm, replicas=3)

    async def update(**fields: int) -> None:
        shown = await swarm.control.GetService(control_pb2.GetServiceRequest(service_id=web.id))
        spec = shown.service.spec
        if "replicas" in fields:
            spec.replicated.replicas = fields["replicas"]
        spec.task.force_update = fields.get("force", spec.task.force_update)
        await swarm.control.UpdateService(
            control_pb2.UpdateServiceRequest(
                service_id=web.id, service_version=shown.service.meta.version, spec=spec
            )
        )

    def fresh(count: int, force: int = 0) -> bool:
        tasks = [t for t in swarm.view.tasks.all() if t.desired_state is TaskState.RUNNING]
        return len(tasks) == count and all(
            t.spec.force_update == force and t.status.state is TaskState.RUNNING for t in tasks
        )

    async with scheduling(swarm, lambda client: Keeper(client, ["web"]).run()) as task:
        await until(swarm, lambda: fresh(3), task)
        await update(replicas=5)
        await until(swarm, lambda: fresh(5), task)
        await update(force=1)
        await until(swarm, lambda: fresh(5, force=1), task)
        await update(replicas=1)
        await until(swarm, lambda: fresh(1, force=1), task)
        await swarm.control.RemoveService(control_pb2.RemoveServiceRequest(service_id=web.id))
        await until(swarm, lambda: not swarm.view.tasks.all(), task)
