"""The spread scheduler: keeps the tasks of services running, through the loss of nodes.

What ``swarm scheduler run`` runs. One of it is enough; two would replace each other's surplus.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, TypeVar

import structlog

from swarm.errors import SwarmError
from swarm.model import TaskState
from swarm.scheduler.client import BATCH, SchedulerClient
from swarm.scheduler.mirror import Mirror
from swarm.scheduler.model import Kind, Placement, Refusal
from swarm.scheduler.spread import SECOND, Plan, plan

AVOID: Final = 5 * SECOND
"""How long a node that refused a service's task is not asked again."""

GATHER: Final = 0.02
"""Seconds to wait for more of the same news before planning."""

RETRY: Final = 1.0

log = structlog.get_logger(__name__)
T = TypeVar("T")


class Keeper:
    """Plans and acts whenever something changes; :meth:`run` owns everything.

    Args:
        client: the connection.
        names: the services to keep; none means all.
        clock: wall time, nanoseconds.
    """

    def __init__(
        self,
        client: SchedulerClient,
        names: Collection[str] = (),
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.cluster = Mirror()
        self._client = client
        self._names = frozenset(names)
        self._clock = clock
        self._news = asyncio.Event()
        self._refused: dict[tuple[str, str], int] = {}  # (service, node) -> not before

    async def run(self) -> None:
        """Keep until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._keep())

    async def _follow(self) -> None:
        kinds = (Kind.NODES, Kind.SERVICES, Kind.TASKS)
        async for update in self._client.watch(kinds=kinds):
            self.cluster.apply(update)
            if update.version:
                self._news.set()

    async def _keep(self) -> None:
        seen = 0
        while True:
            await self._wait(None)
            await asyncio.sleep(GATHER)
            self._news.clear()
            while self.cluster.version and self.cluster.version >= seen:
                try:
                    done, again = await self._round()
                except SwarmError as error:
                    log.warning("scheduler.round.failed", detail=str(error))
                    await asyncio.sleep(RETRY)
                    self._news.set()
                    break
                seen = max(seen, done)
                if done or again is None or await self._wait(again):
                    break

    async def _wait(self, until: int | None) -> bool:
        """Wait for news, or until a time; say whether there is news."""
        if until is None:
            await self._news.wait()
            return True
        try:
            async with asyncio.timeout(max(until - self._clock(), 0) / SECOND):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    async def _round(self) -> tuple[int, int | None]:
        """Do what every service needs; return the version that shows it, and when to look again."""
        now, version, again = self._clock(), 0, None
        self._refused = {key: until for key, until in self._refused.items() if until > now}
        for service in tuple(self.cluster.services.values()):
            if self._names and service.spec.annotations.name not in self._names:
                continue
            avoid = {node for owner, node in self._refused if owner == service.id}
            wanted = plan(self.cluster, service, now, avoid=avoid)
            version = max(version, await self._act(wanted))
            for until in (wanted.again, *self._refused.values()):
                if until is not None:
                    again = until if again is None else min(again, until)
        return version, again

    async def _act(self, wanted: Plan) -> int:
        version = 0
        for part in _parts(wanted.shutdown):
            await self._client.set_desired_state(part, TaskState.SHUTDOWN)
            log.info("tasks.shutdown", count=len(part))
        for part in _parts(wanted.release):
            version = max(version, await self._client.release(part))
            log.info("tasks.released", count=len(part))
        for placements in _parts(wanted.place):
            version = max(version, await self._place(placements))
        return version

    async def _place(self, placements: Sequence[Placement]) -> int:
        answer = await self._client.create_tasks(placements)
        log.info("tasks.placed", count=len(answer.placed), refused=len(answer.refused))
        for placement, result in zip(placements, answer.results, strict=True):
            if isinstance(result, Refusal):
                key = placement.service_id, placement.node_id
                self._refused[key] = self._clock() + AVOID
                log.warning(
                    "placement.refused",
                    reason=result.reason.name.lower(),
                    detail=result.message,
                    help=result.help,
                )
        return answer.version if answer.committed else 0


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
