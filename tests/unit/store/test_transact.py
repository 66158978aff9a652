"""Transactions: batching, overlay, conflicts, repetition, failures of the log."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from manager.raft.errors import DroppedError, NotLeaderError, QuorumLostError
from manager.store import RepeatedError, Store, Transaction
from manager.store import store as store_module
from manager.store.entry import MAX_CHANGES, load_entry
from swarm.errors import (
    ConflictError,
    ExhaustedError,
    InvalidArgumentError,
    InvariantError,
    NotFoundError,
    StaleError,
    UnavailableError,
)
from swarm.model import (
    Annotations,
    Network,
    NetworkSpec,
    Node,
    NodeDescription,
    Task,
    TaskState,
    TaskStatus,
    Version,
)

from .conftest import Running


def network(object_id: str, name: str = "") -> Network:
    """A network without subnets."""
    return Network(id=object_id, spec=NetworkSpec(annotations=Annotations(name=name or object_id)))


async def test_a_commit_is_visible_with_its_raft_version(running: Running) -> None:
    """The stored object carries the entry's index and the proposer's time, also on the replica."""
    async with running() as (store, log):
        made = await store.transact(lambda tx: tx.create(network("n1", "Web")).id)
        assert made == "n1"
        found = store.view.networks.require("n1")
        assert found.meta.version == Version(index=3)
        assert found.meta.created_at == found.meta.updated_at
        assert store.view.networks.find("wEB") == found
        assert log.stores[1].view.networks.get("n1") == found
        await store.transact(lambda tx: tx.update(replace(found, pending_delete=True)))
        after = store.view.networks.require("n1")
        assert after.meta.version == Version(index=5)
        assert after.meta.created_at == found.meta.created_at
        assert after.meta.updated_at != found.meta.updated_at


async def test_writes_waiting_during_a_proposal_go_out_as_one_entry(running: Running) -> None:
    """Each sees what the ones before it did; none is visible before the commit."""
    async with running() as (store, log):
        log.gate.clear()
        log.arrived.clear()
        first = asyncio.ensure_future(store.transact(lambda tx: tx.create(network("n0"))))
        await log.arrived.wait()
        seen: list[int] = []

        def build(tx: Transaction, number: int) -> None:
            seen.append(len(tx.networks))
            tx.create(network(f"n{number}"))

        later = [
            asyncio.ensure_future(store.transact(lambda tx, n=n: build(tx, n)))
            for n in range(1, 51)
        ]
        await asyncio.sleep(0)
        assert not store.view.networks.all()
        log.gate.set()
        await asyncio.gather(first, *later)
        assert [len(load_entry(data)) for _, data in log.entries] == [1, 50]
        assert seen == list(range(1, 51))
        assert len(store.view.networks) == 51


async def test_a_failing_build_fails_only_its_caller_and_leaves_nothing(running: Running) -> None:
    """The others of the batch commit; half of a failed build does not."""
    async with running() as (store, log):

        def bad(tx: Transaction) -> None:
            tx.create(network("half"))
            raise ValueError("mine")

        results = await asyncio.gather(
            store.transact(lambda tx: tx.create(network("a"))),
            store.transact(bad),
            store.transact(
                lambda tx: (tx.networks.get("half"), tx.create(network("b", "half")))[0]
            ),
            return_exceptions=True,
        )
        assert isinstance(results[1], ValueError)
        assert results[2] is None
        assert [each.id for each in store.view.networks.all()] == ["a", "b"]
        assert len(log.entries) == 1


async def test_name_taken_in_the_same_batch_is_a_conflict(running: Running) -> None:
    """Names differ by more than case."""
    async with running() as (store, _):
        results = await asyncio.gather(
            store.transact(lambda tx: tx.create(network("a", "web"))),
            store.transact(lambda tx: tx.create(network("b", "WEB"))),
            return_exceptions=True,
        )
        assert isinstance(results[1], ConflictError)
        assert str(results[1]) == "network with name WEB already exists"


async def test_node_hostnames_need_not_be_unique(running: Running) -> None:
    """Two nodes with one hostname are found together, and ambiguous as one."""
    async with running() as (store, _):
        for each in ("x1", "x2"):
            node = Node(id=each, description=NodeDescription(hostname="Host"))
            await store.transact(lambda tx, node=node: tx.create(node))
        assert [each.id for each in store.view.nodes.by_hostname("hOST")] == ["x1", "x2"]
        with pytest.raises(InvalidArgumentError, match="ambiguous"):
            store.view.nodes.resolve("host")
        with pytest.raises(InvalidArgumentError, match="ambiguous"):
            store.view.nodes.resolve("x")
        assert store.view.nodes.resolve("x1").id == "x1"
        with pytest.raises(NotFoundError, match="node y not found"):
            store.view.nodes.resolve("y")


async def test_updates_check_versions(running: Running) -> None:
    """A client's old version, and an object read before another's change, are stale."""
    async with running() as (store, _):
        await store.transact(lambda tx: tx.create(network("a")))
        old = store.view.networks.require("a")
        await store.transact(lambda tx: tx.update(replace(old, pending_delete=True)))
        with pytest.raises(StaleError, match="update out of sequence"):
            await store.transact(lambda tx: tx.update(old))

        def as_client(tx: Transaction) -> None:
            current = tx.networks.require("a")
            tx.update(replace(current, pending_delete=False), expect=old.meta.version)

        with pytest.raises(StaleError):
            await store.transact(as_client)
        with pytest.raises(StaleError):
            await store.transact(lambda tx: tx.delete("a", expect=old.meta.version))
        await store.transact(lambda tx: tx.delete("a"))
        with pytest.raises(NotFoundError):
            await store.transact(lambda tx: tx.delete("a"))


async def test_concurrent_expect_lets_exactly_one_win(running: Running) -> None:
    """Two clients that read the same version and change it in one batch: the second is stale."""
    async with running() as (store, _):
        await store.transact(lambda tx: tx.create(network("a")))
        version = store.view.networks.require("a").meta.version

        def change(tx: Transaction, extra: bytes) -> None:
            current = tx.networks.require("a")
            tx.update(replace(current, pending_delete=True, driver_state=None), expect=version)

        results = await asyncio.gather(
            store.transact(lambda tx: change(tx, b"1")),
            store.transact(lambda tx: change(tx, b"2")),
            return_exceptions=True,
        )
        assert [type(each) for each in results] == [type(None), StaleError]


async def test_updates_of_one_object_within_a_batch_build_on_each_other(running: Running) -> None:
    """Read, change, write in one batch loses no update."""
    async with running() as (store, log):
        await store.transact(lambda tx: tx.create(Task(id="t")))

        def bump(tx: Transaction) -> None:
            task = tx.tasks.require("t")
            tx.update(replace(task, slot=task.slot + 1))
            task = tx.tasks.require("t")
            tx.update(replace(task, slot=task.slot + 1))

        await asyncio.gather(*(store.transact(bump) for _ in range(20)))
        assert store.view.tasks.require("t").slot == 40
        assert len(log.entries) == 2


async def test_create_and_delete_in_one_transaction(running: Running) -> None:
    """A transaction may take back what it made, and make it again."""
    async with running() as (store, _):

        def build(tx: Transaction) -> None:
            tx.create(network("a", "web"))
            tx.delete("a")
            tx.create(network("a", "other"))
            tx.create(network("b", "web"))

        await store.transact(build)
        assert {each.spec.annotations.name for each in store.view.networks} == {"web", "other"}


async def test_nothing_is_logged_for_a_transaction_without_changes(running: Running) -> None:
    """Neither for a read nor for an update that changes nothing."""
    async with running() as (store, log):
        await store.transact(lambda tx: tx.create(network("a")))
        assert await store.transact(lambda tx: len(tx.networks)) == 1
        await store.transact(lambda tx: tx.update(tx.networks.require("a")))
        assert len(log.entries) == 1


async def test_a_read_of_uncommitted_work_waits_for_its_fate(running: Running) -> None:
    """What only an earlier transaction of a failed batch had made is never reported as there."""
    async with running() as (store, log):
        log.failure = DroppedError("dropped")
        results = await asyncio.gather(
            store.transact(lambda tx: tx.create(network("a"))),
            store.transact(lambda tx: len(tx.networks)),
            store.transact(lambda tx: tx.create(network("b", "a"))),
            return_exceptions=True,
        )
        assert [type(each) for each in results] == [DroppedError] * 3
        assert not store.view.networks.all()


async def test_errors_of_the_log_reach_every_caller_and_writing_goes_on(running: Running) -> None:
    """A manager that does not lead says so; the next write works."""
    async with running() as (store, log):
        log.failure = NotLeaderError(2, "192.0.2.2:2377")
        with pytest.raises(NotLeaderError):
            await store.transact(lambda tx: tx.create(network("a")))
        await store.transact(lambda tx: tx.create(network("a")))


async def test_a_retry_after_a_lost_answer_is_recognised(running: Running) -> None:
    """The request took effect once; its retry learns the version and the id it had created."""
    async with running() as (store, log):
        log.lost = QuorumLostError("lost")
        with pytest.raises(QuorumLostError):
            await store.transact(lambda tx: tx.create(network("a", "web")), request_id="r1")
        with pytest.raises(RepeatedError) as caught:
            await store.transact(lambda tx: tx.create(network("b", "web")), request_id="r1")
        assert caught.value.index == 3
        assert caught.value.created == (("network", "a"),)
        assert len(store.view.networks) == 1


async def test_the_same_request_in_flight_twice_gets_one_result(running: Running) -> None:
    """Both callers get the first one's result; one giving up does not harm the other."""
    async with running() as (store, _):
        one = asyncio.ensure_future(
            store.transact(lambda tx: tx.create(network("a")).id, request_id="r")
        )
        two = asyncio.ensure_future(
            store.transact(lambda tx: tx.create(network("b")).id, request_id="r")
        )
        await asyncio.sleep(0)
        one.cancel()
        assert await two == "a"
        assert [each.id for each in store.view.networks] == ["a"]


async def test_a_caller_cancelled_before_its_build_writes_nothing(running: Running) -> None:
    """A write nobody waits for is not built."""
    async with running() as (store, log):
        log.gate.clear()
        log.arrived.clear()
        first = asyncio.ensure_future(store.transact(lambda tx: tx.create(network("a"))))
        await log.arrived.wait()
        second = asyncio.ensure_future(store.transact(lambda tx: tx.create(network("b"))))
        await asyncio.sleep(0)
        second.cancel()
        log.gate.set()
        await first
        await store.transact(lambda tx: tx.create(network("c")))
        assert [each.id for each in store.view.networks] == ["a", "c"]


async def test_a_transaction_that_conflicts_when_applied_is_built_anew(running: Running) -> None:
    """An entry of another leader comes between build and commit: the counter loses no step."""
    async with running() as (store, log):
        await store.transact(lambda tx: tx.create(Task(id="t")))

        def bump(tx: Transaction) -> int:
            task = tx.tasks.require("t")
            return tx.update(replace(task, slot=task.slot + 1)).slot

        log.gate.clear()
        log.arrived.clear()
        mine = asyncio.ensure_future(store.transact(bump))
        await log.arrived.wait()
        other = Store(clock_ns=log.clock_ns)
        other.restore(store.index, store.snapshot())

        async def smuggle(data: bytes) -> object:
            return log.commit(data)

        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(other.run(smuggle))
            assert await other.transact(bump) == 1
            writer.cancel()
        log.gate.set()
        assert await mine == 2
        assert store.view.tasks.require("t").slot == 2


async def test_a_conflict_that_stays_reaches_the_caller(running: Running) -> None:
    """Rebuilding finds the name taken and says so."""
    async with running() as (store, log):
        log.gate.clear()
        log.arrived.clear()
        mine = asyncio.ensure_future(store.transact(lambda tx: tx.create(network("a", "web"))))
        await log.arrived.wait()
        entry = log.entries
        assert not entry
        other = Store(clock_ns=log.clock_ns)

        async def smuggle(data: bytes) -> object:
            return log.commit(data)

        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(other.run(smuggle))
            await other.transact(lambda tx: tx.create(network("b", "web")))
            writer.cancel()
        log.gate.set()
        with pytest.raises(ConflictError, match="already exists"):
            await mine
        assert [each.id for each in store.view.networks] == ["b"]


async def test_a_stopped_store_refuses_and_lets_nobody_hang(running: Running) -> None:
    """In flight, queued and later writes all end when the writer is cancelled."""
    async with running() as (store, log):
        log.gate.clear()
        log.arrived.clear()
        flying = asyncio.ensure_future(store.transact(lambda tx: tx.create(network("a"))))
        await log.arrived.wait()
        queued = asyncio.ensure_future(store.transact(lambda tx: tx.create(network("b"))))
        await asyncio.sleep(0)
    with pytest.raises(UnavailableError):
        await flying
    with pytest.raises(UnavailableError):
        await queued
    with pytest.raises(UnavailableError):
        await store.transact(lambda tx: tx.create(network("c")))


async def test_bounds_are_refused_at_once(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many changes, too many bytes, too long an id, too long a queue."""
    async with running() as (store, log):

        def many(tx: Transaction) -> None:
            for number in range(MAX_CHANGES + 1):
                tx.create(Task(id=f"t{number}"))

        with pytest.raises(InvalidArgumentError, match="split"):
            await store.transact(many)
        huge = Task(id="t", status=TaskStatus(message="x" * (1 << 20)))
        with pytest.raises(InvalidArgumentError, match="split"):
            await store.transact(lambda tx: tx.create(huge))
        for bad in ("", "x" * 129):
            with pytest.raises(InvalidArgumentError):
                await store.transact(lambda tx, bad=bad: tx.create(Task(id=bad)))
        with pytest.raises(InvalidArgumentError):
            await store.transact(lambda tx: None, request_id="x" * 129)
        assert not store.view.tasks.all()
        monkeypatch.setattr(store_module, "MAX_WAITING", 1)
        log.gate.clear()
        log.arrived.clear()
        first = asyncio.ensure_future(store.transact(lambda tx: tx.create(Task(id="a"))))
        await log.arrived.wait()
        second = asyncio.ensure_future(store.transact(lambda tx: tx.create(Task(id="b"))))
        await asyncio.sleep(0)
        with pytest.raises(ExhaustedError):
            await store.transact(lambda tx: tx.create(Task(id="c")))
        log.gate.set()
        await asyncio.gather(first, second)


async def test_big_batches_are_split_over_entries(running: Running) -> None:
    """No entry grows beyond its bounds however much is waiting."""
    async with running() as (store, log):
        text = "x" * 10_000
        await asyncio.gather(
            *(
                store.transact(
                    lambda tx, n=n: tx.create(Task(id=f"t{n}", status=TaskStatus(message=text)))
                )
                for n in range(300)
            )
        )
        assert len(log.entries) > 1
        assert all(len(data) < 600_000 for _, data in log.entries)
        assert len(store.view.tasks) == 300


async def test_a_transaction_is_over_when_its_build_returns(running: Running) -> None:
    """Using it later is a bug and says so."""
    async with running() as (store, _):
        kept = await store.transact(lambda tx: tx)
        with pytest.raises(InvariantError):
            kept.create(Task(id="t"))


async def test_task_indexes_follow_every_change(running: Running) -> None:
    """By node, service and network, through create, update and delete."""
    async with running() as (store, _):
        await store.transact(lambda tx: tx.create(Task(id="t1", node_id="n1", service_id="s")))
        await store.transact(lambda tx: tx.create(Task(id="t2", node_id="n1")))
        tasks = store.view.tasks
        assert [each.id for each in tasks.by_node("n1")] == ["t1", "t2"]
        assert [each.id for each in tasks.by_service("s")] == ["t1"]
        assert [each.id for each in tasks.by_service("")] == ["t2"]
        assert [each.id for each in tasks.by_prefix("t")] == ["t1", "t2"]
        await store.transact(
            lambda tx: tx.update(
                replace(
                    tx.tasks.require("t1"), node_id="n2", status=TaskStatus(state=TaskState.RUNNING)
                )
            )
        )
        assert [each.id for each in tasks.by_node("n1")] == ["t2"]
        assert [each.id for each in tasks.by_node("n2")] == ["t1"]
        await store.transact(lambda tx: tx.delete("t1"))
        assert not tasks.by_node("n2")
        assert not tasks.by_service("s")


async def test_a_part_of_a_transaction_can_be_taken_back(running: Running) -> None:
    """What fails leaves nothing behind; what came before it stays, and the transaction goes on."""

    def build(tx: Transaction) -> None:
        tx.create(Node(id="a"))
        with pytest.raises(ConflictError), tx.part():  # noqa: PT012  # the part as a whole is what fails
            tx.create(Node(id="b"))
            tx.delete("a")
            tx.create(Node(id="b"))
        assert "b" not in tx.nodes
        tx.create(Node(id="c"))

    async with running() as (store, _):
        await store.transact(build)
        assert [node.id for node in store.view.nodes.all()] == ["a", "c"]
