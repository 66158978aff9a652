"""A sequential log in memory behind the state machine's seam, with any number of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count

import pytest

from manager.store import Store
from swarm.errors import SwarmError


class Log:
    """Commits entries one after another and applies each to every replica.

    Attributes:
        stores: the replicas; the first answers the proposer.
        entries: (index, data) in order.
        gate: proposals wait while it is closed.
        arrived: set once a proposal has come; tests clear it.
        failure: raised instead of committing, once.
        lost: raised after committing (fate unknown to the proposer), once.
    """

    def __init__(self, replicas: int) -> None:
        ticks = count(1_000_000_000, 1_000_000)
        self.clock_ns = lambda: next(ticks)
        self.stores = [Store(clock_ns=self.clock_ns) for _ in range(replicas)]
        self.entries: list[tuple[int, bytes]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.arrived = asyncio.Event()
        self.failure: SwarmError | None = None
        self.lost: SwarmError | None = None

    def commit(self, data: bytes) -> tuple[SwarmError | None, ...]:
        """Append an entry and apply it everywhere; indices have gaps, as a real log's have."""
        index = self.entries[-1][0] + 2 if self.entries else 3
        self.entries.append((index, data))
        results = [store.apply(index, data) for store in self.stores]
        for other in results[1:]:
            assert [str(each) for each in other] == [str(each) for each in results[0]]
        return results[0]

    async def propose(self, data: bytes) -> tuple[SwarmError | None, ...]:
        """Commit after at least one turn of the event loop."""
        await asyncio.sleep(0)
        self.arrived.set()
        await self.gate.wait()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        results = self.commit(data)
        if self.lost is not None:
            lost, self.lost = self.lost, None
            raise lost
        return results

    def check_replicas(self) -> None:
        """All replicas, and one restored from a snapshot, hold the same bytes."""
        first = self.stores[0].snapshot()
        for other in self.stores[1:]:
            assert other.snapshot() == first
        restored = Store(clock_ns=self.clock_ns)
        restored.restore(self.stores[0].index, first)
        assert restored.snapshot() == first


Running = Callable[..., AbstractAsyncContextManager[tuple[Store, Log]]]


@pytest.fixture
def running() -> Running:
    """Open a running store over a log; replicas are compared at the end."""

    @asynccontextmanager
    async def start(replicas: int = 2) -> AsyncIterator[tuple[Store, Log]]:
        log = Log(replicas)
        store = log.stores[0]
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(store.run(log.propose))
            try:
                yield store, log
            finally:
                writer.cancel()
        log.check_replicas()

    return start
