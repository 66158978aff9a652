"""The store: reads at once, writes through the Raft log, commits as a stream."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from manager.store.changes import Commit
from manager.store.entry import (
    MAX_BATCH_BYTES,
    MAX_BATCH_TRANSACTIONS,
    MAX_ID_BYTES,
    MAX_TRANSACTION_BYTES,
    dump_attempt,
    dump_entry,
)
from manager.store.machine import Machine
from manager.store.pools import Journal
from manager.store.state import State
from manager.store.tables import TableId
from manager.store.transaction import Transaction, View
from manager.store.watch import History, Watch
from swarm.api.overswarm.v1 import store_pb2
from swarm.errors import (
    ExhaustedError,
    InvalidArgumentError,
    InvariantError,
    SwarmError,
    UnavailableError,
)
from swarm.model import Version

T = TypeVar("T")

MAX_WAITING = 65536
"""Writes waiting for their batch; beyond it callers are refused at once."""
MAX_REBUILDS = 3
"""Times a transaction is built anew after being rejected when applied (a change of leader)."""


@dataclass(slots=True, kw_only=True)
class _Write(Generic[T]):
    """One caller's write from queue to result."""

    build: Callable[[Transaction], T]
    request_id: str
    done: asyncio.Future[T]
    rebuilds: int = 0
    result: T | None = None
    error: Exception | None = None
    place: int | None = None  # in the entry, from 0; None when it logs nothing
    fresh: bool = False  # the state holds all that was committed when it came

    def settle(self, error: Exception | None) -> None:
        """Deliver the result, or the error."""
        if self.done.done():
            return
        if error is None:
            self.done.set_result(self.result)  # type: ignore[arg-type]  # set when there is no error
        else:
            self.done.set_exception(error)
            self.done.exception()  # a caller that has gone away leaves no warning behind


@dataclass(slots=True)
class _Batch:
    """Writes that go out as one entry."""

    writes: list[_Write[Any]] = field(default_factory=list)
    attempts: list[store_pb2.StoreTransaction] = field(default_factory=list)
    size: int = 0
    state: int = 0  # on which it was built; see Store._states


class Store:
    """The cluster's objects in memory; a Raft state machine.

    Build functions run synchronously on the event loop, one after another, each seeing what the ones
    before it in the same batch did; nobody else ever sees that before it is committed. They must
    have no effect but on their transaction, since one may run again.
    """

    def __init__(self, *, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._machine = Machine()
        self._history = History()
        self._queue: deque[_Write[Any]] = deque()
        self._requests: dict[str, _Write[Any]] = {}
        self._arrived = asyncio.Event()
        self._stopped = False
        self._origin = secrets.token_bytes(8)  # makes attempt ids unique over managers and restarts
        self._attempts = count(1)
        self._states = 0  # how often the state was replaced by another

    @property
    def view(self) -> View:
        """The committed state, as this manager knows it now."""
        return View(self._machine.state)

    @property
    def index(self) -> int:
        """Raft index of the last entry applied here."""
        return self._machine.index

    def watch(self, *, since: int | None = None) -> Watch:
        """Return the stream of commits from now on, or after version ``since``.

        Raises:
            StaleError: the changes after ``since`` are not kept any more; read the view anew.
        """
        history = self._history
        return Watch(history, history.end if since is None else history.after(since))

    async def transact(self, build: Callable[[Transaction], T], *, request_id: str = "") -> T:
        """Run ``build`` and commit what it did; return what it returned.

        Objects in the return value carry a provisional version; read the view for the true one.
        When the caller is cancelled, or the proposal's fate is unknown, the transaction may still be
        committed; a retry with the same ``request_id`` is then harmless.

        Args:
            build: reads and changes its transaction; may run more than once.
            request_id: name of the request, shared by its retries; at most MAX_ID_BYTES bytes.

        Raises:
            RepeatedError: the request took effect before.
            ExhaustedError: too many writes wait.
            UnavailableError: the store stopped writing (:meth:`run` ended).
            Exception: whatever ``build`` raises, what its claims conflict with when applied, and
                what proposing raises (such as a manager that does not lead).
        """
        if self._stopped:
            raise UnavailableError("this manager does not take writes now")
        if len(self._queue) >= MAX_WAITING:
            raise ExhaustedError(f"{MAX_WAITING} writes are waiting already; try again later")
        if len(request_id.encode()) > MAX_ID_BYTES:
            raise InvalidArgumentError(f"a request id may have {MAX_ID_BYTES} bytes")
        write: _Write[T] | None = self._requests.get(request_id) if request_id else None
        if write is None:
            done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            write = _Write(build=build, request_id=request_id, done=done)
            self._queue.append(write)
            if request_id:
                self._requests[request_id] = write
                done.add_done_callback(lambda _: self._requests.pop(request_id, None))
            self._arrived.set()
            if not request_id:
                return await done
        return await asyncio.shield(write.done)  # others may wait for the same request

    async def run(
        self,
        propose: Callable[[bytes], Awaitable[Any]],
        barrier: Callable[[], Awaitable[object]] | None = None,
        settled: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Write until cancelled: batch what waits, propose it, deliver the results.

        Nothing is built on the state of a leader that was just elected before it has applied all
        that earlier leaders committed.

        A write that was refused, or changed nothing, is not logged. Its answer is a reading of the
        state, and a leader that was deposed without knowing has an old one. So it is built again
        behind the barrier before it is told.

        Args:
            propose: commits an entry and returns what :meth:`apply` returned for it.
            barrier: waits until the state holds all that was committed before the call; None when
                nobody else ever writes.
            settled: waits while this manager leads and its state lacks what earlier leaders
                committed; returns without giving way to others. None when nobody else ever writes.
        """
        self._stopped = False
        batch = _Batch()
        try:
            while True:
                await self._arrived.wait()
                if settled is not None:
                    await settled()
                self._build(batch)
                if batch.attempts:
                    await self._propose(batch, propose)
                elif barrier is not None:
                    await self._freshen(batch, barrier)
                else:
                    self._tell(batch)
                batch = _Batch()
                if not self._queue:
                    self._arrived.clear()
        finally:
            self._stopped = True
            error = UnavailableError("this manager stopped taking writes")
            for write in (*batch.writes, *self._queue):
                write.settle(error)
            self._queue.clear()

    def apply(self, index: int, data: bytes) -> tuple[SwarmError | None, ...]:
        """Apply one entry; return, for each of its transactions, None or why it was rejected.

        Raises:
            WireError: the entry is malformed; nothing was applied.
        """
        applied = self._machine.apply(index, data)
        self._states += 1
        if applied.changes:
            self._history.record(Commit(index=index, changes=applied.changes))
        return applied.results

    def snapshot(self) -> bytes:
        """Return the whole state; replicas at the same index return the same bytes."""
        return self._machine.snapshot()

    def restore(self, index: int, data: bytes) -> None:
        """Become the state of a snapshot; every watch gets StaleError.

        Raises:
            WireError: not a snapshot; nothing changed.
        """
        self._machine.restore(index, data)
        self._states += 1
        self._history.reset(index)

    def _build(self, batch: _Batch) -> None:
        """Run the waiting builds on the state, then take everything back."""
        journal: Journal = []
        written: dict[tuple[TableId, str], int] = {}
        batch.state = self._states
        try:
            while (
                self._queue
                and batch.size < MAX_BATCH_BYTES
                and len(batch.attempts) < MAX_BATCH_TRANSACTIONS
            ):
                write = self._queue.popleft()
                if not write.done.done():
                    batch.writes.append(write)
                    self._build_one(write, batch, journal, written)
        finally:
            State.undo(journal)

    def _build_one(
        self,
        write: _Write[Any],
        batch: _Batch,
        journal: Journal,
        written: dict[tuple[TableId, str], int],
    ) -> None:
        write.place = write.result = None
        write.error = self._machine.repeated(write.request_id)
        if write.error is None:
            transaction = Transaction(
                self._machine.state,
                now=self._clock_ns(),
                version=Version(index=self._machine.index + 1),
                journal=journal,
                written=written,
                number=len(batch.attempts) + 1,
            )
            try:
                write.result = write.build(transaction)
                message = self._close(transaction, write.request_id)
            except Exception as error:  # noqa: BLE001  # it is the caller's, and goes there
                transaction.abandon()
                write.error = error
            else:
                if not transaction.empty:
                    write.place = len(batch.attempts)
                    batch.attempts.append(message)
                    batch.size += message.ByteSize()
        if write.place is None and not batch.attempts and write.fresh:
            # Otherwise it waits: it may have seen what is not committed yet.
            write.settle(write.error)

    def _close(self, transaction: Transaction, request_id: str) -> store_pb2.StoreTransaction:
        attempt_id = self._origin + next(self._attempts).to_bytes(8, "big")
        message = dump_attempt(transaction.close(attempt_id, request_id))
        if message.ByteSize() > MAX_TRANSACTION_BYTES:
            raise InvalidArgumentError(
                f"a transaction of {message.ByteSize()} bytes exceeds {MAX_TRANSACTION_BYTES};"
                " split it into several"
            )
        return message

    @staticmethod
    def _tell(batch: _Batch) -> None:
        for write in batch.writes:
            write.settle(write.error)

    async def _freshen(self, batch: _Batch, barrier: Callable[[], Awaitable[object]]) -> None:
        """Have a batch that logs nothing built again on a state as new as its writes."""
        waiting = [write for write in batch.writes if not write.done.done()]
        if not waiting:
            return
        try:
            await barrier()
        except SwarmError as error:
            for write in waiting:
                write.settle(error)
            return
        for write in waiting:
            write.fresh = True
        self._queue.extendleft(reversed(waiting))

    async def _propose(self, batch: _Batch, propose: Callable[[bytes], Awaitable[Any]]) -> None:
        try:
            results: tuple[SwarmError | None, ...] = await propose(dump_entry(batch.attempts))
        except SwarmError as error:
            for write in batch.writes:
                write.settle(error)
            return
        if len(results) != len(batch.attempts):
            raise InvariantError(f"{len(batch.attempts)} transactions, {len(results)} results")
        # Nothing but this entry came since the batch was built, so it saw the latest state.
        latest = not any(results) and self._states == batch.state + 1
        again = []
        for write in batch.writes:
            if write.done.done():
                continue
            outcome = write.error if write.place is None else results[write.place]
            if write.place is None and not latest:
                again.append(write)
            elif write.place is not None and outcome and write.rebuilds < MAX_REBUILDS:
                write.rebuilds += 1
                again.append(write)
            else:
                write.settle(outcome)
        self._queue.extendleft(reversed(again))
