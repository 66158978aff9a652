"""What every servicer stands on: the store, linearisable reads, the clock, the list of managers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from manager.api.access import Caller
from manager.clock import Clock
from manager.store import RepeatedError, Store, Transaction
from swarm.identity.ids import new_id
from swarm.model import ManagerStatus

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """Shared by the servicers of one manager.

    Attributes:
        store: the cluster's objects.
        barrier: waits until the store shows everything committed before the call.
        managers: the raft members by node id, as they are now.
        clock: wall and monotonic time.
        make_id: makes ids of nodes, networks and tasks.
    """

    store: Store
    barrier: Callable[[], Awaitable[object]]
    managers: Callable[[], Mapping[str, ManagerStatus]]
    clock: Clock = field(default_factory=Clock)
    make_id: Callable[[], str] = new_id

    async def once(
        self,
        caller: Caller,
        build: Callable[[Transaction], T],
        *,
        repeated: Callable[[RepeatedError], T],
    ) -> T:
        """Commit ``build`` for a caller, once in all attempts of the request.

        Args:
            caller: whose request it is.
            build: as for :meth:`manager.store.Store.transact`.
            repeated: gives the result when an earlier attempt took effect.

        Raises:
            Exception: as :meth:`manager.store.Store.transact`, but for repetitions.
        """
        who = caller.peer.identity
        name = f"{'' if who is None else who.node_id}/{caller.request_id}"
        try:
            return await self.store.transact(build, request_id=name if caller.request_id else "")
        except RepeatedError as error:
            return repeated(error)


def nothing(_: RepeatedError) -> None:
    """Return nothing: for requests whose result is that they were carried out."""


def created(error: RepeatedError) -> str:
    """Return the id of the one object a repeated request created.

    Raises:
        RepeatedError: it created none.
    """
    if not error.created:
        raise error
    return error.created[0][1]
