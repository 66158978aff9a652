"""The spread scheduler's core: plans from pictures of a cluster, and what comes of carrying them out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.api.docker.swarmkit import specs_pb2
from swarm.model import (
    Annotations,
    Meta,
    Node,
    NodeAvailability,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Platform,
    ReplicatedService,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    Version,
)
from swarm.scheduler.constraints import allows, parse
from swarm.scheduler.mirror import Mirror
from swarm.scheduler.model import Change, Object, Update
from swarm.scheduler.spread import LONGEST_DELAY, RESTART_DELAY, SECOND, Plan, plan

NOW = 1_000 * SECOND


def node(name: str, state: NodeState = NodeState.READY, **fields: object) -> Node:
    return Node(
        id=name,
        status=NodeStatus(state=state),
        spec=NodeSpec(**fields),  # type: ignore[arg-type]  # test shorthand
    )


def service(replicas: int | None = 3, **spec: object) -> Service:
    return Service(
        id="svc",
        spec=ServiceSpec(
            annotations=Annotations(name="web"),
            replicated=None if replicas is None else ReplicatedService(replicas=replicas),
            global_=b"" if replicas is None else None,
            **spec,  # type: ignore[arg-type]  # test shorthand
        ),
        spec_version=Version(index=7),
    )


class World:
    """A cluster that does what plans say: every task runs at once and ends at once when asked."""

    def __init__(self, *items: Object) -> None:
        self.mirror = Mirror()
        self.version = 0
        self.made = 0
        self.put(*items)

    def put(self, *items: Object) -> None:
        self.version += 1
        changes = tuple(Change(item=item) for item in items)
        self.mirror.apply(Update(version=self.version, reset=self.version == 1, changes=changes))

    def drop(self, item: Object) -> None:
        self.version += 1
        change = Change(item=item, removed=True)
        self.mirror.apply(Update(version=self.version, changes=(change,)))

    @property
    def service(self) -> Service:
        return self.mirror.services["svc"]

    def plan(self, now: int = NOW) -> Plan:
        return plan(self.mirror, self.service, now)

    def carry_out(self, wanted: Plan, *, starts: bool = True) -> None:
        for task_id in wanted.shutdown:
            self.end(task_id, TaskState.SHUTDOWN)
        for task_id in wanted.release:
            self.drop(self.mirror.tasks[task_id])
        for placement in wanted.place:
            self.made += 1
            state = TaskState.RUNNING if starts else TaskState.ASSIGNED
            self.put(
                Task(
                    id=f"t{self.made}",
                    meta=Meta(created_at=self.made),
                    service_id="svc",
                    slot=placement.slot,
                    node_id=placement.node_id,
                    spec=self.service.spec.task,
                    spec_version=self.service.spec_version,
                    desired_state=TaskState.RUNNING,
                    status=TaskStatus(state=state, timestamp=NOW),
                )
            )

    def end(self, task_id: str, desired: TaskState, state: TaskState = TaskState.SHUTDOWN) -> None:
        task = self.mirror.tasks[task_id]
        down = self.mirror.nodes[task.node_id].status.state is NodeState.DOWN
        status = task.status if down else replace(task.status, state=state)
        self.put(replace(task, desired_state=desired, status=status))

    def settle(self, rounds: int = 50) -> None:
        """Plan and act until there is nothing to do."""
        for _ in range(rounds):
            wanted = self.plan()
            if wanted == Plan():
                return
            self.carry_out(wanted)
        raise AssertionError(f"never settles: {wanted}")

    def running(self) -> list[Task]:
        return [
            task
            for task in self.mirror.tasks.values()
            if task.desired_state is TaskState.RUNNING and task.status.state is TaskState.RUNNING
        ]

    def load(self) -> Counter[str]:
        return Counter(task.node_id for task in self.running())


def test_replicas_are_spread_evenly() -> None:
    world = World(node("a"), node("b"), node("c"), service(7))
    world.settle()
    assert sorted(task.slot for task in world.running()) == list(range(1, 8))
    assert sorted(world.load().values()) == [2, 2, 3]


def test_a_lost_nodes_tasks_move_and_do_not_come_back() -> None:
    world = World(node("a"), node("b"), node("c"), service(6))
    world.settle()
    gone = [task.id for task in world.running() if task.node_id == "c"]
    world.put(node("c", NodeState.DOWN))
    wanted = world.plan()
    assert sorted(wanted.shutdown) == sorted(gone)
    assert len(wanted.place) == 2
    world.settle()
    world.put(node("c"))
    assert world.plan() == Plan()
    assert world.load() == {"a": 3, "b": 3}


def test_a_node_nobody_knows_any_more_is_lost_too() -> None:
    world = World(node("a"), node("b"), service(2))
    world.settle()
    world.drop(node("b"))
    assert [placement.node_id for placement in world.plan().place] == ["a"]


@pytest.mark.parametrize("state", [NodeState.UNKNOWN, NodeState.DISCONNECTED])
def test_a_node_that_may_come_back_keeps_its_tasks(state: NodeState) -> None:
    world = World(node("a"), node("b"), service(2))
    world.settle()
    world.put(node("b", state))
    assert world.plan() == Plan()


def test_a_drained_node_is_emptied_and_a_paused_one_is_not() -> None:
    world = World(node("a"), node("b"), service(2))
    world.settle()
    world.put(node("b", availability=NodeAvailability.PAUSE))
    assert world.plan() == Plan()
    world.put(node("b", availability=NodeAvailability.DRAIN))
    world.settle()
    assert world.load() == {"a": 2}


def test_scaling_down_gives_the_highest_slots_back() -> None:
    world = World(node("a"), service(4))
    world.settle()
    world.put(service(1))
    wanted = world.plan()
    assert {world.mirror.tasks[each].slot for each in wanted.release} == {2, 3, 4}
    world.settle()
    assert len(world.mirror.tasks) == 1


def test_two_tasks_in_a_slot_become_one_and_the_running_one_stays() -> None:
    world = World(node("a"), service(1))
    world.settle()
    (task,) = world.running()
    world.put(
        replace(task, id="x", meta=Meta(created_at=0), status=TaskStatus(state=TaskState.ASSIGNED))
    )
    assert world.plan().release == ("x",)


def test_a_global_service_has_one_task_on_every_live_node() -> None:
    world = World(node("a"), node("b"), service(None))
    world.settle()
    assert world.load() == {"a": 1, "b": 1}
    world.put(node("c"))
    world.settle()
    assert world.load() == {"a": 1, "b": 1, "c": 1}
    world.put(node("b", NodeState.DOWN))
    wanted = world.plan()
    assert (len(wanted.release), wanted.place) == (1, ())


def test_no_node_no_task_and_no_noise() -> None:
    world = World(service(3))
    assert world.plan() == Plan()


class TestRestarts:
    """A task that ends by itself is followed by another after a pause, which grows."""

    def test_the_pause_doubles_up_to_a_minute(self) -> None:
        world = World(node("a"), service(1))
        world.settle()
        pauses = []
        for _ in range(6):
            (task,) = world.running()
            world.end(task.id, TaskState.RUNNING, TaskState.FAILED)
            wanted = world.plan()
            assert wanted.place == ()
            assert wanted.again is not None
            pauses.append(wanted.again - NOW)
            world.carry_out(world.plan(wanted.again))
        assert pauses[:3] == [RESTART_DELAY, 2 * RESTART_DELAY, 4 * RESTART_DELAY]
        assert pauses[-1] == LONGEST_DELAY

    @pytest.mark.parametrize(
        ("condition", "state", "again"),
        [
            (specs_pb2.RESTART_CONDITION_ANY, TaskState.COMPLETE, True),
            (specs_pb2.RESTART_CONDITION_ON_FAILURE, TaskState.COMPLETE, False),
            (specs_pb2.RESTART_CONDITION_ON_FAILURE, TaskState.FAILED, True),
            (specs_pb2.RESTART_CONDITION_NONE, TaskState.FAILED, False),
        ],
    )
    def test_the_condition_decides(self, condition: int, state: TaskState, again: bool) -> None:
        policy = specs_pb2.RestartPolicy(condition=condition)  # type: ignore[arg-type]  # same numbers
        policy.delay.FromSeconds(1)
        world = World(node("a"), service(1, task=TaskSpec(restart=policy.SerializeToString())))
        world.settle()
        (task,) = world.running()
        world.end(task.id, TaskState.RUNNING, state)
        assert world.plan().again == (NOW + SECOND if again else None)

    def test_attempts_are_counted(self) -> None:
        policy = specs_pb2.RestartPolicy(
            condition=specs_pb2.RESTART_CONDITION_ANY, max_attempts=2
        ).SerializeToString()
        world = World(node("a"), service(1, task=TaskSpec(restart=policy)))
        world.settle()
        for _ in range(3):
            (task,) = world.running()
            world.end(task.id, TaskState.RUNNING, TaskState.FAILED)
            world.carry_out(world.plan(NOW + LONGEST_DELAY))
        assert world.running() == []
        assert world.plan(NOW + LONGEST_DELAY) == Plan()


class TestUpdates:
    """A changed spec replaces tasks a few at a time; a changed scale or label replaces none."""

    @staticmethod
    def changed(world: World, **update: int) -> None:
        config = specs_pb2.UpdateConfig(**update).SerializeToString() if update else None  # type: ignore[arg-type]  # test shorthand
        spec = replace(world.service.spec, task=TaskSpec(force_update=1), update=config)
        world.put(replace(world.service, spec=spec, spec_version=Version(index=8)))

    def test_a_scale_or_label_changes_no_task(self) -> None:
        world = World(node("a"), service(2))
        world.settle()
        spec = replace(world.service.spec, annotations=Annotations(name="web", labels={"a": "b"}))
        world.put(replace(world.service, spec=spec, spec_version=Version(index=8)))
        assert world.plan() == Plan()

    @pytest.mark.parametrize(("parallelism", "at_once"), [(1, 1), (2, 2), (0, 4)])
    def test_so_many_slots_change_at_once(self, parallelism: int, at_once: int) -> None:
        world = World(node("a"), node("b"), service(4))
        world.settle()
        self.changed(world, parallelism=parallelism, max_failure_ratio=1)
        low = 4
        for _ in range(50):
            wanted = world.plan()
            if wanted == Plan():
                break
            world.carry_out(wanted)
            low = min(low, len(world.running()))
        assert low == 4 - at_once
        assert all(task.spec.force_update == 1 for task in world.running())
        assert len(world.running()) == 4

    def test_start_first_never_has_fewer(self) -> None:
        world = World(node("a"), node("b"), service(3))
        world.settle()
        self.changed(world, parallelism=1, order=specs_pb2.UPDATE_ORDER_START_FIRST)
        for _ in range(50):
            wanted = world.plan()
            if wanted == Plan():
                break
            world.carry_out(wanted)
            assert len(world.running()) in {3, 4}
        assert sorted(task.slot for task in world.running()) == [1, 2, 3]
        assert all(task.spec.force_update == 1 for task in world.running())

    def test_start_first_keeps_the_spread(self) -> None:
        world = World(node("a"), node("b"), node("c"), service(3))
        world.settle()
        self.changed(world, order=specs_pb2.UPDATE_ORDER_START_FIRST)
        world.settle()
        assert world.load() == {"a": 1, "b": 1, "c": 1}

    def test_the_next_slot_waits_until_the_new_task_runs(self) -> None:
        world = World(node("a"), service(2))
        world.settle()
        self.changed(world)
        world.carry_out(world.plan())  # the first is shut down
        world.carry_out(world.plan(), starts=False)
        wanted = world.plan()
        assert (wanted.shutdown, wanted.place) == ((), ())


class TestConstraints:
    """Docker's expressions; what nobody understands allows nothing."""

    NODE = replace(
        node("n1", annotations=Annotations(labels={"disk": "ssd"})),
        description=NodeDescription(
            hostname="w1", platform=Platform(architecture="x86_64", os="linux")
        ),
        role=NodeRole.WORKER,
    )

    @pytest.mark.parametrize(
        ("text", "holds"),
        [
            ("node.role==worker", True),
            ("node.role != worker", False),
            ("node.hostname==W1", True),
            ("node.id==n2", False),
            ("node.labels.disk==ssd", True),
            ("node.labels.disk!=hdd", True),
            ("node.labels.rack==1", False),
            ("engine.labels.a==b", False),
            ("node.platform.os==linux", True),
            ("node.colour==red", False),
            ("nonsense", False),
        ],
    )
    def test_expressions(self, text: str, holds: bool) -> None:
        placement = specs_pb2.Placement(constraints=[text]).SerializeToString()
        assert allows(placement, self.NODE) is holds

    def test_platforms(self) -> None:
        for architecture, holds in (("x86_64", True), ("", True), ("arm64", False)):
            placement = specs_pb2.Placement()
            placement.platforms.add(architecture=architecture, os="linux")
            assert allows(placement.SerializeToString(), self.NODE) is holds

    @given(st.text(max_size=40))
    def test_any_text_parses_or_is_refused(self, text: str) -> None:
        try:
            key, _, value = parse(text)
        except Exception as error:  # noqa: BLE001  # the class is the point
            assert type(error).__name__ == "InvalidArgumentError"  # noqa: PT017  # refusal is one of two right ends
        else:
            assert key
            assert value

    def test_a_limit_per_node_is_kept(self) -> None:
        placement = specs_pb2.Placement(max_replicas=1).SerializeToString()
        world = World(node("a"), node("b"), service(5, task=TaskSpec(placement=placement)))
        wanted = world.plan()
        assert sorted(each.node_id for each in wanted.place) == ["a", "b"]


@given(st.data())
def test_whatever_happens_it_settles_with_every_slot_filled_once(data: st.DataObject) -> None:
    """Nodes come, go and drain, tasks crash, the scale changes: planning ends, right, and stays quiet."""
    names = ["a", "b", "c", "d"]
    world = World(*map(node, names), service(3))
    for _ in range(data.draw(st.integers(1, 6))):
        kind = data.draw(st.sampled_from(["node", "crash", "scale", "act"]))
        if kind == "node":
            state = data.draw(st.sampled_from([NodeState.READY, NodeState.DOWN]))
            availability = data.draw(st.sampled_from(list(NodeAvailability)))
            world.put(node(data.draw(st.sampled_from(names)), state, availability=availability))
        elif kind == "scale":
            replicas = ReplicatedService(replicas=data.draw(st.integers(0, 6)))
            spec = replace(world.service.spec, replicated=replicas)
            world.put(replace(world.service, spec=spec))
        elif kind == "crash" and world.running():
            task = data.draw(st.sampled_from(world.running()))
            if world.mirror.nodes[task.node_id].status.state is NodeState.READY:
                world.end(task.id, TaskState.RUNNING, TaskState.FAILED)
        else:
            world.carry_out(world.plan())
    for _ in range(50):
        wanted = world.plan(NOW + 10 * LONGEST_DELAY)
        if wanted == Plan():
            break
        world.carry_out(wanted)
    assert world.plan(NOW + 10 * LONGEST_DELAY) == Plan()
    good = [
        task
        for task in world.running()
        if world.mirror.nodes[task.node_id].status.state is NodeState.READY
    ]
    assert world.service.spec.replicated is not None
    slots = list(range(1, world.service.spec.replicated.replicas + 1))
    takes = [each.id for each in world.mirror.live_nodes()]
    if takes:
        assert sorted(task.slot for task in good) == slots
