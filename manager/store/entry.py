"""Log entries and snapshots: dataclasses here, protobuf bytes outside (``store.proto``)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from google.protobuf.message import DecodeError

from manager.store.tables import TableId
from swarm.api.overswarm.v1 import store_pb2
from swarm.errors import WireError

MAX_ID_BYTES = 128
"""Length of object, request and transaction ids."""
MAX_CHANGES = 4096
"""Changes of one transaction."""
MAX_TRANSACTION_BYTES = 1024 * 1024
"""Size of one transaction."""
MAX_WHOLE_BYTES = 64 * 1024 * 1024
"""Size of all objects of one transaction with their parts."""
MAX_BATCH_BYTES = 512 * 1024
"""A batch takes no further transaction beyond this size; an entry thus stays below MAX_ENTRY_BYTES."""
MAX_BATCH_TRANSACTIONS = 128
"""Transactions of one entry: the event loop must not stand still for long while they are built."""
MAX_ENTRY_BYTES = MAX_BATCH_BYTES + MAX_TRANSACTION_BYTES + 64 * 1024
"""Size of one entry, its framing included; below what the Raft log takes (2 MiB)."""


class Action(IntEnum):
    """What a change does; values are those of the log."""

    CREATE = 1
    UPDATE = 2
    DELETE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """One change as logged.

    Attributes:
        data: wire bytes of the new object, empty for DELETE.
        parts: more of its bytes, which other changes of the transaction have too.
        seen_index: version of the object it was made from, 0 for CREATE.
        seen_transaction: when not 0, the transaction of this entry (from 1) that had made that.
    """

    action: Action
    table: TableId
    id: str
    data: bytes = b""
    parts: tuple[bytes, ...] = ()
    seen_index: int = 0
    seen_transaction: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One transaction as logged: ``id`` names this attempt, ``request_id`` all its retries."""

    id: bytes
    request_id: str = ""
    time: int = 0
    edits: tuple[Edit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Fate of an attempt; ``rejected`` is empty when it was applied."""

    id: bytes
    request_id: str = ""
    index: int = 0
    rejected: str = ""
    created: tuple[tuple[TableId, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One object in a snapshot; ``data`` is as logged, version and times beside it count."""

    table: TableId
    data: bytes
    version: int
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPast:
    """A pool's cursor and resting addresses (freed at, address), oldest first."""

    network_id: str
    subnet: str
    cursor: int | None
    resting: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything the state machine holds."""

    records: tuple[Record, ...]
    pools: tuple[PoolPast, ...]
    last_vni: int
    outcomes: tuple[Outcome, ...]
    last_ports: tuple[tuple[str, int], ...] = ()


def dump_attempt(attempt: Attempt) -> store_pb2.StoreTransaction:
    """Return an attempt's message, ready for :func:`dump_entry`; ``ByteSize()`` tells its size."""
    message = store_pb2.StoreTransaction(
        id=attempt.id, request_id=attempt.request_id, time=attempt.time
    )
    places: dict[bytes, int] = {}
    for edit in attempt.edits:
        message.changes.add(
            action=int(edit.action),
            table=int(edit.table),
            id=edit.id,
            object=edit.data,
            seen_index=edit.seen_index,
            seen_transaction=edit.seen_transaction,
            parts=[places.setdefault(part, len(places)) for part in edit.parts],
        )
    message.parts.extend(places)
    return message


def dump_entry(attempts: Iterable[store_pb2.StoreTransaction]) -> bytes:
    """Return the bytes of one entry."""
    return store_pb2.StoreEntry(transactions=attempts).SerializeToString(deterministic=True)


def load_entry(data: bytes) -> tuple[Attempt, ...]:
    """Return the transactions of one entry.

    Raises:
        WireError: the bytes are no entry, or exceed its bounds.
    """
    if len(data) > MAX_ENTRY_BYTES:
        raise WireError(f"a store entry of {len(data)} bytes exceeds {MAX_ENTRY_BYTES}")
    message = store_pb2.StoreEntry()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a store entry: {error}") from error
    if len(message.transactions) > MAX_BATCH_TRANSACTIONS:
        raise WireError(f"a store entry holds {len(message.transactions)} transactions")
    return tuple(_attempt(each) for each in message.transactions)


def _attempt(message: store_pb2.StoreTransaction) -> Attempt:
    if not message.id or len(message.id) > MAX_ID_BYTES or len(message.request_id) > MAX_ID_BYTES:
        raise WireError("a transaction has no usable id")
    if len(message.changes) > MAX_CHANGES:
        raise WireError(f"a transaction holds {len(message.changes)} changes")
    parts = tuple(message.parts)
    edits = tuple(_edit(each, parts) for each in message.changes)
    if sum(len(part) for edit in edits for part in edit.parts) > MAX_WHOLE_BYTES:
        raise WireError(f"the objects of a transaction exceed {MAX_WHOLE_BYTES} bytes")
    return Attempt(
        id=message.id,
        request_id=message.request_id,
        time=message.time,
        edits=edits,
    )


def _edit(message: store_pb2.StoreChange, parts: tuple[bytes, ...]) -> Edit:
    if not message.id or len(message.id) > MAX_ID_BYTES:
        raise WireError("a change has no usable object id")
    try:
        action = Action(message.action)
    except ValueError as error:
        raise WireError(f"{message.action} is no action") from error
    if any(place >= len(parts) for place in message.parts):
        raise WireError("a change refers to a part that is not there")
    return Edit(
        action=action,
        table=_table(message.table),
        id=message.id,
        data=message.object,
        parts=tuple(parts[place] for place in message.parts),
        seen_index=message.seen_index,
        seen_transaction=message.seen_transaction,
    )


def _table(number: int) -> TableId:
    try:
        return TableId(number)
    except ValueError as error:
        raise WireError(f"{number} is no table") from error


def dump_snapshot(snapshot: Snapshot) -> bytes:
    """Return a snapshot's bytes; equal states give equal bytes."""
    message = store_pb2.StoreSnapshot(last_vni=snapshot.last_vni)
    for record in snapshot.records:
        message.records.add(
            table=int(record.table),
            object=record.data,
            version=record.version,
            created_at=record.created_at,
            updated_at=record.updated_at,
        )
    for pool in snapshot.pools:
        past = message.pools.add(network_id=pool.network_id, subnet=pool.subnet)
        if pool.cursor is not None:
            past.cursor = _pack(pool.cursor)
        for freed_at, number in pool.resting:
            past.resting.add(address=_pack(number), freed_at=freed_at)
    for outcome in snapshot.outcomes:
        kept = message.outcomes.add(
            id=outcome.id,
            request_id=outcome.request_id,
            index=outcome.index,
            rejected=outcome.rejected,
        )
        for table, object_id in outcome.created:
            kept.created.add(table=int(table), id=object_id)
    for protocol, port in snapshot.last_ports:
        message.last_ports.add(protocol=protocol, port=port)
    return message.SerializeToString(deterministic=True)


def load_snapshot(data: bytes) -> Snapshot:
    """Return the snapshot that ``data`` encodes.

    Raises:
        WireError: it is none.
    """
    message = store_pb2.StoreSnapshot()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a store snapshot: {error}") from error
    return Snapshot(
        records=tuple(
            Record(
                table=_table(each.table),
                data=each.object,
                version=each.version,
                created_at=each.created_at,
                updated_at=each.updated_at,
            )
            for each in message.records
        ),
        pools=tuple(_past(each) for each in message.pools),
        last_vni=message.last_vni,
        outcomes=tuple(
            Outcome(
                id=each.id,
                request_id=each.request_id,
                index=each.index,
                rejected=each.rejected,
                created=tuple((_table(ref.table), ref.id) for ref in each.created),
            )
            for each in message.outcomes
        ),
        last_ports=tuple((each.protocol, each.port) for each in message.last_ports),
    )


def _past(message: store_pb2.StorePool) -> PoolPast:
    return PoolPast(
        network_id=message.network_id,
        subnet=message.subnet,
        cursor=_unpack(message.cursor) if message.HasField("cursor") else None,
        resting=tuple((each.freed_at, _unpack(each.address)) for each in message.resting),
    )


def _pack(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _unpack(data: bytes) -> int:
    if len(data) != 16:
        raise WireError("an address in a store snapshot is not 16 bytes long")
    return int.from_bytes(data, "big")
