"""The world of whole managers: the real raft node, store and allocator, each on its own event loop.

Replaced are only the disk, the network, the thread that writes, and time. Clients create and remove
networks and services, attach and detach, through the very functions of the manager's API.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self
from unittest.mock import patch

from manager.raft import core as core_module
from manager.raft import leader as leader_module
from manager.raft import node as node_module
from manager.raft import progress as progress_module
from manager.raft import report as report_module
from manager.raft.config import RaftConfig
from manager.raft.core import IDLE, RaftCore
from manager.raft.errors import RemovedError, StateLostError
from manager.raft.events import Role, RoleChanged
from manager.raft.membership import Change, Member
from manager.raft.messages import Batch, Body, Message, Ready, Stored
from manager.raft.node import RaftNode
from manager.store import Store, Transaction
from support.managers.clients import Clients, RefusedError, look
from support.managers.disk import Disk
from support.managers.eye import Process
from support.managers.ledger import Key, Ledger
from support.managers.loop import VirtualLoop
from support.managers.world import World
from swarm.errors import SwarmError, UnavailableError
from swarm.model import Cluster, Node

EPOCH_NS = 1_700_000_000_000_000_000
POOLS = (("10.0.0.0/26", 29), ("10.0.0.0/25", 28), ("10.0.0.0/8", 24))
"""Address pools and subnet sizes: two that run out, and the usual one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedConfig(RaftConfig):
    """A raft configuration that tells who looks on."""

    born: Callable[[RaftCore], None]
    seen: Callable[[RaftCore, Ready], None]


class WatchedCore(RaftCore):
    """The real core, with somebody looking over its shoulder."""

    __slots__ = ("_config",)

    def __init__(self, config: WatchedConfig, stored: Stored, rng: random.Random) -> None:
        super().__init__(config, stored, rng)
        self._config = config
        config.born(self)

    def ready(self) -> Ready:
        """Return all work there is."""
        ready = super().ready()
        if ready is not IDLE:
            self._config.seen(self, ready)
        return ready


class NoThread:
    """Stands where the raft node wants a thread: the loop gives the work to the simulated disk."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @staticmethod
    def submit(call: Callable[[], Any]) -> Future[Any]:
        """Do it now."""
        future: Future[Any] = Future()
        future.set_result(call())
        return future


class NoLog:
    """Drops log lines; a failure is repeated by its seed instead."""

    def debug(self, *_: object, **__: object) -> None:
        """Drop."""

    info = warning = error = debug


@dataclass(frozen=True, slots=True)
class Storage:
    """The raft node's storage, on a simulated disk."""

    disk: Disk

    def load(self) -> Stored:
        """Start once more."""
        return self.disk.load()

    def save(self, batch: Batch) -> None:
        """Store a batch."""
        self.disk.save(batch)

    def close(self) -> None:
        """Nothing is open."""


@dataclass(slots=True)
class Link:
    """The raft node's transport, into the world's network."""

    world: ClusterWorld
    node: Manager
    life: int

    def send(self, messages: Sequence[Message[Body]]) -> None:
        """Send without waiting."""
        if self.node.life == self.life:
            for message in messages:
                self.world.transmit(message)

    def update_members(self, members: Mapping[int, Member]) -> None:
        """Everybody is reached by raft id here."""

    async def run(
        self,
        deliver: Callable[[Message[Body]], None],
        unreachable: Callable[[int], None],  # the world tells the core itself
        lost: Callable[[int], None],
    ) -> None:
        """Take deliveries until cancelled."""
        self.node.mailbox = deliver
        await asyncio.Event().wait()


@dataclass(slots=True)
class Replica:
    """The raft node's state machine: the real store, compared with all others at each step."""

    world: ClusterWorld
    node: Manager
    store: Store
    position: int = 0

    def apply(self, index: int, data: bytes) -> Any:
        """Apply a command."""
        committed = self.world.eye.committed.get(index)
        assert committed is not None, f"{self.node.id} applies {index}, which is not committed"
        assert committed[1] == data, f"{self.node.id} applies something else at {index}"
        watch = self.store.watch()
        results = self.store.apply(index, data)
        commit = watch.next_nowait()
        self.position += 1
        changes = commit.changes if commit is not None else ()
        self.world.ledger.applied(self.position, index, data, results, changes)
        if self.position % self.world.stride == 0:
            self.snapshot()
        self.world.note_applied(self.node)
        return results

    def snapshot(self) -> bytes:
        """Return the whole state."""
        data = self.store.snapshot()
        self.world.ledger.snapshot(self.position, data)
        return data

    def restore(self, index: int, data: bytes) -> None:
        """Become a snapshot."""
        self.store.restore(index, data)
        self.position = self.world.ledger.position(index)
        self.world.eye.counts["snapshots restored"] += 1
        assert self.snapshot() == data, "a restored state is not what was saved"


@dataclass(slots=True, kw_only=True)
class Manager(Process):
    """One manager process, as far as it runs."""

    skew_ms: int = 0
    loop: VirtualLoop | None = None
    raft: RaftNode | None = None
    replica: Replica | None = None
    main: asyncio.Task[None] | None = None
    mailbox: Callable[[Message[Body]], None] | None = None
    calls: dict[asyncio.Task[Any], None] = field(default_factory=dict)

    async def write(self, build: Callable[[Transaction], Any], request_id: str) -> Any:
        """Serve a write, as the manager's API does: only as the leader."""
        assert self.core is not None
        assert self.replica is not None
        if self.core.role is not Role.LEADER:
            raise self.core.not_leader()
        return await self.replica.store.transact(build, request_id=request_id)

    async def read(self, keys: Sequence[Key]) -> tuple[int, tuple[tuple[Key, object], ...]]:
        """Serve a linearisable read, leader or not."""
        assert self.raft is not None
        assert self.replica is not None
        await self.raft.read_barrier()
        store = self.replica.store
        return store.index, tuple((key, look(store.view, key)) for key in keys)


class ClusterWorld(World[Manager]):
    """See the module.

    Attributes:
        ledger: what was truly committed.
        clients: who uses the managers.
        stride: every how many commands the replicas' bytes are compared.
    """

    def __init__(self, seed: int, *, voters: int = 3, size: int = 5) -> None:
        self.ledger = Ledger()
        self.stride = 8
        super().__init__(seed, voters=voters, size=size)
        self.stride = self.rng.choice((1, 4, 16))
        self.clients = Clients(
            self,
            random.Random(self.rng.random()),
            names=tuple(f"net{i}" for i in range(self.rng.choice((2, 5, 10)))),
            nodes=tuple(f"worker{i}" for i in range(self.rng.choice((1, 3, 5)))),
        )

    # Processes ------------------------------------------------------------------------------

    def make_node(self, raft_id: int, *, bootstrap: bool) -> Manager:
        """Make a process that was never started; its wall clock is wrong by up to some seconds."""
        skew = self.rng.randrange(-5000, 5000)
        return Manager(id=raft_id, bootstrap=bootstrap, skew_ms=skew)

    def config(self, node: Manager) -> RaftConfig:
        """Return what a process is told at start."""
        usual = super().config(node)
        life = node.life

        def born(core: RaftCore) -> None:
            node.core = core
            node.seen_commit = core.log.snapshot.index

        def seen(core: RaftCore, ready: Ready) -> None:
            if node.life == life:
                self.eye.observe(node, core, ready)
                if any(
                    isinstance(event, RoleChanged) and event.role is Role.LEADER
                    for event in ready.events
                ):
                    self._flock(node)

        known = {name: getattr(usual, name) for name in RaftConfig.__dataclass_fields__}
        return WatchedConfig(**known, born=born, seen=seen)

    def _flock(self, node: Manager) -> None:
        """Let clients come to a new leader before it knows all that its predecessors committed."""
        if len(self.nodes) > 1 and self.rng.random() < 0.7:
            for _ in range(self.rng.randrange(1, 6)):
                self.clock.after(self.rng.randrange(10), lambda: self.clients.write(node))

    def start(self, node: Manager) -> None:
        """Start a process from its disk."""
        assert not node.up
        assert not node.gone
        node.life += 1
        node.up = True
        life = node.life

        def work(
            call: Callable[..., Any], args: tuple[Any, ...], done: Callable[[Any], None]
        ) -> None:
            node.syncing = args[0] if args else None

            def synced() -> None:
                if node.life == life:
                    node.syncing = None
                    done(call(*args))

            self.clock.after(self.rng.randrange(*node.disk_ms), synced)

        def after() -> None:
            if node.life == life and node.core is not None:
                self.eye.check(node)

        # Crystals differ by a few per cent at worst; more would break leases, less tests nothing.
        rate = self.rng.uniform(0.97, 1.03)
        loop = node.loop = VirtualLoop(  # type: ignore[abstract]  # has all that a manager needs
            self.clock, work=work, after=after, rate=rate
        )
        store = Store(clock_ns=lambda: EPOCH_NS + (self.clock.now + node.skew_ms) * 1_000_000)
        store._origin = self.rng.randbytes(8)
        node.replica = Replica(self, node, store)
        raft = node.raft = RaftNode(
            config=self.config(node),
            storage=Storage(node.disk),
            machine=node.replica,
            transport=Link(self, node, life),
            rng=random.Random(self.rng.random()),
        )
        node.main = loop.create_task(_main(raft, store))
        node.main.add_done_callback(lambda task: self._ended(node, life, task))
        loop.turn()

    def _ended(self, node: Manager, life: int, task: asyncio.Task[None]) -> None:
        """A process ended by itself: it may when it was removed, or is an old copy."""
        if node.life != life:
            return
        cause: BaseException | None = None if task.cancelled() else task.exception()
        while isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        if isinstance(cause, StateLostError):
            assert node.disk.old, f"{node.id} takes itself for an old copy: {cause}"
            self.eye.counts["old copies refused"] += 1
        elif isinstance(cause, RemovedError):
            self.eye.counts["members removed"] += 1
        else:
            raise AssertionError(f"{node.id} ended: {cause!r}") from cause  # noqa: TRY004  # no type is at fault
        node.gone = True
        self.clock.after(0, lambda: self.crash(node) if node.life == life else None)

    def end(self, node: Manager) -> None:
        """Let a process vanish with all it has in memory."""
        assert node.loop is not None
        assert node.main is not None
        node.loop.paused = False
        node.mailbox = None
        for task in (*node.calls, node.main):
            task.cancel()
        node.loop.turn()
        assert node.main.done()
        if not node.main.cancelled():
            node.main.exception()
        assert all(task.done() for task in node.calls)
        node.calls.clear()

    def pause(self, node: Manager) -> None:
        """Stop a process like SIGSTOP: it loses nothing and does nothing."""
        assert node.loop is not None
        node.paused = node.loop.paused = True

    def resume(self, node: Manager) -> None:
        """Go on, with everything that arrived meanwhile."""
        assert node.loop is not None
        node.paused = node.loop.paused = False
        node.loop.turn()

    def pump(self, node: Manager) -> None:
        """Let a process carry out what its core wants."""
        assert node.raft is not None
        assert node.loop is not None
        node.raft._wake.set()
        node.loop.turn()

    def deliver(self, node: Manager, message: Message[Body]) -> None:
        """Hand a message to a process."""
        assert node.loop is not None
        if node.mailbox is not None:
            node.loop.call_soon(node.mailbox, message)
            node.loop.turn()

    def change(self, node: Manager, change: Change) -> None:
        """Try a membership change at a process; it may be refused."""
        assert node.raft is not None
        self._attempt(node, node.raft._change(change))

    def transfer(self, node: Manager) -> None:
        """Try to hand over leadership; it may be refused."""
        assert node.raft is not None
        self._attempt(node, node.raft.transfer_leadership())

    def _attempt(self, node: Manager, coroutine: Coroutine[Any, Any, object]) -> None:
        async def attempt() -> None:
            try:
                await coroutine
            except SwarmError:
                self.eye.counts["administration refused"] += 1

        self._begin(node, attempt)

    @staticmethod
    def _begin(node: Manager, what: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        assert node.loop is not None
        task = node.loop.create_task(what())
        node.calls[task] = None
        task.add_done_callback(lambda _: node.calls.pop(task, None))
        node.loop.turn()
        return task

    # Calls ------------------------------------------------------------------------------------

    def call(
        self, node: Manager, handler: Callable[[], Coroutine[Any, Any, Any]]
    ) -> Awaitable[Any]:
        """Call a manager over the network, from a client's loop; the answer may never come."""
        loop = self.clients.loop
        answer: asyncio.Future[Any] = loop.create_future()

        def give(result: Any, error: BaseException | None) -> None:
            if not answer.done():
                if error is None:
                    answer.set_result(result)
                else:
                    answer.set_exception(error)
                loop.turn()

        def reply(result: Any, error: BaseException | None) -> None:
            if self.rng.random() < self.loss:
                self.eye.counts["answers lost"] += 1
            else:
                self.clock.after(self.rng.randrange(*self.delay), lambda: give(result, error))

        def finished(task: asyncio.Task[Any]) -> None:
            if task.cancelled():
                reply(None, UnavailableError("the connection broke"))
                return
            error = task.exception()
            if error is not None and not isinstance(error, SwarmError):
                raise error
            reply(None if error else task.result(), error)

        def arrive() -> None:
            if node.core is None:
                reply(None, RefusedError("nobody listens"))
            else:
                self._begin(node, handler).add_done_callback(finished)

        if self.rng.random() < self.loss:
            self.eye.counts["calls lost"] += 1
        else:
            self.clock.after(self.rng.randrange(*self.delay), arrive)
        return answer

    def write(self) -> None:
        """Let some client write something."""
        self.clients.write()

    def read(self) -> None:
        """Let some client read something."""
        self.clients.read()

    def found(self) -> None:
        """Make the cluster and its nodes, on the first manager alone."""
        pools, size = self.rng.choice(POOLS)

        def build(tx: Transaction) -> None:
            tx.create(Cluster(id="cluster", default_address_pool=(pools,), subnet_size=size))
            for name in self.clients.nodes:
                tx.create(Node(id=name))

        self.clock.run(300)
        first = self.nodes[1]
        self._begin(first, lambda: first.write(build, "founding"))
        self.clock.run(300)
        assert "founding" in self.ledger.requests, "the first manager does not write"

    # The end --------------------------------------------------------------------------------

    def check_recovered(self) -> None:
        """One leader, equal bytes on all members, every promise kept."""
        leader = self.leader()
        assert leader is not None, "nobody leads after everything is healed"
        assert leader.core is not None
        assert leader.replica is not None
        core, state = leader.core, leader.replica.snapshot()
        assert leader.replica.position == len(self.ledger.indexes), "the leader lacks commands"
        for raft_id in core.membership.members:
            member = self.nodes[raft_id]
            assert member.core is not None, f"{raft_id} does not run"
            assert member.replica is not None
            assert member.core.log.applied == core.log.commit, f"{raft_id} has not caught up"
            assert member.replica.snapshot() == state, f"{raft_id} holds other bytes"
        fresh = Store(clock_ns=lambda: 0)
        fresh.restore(leader.replica.store.index, state)
        assert fresh.snapshot() == state, "a restored state is not what was saved"
        for removed in core.log.committed_membership.removed:
            former = self.nodes[removed].core
            assert former is None or former.role is not Role.LEADER
        for node in self.nodes.values():
            assert not node.gone or node.id not in core.membership.members, f"{node.id} left"
        assert self.recovered(), "nothing is committed after everything is healed"
        self._check_objects(leader.replica.store)
        assert not self.clients.busy, "clients still wait after everything is healed"
        self.clients.check()

    def _check_objects(self, store: Store) -> None:
        view = store.view
        tables = (view.clusters, view.nodes, view.networks, view.services, view.tasks)
        held = {(table.id, each.id): each for table in tables for each in table.all()}
        assert held == self.ledger.objects, "the state is not what the log's changes make"


async def _main(raft: RaftNode, store: Store) -> None:
    """Run a manager's inside, as its process does."""
    async with asyncio.TaskGroup() as group:
        group.create_task(raft.run())
        group.create_task(store.run(raft.propose, raft.read_barrier, raft.settled))
        await raft.ready()


@contextmanager
def simulated(seed: int) -> Iterator[None]:
    """Put simulated parts in the place of threads and log lines, and make messages small."""
    rng = random.Random(~seed)
    chunk = rng.choice((600, 4000, 512 * 1024))
    with ExitStack() as stack:
        for module, name, value in (
            (node_module, "RaftCore", WatchedCore),
            (node_module, "ThreadPoolExecutor", NoThread),
            (report_module, "log", NoLog()),
            (leader_module, "MAX_APPEND_ENTRIES", rng.choice((2, 8, 4096))),
            (core_module, "MAX_APPLY_ENTRIES", rng.choice((1, 3, 1024))),
            (progress_module, "SNAPSHOT_CHUNK_BYTES", chunk),
            (progress_module, "SNAPSHOT_WINDOW_BYTES", 4 * chunk),
        ):
            stack.enter_context(patch.object(module, name, value))
        yield
