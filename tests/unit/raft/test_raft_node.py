"""The shell around one core: a group of one, waiting callers, restarts, failures."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manager.raft.config import MAX_ENTRY_BYTES, RaftConfig
from manager.raft.errors import (
    ChangeRefusal,
    ChangeRefusedError,
    CorruptStateError,
    LockedError,
    QuorumLostError,
    StorageError,
)
from manager.raft.events import Role
from manager.raft.membership import Member
from manager.raft.messages import Batch, Body, Message, Stored
from manager.raft.node import RaftNode
from manager.raft.status import RaftStatus
from manager.raft.storage import DATABASE, Identity, SqliteStorage
from swarm.errors import ConflictError, InvalidArgumentError, InvariantError, UnavailableError


class _Words:
    """A list of words; refuses a word it has."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.restored = 0

    def apply(self, index: int, data: bytes) -> Any:
        """Add a word and return its place."""
        word = data.decode()
        if word == "bug":
            raise InvariantError("A bug.")
        if word in self.words:
            raise ConflictError(f"{word} is taken.")
        self.words.append(word)
        return index, word

    def snapshot(self) -> bytes:
        """Return all words."""
        return ",".join(self.words).encode()

    def restore(self, index: int, data: bytes) -> None:
        """Take all words."""
        self.restored = index
        self.words = data.decode().split(",") if data else []


class _Nowhere:
    """A transport for a group of one."""

    def send(self, messages: Sequence[Message[Body]]) -> None:
        """Nobody is there."""
        raise AssertionError(f"nobody to send {messages} to")

    def update_members(self, members: Mapping[int, Member]) -> None:
        """Nobody else is there."""
        assert len(members) <= 1

    async def run(
        self,
        deliver: Callable[[Message[Body]], None],
        unreachable: Callable[[int], None],
        lost: Callable[[int], None],
    ) -> None:
        """Wait for the end."""
        await asyncio.Event().wait()


class _Counting:
    """A storage that counts its transactions, and fails on demand."""

    def __init__(self, inner: SqliteStorage) -> None:
        self.inner = inner
        self.saves: list[Batch] = []
        self.failing = False
        self.free = threading.Event()
        self.free.set()
        self.held: tuple[int, Callable[[], None]] | None = None

    def load(self) -> Stored:
        """Pass on."""
        return self.inner.load()

    def close(self) -> None:
        """Pass on."""
        self.inner.close()

    def save(self, batch: Batch) -> None:
        """Count and pass on, or fail."""
        if self.failing:
            raise StorageError("The disk is full.")
        self.saves.append(batch)
        if self.held is not None and len(self.saves) == self.held[0]:
            self.held[1]()
            self.free.wait()
        self.inner.save(batch)


CONFIG = RaftConfig(cluster_id="c1", raft_id=7, node_id="n7", addr="192.0.2.7:2377", bootstrap=True)
IDENTITY = Identity(cluster_id="c1", raft_id=7, node_id="n7")


def _storage(path: Path) -> _Counting:
    if SqliteStorage.exists(path):
        return _Counting(SqliteStorage.open(path))
    return _Counting(SqliteStorage.create(path, IDENTITY))


def _node(path: Path, config: RaftConfig = CONFIG) -> tuple[RaftNode, _Words, _Counting]:
    storage, machine = _storage(path), _Words()
    node = RaftNode(
        config=config, storage=storage, machine=machine, transport=_Nowhere(), rng=random.Random(1)
    )
    return node, machine, storage


@asynccontextmanager
async def _running(
    path: Path, config: RaftConfig = CONFIG
) -> AsyncIterator[tuple[RaftNode, _Words, _Counting]]:
    node, machine, storage = _node(path, config)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(node.run())
        await node.ready()
        yield node, machine, storage
        task.cancel()


async def test_a_group_of_one_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """Across a restart; what the machine refuses reaches the proposer."""
    async with _running(tmp_path) as (node, machine, _):
        assert await node.propose(b"one") == (3, "one")
        with pytest.raises(ConflictError):
            await node.propose(b"one")
    async with _running(tmp_path) as (node, machine, _):
        assert machine.words == ["one"]
        assert await node.read_barrier() == node.status.commit_index


async def test_a_group_of_one_leads_without_waiting_for_a_tick(tmp_path: Path) -> None:
    """Its election costs two transactions, not an election time."""
    async with _running(tmp_path, replace(CONFIG, tick_seconds=3600.0)) as (node, _, storage):
        assert node.status.role is Role.LEADER
        assert node.status.leader_id == 7
        assert len(storage.saves) == 3  # configuration, vote, first entry of the term


async def test_a_leader_has_settled_once_the_first_entry_of_its_term_is_applied(
    tmp_path: Path,
) -> None:
    """Whoever would write on its state waits until it shows what earlier leaders committed."""
    async with _running(tmp_path) as (node, _, _):
        await node.propose(b"one")
    node, machine, storage = _node(tmp_path, replace(CONFIG, tick_seconds=3600.0))
    loop, leads = asyncio.get_running_loop(), asyncio.Event()
    storage.free.clear()
    storage.held = 2, lambda: loop.call_soon_threadsafe(leads.set)  # vote, first entry of the term
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        await node.settled()  # it does not run
        running = tasks.create_task(node.run())
        await leads.wait()
        assert node.status.role is Role.LEADER
        settling = tasks.create_task(node.settled())
        await asyncio.sleep(0)
        assert not settling.done()
        storage.free.set()
        await settling
        assert machine.words == ["one"]
        running.cancel()


async def test_whoever_waits_for_a_term_learns_that_the_node_ended(tmp_path: Path) -> None:
    """Then the next call says why."""
    node, _, storage = _node(tmp_path, replace(CONFIG, tick_seconds=3600.0))
    loop, leads = asyncio.get_running_loop(), asyncio.Event()
    storage.free.clear()
    storage.held = 3, lambda: loop.call_soon_threadsafe(leads.set)
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(node.run())
        await leads.wait()
        settling = tasks.create_task(node.settled())
        await asyncio.sleep(0)
        running.cancel()
        storage.free.set()
        await settling
    with pytest.raises(UnavailableError):
        await node.propose(b"x")


async def test_concurrent_proposals_share_transactions(tmp_path: Path) -> None:
    """And a single one costs exactly one."""
    async with _running(tmp_path) as (node, machine, storage):
        storage.saves.clear()
        await asyncio.gather(*(node.propose(f"w{i}".encode()) for i in range(500)))
        assert len(storage.saves) <= 3
        storage.saves.clear()
        await node.propose(b"single")
        assert len(storage.saves) == 1
        assert len(machine.words) == 501


async def test_snapshots_replace_the_log(tmp_path: Path) -> None:
    """Taken after so many entries, restored at start, with the entries behind."""
    config = replace(CONFIG, snapshot_entries=10, trailing_entries=3)
    async with _running(tmp_path, config) as (node, machine, _):
        for number in range(25):
            await node.propose(b"w%d" % number)
    async with _running(tmp_path, config) as (node, machine, _):
        assert machine.words == [f"w{i}" for i in range(25)]
        assert machine.restored > 10
        assert await node.propose(b"more") == (node.status.applied_index, "more")


async def test_large_entries_bring_snapshots_earlier(tmp_path: Path) -> None:
    """The bound in bytes counts what was applied since the last snapshot."""
    config = replace(CONFIG, snapshot_bytes=10_000, trailing_entries=0)
    async with _running(tmp_path, config) as (node, _, storage):
        for number in range(6):
            await node.propose(bytes([97 + number]) * 3000)
        await node.propose(b"end")
        assert any(batch.snapshot is not None for batch in storage.saves)


async def test_an_oversized_proposal_is_refused(tmp_path: Path) -> None:
    """Before it touches the log."""
    async with _running(tmp_path) as (node, _, storage):
        storage.saves.clear()
        with pytest.raises(InvalidArgumentError, match="exceeds"):
            await node.propose(bytes(MAX_ENTRY_BYTES + 1))
        assert storage.saves == []


async def test_the_last_manager_cannot_be_removed(tmp_path: Path) -> None:
    """Nor can it hand over to nobody; stopping gracefully is then just stopping."""
    async with _running(tmp_path) as (node, _, _):
        with pytest.raises(ChangeRefusedError) as caught:
            await node.remove(7)
        assert caught.value.reason is ChangeRefusal.LAST_VOTER
        with pytest.raises(ChangeRefusedError):
            await node.transfer_leadership()
        await node.stop_gracefully()


async def test_status_changes_are_reported_until_unsubscribed(tmp_path: Path) -> None:
    """Members are part of the status."""
    async with _running(tmp_path) as (node, _, _):
        seen: list[RaftStatus] = []
        unsubscribe = node.on_status(seen.append)
        await node.update_member(raft_id=7, addr="192.0.2.8:2377")
        assert seen[-1].members[7].addr == "192.0.2.8:2377"
        count = len(seen)
        unsubscribe()
        await node.update_member(raft_id=7, addr="192.0.2.9:2377")
        assert len(seen) == count
        assert node.status.members[7].addr == "192.0.2.9:2377"


async def test_a_data_key_can_be_changed_while_the_node_runs(tmp_path: Path) -> None:
    """Between two writes, on the thread that writes."""
    async with _running(tmp_path) as (node, _, storage):
        writes = [asyncio.ensure_future(node.propose(b"w%d" % i)) for i in range(20)]
        await node.between_writes(lambda: storage.inner.rotate_data_key(b"u" * 32))
        await asyncio.gather(*writes)
    with pytest.raises(LockedError):
        SqliteStorage.open(tmp_path)
    reopened = SqliteStorage.open(tmp_path, unlock_key=b"u" * 32)
    assert sum(entry.data.startswith(b"w") for entry in reopened.load().entries) == 20
    reopened.close()


async def test_a_failing_disk_ends_the_node(tmp_path: Path) -> None:
    """Callers learn that the outcome is unknown; later calls, that it does not run."""
    node, _, storage = _node(tmp_path)
    async with asyncio.timeout(20):
        task = asyncio.ensure_future(node.run())
        await node.ready()
        storage.failing = True
        with pytest.raises(QuorumLostError):
            await node.propose(b"lost")
        with pytest.raises(StorageError, match="full"):
            await task
    with pytest.raises(UnavailableError):
        await node.propose(b"later")
    async with _running(tmp_path) as (_, machine, _):
        assert machine.words == []


async def test_a_bug_in_the_machine_ends_the_node(tmp_path: Path) -> None:
    """An InvariantError is not an answer to a proposal."""
    node, _, _ = _node(tmp_path)
    async with asyncio.timeout(20):
        task = asyncio.ensure_future(node.run())
        await node.ready()
        with pytest.raises(QuorumLostError):
            await node.propose(b"bug")
        with pytest.raises(InvariantError):
            await task


async def test_damaged_state_does_not_start(tmp_path: Path) -> None:
    """Whoever waits for ready is told."""
    async with _running(tmp_path) as (node, _, _):
        await node.propose(b"one")
    connection = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    connection.execute("DELETE FROM log WHERE idx = 2")
    connection.close()
    node, _, _ = _node(tmp_path)
    async with asyncio.timeout(20):
        run = asyncio.ensure_future(node.run())
        with pytest.raises(UnavailableError):
            await node.ready()
        with pytest.raises(CorruptStateError, match="entry 2 is missing"):
            await run


async def test_nothing_works_before_run(tmp_path: Path) -> None:
    """Calls fail at once instead of waiting for ever."""
    node, _, storage = _node(tmp_path)
    with pytest.raises(UnavailableError):
        await node.propose(b"x")
    with pytest.raises(UnavailableError):
        node.status  # noqa: B018  # reading it raises
    storage.close()


async def test_disaster_recovery_goes_on_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member of a lost group becomes a group of one and forgets nothing it applied."""
    async with _running(tmp_path) as (node, machine, _):
        await node.propose(b"one")
        monkeypatch.setattr(_Nowhere, "update_members", lambda *_: None)
        monkeypatch.setattr(_Nowhere, "send", lambda *_: None)
        await node.add_learner(raft_id=8, node_id="n8", addr="192.0.2.8:2377")
    async with _running(tmp_path, replace(CONFIG, force_new_group=True)) as (node, machine, _):
        assert set(node.status.members) == {7}
        assert machine.words == ["one"]
        with pytest.raises(ChangeRefusedError) as caught:
            await node.add_learner(raft_id=8, node_id="n8", addr="192.0.2.8:2377")
        assert caught.value.reason is ChangeRefusal.REMOVED
