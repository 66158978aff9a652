"""The asyncio shell of one raft member: disk thread, transport, ticks, and waiting callers."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from manager.raft.config import RaftConfig
from manager.raft.core import RaftCore
from manager.raft.errors import (
    ChangeRefusal,
    ChangeRefusedError,
    QuorumLostError,
    RemovedError,
    StateLostError,
)
from manager.raft.events import (
    Event,
    OldCopy,
    Reason,
    Role,
    RoleChanged,
    StateLost,
    TransferAborted,
    Truncated,
)
from manager.raft.membership import Change, ChangeKind
from manager.raft.messages import Batch, Body, Entry, EntryKind, Message, Snapshot
from manager.raft.ports import StateMachine, Transport
from manager.raft.report import Report
from manager.raft.status import RaftStatus
from manager.raft.storage import Storage
from manager.raft.waiting import Waiting
from swarm.errors import InvariantError, SwarmError, UnavailableError

T = TypeVar("T")

FAREWELL_TICKS = 3
"""How long a removed member goes on, so that its last messages leave and its callers hear."""


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
        self._waiting = Waiting()
        self._events = Report()
        self._sequence = itertools.count()
        self._replayed = asyncio.Event()
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
                        tasks.create_task(
                            self._transport.run(self._deliver, self._unreachable, self._lost)
                        )
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
            # Nobody shall wait for a node that has stopped.
            self._replayed.set()
            self._waiting.abandon()

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
        self._wake.set()
        return await self._waiting.read(context)

    async def settled(self) -> None:
        """Wait while this member leads and has not applied the first entry of its term yet.

        What it reads before may be older than what it leads: earlier leaders' last entries are in
        its log, but not in its state machine. Returns at once in all other cases, also on a member
        that does not lead or does not run; then without giving way to other tasks, so that a
        proposal made right after it follows everything the state machine shows.
        """
        while (core := self._core) is not None and self._stopped is None and not _settled(core):
            await self._waiting.term()

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
        return RaftStatus.of(self._running())

    @property
    def refused(self) -> Mapping[Reason, int]:
        """How many messages were refused since the start, by reason."""
        return self._events.refused

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
            self._waiting.ticked()

    def _deliver(self, message: Message[Body]) -> None:
        if self._core is not None:
            self._core.step(message)
            self._wake.set()

    def _unreachable(self, raft_id: int) -> None:
        if self._core is not None:
            self._core.report_unreachable(raft_id)

    def _lost(self, raft_id: int) -> None:
        if self._core is not None:
            self._core.report_lost(raft_id)

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
        self._waiting.answered(ready.reads, core.log.applied)
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
        self._waiting.applied(entry, result, error)

    def _restore(self, snapshot: Snapshot) -> None:
        self._machine.restore(snapshot.index, snapshot.data)
        self._applied_bytes = 0
        self._waiting.restored(snapshot.index)

    def _note(self, core: RaftCore, event: Event) -> None:
        self._events.note(event)
        if isinstance(event, Truncated):
            self._waiting.truncated(event.index)
        elif isinstance(event, RoleChanged) and event.role is not Role.LEADER:
            self._waiting.deposed(core.log.commit)
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
        if _settled(core):
            self._waiting.began()
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
        self._wake.set()
        return await self._waiting.entry(index, term)

    async def _next_tick(self) -> None:
        self._running()
        await self._waiting.tick()

    def _running(self) -> RaftCore:
        if self._core is None or self._stopped is not None:
            raise UnavailableError("The raft node does not run.") from self._stopped
        return self._core


def _settled(core: RaftCore) -> bool:
    return core.role is not Role.LEADER or core.log.term_of(core.log.applied) == core.term


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
