"""The asyncio shell of one raft member: disk thread, transport, ticks, and waiting callers."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import structlog

from manager.raft.config import RaftConfig
from manager.raft.core import RaftCore
from manager.raft.errors import (
    ChangeRefusal,
    ChangeRefusedError,
    DroppedError,
    QuorumLostError,
    RemovedError,
    StateLostError,
)
from manager.raft.events import (
    Event,
    LeaderChanged,
    MembershipChanged,
    OldCopy,
    QuorumLost,
    Reason,
    Refused,
    Role,
    RoleChanged,
    SnapshotReceived,
    SnapshotSent,
    StateLost,
    TransferAborted,
    TransferStarted,
    Truncated,
    WasRemoved,
)
from manager.raft.membership import Change, ChangeKind, Member
from manager.raft.messages import Batch, Body, Entry, EntryKind, Message, Ready, Snapshot
from manager.raft.storage import Storage
from swarm.errors import InvariantError, SwarmError, UnavailableError

log = structlog.get_logger("manager.raft")

T = TypeVar("T")

_QUIET = frozenset(
    {
        Reason.STALE_REPLY,
        Reason.UNEXPECTED,
        Reason.OLDER_TERM,
        Reason.LOG_GAP,
        Reason.LEASE,
        Reason.VOTED,
        Reason.BEHIND,
    }
)
"""Refusals that a healthy group produces, logged at debug level only."""

_EVENTS: dict[type[Event], str] = {
    RoleChanged: "role.changed",
    LeaderChanged: "leader.changed",
    MembershipChanged: "membership.changed",
    Truncated: "log.truncated",
    SnapshotSent: "snapshot.sent",
    SnapshotReceived: "snapshot.received",
    QuorumLost: "quorum.lost",
    TransferStarted: "transfer.started",
    TransferAborted: "transfer.aborted",
    WasRemoved: "member.removed",
    StateLost: "state.lost",
    OldCopy: "state.outdated",
}


FAREWELL_TICKS = 3
"""How long a removed member goes on, so that its last messages leave and its callers hear."""


class StateMachine(Protocol):
    """What the log drives. Every replica must do the same with the same input."""

    def apply(self, index: int, data: bytes) -> Any:
        """Apply a committed command; the result, or the SwarmError raised, reaches the proposer."""

    def snapshot(self) -> bytes:
        """Return the whole state."""

    def restore(self, index: int, data: bytes) -> None:
        """Replace the whole state by a snapshot taken at ``index``."""


class Transport(Protocol):
    """How messages travel. They may be lost, repeated and reordered, and senders may lie."""

    def send(self, messages: Sequence[Message[Body]]) -> None:
        """Send without waiting; what cannot be sent is dropped."""

    def update_members(self, members: Mapping[int, Member]) -> None:
        """Learn where members are reached, whenever that changes."""

    async def run(
        self,
        deliver: Callable[[Message[Body]], None],
        unreachable: Callable[[int], None],
    ) -> None:
        """Carry messages until cancelled; report members that a message did not reach."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftStatus:
    """A look at one member."""

    id: int
    term: int
    role: Role
    leader_id: int | None
    commit_index: int
    applied_index: int
    members: Mapping[int, Member]
    """The configuration in force, by raft id."""
    active: frozenset[int]
    """Leader: members heard within an election time, itself included. Elsewhere empty."""


class RaftNode:
    """One member. ``run`` owns everything; all other calls need it running."""

    def __init__(
        self,
        *,
        config: RaftConfig,
        storage: Storage,
        machine: StateMachine,
        transport: Transport,
        rng: random.Random,
    ) -> None:
        self._config = config
        self._storage = storage
        self._machine = machine
        self._transport = transport
        self._rng = rng
        self._core: RaftCore | None = None
        self._disk: ThreadPoolExecutor | None = None
        self._wake = asyncio.Event()
        self._batches: asyncio.Queue[Batch] = asyncio.Queue(1)
        self._proposals: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        """Index to (term, who waits for it)."""
        self._reads: dict[int, asyncio.Future[int]] = {}
        """Context to who waits for the read point."""
        self._points: list[tuple[int, int, asyncio.Future[int]]] = []
        """Heap of read points that are not applied yet."""
        self._sequence = itertools.count()
        self._replayed = asyncio.Event()
        self._tick_waiters: list[asyncio.Future[None]] = []
        self._replay_to = 0
        self._applied_bytes = 0
        self._callbacks: dict[int, Callable[[RaftStatus], None]] = {}
        self._reported: tuple[Any, ...] = ()
        self._stopped: BaseException | None = None
        self._aborted_transfers = 0

    # Life -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            StorageError: the disk failed or holds damaged state.
            RemovedError: this manager was removed from the group.
            StateLostError: the leader knows of entries this manager's disk has lost.
            InvariantError: a bug; the process should end.
        """
        loop = asyncio.get_running_loop()
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="raft-disk") as disk:
                self._disk = disk
                try:
                    stored = await loop.run_in_executor(disk, self._storage.load)
                    core = self._core = RaftCore(self._config, stored, self._rng)
                    self._replay_to = core.log.commit
                    self._transport.update_members(core.membership.members)
                    self._pump(core)
                    if core.alone:
                        core.campaign()
                    self._wake.set()
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(self._drive(core))
                        tasks.create_task(self._write(core, disk))
                        tasks.create_task(self._tick(core))
                        tasks.create_task(self._transport.run(self._deliver, self._unreachable))
                finally:
                    # After the thread's last write, whose end cancelling does not wait for.
                    disk.submit(self._storage.close).result()
        except BaseExceptionGroup as group:
            self._stopped = _first(group)
            raise self._stopped from group
        except BaseException as cause:
            self._stopped = cause
            raise
        finally:
            self._abandon()

    async def ready(self) -> None:
        """Wait until what this member knows to be committed is applied.

        A group of one is then led by this member, with the first entry of its term applied.

        Raises:
            UnavailableError: the node stopped before.
        """
        await self._replayed.wait()
        self._running()

    # Calls ----------------------------------------------------------------------------------

    async def propose(self, data: bytes) -> Any:
        """Replicate a command and return what the state machine made of it here.

        Raises:
            NotLeaderError: another member leads; not tried.
            DroppedError: certainly without effect.
            QuorumLostError: leadership was lost; the outcome is unknown.
            InvalidArgumentError: too large.
            SwarmError: whatever the state machine raised.
        """
        return await self._await_applied(*self._running().propose(data))

    async def read_barrier(self) -> int:
        """Wait until this member has applied all that was committed when the call began.

        Returns the index; reading the state machine after it is linearisable. Works on any member.

        Raises:
            QuorumLostError: no majority confirmed it in time.
            DroppedError: too many reads wait.
        """
        context = self._running().request_read()
        future = asyncio.get_running_loop().create_future()
        self._reads[context] = future
        self._wake.set()
        try:
            return int(await future)
        finally:
            self._reads.pop(context, None)

    async def add_learner(self, *, raft_id: int, node_id: str, addr: str) -> None:
        """Add a member that receives the log and has no vote yet.

        Raises:
            NotLeaderError, ChangeRefusedError, QuorumLostError, DroppedError: as for changes.
        """
        await self._change(
            Change(kind=ChangeKind.ADD_LEARNER, raft_id=raft_id, node_id=node_id, addr=addr)
        )

    async def promote(self, raft_id: int) -> None:
        """Give a learner its vote, as soon as it has caught up; bound the wait with a timeout."""
        waits = {
            ChangeRefusal.NOT_CAUGHT_UP,
            ChangeRefusal.PENDING,
            ChangeRefusal.TERM_NOT_STARTED,
        }
        while True:
            try:
                return await self._change(Change(kind=ChangeKind.PROMOTE, raft_id=raft_id))
            except ChangeRefusedError as refusal:
                if refusal.reason not in waits:
                    raise
            await self._next_tick()

    async def update_member(self, *, raft_id: int, addr: str) -> None:
        """Change the address under which a member is reached."""
        await self._change(Change(kind=ChangeKind.UPDATE, raft_id=raft_id, addr=addr))

    async def remove(self, raft_id: int) -> None:
        """Remove a member for good. A leader that removes itself hands over first or after."""
        await self._change(Change(kind=ChangeKind.REMOVE, raft_id=raft_id))

    async def transfer_leadership(self, to: int | None = None) -> int:
        """Hand over to ``to`` (default: the most complete voter); return who leads then.

        Raises:
            NotLeaderError: this member does not lead.
            ChangeRefusedError: no such voter, or another handover is under way.
            QuorumLostError: it did not take over within an election time.
        """
        core = self._running()
        core.transfer_leadership(to)
        self._wake.set()
        aborted = self._aborted_transfers
        give_up = core.ticks + 3 * self._config.election_ticks
        while core.leader in {core.id, None}:
            if self._aborted_transfers != aborted or core.ticks > give_up:
                raise QuorumLostError("The other manager did not take over in time; try again.")
            await self._next_tick()
        return core.leader

    async def between_writes(self, call: Callable[[], T]) -> T:
        """Run a blocking call on the disk thread, where no write is under way.

        For what the owner of the storage does to it while the node runs, such as sealing it under
        a new data key.
        """
        self._running()
        return await asyncio.get_running_loop().run_in_executor(self._disk, call)

    async def stop_gracefully(self) -> None:
        """Hand over if this member leads others; then ``run`` may be cancelled."""
        core = self._core
        if core is None or self._stopped is not None or core.role is not Role.LEADER or core.alone:
            return
        with contextlib.suppress(SwarmError):
            await self.transfer_leadership()

    @property
    def status(self) -> RaftStatus:
        """What this member knows now."""
        core = self._running()
        oldest = core.ticks - core.config.election_ticks
        active = {
            i for i, peer in core.peers.items() if peer.heard is not None and peer.heard >= oldest
        }
        if core.role is Role.LEADER:
            active.add(core.id)
        return RaftStatus(
            id=core.id,
            term=core.term,
            role=core.role,
            leader_id=core.leader,
            commit_index=core.log.commit,
            applied_index=core.log.applied,
            members=core.membership.members,
            active=frozenset(active),
        )

    def on_status(self, callback: Callable[[RaftStatus], None]) -> Callable[[], None]:
        """Call back on every change of role, term, leader or members; return how to end that."""
        key = next(self._sequence)
        self._callbacks[key] = callback

        def unsubscribe() -> None:
            self._callbacks.pop(key, None)

        return unsubscribe

    # Tasks ----------------------------------------------------------------------------------

    async def _drive(self, core: RaftCore) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not self._pump(core):
                # More to apply: let others run in between.
                self._wake.set()
                await asyncio.sleep(0)

    async def _write(self, core: RaftCore, disk: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await self._batches.get()
            await loop.run_in_executor(disk, self._storage.save, batch)
            core.advance()
            self._wake.set()

    async def _tick(self, core: RaftCore) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        farewell = FAREWELL_TICKS
        while True:
            due += self._config.tick_seconds
            delay = due - loop.time()
            if delay < 0:
                # The process or its machine stood still. Ticks made up for in a burst would leave
                # the leader's messages no time to arrive between them, and end in an election.
                due = loop.time()
            await asyncio.sleep(max(delay, 0))
            core.tick()
            self._wake.set()
            farewell -= core.removed
            if farewell == 0:
                raise RemovedError("This manager was removed from the group of managers.")
            waiters, self._tick_waiters = self._tick_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _deliver(self, message: Message[Body]) -> None:
        if self._core is not None:
            self._core.step(message)
            self._wake.set()

    def _unreachable(self, raft_id: int) -> None:
        if self._core is not None:
            self._core.report_unreachable(raft_id)

    # One round ------------------------------------------------------------------------------

    def _pump(self, core: RaftCore) -> bool:
        """Carry out what the core wants; False when it has more."""
        ready = core.ready()
        if ready.batch is not None:
            self._batches.put_nowait(ready.batch)
        if ready.messages:
            self._transport.send(ready.messages)
        if ready.restore is not None:
            self._restore(ready.restore)
        for entry in ready.committed:
            self._apply(entry)
        self._answer_reads(core, ready)
        for event in ready.events:
            self._note(core, event)
        self._maybe_compact(core)
        self._report(core)
        return not (ready.committed or ready.restore)

    def _apply(self, entry: Entry) -> None:
        result: Any = None
        error: SwarmError | None = None
        if entry.kind is EntryKind.COMMAND:
            try:
                result = self._machine.apply(entry.index, entry.data)
            except InvariantError:
                raise
            except SwarmError as refused:
                error = refused
        self._applied_bytes += entry.size
        term, future = self._proposals.pop(entry.index, (0, None))
        if future is None or future.done():
            return
        if term != entry.term:
            error = _dropped()
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _restore(self, snapshot: Snapshot) -> None:
        self._machine.restore(snapshot.index, snapshot.data)
        self._applied_bytes = 0
        for index in [index for index in self._proposals if index <= snapshot.index]:
            _fail(self._proposals.pop(index)[1], _unknown())

    def _answer_reads(self, core: RaftCore, ready: Ready) -> None:
        for result in ready.reads:
            future = self._reads.pop(result.context, None)
            if future is None or future.done():
                continue
            if result.index is None:
                future.set_exception(
                    QuorumLostError("No majority of managers confirmed the read; try again.")
                )
            else:
                heapq.heappush(self._points, (result.index, next(self._sequence), future))
        while self._points and self._points[0][0] <= core.log.applied:
            index, _, future = heapq.heappop(self._points)
            if not future.done():
                future.set_result(index)

    def _note(self, core: RaftCore, event: Event) -> None:
        if isinstance(event, Refused):
            level = "debug" if event.reason in _QUIET else "warning"
            getattr(log, level)(
                "message.refused",
                reason=event.reason.value,
                message=event.message,
                sender=f"{event.sender:x}",
                term=event.term,
            )
            return
        log.info(_EVENTS[type(event)], **_plain(event))
        if isinstance(event, Truncated):
            for index in [index for index in self._proposals if index >= event.index]:
                _fail(self._proposals.pop(index)[1], _dropped())
        elif isinstance(event, RoleChanged) and event.role is not Role.LEADER:
            for index in [index for index in self._proposals if index > core.log.commit]:
                _fail(self._proposals.pop(index)[1], _unknown())
        elif isinstance(event, TransferAborted):
            self._aborted_transfers += 1
        elif isinstance(event, StateLost):
            raise _old_copy(
                f"it once confirmed entry {event.confirmed}, but its log ends at {event.last_index}"
            )
        elif isinstance(event, OldCopy):
            raise _old_copy(
                f"this is start {event.incarnation} of it, and others heard start {event.seen}"
            )

    def _maybe_compact(self, core: RaftCore) -> None:
        applied = core.log.applied
        if applied - core.log.snapshot.index >= self._config.snapshot_entries or (
            self._applied_bytes >= self._config.snapshot_bytes
        ):
            core.compact(applied, self._machine.snapshot())
            self._applied_bytes = 0
            self._wake.set()

    def _report(self, core: RaftCore) -> None:
        if not self._replayed.is_set():
            done = core.log.applied >= self._replay_to
            if core.alone:
                done = (
                    core.role is Role.LEADER
                    and core.log.applied == core.log.commit
                    and core.log.term_of(core.log.applied) == core.term
                )
            if done:
                self._replayed.set()
        members = core.membership.members
        seen = (core.role, core.term, core.leader, members)
        if seen != self._reported:
            if not self._reported or self._reported[3] != members:
                self._transport.update_members(members)
            self._reported = seen
            status = self.status
            for callback in tuple(self._callbacks.values()):
                callback(status)

    # Waiting --------------------------------------------------------------------------------

    async def _change(self, change: Change) -> None:
        await self._await_applied(*self._running().change(change))

    async def _await_applied(self, index: int, term: int) -> Any:
        future = asyncio.get_running_loop().create_future()
        self._proposals[index] = (term, future)
        self._wake.set()
        return await future

    async def _next_tick(self) -> None:
        self._running()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tick_waiters.append(future)
        await future

    def _running(self) -> RaftCore:
        if self._core is None or self._stopped is not None:
            raise UnavailableError("The raft node does not run.") from self._stopped
        return self._core

    def _abandon(self) -> None:
        """Nobody shall wait for a node that has stopped."""
        self._replayed.set()
        futures: list[asyncio.Future[Any]] = [future for _, future in self._proposals.values()]
        futures += [*self._reads.values(), *(point[2] for point in self._points)]
        futures += self._tick_waiters
        for future in futures:
            _fail(future, _unknown())
        self._proposals.clear()


def _fail(future: asyncio.Future[Any], error: SwarmError) -> None:
    if not future.done():
        future.set_exception(error)


def _dropped() -> DroppedError:
    return DroppedError("Another leader's entry took this one's place; try again.")


def _unknown() -> QuorumLostError:
    return QuorumLostError("Leadership was lost; whether the change takes effect is unknown.")


def _old_copy(why: str) -> StateLostError:
    return StateLostError(
        f"This manager's raft state was restored from an old copy ({why}). It is not used, because "
        "it lacks what this manager confirmed to the others. Remove it and join again."
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause


def _plain(event: Event) -> dict[str, Any]:
    return {k: v.value if isinstance(v, Role) else v for k, v in asdict(event).items()}
