"""The life of tasks, over a runtime and networks that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as Packed

from agent.node.request import AttachRequest
from agent.node.state import Attachment, ServicePart, Stage
from agent.tasks import TaskRunner, Timing, naming
from agent.tasks import runner as module
from agent.workload.spec import CommandError, State, Workload, WorkloadSpec
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import ConflictError, NotFoundError
from swarm.model import (
    Annotations,
    GenericRuntimeSpec,
    Network,
    NetworkAttachment,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)

ID = naming.workload_id("t1")
FAST = Timing(listen=0.05, poll=0.001, spread=0.01, grace=0.2)
RAN = ["ACCEPTED", "PREPARING", "READY", "STARTING", "RUNNING"]


def task(**changes: Any) -> Task:
    wrapper = Packed()
    wrapper.Pack(scheduler_pb2.Process(argv=["serve"]))
    spec = TaskSpec(generic=GenericRuntimeSpec(kind="process", payload=wrapper.SerializeToString()))
    base = Task(
        id="t1",
        service_id="s1",
        slot=1,
        service_annotations=Annotations(name="web"),
        spec=spec,
        status=TaskStatus(state=TaskState.ASSIGNED),
        desired_state=TaskState.RUNNING,
        networks=(NetworkAttachment(network=Network(id="net1"), addresses=("10.0.1.7/24",)),),
    )
    return replace(base, **changes)


@dataclass
class FakeSession:
    known: dict[str, Task] = field(default_factory=dict)
    log: list[TaskStatus] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)

    def tasks(self) -> tuple[Task, ...]:
        return tuple(self.known.values())

    def report(self, task_id: str, status: TaskStatus) -> None:
        assert not self.log or status.state >= self.log[-1].state, "states never go down"
        self.log.append(status)

    def forget(self, task_id: str) -> None:
        self.forgotten.append(task_id)

    @property
    def states(self) -> list[str]:
        return list(dict.fromkeys(status.state.name for status in self.log))


@dataclass
class FakeNetworks:
    events: list[str]
    held: list[Attachment] = field(default_factory=list)
    error: Exception | None = None
    busy: int = 0

    async def attach_assigned(
        self, request: AttachRequest, task_id: str, assigned: NetworkAttachment
    ) -> Attachment:
        if self.error is not None:
            raise self.error
        attachment = Attachment(
            endpoint_id="e",
            attachment_id=task_id,
            network_id=assigned.network.id,
            target=request.target,
            container_id=request.container_id,
            container_name=request.container_name,
            netns=request.netns,
            interface="eth0",
            mac="02:42:0a:00:01:07",
            addresses=assigned.addresses,
            service=request.service,
        )
        self.held.append(attachment)
        self.events.append("attach")
        return attachment

    async def container_gone(self, container_id: str) -> None:
        if self.held:
            self.events.append("detach")
        self.held.clear()

    def set_stage(self, container_id: str, stage: Stage) -> None:
        for index, each in enumerate(self.held):
            part = each.service or ServicePart()
            if part.stage is not stage:
                self.events.append(stage.value)
                self.held[index] = replace(each, service=replace(part, stage=stage))

    def attachments(self, container_id: str | None = None) -> list[Attachment]:
        return list(self.held)

    async def flows(self, container_id: str) -> int:
        self.busy -= 1
        return max(self.busy, 0)


@dataclass
class FakeRuntime:
    events: list[str]
    workloads: dict[str, Workload] = field(default_factory=dict)
    ends: dict[str, asyncio.Event] = field(default_factory=dict)
    start_error: Exception | None = None
    graces: list[float] = field(default_factory=list)

    def list(self) -> tuple[Workload, ...]:
        return tuple(self.workloads.values())

    def get(self, reference: str) -> Workload:
        if reference not in self.workloads:
            raise NotFoundError(f"no such workload: {reference}")
        return self.workloads[reference]

    async def create(self, spec: WorkloadSpec) -> Workload:
        assert spec.id not in self.workloads
        self.events.append("create")
        self.ends[spec.id] = asyncio.Event()
        made = Workload(spec=spec, state=State.CREATED, netns_path="/proc/1/ns/net")
        self.workloads[spec.id] = made
        return made

    async def set_addresses(self, reference: str, addresses: Any) -> None:
        assert list(addresses) == ["10.0.1.7"]

    async def start(self, reference: str) -> Workload:
        if self.start_error is not None:
            self.end(reference, 127)
            raise self.start_error
        self.events.append("start")
        self.workloads[reference] = replace(self.get(reference), state=State.RUNNING, pid=42)
        return self.workloads[reference]

    async def wait(self, reference: str) -> int:
        self.get(reference)
        await self.ends.setdefault(reference, asyncio.Event()).wait()
        return self.get(reference).exit_code or 0

    async def stop(self, reference: str, *, signal: int = 15, grace: float = 10.0) -> int:
        self.events.append("stop")
        self.graces.append(grace)
        self.end(reference, 143)
        return 143

    async def remove(self, reference: str, *, force: bool = False) -> None:
        self.get(reference)
        self.events.append("remove")
        del self.workloads[reference]

    def end(self, reference: str, code: int) -> None:
        self.workloads[reference] = replace(
            self.workloads[reference], state=State.EXITED, exit_code=code, pid=0
        )
        self.ends.setdefault(reference, asyncio.Event()).set()


class World:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.session = FakeSession()
        self.networks = FakeNetworks(self.events)
        self.runtime = FakeRuntime(self.events)

    @contextlib.asynccontextmanager
    async def start(self) -> AsyncIterator[TaskRunner]:
        runner = TaskRunner(
            session=self.session,
            coordinator=self.networks,
            runtime=self.runtime,  # type: ignore[arg-type]
            timing=FAST,
            name_servers=lambda: (),
            clock=lambda: 1.0,
        )
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            running = group.create_task(runner.run())
            await runner.ready()
            yield runner
            running.cancel()

    def give(self, runner: TaskRunner, given: Task) -> None:
        self.session.known[given.id] = given
        runner.assigned(given)

    async def reached(self, state: str) -> None:
        await until(lambda: bool(self.session.log) and self.session.log[-1].state.name == state)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # what is waited for sets no event
            await asyncio.sleep(0.001)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "is_listening", lambda pid: pid == 42)
    return World()


async def test_a_task_runs_and_is_announced_once_it_listens(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        assert world.session.states == RAN
        assert world.events == ["create", "attach", "start", "serving"]
        container = world.session.log[-1].container
        assert container is not None
        assert (container.container_id, container.pid) == (ID, 42)


async def test_a_task_that_never_listens_is_announced_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_listening", lambda _: False)
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        assert world.events[-1] == "serving"


@pytest.mark.parametrize(("code", "state"), [(0, "COMPLETE"), (3, "FAILED")])
async def test_the_end_of_a_command_is_reported_as_it_was(
    world: World, code: int, state: str
) -> None:
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        world.runtime.end(ID, code)
        await world.reached(state)
        status = world.session.log[-1]
        assert status.container is not None
        assert status.container.exit_code == code
        assert bool(status.err) is bool(code)
        assert "detach" in world.events


async def test_a_task_that_is_not_wanted_any_more_drains_then_stops(world: World) -> None:
    """Announced as draining first, stopped when its flows have ended, then off its network."""
    world.networks.busy = 5
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        world.give(runner, task(desired_state=TaskState.SHUTDOWN))
        await world.reached("SHUTDOWN")
        assert world.events[-4:] == ["serving", "draining", "stop", "detach"]
        assert world.networks.busy < 1, "the flows were waited for"


async def test_flows_that_do_not_end_are_cut_after_the_grace(world: World) -> None:
    world.networks.busy = 1 << 30
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        world.give(runner, task(desired_state=TaskState.SHUTDOWN))
        await world.reached("SHUTDOWN")


@pytest.mark.parametrize(("labels", "grace"), [({}, 0.2), ({"overswarm.grace": "0"}, 0.0)])
async def test_a_label_says_how_long_flows_may_go_on(
    world: World, labels: dict[str, str], grace: float
) -> None:
    world.networks.busy = 1 << 30
    async with world.start() as runner:
        named = task(service_annotations=Annotations(name="web", labels=labels))
        world.give(runner, named)
        await world.reached("RUNNING")
        world.give(runner, replace(named, desired_state=TaskState.SHUTDOWN))
        await world.reached("SHUTDOWN")
        assert world.runtime.graces == [grace]


async def test_a_removed_task_is_ended_removed_and_forgotten(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        del world.session.known["t1"]
        runner.removed("t1")
        await until(lambda: world.session.forgotten == ["t1"])
        assert world.runtime.workloads == {}
        assert "draining" in world.events


async def test_a_task_that_comes_again_while_it_ends_is_reported_as_ended(world: World) -> None:
    """States never go down: whoever still wants it has to make another one."""
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        runner.removed("t1")
        await until(lambda: "draining" in world.events)
        world.give(runner, task())
        await world.reached("SHUTDOWN")
        runner.removed("t1")
        await until(lambda: world.session.forgotten == ["t1"])


async def test_an_image_is_rejected_with_a_reason_and_leaves_nothing(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task(spec=TaskSpec(container=b"x")))
        await world.reached("REJECTED")
        assert "image" in world.session.log[-1].err
        assert world.events == []


async def test_a_network_that_cannot_be_had_rejects_the_task(world: World) -> None:
    world.networks.error = ConflictError("10.0.1.7 belongs to container x")
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("REJECTED")
        assert world.session.log[-1].err == "10.0.1.7 belongs to container x"
        assert world.runtime.workloads == {}


async def test_a_command_that_cannot_be_executed_fails_with_its_code(world: World) -> None:
    world.runtime.start_error = CommandError("serve: not found", 127)
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("FAILED")
        status = world.session.log[-1]
        assert status.container is not None
        assert (status.err, status.container.exit_code) == ("serve: not found", 127)
        await asyncio.sleep(0)
        assert "serving" not in world.events


async def test_a_prepared_task_waits_for_its_start(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task(desired_state=TaskState.READY))
        await world.reached("READY")
        assert "start" not in world.events
        world.give(runner, task())
        await world.reached("RUNNING")


async def test_a_prepared_task_that_is_not_wanted_never_starts(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task(desired_state=TaskState.READY))
        await world.reached("READY")
        world.give(runner, task(desired_state=TaskState.SHUTDOWN))
        await world.reached("SHUTDOWN")
        assert "start" not in world.events
        assert world.runtime.workloads == {}


async def test_a_new_agent_takes_running_tasks_over(world: World) -> None:
    """Without a start, a stop or a new announcement; its end is still seen."""
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
    events = list(world.events)
    world.session.log.clear()
    async with world.start() as runner:
        await world.reached("RUNNING")
        runner.complete()
        world.runtime.end(ID, 0)
        await world.reached("COMPLETE")
        assert [each for each in world.events if each != "detach"] == events


async def test_a_new_agent_starts_half_made_tasks_anew(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task(desired_state=TaskState.READY))
        await world.reached("READY")
    world.session.log.clear()
    world.session.known["t1"] = task()
    async with world.start():
        await world.reached("RUNNING")
        assert world.events[-6:] == ["detach", "remove", "create", "attach", "start", "serving"]


async def test_a_task_lost_with_the_host_has_failed(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task(status=TaskStatus(state=TaskState.RUNNING)))
        await world.reached("FAILED")
        assert "restarted" in world.session.log[-1].err
        assert world.events == []


async def test_workloads_of_tasks_nobody_knows_are_removed(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
    world.session.known.clear()
    async with world.start() as runner:
        runner.complete()
        await until(lambda: not world.runtime.workloads)


async def test_leaving_ends_everything(world: World) -> None:
    async with world.start() as runner:
        world.give(runner, task())
        await world.reached("RUNNING")
        await runner.leave()
        assert world.runtime.workloads == {}
        assert world.networks.held == []
