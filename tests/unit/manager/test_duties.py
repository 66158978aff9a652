"""Duties begin with leadership and end with it."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from manager.cluster import ROTATION, new_network_keys
from manager.duties import Leadership, rotate_keys
from manager.keyage import KeyAge
from manager.raft.events import Role
from manager.raft.membership import Member
from manager.raft.status import RaftStatus
from manager.store import Store
from swarm.errors import InvariantError, SwarmError, UnavailableError
from swarm.model import Cluster

MEMBERS: Mapping[int, Member] = {
    1: Member(raft_id=1, node_id="a", addr="192.0.2.1:2377"),
    2: Member(raft_id=2, node_id="b", addr="192.0.2.2:2377"),
}


def status(role: Role, leader: int | None, term: int = 1) -> RaftStatus:
    return RaftStatus(
        id=1,
        term=term,
        role=role,
        leader_id=leader,
        commit_index=1,
        applied_index=1,
        members=MEMBERS,
        active=frozenset(),
    )


LEADER = status(Role.LEADER, 1)
FOLLOWER = status(Role.FOLLOWER, 2)


class Recorder:
    """A duty that tells when it runs."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.ended = asyncio.Event()
        self.times = 0

    async def __call__(self) -> None:
        self.times += 1
        self.began.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def passes() -> None:
    """Wait for nothing: the state is caught up."""


async def test_duties_follow_leadership() -> None:
    leadership, duty = Leadership(passes), Recorder()
    task = asyncio.create_task(leadership.run([duty]))
    leadership.note(FOLLOWER)
    await asyncio.sleep(0)
    assert duty.times == 0
    for times in (1, 2):
        leadership.note(LEADER)
        await duty.began.wait()
        assert duty.times == times
        leadership.note(FOLLOWER)
        await duty.ended.wait()
        duty.began.clear()
        duty.ended.clear()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_duties_wait_for_what_earlier_leaders_committed() -> None:
    caught_up, tries = asyncio.Event(), 0

    async def barrier() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise UnavailableError("no majority yet")
        await caught_up.wait()

    leadership, duty = Leadership(barrier), Recorder()
    task = asyncio.create_task(leadership.run([duty]))
    leadership.note(LEADER)
    await asyncio.sleep(0)
    assert duty.times == 0
    caught_up.set()
    await duty.began.wait()
    assert tries == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert duty.ended.is_set()


async def test_another_term_of_the_same_leader_begins_behind_a_barrier() -> None:
    """Even when nothing was seen of the time between: another leader may have written then."""
    barriers = asyncio.Queue[None]()

    async def barrier() -> None:
        barriers.put_nowait(None)

    leadership, duty = Leadership(barrier), Recorder()
    task = asyncio.create_task(leadership.run([duty]))
    leadership.note(LEADER)
    await duty.began.wait()
    await barriers.get()
    duty.began.clear()
    leadership.note(FOLLOWER)
    leadership.note(status(Role.LEADER, 1, term=3))
    await duty.began.wait()
    await barriers.get()
    assert duty.times == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failing_duty_ends_the_manager() -> None:
    async def fails() -> None:
        raise InvariantError("x")

    leadership = Leadership(passes)
    leadership.note(LEADER)
    with pytest.raises(BaseExceptionGroup) as failure:
        await leadership.run([fails])
    assert failure.group_contains(InvariantError)


async def test_a_duty_that_meets_the_end_of_leadership_begins_again() -> None:
    """A write refused because another manager leads ends no manager; the duty runs when it leads again."""
    times = asyncio.Queue[None]()

    async def loses() -> None:
        times.put_nowait(None)
        raise UnavailableError("leadership was lost")

    leadership = Leadership(passes)
    leadership.note(LEADER)
    task = asyncio.create_task(leadership.run([loses]))
    await times.get()
    await times.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class Wall:
    """A wall clock that is set by hand; seconds."""

    now = 1_000_000

    def __call__(self) -> int:
        return self.now * 10**9


def test_keys_age_over_restarts(tmp_path: Path) -> None:
    """Neither a restart nor a new leader begins the twelve hours anew; new keys do."""
    wall = Wall()
    age = KeyAge(tmp_path / "age", wall)
    age.note(7)
    wall.now += 40
    age.note(7)
    assert age.left(100) == 60
    again = KeyAge(tmp_path / "age", wall)
    again.note(7)
    assert again.left(100) == 60
    wall.now += 1000
    assert again.left(100) == 0
    again.note(13)
    assert again.left(100) == 100


def test_keys_that_came_while_a_manager_was_down_are_as_old_as_the_cluster_says(
    tmp_path: Path,
) -> None:
    """A manager that missed a rotation does not put off the next one; a clock ahead counts as now."""
    wall = Wall()
    KeyAge(tmp_path / "age", wall).note(7)
    wall.now += 1000
    age = KeyAge(tmp_path / "age", wall)
    age.note(13, (wall.now - 40) * 10**9)
    assert age.left(100) == 60
    age.note(19, (wall.now + 40) * 10**9)
    assert age.left(100) == 100


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"lamport": "x", "since": 1}', b"\xff"])
def test_a_damaged_note_of_the_keys_age_begins_the_wait(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "age").write_bytes(content)
    age = KeyAge(tmp_path / "age", Wall())
    age.note(7)
    assert age.left(100) == 100


def test_a_clock_set_back_begins_the_wait(tmp_path: Path) -> None:
    wall = Wall()
    KeyAge(tmp_path / "age", wall).note(7)
    wall.now -= 500
    age = KeyAge(tmp_path / "age", wall)
    age.note(7)
    assert age.left(100) == 100


class OverError(SwarmError):
    """The leader's time is over."""


@pytest.mark.parametrize("seed", range(12))
async def test_rotations_keep_their_distance_across_leaders_and_restarts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whoever leads and for how long, and whoever was down meanwhile: one generation every 12 hours.

    A leader that was down at the last rotation knows of it from the cluster object, which nothing else
    changes here. Clocks differ by up to 30 seconds, and a new leader can only look when it begins.
    """
    rng, period, skew = random.Random(seed), ROTATION.total_seconds(), 30
    walls = [Wall() for _ in range(3)]
    base = [rng.uniform(-skew, skew) for _ in walls]
    now = 1_000_000.0
    leader, end = 0, now

    def at(number: int) -> int:
        return int((now + base[number]) * 10**9)

    def age_of(number: int) -> KeyAge:
        return KeyAge(tmp_path / f"age{number}", lambda: at(number))

    async def sleep(seconds: float) -> None:
        nonlocal now
        now = min(now + seconds, end)
        if now >= end:
            raise OverError("another manager leads")

    store = Store(clock_ns=lambda: at(leader))
    ages: dict[int, KeyAge] = {}
    rotations: list[float] = []

    async def propose(data: bytes) -> object:
        results = store.apply(store.index + 1, data)
        lamport = store.view.clusters.only().encryption_key_lamport_clock
        for age in ages.values():
            age.note(lamport)
        rotations.append(now)
        return results

    keys = new_network_keys(rng.randbytes)
    first = Cluster(
        id="c", network_bootstrap_keys=keys.keys, encryption_key_lamport_clock=keys.clock
    )
    backend: Any = SimpleNamespace(store=store, clock=None)
    writer = asyncio.create_task(store.run(propose))
    await store.transact(lambda tx: tx.create(first))
    for _ in range(80):
        leader = rng.randrange(3)
        for number in range(3):
            cluster = store.view.clusters.only()
            if number != leader and rng.random() < 0.3:
                ages.pop(number, None)  # down
            elif number not in ages:
                ages[number] = age_of(number)
                ages[number].note(cluster.encryption_key_lamport_clock, cluster.meta.updated_at)
        end = now + rng.choice((60, 3600, 40_000, 100_000)) * rng.random()
        with monkeypatch.context() as patch:
            patch.setattr("manager.duties.asyncio.sleep", sleep)
            with pytest.raises(OverError):
                await rotate_keys(backend, period, ages[leader])
    writer.cancel()
    await asyncio.wait([writer])
    steps = [b - a for a, b in itertools.pairwise(rotations)]
    assert len(steps) > 10
    assert min(steps) >= period - 2 * skew
    assert max(steps) <= period + 2 * skew
