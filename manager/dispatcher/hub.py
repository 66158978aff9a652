"""The dispatcher's shell: sessions and their streams, woken by one watch of the store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

import structlog

from manager.api.attachments import release
from manager.api.backend import Backend
from manager.api.balancers import with_ingress
from manager.dispatcher.feed import SETTLE, Feed
from manager.dispatcher.sessions import DEFAULT_PERIOD, SECOND, Lapse, Sessions
from manager.store import Change, Transaction, Watch
from swarm.errors import InvariantError, NotFoundError, StaleError, SwarmError
from swarm.identity.sockets import split_target
from swarm.model import Cluster, Node, NodeDescription, NodeState, NodeStatus, Task, TaskState

OWN_AGENT_LABEL: Final = "overswarm.version"
"""Engine label of our own agent, which waits for its addresses itself."""

REAP_AFTER: Final = 60 * SECOND
"""How long an attachment that ended is kept for its node to detach it properly."""

CHUNK: Final = 100
"""Nodes or tasks changed in one transaction, so that none outgrows its bounds."""

LONGEST_NAP: Final = SECOND
RETRY_NAP: Final = SECOND

log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class Channel:
    """The open streams of one session."""

    node_id: str
    session_id: str
    feed: Feed
    session_wake: asyncio.Event = field(default_factory=asyncio.Event)
    assignments_wake: asyncio.Event = field(default_factory=asyncio.Event)
    assignments_opened: int = 0
    """How often the assignments stream was opened; only the newest one goes on."""
    closed: SwarmError | None = None
    farewell: bool = False
    """It was closed because this manager does not lead any more."""

    def wake(self) -> None:
        """Let both streams look again."""
        self.session_wake.set()
        self.assignments_wake.set()

    def close(self, reason: SwarmError) -> None:
        """End the streams with a status."""
        if self.closed is None:
            self.closed = reason
        self.wake()

    def check(self) -> None:
        """Go on only while the channel is open.

        Raises:
            SwarmError: why it was closed.
        """
        if self.closed is not None:
            raise self.closed


class Hub:
    """Sessions of a leader and everything that happens to them by itself."""

    def __init__(self, backend: Backend, rng: random.Random) -> None:
        self.backend = backend
        self.store = backend.store
        self.sessions = Sessions(rng, backend.make_id)
        self.channels: dict[str, Channel] = {}
        self._rng = rng
        self.settled = asyncio.Event()
        """Set once every node this manager took over is watched."""
        self._running = False
        self._lapsed: dict[str, Lapse] = {}  # seen, not stored yet
        self._ended: dict[str, int] = {}  # ended attachment -> when to delete it, in that order

    async def run(self) -> None:
        """Dispatch until cancelled; then every stream ends and nodes look for another manager."""
        watch = self.store.watch()
        self.sessions = Sessions(self._rng, self.backend.make_id)
        self._lapsed, self._ended = {}, {}
        self._running = True
        log.info("dispatcher.started")
        try:
            await self._take_over()
            self.settled.set()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(watch))
                group.create_task(self._expire())
        finally:
            self._running = False
            self.settled.clear()
            for channel in tuple(self.channels.values()):
                channel.farewell = True
                channel.close(stopped())
            self.channels.clear()
            log.info("dispatcher.stopped")

    def now(self) -> int:
        """Return the monotonic time, nanoseconds."""
        return self.backend.clock.monotonic()

    def require_running(self) -> None:
        """Check that this manager dispatches.

        Raises:
            StaleError: it does not; another one does, or will.
        """
        if not self._running:
            raise stopped()

    def open_session(self, node_id: str, session_id: str, description: NodeDescription) -> Channel:
        """Begin or go on with a node's session; an older stream of the node ends.

        Raises:
            StaleError: this manager does not dispatch.
            UnavailableError: the node begins sessions too fast.
        """
        self.require_running()
        session_id = self.sessions.open(node_id, session_id, self.now())
        self._lapsed.pop(node_id, None)
        before = self.channels.get(node_id)
        settle = 0 if is_own_agent(description) else SETTLE
        channel = Channel(node_id=node_id, session_id=session_id, feed=Feed(node_id, settle=settle))
        self.channels[node_id] = channel
        if before is not None:
            before.close(StaleError("the node opened another session"))
        return channel

    def close_session(self, channel: Channel) -> None:
        """Forget a session's streams; the node stays up until its heartbeats stop."""
        if self.channels.get(channel.node_id) is channel:
            del self.channels[channel.node_id]
        channel.close(StaleError("the session stream ended"))

    def channel_of(self, node_id: str, session_id: str) -> Channel:
        """Return the channel a call belongs to.

        Raises:
            StaleError: this manager does not dispatch.
            NotFoundError: the node has no session.
            InvalidArgumentError: it has another one.
        """
        self.require_running()
        self.sessions.require(node_id, session_id)
        channel = self.channels.get(node_id)
        if channel is None or channel.session_id != session_id:
            raise NotFoundError(f"node {node_id} has no open session stream")
        return channel

    def wake_all(self) -> None:
        """Let every session look again: something all of them are told has changed."""
        for channel in self.channels.values():
            channel.session_wake.set()

    async def note_ready(self, node_id: str, description: NodeDescription, address: str) -> None:
        """Store that a node is up, what it says of itself, and give it what it lacks.

        Raises:
            NotFoundError: there is no such node.
        """
        manager = self.backend.managers().get(node_id)
        if manager is not None:  # its agent may come over loopback, or this host's own socket
            address = split_target(manager.addr)[0]

        def build(tx: Transaction) -> None:
            node = tx.nodes.require(node_id)
            status = NodeStatus(state=NodeState.READY, addr=address)
            node = replace(node, description=description, status=status)
            tx.update(with_ingress(tx, node))

        await self.store.transact(build)

    # Watching the store

    async def _follow(self, watch: Watch) -> None:
        while True:
            try:
                async for commit in watch:
                    for change in commit.changes:
                        self._changed(change)
            except StaleError:
                # Fallen behind, or the state was replaced: everybody looks at everything.
                watch = self.store.watch()
                self._look_again()

    def _look_again(self) -> None:
        self._configure()
        for channel in self.channels.values():
            for task_id in {t.id for t in self.store.view.tasks.by_node(channel.node_id)}:
                channel.feed.mark(task_id)
            for task_id in channel.feed.known():
                channel.feed.mark(task_id)
            channel.wake()
        for task in self.store.view.tasks.all():
            self._note_end(task)

    def _changed(self, change: Change) -> None:
        old, new = change.old, change.new
        if isinstance(old, Task) or isinstance(new, Task):
            self._task_changed(
                old if isinstance(old, Task) else None, new if isinstance(new, Task) else None
            )
        elif isinstance(new, Node):
            if old is None:
                self.sessions.expect([new.id], self.now())
            self._node_changed(new)
        elif isinstance(old, Node):
            self._node_removed(old.id)
        elif isinstance(new, Cluster):
            self._configure()
            self.wake_all()

    def _task_changed(self, old: Task | None, new: Task | None) -> None:
        for task in (old, new):
            if task is not None and (channel := self.channels.get(task.node_id)) is not None:
                channel.feed.mark(task.id)
                channel.assignments_wake.set()
        if new is not None:
            self._note_end(new)
        elif old is not None:
            self._ended.pop(old.id, None)

    def _node_changed(self, node: Node) -> None:
        if (channel := self.channels.get(node.id)) is not None:
            channel.wake()

    def _node_removed(self, node_id: str) -> None:
        self.sessions.forget(node_id)
        self._lapsed.pop(node_id, None)
        if (channel := self.channels.pop(node_id, None)) is not None:
            channel.close(NotFoundError(f"node {node_id} was removed from this cluster"))

    def _configure(self) -> None:
        for cluster in self.store.view.clusters.all():
            self.sessions.configure(cluster.spec.dispatcher.heartbeat_period or DEFAULT_PERIOD)

    def _note_end(self, task: Task) -> None:
        if task.spec.attachment is not None and task.status.state > TaskState.RUNNING:
            self._ended.setdefault(task.id, self.now() + REAP_AFTER)

    # What happens by itself

    async def _take_over(self) -> None:
        """Give every node that was up under another manager time to come here."""
        self._configure()
        nodes = self.store.view.nodes.all()
        now = self.now()
        self.sessions.presume_down(
            (node.id for node in nodes if node.status.state is NodeState.DOWN), now
        )
        up = [node.id for node in nodes if node.status.state is not NodeState.DOWN]
        self.sessions.expect(up, now)
        for task in self.store.view.tasks.all():
            self._note_end(task)
        for chunk in chunks(up):
            await self._set_states(chunk, NodeState.UNKNOWN, "waiting for the node after a restart")

    async def _set_states(self, node_ids: Sequence[str], state: NodeState, message: str) -> None:
        def build(tx: Transaction) -> None:
            for node_id in node_ids:
                node = tx.nodes.get(node_id)
                if node is not None and node.id not in self.channels:
                    status = replace(node.status, state=state, message=message)
                    tx.update(replace(node, status=status))

        await self.store.transact(build)

    async def _expire(self) -> None:
        while True:
            now = self.now()
            for node_id, lapse in self.sessions.lapse(now):
                self._lapsed[node_id] = lapse
                if (channel := self.channels.pop(node_id, None)) is not None:
                    channel.close(NotFoundError(f"node {node_id}: heartbeat failure"))
            try:
                await self._store_lapses()
                await self._reap(now)
            except InvariantError:
                raise
            except SwarmError as error:
                log.warning("dispatcher.expiry.failed", detail=str(error), nodes=len(self._lapsed))
                await asyncio.sleep(RETRY_NAP / SECOND)
            due = self.sessions.next_deadline()
            nap = LONGEST_NAP if due is None else min(LONGEST_NAP, max(due - self.now(), 0))
            await asyncio.sleep(nap / SECOND)

    async def _store_lapses(self) -> None:
        down = [node_id for node_id, lapse in self._lapsed.items() if lapse is Lapse.DOWN]
        for chunk in chunks(down):
            await self._set_states(chunk, NodeState.DOWN, "heartbeat failure")
            for node_id in chunk:
                self._lapsed.pop(node_id, None)
                log.warning("node.down", node=node_id)
        for node_id in tuple(self._lapsed):
            await self.drop_tasks(node_id)
            self._lapsed.pop(node_id, None)
            log.warning("node.orphaned", node=node_id)

    async def _reap(self, now: int) -> None:
        due = []
        for task_id, when in self._ended.items():
            if when > now:
                break
            due.append(task_id)
        for chunk in chunks(due):
            await self._release(chunk, only_ended=True)
            for task_id in chunk:
                self._ended.pop(task_id, None)

    async def drop_tasks(self, node_id: str) -> None:
        """Give up the tasks of a node nobody hears from: attachments go, others count as lost."""
        tasks = self.store.view.tasks.by_node(node_id)
        attachments = [task.id for task in tasks if task.spec.attachment is not None]
        for chunk in chunks(attachments):
            await self._release(chunk, only_ended=False)
        others = [task.id for task in tasks if task.spec.attachment is None]
        for chunk in chunks(others):
            await self._orphan(chunk)

    async def _orphan(self, task_ids: Sequence[str]) -> None:
        now = self.backend.clock.wall()

        def build(tx: Transaction) -> None:
            for task_id in task_ids:
                task = tx.tasks.get(task_id)
                if task is not None and task.status.state <= TaskState.RUNNING:
                    status = replace(
                        task.status,
                        state=TaskState.ORPHANED,
                        timestamp=now,
                        message="its node has not been heard of for too long",
                    )
                    tx.update(replace(task, status=status))

        await self.store.transact(build)

    async def _release(self, task_ids: Sequence[str], *, only_ended: bool) -> None:
        def build(tx: Transaction) -> None:
            for task_id in task_ids:
                task = tx.tasks.get(task_id)
                if task is not None and not (only_ended and task.status.state <= TaskState.RUNNING):
                    release(tx, task)

        await self.store.transact(build)


def is_own_agent(description: NodeDescription) -> bool:
    """Say whether a node runs our own agent."""
    return description.engine is not None and OWN_AGENT_LABEL in description.engine.labels


def stopped() -> StaleError:
    """Return the error of a dispatcher that does not run here, in the words engines know."""
    return StaleError("dispatcher is stopped")


def chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut a sequence into pieces of at most :data:`CHUNK`."""
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
