"""The store's state machine: the same entries give the same state, bytes and errors everywhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from manager.store.changes import Change
from manager.store.entry import (
    Action,
    Attempt,
    Edit,
    Outcome,
    PoolPast,
    Record,
    Snapshot,
    dump_snapshot,
    load_entry,
    load_snapshot,
)
from manager.store.errors import RepeatedError
from manager.store.loading import load_object
from manager.store.pools import Journal
from manager.store.state import State
from manager.store.tables import Object, TableId
from swarm.errors import (
    ConflictError,
    InvariantError,
    NotFoundError,
    StaleError,
    SwarmError,
    WireError,
)
from swarm.model import Meta, Version

OUTCOMES = 16384
"""Transactions whose fate is remembered, so that a repeated one is not applied twice."""

MAX_NAMED = 64
"""A transaction that created more objects than this is remembered without their ids, so that a
stream of large batches does not fill memory; who makes such batches derives the ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What an entry did: for each transaction None or its error, and all changes in order."""

    results: tuple[SwarmError | None, ...]
    changes: tuple[Change, ...]


@dataclass(slots=True)
class _Entry:
    """An entry while it is applied."""

    index: int
    written: dict[tuple[TableId, str], int]  # by the transactions applied so far
    changes: list[Change]
    data: list[tuple[TableId, str, bytes]]


class Machine:
    """Applies entries to a :class:`State` and remembers the fate of recent transactions.

    Attributes:
        state: the objects.
        index: Raft index of the last entry applied, 0 before the first.
    """

    __slots__ = ("_data", "_outcomes", "_requests", "_window", "index", "state")

    def __init__(self) -> None:
        self.state = State()
        self.index = 0
        # Each object as logged, for snapshots; in pieces that objects share.
        self._data: dict[tuple[TableId, str], tuple[bytes, ...]] = {}
        self._window: deque[Outcome] = deque()
        self._outcomes: dict[bytes, Outcome] = {}
        self._requests: dict[str, Outcome] = {}

    def repeated(self, request_id: str) -> RepeatedError | None:
        """Return the error for a request that took effect before, or None."""
        found = self._requests.get(request_id) if request_id else None
        if found is None:
            return None
        created = tuple((table.noun, each) for table, each in found.created)
        return RepeatedError(request_id, found.index, created)

    def apply(self, index: int, data: bytes) -> Applied:
        """Apply one entry; each of its transactions succeeds or is rejected as a whole.

        Raises:
            WireError: the entry is malformed; nothing was applied.
            InvariantError: the index is not above the last one.
        """
        if index <= self.index:
            raise InvariantError(f"entry {index} arrives after entry {self.index}")
        self.index = index
        entry = _Entry(index=index, written={}, changes=[], data=[])
        attempts = load_entry(data)
        results = tuple(
            self._transaction(entry, number, attempt) for number, attempt in enumerate(attempts, 1)
        )
        return Applied(results=results, changes=tuple(entry.changes))

    def _transaction(self, entry: _Entry, number: int, attempt: Attempt) -> SwarmError | None:
        past = self._outcomes.get(attempt.id)
        if past is not None:
            return StaleError(past.rejected) if past.rejected else None
        repeated = self.repeated(attempt.request_id)
        if repeated is not None:
            return repeated
        journal: Journal = []
        try:
            changes = [self._edit(entry, number, attempt, edit, journal) for edit in attempt.edits]
        except SwarmError as error:
            State.undo(journal)
            self._remember(entry.index, attempt, rejected=str(error))
            return error
        entry.changes += changes
        for edit in attempt.edits:
            if edit.action is Action.DELETE:
                del self._data[edit.table, edit.id]
            else:
                self._data[edit.table, edit.id] = (edit.data, *edit.parts)
        self._remember(entry.index, attempt)
        return None

    def _edit(
        self, entry: _Entry, number: int, attempt: Attempt, edit: Edit, journal: Journal
    ) -> Change:
        key = edit.table, edit.id
        old: Object | None = self.state.tables[edit.table].get(edit.id)
        self._check_seen(entry, edit, old)
        new = None
        if edit.action is not Action.DELETE:
            created_at = attempt.time if old is None else old.meta.created_at
            meta = Meta(
                version=Version(index=entry.index), created_at=created_at, updated_at=attempt.time
            )
            new = load_object(
                edit.table, edit.data, meta, self.state.networks.get, parts=edit.parts
            )
            if new.id != edit.id:
                raise WireError(f"a change of {edit.id} carries {new.id}")
        self.state.change(old, new, attempt.time, journal)
        journal.append(_restorer(entry.written, key))
        entry.written[key] = number
        return Change(kind=edit.action, table=edit.table, old=old, new=new)

    @staticmethod
    def _check_seen(entry: _Entry, edit: Edit, old: Object | None) -> None:
        noun = edit.table.noun
        if edit.action is Action.CREATE:
            if old is not None:
                raise ConflictError(f"{noun} {edit.id} already exists")
            return
        if old is None:
            raise NotFoundError(f"{noun} {edit.id} not found")
        if edit.seen_transaction:
            fresh = entry.written.get((edit.table, edit.id)) == edit.seen_transaction
        else:
            fresh = old.meta.version.index == edit.seen_index
        if not fresh:
            raise StaleError(f"update out of sequence: {noun} {edit.id} changed meanwhile")

    def _remember(self, index: int, attempt: Attempt, *, rejected: str = "") -> None:
        created = tuple(
            (edit.table, edit.id) for edit in attempt.edits if edit.action is Action.CREATE
        )
        self._keep(
            Outcome(
                id=attempt.id,
                request_id=attempt.request_id,
                index=index,
                rejected=rejected,
                created=() if rejected or len(created) > MAX_NAMED else created,
            )
        )

    def _keep(self, outcome: Outcome) -> None:
        self._window.append(outcome)
        self._outcomes[outcome.id] = outcome
        if outcome.request_id and not outcome.rejected:
            self._requests[outcome.request_id] = outcome
        if len(self._window) > OUTCOMES:
            gone = self._window.popleft()
            del self._outcomes[gone.id]
            if self._requests.get(gone.request_id) is gone:
                del self._requests[gone.request_id]

    def snapshot(self) -> bytes:
        """Return the whole state; replicas at the same index return the same bytes."""
        records = tuple(
            Record(
                table=table.id,
                data=b"".join(self._data[table.id, each.id]),
                version=each.meta.version.index,
                created_at=each.meta.created_at or 0,
                updated_at=each.meta.updated_at or 0,
            )
            for table in self.state.tables.values()
            for each in table.all()
        )
        pools = tuple(
            PoolPast(
                network_id=pool.network_id,
                subnet=str(pool.subnet),
                cursor=pool.cursor,
                resting=pool.resting,
            )
            for _, pools in sorted(self.state.pools.items())
            for pool in pools
            if pool.cursor is not None or pool.resting
        )
        return dump_snapshot(
            Snapshot(
                records=records,
                pools=pools,
                last_vni=self.state.last_vni,
                outcomes=tuple(self._window),
                last_ports=tuple(sorted(self.state.last_ports.items())),
            )
        )

    def restore(self, index: int, data: bytes) -> None:
        """Become the state of a snapshot taken at ``index``; unchanged when it is malformed.

        Raises:
            WireError: not a snapshot, or its objects contradict each other.
        """
        snapshot = load_snapshot(data)
        fresh = Machine()
        try:
            # Networks first: the others hold addresses on them.
            for record in sorted(snapshot.records, key=lambda e: e.table is not TableId.NETWORK):
                fresh._insert(record)
        except SwarmError as error:
            raise WireError(f"the snapshot contradicts itself: {error}") from error
        for past in snapshot.pools:
            for pool in fresh.state.pools.get(past.network_id, ()):
                if str(pool.subnet) == past.subnet:
                    pool.restore(past.cursor, past.resting)
        fresh.state.last_vni = snapshot.last_vni
        fresh.state.last_ports = dict(snapshot.last_ports)
        for outcome in snapshot.outcomes:
            fresh._keep(outcome)
        self.state, self.index, self._data = fresh.state, index, fresh._data
        self._window, self._outcomes = fresh._window, fresh._outcomes
        self._requests = fresh._requests

    def _insert(self, record: Record) -> None:
        meta = Meta(
            version=Version(index=record.version),
            created_at=record.created_at,
            updated_at=record.updated_at,
        )
        item = load_object(record.table, record.data, meta, self.state.networks.get)
        self.state.change(None, item, 0, [])
        self._data[record.table, item.id] = (record.data,)


def _restorer(
    written: dict[tuple[TableId, str], int], key: tuple[TableId, str]
) -> Callable[[], object]:
    before = written.get(key)
    if before is None:
        return lambda: written.pop(key)
    return lambda: written.__setitem__(key, before)
