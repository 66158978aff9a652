"""Carries a root rotation on, on the leader; what to do is decided in :mod:`manager.ca.rotation`."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import replace
from typing import Final

import structlog

from manager.api.backend import Backend
from manager.ca.rotation import ROUND, Step, asked, finished, next_step
from manager.store import Commit, Transaction, Watch
from swarm.errors import InvariantError, StaleError, SwarmError
from swarm.model import Cluster, Node

RETRY: Final = 1.0
"""Seconds after a write that failed."""

_SECOND: Final = 1_000_000_000

log = structlog.get_logger(__name__)


async def rotate_root(backend: Backend) -> None:
    """Carry root rotations on until cancelled; each leader takes up what the one before has left."""
    reconciler = _Reconciler(backend)
    while True:
        watch = backend.store.watch()
        try:
            await reconciler.run(watch)
        except StaleError:
            log.info("root.rotation.watch.behind")


class _Reconciler:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store
        self._next_batch = 0

    async def run(self, watch: Watch) -> None:
        while True:
            step = self._step()
            try:
                pause = None if step is None else await self._take(step)
            except InvariantError:
                raise
            except SwarmError as error:
                log.warning("root.rotation.delayed", detail=str(error))
                pause = RETRY
            await _changed(watch, pause)

    def _step(self) -> Step | None:
        """Return what the rotation under way needs; None without one."""
        for cluster in self._store.view.clusters.all():
            if cluster.root_ca.root_rotation is not None:
                now = self._backend.clock.wall()
                return next_step(cluster.root_ca, self._store.view.nodes.all(), now)
        return None

    async def _take(self, step: Step) -> float | None:
        """Do what is to be done now; return the seconds until there is more by itself."""
        if step.done:
            await self._finish()
            return None
        times = []
        if step.ask:
            left = self._next_batch - self._backend.clock.monotonic()
            if left > 0:
                times.append(left)
            else:
                await self._ask()
                self._next_batch = self._backend.clock.monotonic() + ROUND
                if step.more:
                    times.append(ROUND)
        if step.again is not None:
            times.append(max(step.again - self._backend.clock.wall(), 0))
        return min(times) / _SECOND if times else None

    async def _ask(self) -> None:
        def build(tx: Transaction) -> int:
            cluster = tx.clusters.only()
            if cluster.root_ca.root_rotation is None:
                return 0
            step = next_step(cluster.root_ca, tx.nodes.all(), self._backend.clock.wall())
            for node_id in step.ask:
                tx.update(asked(tx.nodes.require(node_id)))
            return len(step.ask)

        count = await self._store.transact(build)
        log.info("root.rotation.renewals_asked", nodes=count)

    async def _finish(self) -> None:
        def build(tx: Transaction) -> bool:
            cluster = tx.clusters.only()
            root = cluster.root_ca
            if root.root_rotation is None:
                return False
            if not next_step(root, tx.nodes.all(), self._backend.clock.wall()).done:
                return False
            new = finished(root, secrets.token_bytes, fips=cluster.fips)
            tx.update(replace(cluster, root_ca=new))
            return True

        if await self._store.transact(build):
            digest = self._store.view.clusters.only().root_ca.ca_cert_hash
            log.info("root.rotation.finished", digest=digest)


async def _changed(watch: Watch, pause: float | None) -> None:
    """Wait until a node or the cluster has changed, or a time has passed."""
    try:
        async with asyncio.timeout(pause):
            while not _matters(await anext(watch)):
                pass
    except TimeoutError:
        return
    # What is there already is one change with it.
    while watch.next_nowait() is not None:
        pass


def _matters(commit: Commit) -> bool:
    return any(
        isinstance(each, Node | Cluster)
        for change in commit.changes
        for each in (change.old, change.new)
    )
