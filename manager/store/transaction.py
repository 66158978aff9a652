"""Reading the store, and building one transaction on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, TypeVar

from manager.store.claims import Key
from manager.store.entry import MAX_CHANGES, MAX_ID_BYTES, Action, Attempt, Edit
from manager.store.loading import Dump
from manager.store.pools import LEASE, Journal, Pool
from manager.store.state import State
from manager.store.subnets import Subnets
from manager.store.tables import (
    Clusters,
    Networks,
    Nodes,
    Object,
    Services,
    Table,
    TableId,
    Tasks,
    name_of,
)
from swarm.errors import (
    ConflictError,
    InvalidArgumentError,
    InvariantError,
    NotFoundError,
    StaleError,
)
from swarm.model import Cluster, Meta, Network, Node, Service, Task, Version

T = TypeVar("T", Cluster, Node, Network, Service, Task)


class View:
    """The objects and what they occupy, read-only; every call costs what its result costs."""

    __slots__ = ("_state",)

    def __init__(self, state: State) -> None:
        self._state = state

    @property
    def clusters(self) -> Clusters:
        """The cluster object."""
        return self._state.clusters

    @property
    def nodes(self) -> Nodes:
        """Nodes."""
        return self._state.nodes

    @property
    def networks(self) -> Networks:
        """Networks."""
        return self._state.networks

    @property
    def services(self) -> Services:
        """Services."""
        return self._state.services

    @property
    def tasks(self) -> Tasks:
        """Tasks."""
        return self._state.tasks

    @property
    def subnets(self) -> Subnets:
        """Subnets taken by networks; for the allocator, read only."""
        return self._state.subnets

    @property
    def last_vni(self) -> int:
        """The VNI given last in order, 0 when none was."""
        return self._state.last_vni

    def last_port(self, protocol: str) -> int:
        """Return the published port given last in order for ``tcp``, ``udp`` or ``sctp``; 0 when none was."""
        return self._state.last_ports.get(protocol, 0)

    def pools(self, network_id: str) -> tuple[Pool, ...]:
        """Return the address pools of a network, one a subnet; none before its allocation."""
        return self._state.pools.get(network_id, ())

    def holder(self, key: Key) -> str | None:
        """Return the id of the object that holds a name, VNI or port, or None.

        Args:
            key: ("vni", 4097), ("port", "tcp", 80), ("network", "web"), ("ingress", "").
        """
        return self._state.holder(key)

    def check(self, item: Object) -> None:
        """Say whether ``item`` could be written as far as names, VNIs, ports and subnets go.

        Raises:
            ConflictError: one of them is taken by another object.
            InvalidArgumentError: something is malformed.
        """
        self._state.check(item)


class _Draft(NamedTuple):
    """One change, before its object is written."""

    action: Action
    table: TableId
    id: str
    seen_index: int
    seen_transaction: int
    new: Object | None

    def finish(self, dump: Dump) -> Edit:
        """Return the change as logged."""
        data, parts = (b"", ()) if self.new is None else dump(self.new)
        return Edit(
            action=self.action,
            table=self.table,
            id=self.id,
            data=data,
            parts=parts,
            seen_index=self.seen_index,
            seen_transaction=self.seen_transaction,
        )


class Transaction(View):
    """A view that also changes; seen by nobody else until it is committed.

    Every change is checked at once, against all that is committed and all that earlier transactions
    of the same batch did. Objects must be written as :func:`dataclasses.replace` of what this very
    transaction read.

    Attributes:
        now: nanoseconds since the epoch, what this transaction's objects are stamped with.
        fresh: what objects made by this transaction get as their ``meta``; those made with it at once
            need not be made again.
    """

    __slots__ = (
        "_edits",
        "_journal",
        "_leases",
        "_number",
        "_open",
        "_start",
        "_version",
        "_written",
        "fresh",
        "now",
    )

    def __init__(
        self,
        state: State,
        *,
        now: int,
        version: Version,
        journal: Journal,
        written: dict[tuple[TableId, str], int],
        number: int,
    ) -> None:
        """Open a transaction; for the store only.

        Args:
            state: changed in place.
            now: the proposer's clock.
            version: stands in objects until the true one is known.
            journal: grows by the steps that take this transaction back.
            written: what earlier transactions of the batch wrote; grows.
            number: this transaction's place in the entry, from 1.
        """
        super().__init__(state)
        self.now = now
        self._version = version
        self.fresh = Meta(version=version, created_at=now, updated_at=now)
        self._journal = journal
        self._start = len(journal)
        self._written = written
        self._number = number
        self._edits: list[_Draft] = []
        self._leases: list[tuple[Pool, int]] = []
        self._open = True

    def create(self, item: T) -> T:
        """Add an object and return it as stored.

        Raises:
            ConflictError: its id, or something it claims, is taken.
            InvalidArgumentError: it has no id, or holds something malformed.
            NotFoundError: it holds an address on an unknown network.
        """
        if not item.id or len(item.id.encode()) > MAX_ID_BYTES:
            raise InvalidArgumentError(f"an object needs an id of 1-{MAX_ID_BYTES} bytes")
        table: Table[T] = self._state.table_of(item)
        if item.id in table:
            raise ConflictError(f"{table.id.noun} {item.id} already exists")
        stored = item if item.meta is self.fresh else replace(item, meta=self.fresh)
        self._change(Action.CREATE, table.id, None, stored)
        return stored

    def update(self, item: T, *, expect: Version | None = None) -> T:
        """Replace an object and return it as stored; one that changes nothing is left alone.

        Args:
            item: the object's successor, with the ``meta`` of the object it was made from.
            expect: the version a client says it changed; the object's own by default.

        Raises:
            StaleError: the object changed since then.
            NotFoundError: there is no such object, or it holds an address on an unknown network.
            ConflictError: something it claims is taken.
            PreconditionError: a network's subnets change while it is in use.
            InvalidArgumentError: it holds something malformed.
        """
        table: Table[T] = self._state.table_of(item)
        old = table.require(item.id)
        self._check_version(table.id, old, item.meta.version)
        self._check_version(table.id, old, expect)
        if replace(item, meta=old.meta) == old:
            return old
        meta = replace(old.meta, version=self._version, updated_at=self.now)
        stored = replace(item, meta=meta)
        self._change(Action.UPDATE, table.id, old, stored)
        return stored

    def delete(self, target: Object | str, *, expect: Version | None = None) -> None:
        """Remove an object, given as such or by id.

        Raises:
            NotFoundError: there is no such object.
            StaleError: it is not at the expected version.
            PreconditionError: it is a network whose addresses are in use.
        """
        table_id, old = self._locate(target)
        self._check_version(table_id, old, expect)
        self._change(Action.DELETE, table_id, old, None)

    def lease(self, pool: Pool, number: int, *, in_order: bool) -> None:
        """Keep a free address for an object this transaction will write; unused, it falls back.

        Args:
            pool: the pool it lies in.
            number: the address as integer.
            in_order: it was picked, not asked for; the next pick goes on behind it.

        Raises:
            ConflictError: it is held.
        """
        self._check_open()
        holder = pool.holders.get(number)
        if holder is not None:
            raise ConflictError(f"address {pool.address(number)} is in use by {holder}")
        pool.take(number, LEASE, self._journal, in_order=in_order)
        self._leases.append((pool, number))

    @contextmanager
    def part(self) -> Iterator[None]:
        """Take back what the block did when it raises, and nothing before it; the error goes on."""
        steps, edits, leases = len(self._journal), len(self._edits), len(self._leases)
        try:
            yield
        except BaseException:
            State.undo(self._journal, steps)
            del self._edits[edits:], self._leases[leases:]
            raise

    @property
    def empty(self) -> bool:
        """Whether nothing was changed so far."""
        return not self._edits

    def close(self, attempt_id: bytes, request_id: str) -> Attempt:
        """End the transaction and return what is to be logged; for the store only."""
        self._check_open()
        self._open = False
        for pool, number in self._leases:
            if pool.holders.get(number) == LEASE:
                pool.release(number, self.now, self._journal)
        dump = Dump(self._state.networks.get)
        edits = tuple(draft.finish(dump) for draft in self._edits)
        return Attempt(id=attempt_id, request_id=request_id, time=self.now, edits=edits)

    def abandon(self) -> None:
        """End the transaction as if it had never been; for the store only."""
        self._open = False
        State.undo(self._journal, self._start)

    def _change(
        self, action: Action, table: TableId, old: Object | None, new: Object | None
    ) -> None:
        self._check_open()
        if len(self._edits) >= MAX_CHANGES:
            raise InvalidArgumentError(
                f"a transaction may hold {MAX_CHANGES} changes; split it into several"
            )
        self._state.change(old, new, self.now, self._journal)
        item = new or old
        assert item is not None  # noqa: S101  # told to the type checker; one of the two is there
        key = table, item.id
        number = self._written.get(key, 0) if action is not Action.CREATE else 0
        seen = old.meta.version.index if old is not None and not number else 0
        before = self._written.get(key)
        self._journal.append(lambda: _put_back(self._written, key, before))
        self._written[key] = self._number
        self._edits.append(_Draft(action, table, item.id, seen, number, new))

    def _locate(self, target: Object | str) -> tuple[TableId, Object]:
        if not isinstance(target, str):
            table = self._state.table_of(target)
            return table.id, table.require(target.id)
        for table in self._state.tables.values():
            found: Object | None = table.get(target)
            if found is not None:
                return table.id, found
        raise NotFoundError(f"object {target} not found")

    @staticmethod
    def _check_version(table: TableId, old: Object, seen: Version | None) -> None:
        if seen is not None and seen != old.meta.version:
            raise StaleError(
                f"update out of sequence: {table.noun} {name_of(old) or old.id} is at version"
                f" {old.meta.version.index}, not {seen.index}"
            )

    def _check_open(self) -> None:
        if not self._open:
            raise InvariantError("a transaction was used after its build function returned")


def _put_back(
    written: dict[tuple[TableId, str], int], key: tuple[TableId, str], before: int | None
) -> None:
    if before is None:
        del written[key]
    else:
        written[key] = before
