"""Commits as a stream: order, resumption, falling behind."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from manager.store import Action, Change, Commit, Store, TableId, Watch, watch
from manager.store.watch import History
from swarm.errors import StaleError
from swarm.model import Task

from .conftest import Running


async def make(store: Store, *ids: str) -> None:
    """Create tasks, one commit each."""
    for each in ids:
        await store.transact(lambda tx, each=each: tx.create(Task(id=each)))


def ids(commit: Commit | None) -> list[str]:
    """The ids a commit changed."""
    assert commit is not None
    return [change.item.id for change in commit.changes]


async def test_a_watch_sees_every_commit_from_its_making_on(running: Running) -> None:
    """Registered at the call: nothing between reading and watching is lost."""
    async with running() as (store, _):
        await make(store, "before")
        seen = store.watch()
        await make(store, "a", "b")
        task = store.view.tasks.require("a")
        await store.transact(lambda tx: tx.update(replace(task, slot=1)))
        await store.transact(lambda tx: tx.delete("b"))
        commits = [await anext(seen) for _ in range(4)]
        assert [commit.index for commit in commits] == [5, 7, 9, 11]
        assert [ids(commit) for commit in commits] == [["a"], ["b"], ["a"], ["b"]]
        kinds = [commit.changes[0].kind for commit in commits]
        assert kinds == [Action.CREATE, Action.CREATE, Action.UPDATE, Action.DELETE]
        updated = commits[2].changes[0]
        assert (updated.table, updated.old) == (TableId.TASK, task)
        assert updated.new == store.view.tasks.require("a")
        assert commits[3].changes[0].new is None
        assert seen.next_nowait() is None


async def test_a_waiting_watch_wakes(running: Running) -> None:
    """Two watchers both get what comes while they wait."""
    async with running() as (store, _):
        waiting = [asyncio.ensure_future(anext(store.watch())) for _ in range(2)]
        await asyncio.sleep(0)
        await make(store, "a")
        assert [ids(each) for each in await asyncio.gather(*waiting)] == [["a"], ["a"]]


async def test_a_cancelled_watch_leaves_nothing(running: Running) -> None:
    """Waiting is undone by cancellation."""
    async with running() as (store, _):
        waiting = asyncio.ensure_future(anext(store.watch()))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert not store._history._waiters


async def test_a_watch_resumes_after_a_version(running: Running) -> None:
    """Also from a version between two commits, and from 0."""
    async with running() as (store, _):
        await make(store, "a", "b", "c")
        assert ids(store.watch(since=0).next_nowait()) == ["a"]
        assert ids(store.watch(since=3).next_nowait()) == ["b"]
        assert ids(store.watch(since=4).next_nowait()) == ["b"]
        assert ids(store.watch(since=5).next_nowait()) == ["c"]
        assert store.watch(since=store.index).next_nowait() is None


async def test_rejected_and_failed_transactions_are_not_seen(running: Running) -> None:
    """A commit holds what was applied, and only that."""
    async with running() as (store, _):
        seen = store.watch()
        with pytest.raises(ZeroDivisionError):
            await store.transact(lambda tx: (tx.create(Task(id="x")), 1 // 0))
        await make(store, "a")
        assert ids(await anext(seen)) == ["a"]


async def test_a_slow_watch_is_told_to_read_anew(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It costs no memory and loses nothing in silence."""
    monkeypatch.setattr(watch, "HISTORY_COMMITS", 2)
    async with running() as (store, _):
        slow = store.watch()
        await make(store, "a", "b")
        quick = store.watch(since=0)
        await make(store, "c")
        for each in (slow, quick):
            with pytest.raises(StaleError):
                await anext(each)
        with pytest.raises(StaleError):
            store.watch(since=0)
        assert ids(store.watch(since=3).next_nowait()) == ["b"]


def test_history_is_bounded_by_changes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Big commits push out more; the last one always stays."""
    monkeypatch.setattr(watch, "HISTORY_CHANGES", 4)
    history = History()
    change = Change(kind=Action.CREATE, table=TableId.TASK, old=None, new=Task(id="t"))
    for index, size in ((1, 2), (2, 2), (3, 1)):
        history.record(Commit(index=index, changes=(change,) * size))
    assert history.start == 1
    assert history.after(1) == 1
    history.record(Commit(index=4, changes=(change,) * 9))
    assert history.start == 3
    with pytest.raises(StaleError):
        history.after(2)


async def test_restoring_a_snapshot_ends_every_watch(running: Running) -> None:
    """What a snapshot brought was never a commit; resuming is possible from its index on."""
    async with running() as (store, log):
        await make(store, "a", "b")
        other = Store(clock_ns=log.clock_ns)
        seen: Watch = other.watch()
        waiting = asyncio.ensure_future(anext(seen))
        await asyncio.sleep(0)
        other.restore(store.index, store.snapshot())
        with pytest.raises(StaleError):
            await waiting
        with pytest.raises(StaleError):
            other.watch(since=store.index - 1)
        assert other.watch(since=store.index).next_nowait() is None
        assert len(other.view.tasks) == 2
