"""What every servicer stands on: the store, linearisable reads, the clock, the list of managers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from manager.clock import Clock
from manager.store import Store
from swarm.identity.ids import new_id
from swarm.model import ManagerStatus


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
