"""What schedulers are told: everything there is, then what changes, resumable from a version.

A watcher holds a position in the store's history and no queue of its own. One that is too slow, or
asks for a version too far back, begins anew with everything: it is told so and never left with a gap.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from manager.api.backend import Backend
from manager.api.filters import bounded
from manager.api.server import Context
from manager.store import Change as StoreChange
from manager.store import Commit, View, Watch
from swarm.errors import ExhaustedError, InvalidArgumentError, StaleError
from swarm.model import Cluster, Network, Node, Service, Task, TaskState
from swarm.scheduler.model import (
    Allocation,
    Change,
    Event,
    EventKind,
    Kind,
    Object,
    Refusal,
    Update,
)
from swarm.scheduler.wire import update_to

MAX_WATCHES: Final = 256
"""Watches at once; there are a handful of schedulers."""

MESSAGE_CHANGES: Final = 250
"""Objects in one message."""

MAX_REFUSALS: Final = 1024
"""Refusals kept for watchers; they are news, not state, and outlive no change of leader."""

ALIVE: Final = 3.0
"""Seconds without news after which a watch asks whether this manager is still part of a quorum."""

QUIET: Final = 0.1
"""Seconds without news after which a watcher is told the version of what does not concern it."""

T = TypeVar("T")


class Refusals:
    """The last refusals, for watchers; each reads at its own pace."""

    def __init__(self) -> None:
        self._kept: deque[Event] = deque(maxlen=MAX_REFUSALS)
        self._listeners: set[asyncio.Event] = set()
        self.end = 0

    def record(self, now: int, refusal: Refusal) -> None:
        """Keep a refusal and wake the watchers."""
        self._kept.append(
            Event(
                kind=EventKind.PLACEMENT_REFUSED,
                time=now,
                node_id=refusal.node_id,
                service_id=refusal.service_id,
                state=refusal.reason.name.lower(),
                reason=refusal.message,
                refusal=refusal,
            )
        )
        self.end += 1
        for listener in self._listeners:
            listener.set()

    def after(self, position: int) -> tuple[Event, ...]:
        """Return those from a position on, as far as they are kept."""
        start = self.end - len(self._kept)
        return tuple(self._kept)[max(position - start, 0) :] if position < self.end else ()

    @contextmanager
    def waking(self, listener: asyncio.Event) -> Iterator[None]:
        """Set an event whenever something is recorded, while the block runs."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interest:
    """What one watcher wants to know of."""

    kinds: frozenset[Kind]
    services: frozenset[str]

    def wants(self, item: object) -> bool:
        """Say whether it wants to know of an object."""
        match item:
            case Task():
                return Kind.TASKS in self.kinds and (
                    not self.services or item.service_id in self.services
                )
            case Node():
                return Kind.NODES in self.kinds
            case Service():
                return Kind.SERVICES in self.kinds
            case Network():
                return Kind.NETWORKS in self.kinds
            case _:
                return False


class Watches:
    """Serves the watches of one manager."""

    def __init__(self, backend: Backend, refusals: Refusals) -> None:
        self._backend = backend
        self._store = backend.store
        self._refusals = refusals
        self._open = 0

    async def serve(self, request: Any, context: Context) -> None:
        """Stream to one watcher until it goes.

        Raises:
            ExhaustedError: too many watches are open.
            InvalidArgumentError: an unknown kind.
        """
        interest = interest_untrusted(request)
        if self._open >= MAX_WATCHES:
            raise ExhaustedError(f"{MAX_WATCHES} watches are open already")
        self._open += 1
        try:
            await self._backend.barrier()
            await self._stream(interest, int(request.since), context)
        finally:
            self._open -= 1

    async def _stream(self, interest: Interest, since: int, context: Context) -> None:
        woken = asyncio.Event()
        refused = self._refusals.end
        while True:
            watch, since = await self._begin(interest, since, context)
            with watch.waking(woken), self._refusals.waking(woken):
                try:
                    while True:
                        woken.clear()
                        since = await self._catch_up(watch, interest, since, context)
                        events = self._refusals.after(refused)
                        refused = self._refusals.end
                        if Kind.EVENTS in interest.kinds:
                            for part in _parts(events):
                                await context.write(update_to(Update(events=part)))
                        since = await self._wait(woken, since, context)
                except StaleError:
                    since = 0  # fallen behind, or a snapshot replaced the state

    async def _wait(self, woken: asyncio.Event, told: int, context: Context) -> int:
        """Wait for news; return the version told last.

        A watcher that was told all is told the version too, so that it can wait for one. Now and then
        it is made sure that this manager would hear of any news.

        Raises:
            UnavailableError: it would not; the watcher finds another manager.
        """
        while not woken.is_set():
            behind = told < self._store.index
            try:
                async with asyncio.timeout(QUIET if behind else ALIVE):
                    await woken.wait()
            except TimeoutError:
                if woken.is_set():
                    break
                if behind:
                    told = self._store.index
                    await context.write(update_to(Update(version=told)))
                else:
                    await self._backend.barrier()
        return told

    async def _begin(self, interest: Interest, since: int, context: Context) -> tuple[Watch, int]:
        """Return the watch to follow, and the version told; everything comes first where it must."""
        if 0 < since <= self._store.index:
            try:
                return self._store.watch(since=since), since
            except StaleError:
                pass
        version, watch = self._store.index, self._store.watch()
        for update in snapshot(self._store.view, interest, version):
            await context.write(update_to(update))
        return watch, version

    async def _catch_up(self, watch: Watch, interest: Interest, told: int, context: Context) -> int:
        """Tell every commit that is there; return the version told last."""
        while (commit := watch.next_nowait()) is not None:
            for update in updates(commit, self._store.view, interest):
                await context.write(update_to(update))
                told = update.version or told
        return told


def interest_untrusted(request: Any) -> Interest:
    """Read what a watcher wants.

    Raises:
        InvalidArgumentError: an unknown kind, or too many services.
    """
    try:
        kinds = frozenset(map(Kind, bounded(request.kinds)))
    except ValueError as error:
        raise InvalidArgumentError(f"nothing of that kind can be watched: {error}") from error
    return Interest(
        kinds=kinds or frozenset(Kind), services=frozenset(bounded(request.service_ids))
    )


def snapshot(view: View, interest: Interest, version: int) -> list[Update]:
    """Return everything there is, as updates; the first one resets, the last one has the version."""
    items: list[Object] = [
        item
        for table in (view.networks, view.nodes, view.services, view.tasks)
        for item in table.all()
        if interest.wants(item)
    ]
    allocations = (
        [each for network in view.networks.all() for each in usage(view, network.id)]
        if Kind.ALLOCATIONS in interest.kinds
        else []
    )
    found = [Update(changes=part) for part in _parts([Change(item=item) for item in items])]
    found += [Update(allocations=part) for part in _parts(allocations)]
    found = found or [Update()]
    found[0] = replace(found[0], reset=True)
    found[-1] = replace(found[-1], version=version)
    return found


def updates(commit: Commit, view: View, interest: Interest) -> list[Update]:
    """Return what one commit is to a watcher; the last update has the version."""
    found = [
        Update(changes=part)
        for part in _parts(
            [
                Change(item=change.item, removed=change.new is None)  # type: ignore[arg-type]  # wanted ones are no clusters
                for change in commit.changes
                if interest.wants(change.item)
            ]
        )
    ]
    if Kind.ALLOCATIONS in interest.kinds:
        found += [Update(allocations=part) for part in _parts(touched(commit, view))]
    if Kind.EVENTS in interest.kinds:
        events = [
            event
            for change in commit.changes
            for event in events_of(change)
            if not interest.services
            or not event.service_id
            or event.service_id in interest.services
        ]
        found += [Update(events=part) for part in _parts(events)]
    if found:
        found[-1] = replace(found[-1], version=commit.index)
    return found


def usage(view: View, network_id: str) -> list[Allocation]:
    """Return how full a network's subnets are."""
    return [
        Allocation(network_id=network_id, subnet=str(pool.subnet), size=pool.size, used=pool.used)
        for pool in view.pools(network_id)
    ]


def touched(commit: Commit, view: View) -> list[Allocation]:
    """Return how full the subnets are whose addresses a commit may have changed, as they are now."""
    networks: dict[str, None] = {}
    gone: list[Allocation] = []
    for change in commit.changes:
        if isinstance(change.old, Network) and change.new is None:
            gone += _gone(change.old)
        for item in (change.old, change.new):
            if change.old is not None and change.new is not None and _same_networks(change):
                break
            networks.update(dict.fromkeys(_networks_of(item)))
    return gone + [each for network_id in networks for each in usage(view, network_id)]


def _gone(network: Network) -> list[Allocation]:
    configs = network.ipam.configs if network.ipam else ()
    return [
        Allocation(network_id=network.id, subnet=config.subnet, removed=True)
        for config in configs
        if config.subnet
    ]


def _same_networks(change: StoreChange) -> bool:
    """Say whether an update left an object's addresses alone."""
    old, new = change.old, change.new
    if isinstance(old, Task) and isinstance(new, Task):
        return old.networks == new.networks and (old.status.state > TaskState.RUNNING) == (
            new.status.state > TaskState.RUNNING
        )
    if isinstance(old, Node) and isinstance(new, Node):
        return old.attachments == new.attachments
    if isinstance(old, Service) and isinstance(new, Service):
        return old.endpoint == new.endpoint
    return True


def _networks_of(item: Cluster | Object | None) -> Iterator[str]:
    match item:
        case Task():
            yield from (each.network.id for each in item.networks)
        case Node():
            yield from (each.network.id for each in item.attachments)
        case Service():
            yield from (
                each.network_id for each in (item.endpoint.virtual_ips if item.endpoint else ())
            )
        case Network():
            yield item.id


def events_of(change: StoreChange) -> Iterator[Event]:
    """Return what a change means to somebody who asks why."""
    old, new = change.old, change.new
    if isinstance(new, Node):
        before = old if isinstance(old, Node) else None
        time = new.meta.updated_at or 0
        if before is None or before.status.state is not new.status.state:
            yield Event(
                kind=EventKind.NODE_STATE,
                time=time,
                node_id=new.id,
                state=new.status.state.name.lower(),
                reason=new.status.message,
            )
        if before is not None and before.spec.availability is not new.spec.availability:
            yield Event(
                kind=EventKind.NODE_AVAILABILITY,
                time=time,
                node_id=new.id,
                state=new.spec.availability.name.lower(),
            )
    elif isinstance(old, Node):
        yield Event(
            kind=EventKind.NODE_STATE,
            time=old.meta.updated_at or 0,
            node_id=old.id,
            state="removed",
        )
    elif isinstance(new, Task) and isinstance(old, Task):
        yield from _task_events(old, new)


def _task_events(old: Task, new: Task) -> Iterator[Event]:
    about = Event(
        kind=EventKind.TASK_STATE,
        time=new.meta.updated_at or 0,
        node_id=new.node_id,
        service_id=new.service_id,
        task_id=new.id,
    )
    if old.status.state is not new.status.state:
        yield replace(
            about,
            state=new.status.state.name.lower(),
            reason=new.status.err or new.status.message,
        )
    if old.desired_state is not new.desired_state:
        yield replace(
            about, kind=EventKind.TASK_DESIRED_STATE, state=new.desired_state.name.lower()
        )


def _parts(items: Sequence[T]) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(items), MESSAGE_CHANGES):
        yield tuple(items[start : start + MESSAGE_CHANGES])
