"""Duties begin with leadership and end with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from manager.duties import Leadership
from manager.raft.events import Role
from manager.raft.membership import Member
from manager.raft.node import RaftStatus
from swarm.errors import InvariantError, UnavailableError

MEMBERS: Mapping[int, Member] = {
    1: Member(raft_id=1, node_id="a", addr="192.0.2.1:2377"),
    2: Member(raft_id=2, node_id="b", addr="192.0.2.2:2377"),
}


def status(role: Role, leader: int | None) -> RaftStatus:
    return RaftStatus(
        id=1,
        term=1,
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


async def test_a_failing_duty_ends_the_manager() -> None:
    async def fails() -> None:
        raise InvariantError("x")

    leadership = Leadership(passes)
    leadership.note(LEADER)
    with pytest.raises(BaseExceptionGroup) as failure:
        await leadership.run([fails])
    assert failure.group_contains(InvariantError)


def test_a_follower_names_the_leader() -> None:
    leadership = Leadership(passes)
    assert not leadership.led
    assert str(leadership.refusal()).endswith("no leader is known now.")
    leadership.note(FOLLOWER)
    assert leadership.led
    assert "192.0.2.2:2377" in str(leadership.refusal())
    leadership.note(LEADER)
    assert leadership.refusal() is None
