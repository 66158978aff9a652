"""The session core in virtual time."""
# the names say what is expected

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from agent.session.core import SessionCore, keys_problem
from agent.session.messages import (
    AssignmentsComplete,
    AssignmentsUpdate,
    Beat,
    Drop,
    Dropped,
    Hangup,
    KeysChanged,
    ManagersChanged,
    NodeChanged,
    OpenAssignments,
    Output,
    Phase,
    Register,
    RenewalDemanded,
    Report,
    RootOffered,
    SessionConfig,
    SessionLost,
    SessionOpened,
    SessionUpdate,
    TaskAssigned,
    TaskChange,
    TaskRemoved,
)
from swarm.model import (
    Certificate,
    EncryptionKey,
    IssuanceState,
    IssuanceStatus,
    Meta,
    Node,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
    Peer,
    Task,
    TaskState,
    TaskStatus,
    Version,
    WeightedPeer,
)

M1 = Peer(node_id="m1", addr="192.0.2.1:2377")
M2 = Peer(node_id="m2", addr="192.0.2.2:2377")
NODE = Node(id="n1", spec=NodeSpec(desired_role=NodeRole.WORKER))


def keys(start: int = 1) -> tuple[EncryptionKey, ...]:
    return tuple(
        EncryptionKey(
            subsystem=subsystem, key=bytes([start + i + j]) * 16, lamport_time=start + i + j
        )
        for i, subsystem in ((0, "networking:gossip"), (10, "networking:ipsec"))
        for j in range(3)
    )


def update(session_id: str = "s1", **changes: object) -> SessionUpdate:
    defaults = {
        "node": NODE,
        "managers": (WeightedPeer(peer=M1, weight=10),),
        "keys": keys(),
        "root_ca": b"root",
    }
    return SessionUpdate(session_id=session_id, **{**defaults, **changes})  # type: ignore[arg-type]


def make(*, seed: int = 1, **options: object) -> SessionCore:
    return SessionCore(
        SessionConfig(),
        node_id="n1",
        role=NodeRole.WORKER,
        managers=[M1],
        root_pem=b"root",
        rng=random.Random(seed),
        **options,  # type: ignore[arg-type]
    )


def opened(now: float = 0.0) -> SessionCore:
    core = make()
    core.start(now)
    core.on_session(core.epoch, update(), now)
    core.take_outputs()
    return core


def kinds(outputs: list[Output]) -> list[type]:
    return [type(output) for output in outputs]


def task(task_id: str = "t1", **changes: object) -> Task:
    return replace(Task(id=task_id, node_id="n1", desired_state=TaskState.RUNNING), **changes)  # type: ignore[arg-type]


def test_first_registration_shows_no_session_id_and_then_opens_everything() -> None:
    core = make()
    core.start(0.0)
    assert core.take_outputs() == [Register(epoch=1, peer=M1, session_id="")]
    core.on_session(1, update(), 0.1)
    outputs = core.take_outputs()
    assert kinds(outputs) == [
        SessionOpened,
        OpenAssignments,
        Beat,
        KeysChanged,
        NodeChanged,
    ]
    assert core.phase is Phase.ACTIVE
    assert core.session_id == "s1"


def test_heartbeat_is_due_a_period_after_the_answer() -> None:
    core = opened()
    core.on_heartbeat(core.epoch, 5.0, 10.0)
    assert core.deadline() == 15.0
    core.tick(14.9)
    assert core.take_outputs() == []
    core.tick(15.0)
    assert core.take_outputs() == [Beat(epoch=core.epoch, session_id="s1")]
    assert core.deadline() is None, "one heartbeat at a time"


def test_a_period_of_zero_does_not_make_a_tight_loop() -> None:
    core = opened()
    core.on_heartbeat(core.epoch, 0.0, 10.0)
    assert core.deadline() == 10.0 + SessionConfig().min_heartbeat


def test_a_silent_manager_is_given_up_after_five_seconds() -> None:
    core = make()
    core.start(0.0)
    core.take_outputs()
    core.tick(4.9)
    assert core.take_outputs() == []
    core.tick(5.0)
    assert kinds(core.take_outputs()) == [Hangup, SessionLost]
    assert core.phase is Phase.WAITING


def test_backoff_grows_to_eight_seconds_and_is_random_below() -> None:
    core = make(seed=7)
    core.start(0.0)
    now, bounds = 0.0, []
    for _ in range(8):
        core.on_lost(core.epoch, "refused", now)
        lost = next(output for output in core.take_outputs() if isinstance(output, SessionLost))
        bounds.append(lost.retry_within)
        deadline = core.deadline()
        assert deadline is not None
        assert now <= deadline < now + lost.retry_within
        now = deadline
        core.tick(now)
    assert bounds == pytest.approx([0.1, 0.3, 0.7, 1.5, 3.1, 6.3, 8.0, 8.0])


def test_backoff_starts_anew_after_a_success() -> None:
    core = make()
    core.start(0.0)
    for _ in range(5):
        core.on_lost(core.epoch, "refused", 0.0)
        core.tick(100.0)
    core.on_session(core.epoch, update(), 100.0)
    core.take_outputs()
    core.on_lost(core.epoch, "gone", 101.0)
    lost = next(output for output in core.take_outputs() if isinstance(output, SessionLost))
    assert lost.retry_within == pytest.approx(0.1)


def test_reconnecting_shows_the_old_session_id_and_takes_a_new_one() -> None:
    core = opened()
    core.on_lost(core.epoch, "gone", 1.0)
    core.tick(2.0)
    assert Register(epoch=2, peer=M1, session_id="s1") in core.take_outputs()
    core.on_session(2, update("s2"), 2.0)
    assert core.session_id == "s2"


def test_late_input_of_an_earlier_connection_is_dropped() -> None:
    core = opened()
    old = core.epoch
    core.on_lost(old, "gone", 1.0)
    core.tick(2.0)
    core.take_outputs()
    core.on_session(old, update("evil"), 2.0)
    core.on_lost(old, "again", 2.0)
    core.on_assignments(old, AssignmentsUpdate(complete=True, applies_to="", results_in="1"), 2.0)
    assert {output.reason for output in core.take_outputs() if isinstance(output, Dropped)} == {
        Drop.STALE_EPOCH
    }
    assert core.phase is Phase.REGISTERING


def test_a_changed_session_id_within_a_session_ends_it() -> None:
    core = opened()
    core.on_session(core.epoch, update("other"), 1.0)
    assert kinds(core.take_outputs()) == [Hangup, SessionLost]


def test_an_empty_manager_list_does_not_strand_the_node() -> None:
    core = opened()
    core.on_session(core.epoch, update(managers=()), 1.0)
    assert Dropped(reason=Drop.NO_MANAGERS) in core.take_outputs()
    assert core.managers.peers == (M1,)


def test_managers_not_listed_are_forgotten() -> None:
    core = opened()
    core.on_session(core.epoch, update(managers=(WeightedPeer(peer=M2, weight=10),)), 1.0)
    assert ManagersChanged(peers=(M2,)) in core.take_outputs()


def test_same_message_again_says_nothing() -> None:
    core = opened()
    core.on_session(core.epoch, update(), 1.0)
    assert core.take_outputs() == []


def test_status_and_version_of_the_node_are_no_change() -> None:
    core = opened()
    node = replace(
        NODE, status=NodeStatus(state=NodeState.READY), meta=Meta(version=Version(index=9))
    )
    core.on_session(core.epoch, update(node=node), 1.0)
    assert core.take_outputs() == []


def test_new_keys_replace_the_old_and_incomplete_ones_are_refused() -> None:
    core = opened()
    core.on_session(core.epoch, update(keys=keys(20)[:5]), 1.0)
    assert [type(output) for output in core.take_outputs()] == [Dropped]
    assert core.keys == keys()
    core.on_session(core.epoch, update(keys=keys(20)), 1.0)
    assert KeysChanged(keys=keys(20)) in core.take_outputs()


def test_other_root_bytes_are_offered_once() -> None:
    core = opened()
    core.on_session(core.epoch, update(root_ca=b"new root"), 1.0)
    core.on_session(core.epoch, update(root_ca=b"new root"), 1.0)
    assert core.take_outputs() == [RootOffered(root_pem=b"new root")]


def test_a_role_change_demands_a_renewal_of_that_role() -> None:
    core = opened()
    node = replace(NODE, spec=NodeSpec(desired_role=NodeRole.MANAGER))
    core.on_session(core.epoch, update(node=node), 1.0)
    core.on_session(core.epoch, update(node=node), 1.0)
    demands = [each for each in core.take_outputs() if isinstance(each, RenewalDemanded)]
    assert demands == [RenewalDemanded(role=NodeRole.MANAGER)]


def test_rotate_demands_a_renewal_once_per_demand() -> None:
    core = opened()
    rotate = replace(
        NODE, certificate=Certificate(status=IssuanceStatus(state=IssuanceState.ROTATE))
    )
    for node in (rotate, rotate, NODE, rotate):
        core.on_session(core.epoch, update(node=node), 1.0)
    demands = [each for each in core.take_outputs() if isinstance(each, RenewalDemanded)]
    assert len(demands) == 2


def test_rotate_after_a_renewal_is_another_demand() -> None:
    """Managers may ask again before we hear that the renewal in between was noted."""
    core = opened()
    asked = [
        replace(
            NODE,
            certificate=Certificate(csr=csr, status=IssuanceStatus(state=IssuanceState.ROTATE)),
        )
        for csr in (b"first", b"second")
    ]
    for node in (asked[0], asked[0], asked[1], asked[1]):
        core.on_session(core.epoch, update(node=node), 1.0)
    demands = [each for each in core.take_outputs() if isinstance(each, RenewalDemanded)]
    assert len(demands) == 2


def test_restart_registers_at_once_and_without_a_penalty() -> None:
    core = opened()
    weight = core.managers.weight(M1)
    core.restart(5.0)
    assert core.take_outputs() == [
        Hangup(epoch=1),
        Register(epoch=2, peer=M1, session_id="s1"),
    ]
    assert core.managers.weight(M1) == weight


def test_close_ends_for_good() -> None:
    core = opened()
    core.close()
    assert core.take_outputs() == [Hangup(epoch=1)]
    core.tick(1000.0)
    core.on_session(1, update(), 1000.0)
    assert core.phase is Phase.CLOSED
    assert core.deadline() is None


def test_without_any_manager_it_keeps_waiting() -> None:
    core = SessionCore(
        SessionConfig(),
        node_id="n1",
        role=NodeRole.WORKER,
        managers=[],
        root_pem=b"root",
        rng=random.Random(1),
    )
    core.start(0.0)
    assert core.phase is Phase.WAITING
    assert core.last_error == "no manager is known"


class TestAssignments:
    def complete(self, *tasks: Task, results_in: str = "1") -> AssignmentsUpdate:
        return AssignmentsUpdate(
            complete=True,
            applies_to="",
            results_in=results_in,
            changes=tuple(TaskChange(task_id=each.id, task=each) for each in tasks),
        )

    def test_whole_list_then_increments(self) -> None:
        core = opened()
        core.on_assignments(core.epoch, self.complete(task("t1"), task("t2")), 1.0)
        assert kinds(core.take_outputs()) == [TaskAssigned, TaskAssigned, AssignmentsComplete]
        core.on_assignments(
            core.epoch,
            AssignmentsUpdate(
                complete=False, applies_to="1", results_in="2", changes=(TaskChange(task_id="t1"),)
            ),
            1.0,
        )
        assert core.take_outputs() == [TaskRemoved(task_id="t1")]
        assert set(core.tasks) == {"t2"}

    def test_a_gap_ends_the_session(self) -> None:
        core = opened()
        core.on_assignments(core.epoch, self.complete(), 1.0)
        core.take_outputs()
        core.on_assignments(
            core.epoch, AssignmentsUpdate(complete=False, applies_to="7", results_in="8"), 1.0
        )
        assert kinds(core.take_outputs()) == [Hangup, SessionLost]

    def test_an_increment_before_any_list_ends_the_session(self) -> None:
        core = opened()
        core.on_assignments(
            core.epoch, AssignmentsUpdate(complete=False, applies_to="", results_in="1"), 1.0
        )
        assert core.phase is Phase.WAITING

    def test_a_new_session_starts_with_a_whole_list_and_keeps_known_tasks(self) -> None:
        core = opened()
        core.on_assignments(core.epoch, self.complete(task("t1"), task("t2")), 1.0)
        core.on_lost(core.epoch, "gone", 2.0)
        core.tick(3.0)
        core.on_session(core.epoch, update(), 3.0)
        core.take_outputs()
        core.on_assignments(core.epoch, self.complete(task("t2")), 3.0)
        assert core.take_outputs() == [TaskRemoved(task_id="t1"), AssignmentsComplete()]

    def test_status_only_changes_are_ignored(self) -> None:
        core = opened()
        core.on_assignments(core.epoch, self.complete(task("t1")), 1.0)
        core.take_outputs()
        running = task("t1", status=TaskStatus(state=TaskState.RUNNING))
        core.on_assignments(core.epoch, self.complete(running), 1.0)
        assert core.take_outputs() == [AssignmentsComplete()]

    def test_a_desired_state_never_goes_down(self) -> None:
        core = opened()
        core.on_assignments(
            core.epoch, self.complete(task("t1", desired_state=TaskState.SHUTDOWN)), 1.0
        )
        core.take_outputs()
        core.on_assignments(core.epoch, self.complete(task("t1")), 1.0)
        assert Dropped(reason=Drop.STATE_GOES_DOWN, detail="t1") in core.take_outputs()
        assert core.tasks["t1"].desired_state is TaskState.SHUTDOWN

    def test_a_task_of_another_node_is_refused(self) -> None:
        core = opened()
        core.on_assignments(core.epoch, self.complete(task("t1", node_id="n2")), 1.0)
        assert Dropped(reason=Drop.OTHER_NODE, detail="t1") in core.take_outputs()
        assert not core.tasks


class TestReports:
    RUNNING = TaskStatus(state=TaskState.RUNNING)
    COMPLETE = TaskStatus(state=TaskState.COMPLETE)

    def reports(self, core: SessionCore) -> list[tuple[tuple[str, TaskStatus], ...]]:
        return [each.statuses for each in core.take_outputs() if isinstance(each, Report)]

    def test_one_call_at_a_time_and_the_latest_state_next(self) -> None:
        core = opened()
        core.report("t1", self.RUNNING)
        core.report("t1", self.COMPLETE)
        assert self.reports(core) == [(("t1", self.RUNNING),)]
        core.on_reported(core.epoch)
        assert self.reports(core) == [(("t1", self.COMPLETE),)]
        core.on_reported(core.epoch)
        assert self.reports(core) == []

    def test_states_never_go_down(self) -> None:
        core = opened()
        core.report("t1", self.COMPLETE)
        core.on_reported(core.epoch)
        core.take_outputs()
        core.report("t1", self.RUNNING)
        assert self.reports(core) == []

    def test_everything_known_is_sent_again_after_a_registration(self) -> None:
        core = opened()
        core.report("t1", self.RUNNING)
        core.report("t2", self.RUNNING)
        core.on_reported(core.epoch)
        core.on_reported(core.epoch)
        core.on_lost(core.epoch, "gone", 1.0)
        core.report("t3", self.RUNNING)
        core.tick(2.0)
        core.take_outputs()
        core.on_session(core.epoch, update(), 2.0)
        (sent,) = self.reports(core)
        assert [task_id for task_id, _ in sent] == ["t1", "t2", "t3"]

    def test_a_removed_task_is_not_reported_any_more(self) -> None:
        core = opened()
        core.on_assignments(
            core.epoch,
            AssignmentsUpdate(
                complete=True,
                applies_to="",
                results_in="1",
                changes=(TaskChange(task_id="t1", task=task()),),
            ),
            1.0,
        )
        core.report("t1", self.RUNNING)
        core.on_assignments(
            core.epoch,
            AssignmentsUpdate(
                complete=False, applies_to="1", results_in="2", changes=(TaskChange(task_id="t1"),)
            ),
            1.0,
        )
        assert core.reported("t1") is None

    def test_many_statuses_go_out_in_bounded_batches(self) -> None:
        core = opened()
        core.report("first", self.RUNNING)
        for index in range(100):
            core.report(f"t{index}", self.RUNNING)
        core.take_outputs()
        core.on_reported(core.epoch)
        (sent,) = self.reports(core)
        assert len(sent) == SessionConfig().status_batch


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (keys()[:5], "2 keys of networking:ipsec"),
        (keys() + keys(40)[:1], "4 keys of networking:gossip"),
        ((replace(keys()[0], key=b"short"), *keys()[1:]), "5 bytes"),
        ((replace(keys()[0], subsystem="x"), *keys()[1:]), "unknown subsystem"),
        ((replace(keys()[0], lamport_time=2), *keys()[1:]), "one lamport time"),
    ],
)
def test_a_key_list_engines_would_refuse_is_refused(
    wrong: tuple[EncryptionKey, ...], problem: str
) -> None:
    assert problem in (keys_problem(wrong) or "")
    assert keys_problem(keys()) is None
