"""What changes nothing is not logged, yet its answer is as fresh as one that was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from manager.raft.errors import QuorumLostError
from manager.store import Store, Transaction
from manager.store.entry import Action, Attempt, Edit, dump_attempt, dump_entry
from manager.store.tables import TableId
from swarm.api import codec
from swarm.errors import NotFoundError, SwarmError
from swarm.model import Annotations, Node, NodeSpec


class Group:
    """A log that other managers write too: what they committed arrives with barrier or proposal."""

    def __init__(self) -> None:
        self.store = Store(clock_ns=lambda: 1)
        self.index = 0
        self.foreign: list[Node] = []
        self.barriers = 0
        self.failure: SwarmError | None = None
        self.began = asyncio.Event()
        self.began.set()

    def catch_up(self) -> None:
        """Apply what others have committed."""
        while self.foreign:
            node = self.foreign.pop(0)
            edit = Edit(
                action=Action.CREATE, table=TableId.NODE, id=node.id, data=codec.dumps(node)
            )
            attempt = Attempt(id=b"foreign" + node.id.encode(), time=1, edits=(edit,))
            self._apply(dump_entry([dump_attempt(attempt)]))

    def _apply(self, data: bytes) -> tuple[SwarmError | None, ...]:
        self.index += 1
        return self.store.apply(self.index, data)

    async def propose(self, data: bytes) -> tuple[SwarmError | None, ...]:
        """Commit behind what others have committed."""
        await asyncio.sleep(0)
        self.catch_up()
        return self._apply(data)

    async def barrier(self) -> None:
        """Wait for what others have committed."""
        self.barriers += 1
        await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        self.catch_up()

    async def settled(self) -> None:
        """Wait until this manager's term has begun."""
        while not self.began.is_set():
            await self.began.wait()


@asynccontextmanager
async def running() -> AsyncIterator[Group]:
    """Run a store over a group."""
    group = Group()
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(group.store.run(group.propose, group.barrier, group.settled))
        try:
            yield group
        finally:
            writer.cancel()


async def test_a_refusal_is_not_told_from_an_old_state() -> None:
    """A manager that leads anew has yet to apply what its predecessor acknowledged."""
    async with running() as group:
        group.foreign.append(Node(id="n1"))
        await group.store.transact(lambda tx: tx.delete(tx.nodes.require("n1")))
        assert "n1" not in group.store.view.nodes


async def test_doing_nothing_is_not_told_from_an_old_state() -> None:
    """The same for a build that found nothing to do."""

    def paint(tx: Transaction) -> int:
        nodes = tx.nodes.all()
        for node in nodes:
            spec = NodeSpec(annotations=Annotations(labels={"colour": "red"}))
            tx.delete(node)
            tx.create(Node(id=node.id, spec=spec))
        return len(nodes)

    async with running() as group:
        group.foreign.append(Node(id="n1"))
        assert await group.store.transact(paint) == 1


async def test_a_refusal_beside_a_logged_write_is_not_told_from_an_old_state() -> None:
    """Sharing a batch with a write that went through makes a refusal no truer."""
    async with running() as group:
        group.foreign.append(Node(id="n1"))
        await asyncio.gather(
            group.store.transact(lambda tx: tx.create(Node(id="n2"))),
            group.store.transact(lambda tx: tx.delete(tx.nodes.require("n1"))),
        )
        assert [node.id for node in group.store.view.nodes] == ["n2"]


async def test_a_true_refusal_is_told_after_one_barrier() -> None:
    """What is refused on a fresh state is refused for good."""
    async with running() as group:
        with pytest.raises(NotFoundError):
            await group.store.transact(lambda tx: tx.delete(tx.nodes.require("n1")))
        assert group.barriers == 1


async def test_a_refusal_that_nobody_confirms_is_not_told() -> None:
    """A manager cut off from the others cannot know what is there."""
    async with running() as group:
        group.failure = QuorumLostError("nobody answers")
        with pytest.raises(QuorumLostError):
            await group.store.transact(lambda tx: tx.delete(tx.nodes.require("n1")))


async def test_nothing_is_built_before_the_term_has_begun() -> None:
    """A write that would succeed on an old state decides by the new one too."""
    built: list[int] = []

    def build(tx: Transaction) -> None:
        built.append(len(tx.nodes))
        tx.create(Node(id=f"n{len(tx.nodes) + 1}"))

    async with running() as group:
        group.began.clear()
        group.foreign.append(Node(id="n1"))
        writing = asyncio.create_task(group.store.transact(build))
        for _ in range(5):
            await asyncio.sleep(0)
        assert built == []
        group.catch_up()
        group.began.set()
        await writing
        assert built == [1]
        assert [node.id for node in group.store.view.nodes] == ["n1", "n2"]
