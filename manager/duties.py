"""What only the leader does, from the moment it leads until it does not."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from manager.api.backend import Backend
from manager.cluster import ROTATION, NetworkKeys, rotated, without_expired
from manager.keyage import KeyAge
from manager.raft.events import Role
from manager.raft.status import RaftStatus
from manager.store import Transaction
from swarm.errors import InvariantError, SwarmError

CLEANING: Final = 3600.0
"""Seconds between two looks for removed nodes whose certificates ran out."""

LONGEST_NAP: Final = 3600.0
RETRY: Final = 10.0
AGAIN: Final = 0.1
"""Seconds before the duties begin again when one met the end of leadership."""

log = structlog.get_logger(__name__)
Duty = Callable[[], Awaitable[None]]


class Leadership:
    """Whether this manager leads, and its duties while it does.

    Args:
        barrier: waits until the store shows everything earlier leaders committed.
    """

    def __init__(self, barrier: Callable[[], Awaitable[object]]) -> None:
        self._barrier = barrier
        self._status: RaftStatus | None = None
        self._changed = asyncio.Event()

    def note(self, status: RaftStatus) -> None:
        """Take in what raft says of itself."""
        self._status = status
        self._changed.set()

    @property
    def leading(self) -> bool:
        """Whether this manager leads."""
        return self._status is not None and self._status.role is Role.LEADER

    @property
    def led(self) -> bool:
        """Whether some manager leads, as far as this one knows."""
        return self._status is not None and self._status.leader_id is not None

    async def run(self, duties: Sequence[Duty]) -> None:
        """Run the duties whenever this manager leads, until cancelled; anew in each of its terms."""
        async with asyncio.TaskGroup() as group:
            over = asyncio.Event()
            try:
                while True:
                    while (term := self._term) is None:
                        await self._change()
                    over = asyncio.Event()
                    serving = group.create_task(self._serve(duties, over))
                    while self._term == term:
                        await self._change()
                    over.set()
                    serving.cancel()
                    await asyncio.wait([serving])
            finally:
                over.set()

    async def _serve(self, duties: Sequence[Duty], over: asyncio.Event) -> None:
        """Run the duties; what leadership that is about to end makes of one ends none but this term.

        ``over`` is set before this is cancelled: a task group whose child fails at the moment of a
        cancellation raises the failure and forgets the cancellation (Python 3.11).
        """
        while True:
            try:
                await self._barrier()
                async with asyncio.TaskGroup() as group:
                    for duty in duties:
                        group.create_task(_run(duty))
            except* InvariantError:
                raise
            except* SwarmError as failed:
                log.warning("leadership.duty.failed", detail=str(failed.exceptions[0]))
            if over.is_set():
                return
            await asyncio.sleep(AGAIN)

    @property
    def _term(self) -> int | None:
        """The term this manager leads, if any."""
        return self._status.term if self._status is not None and self.leading else None

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


async def _run(duty: Duty) -> None:
    await duty()


async def rotate_keys(
    backend: Backend, period: float = ROTATION.total_seconds(), age: KeyAge | None = None
) -> None:
    """Rotate the network keys, one generation each time, until cancelled.

    Args:
        backend: where the cluster object is.
        period: seconds between two rotations.
        age: since when the keys are in force; since now when absent.
    """
    age = age or KeyAge(None, backend.clock.wall)
    while True:
        clock = backend.store.view.clusters.only().encryption_key_lamport_clock
        age.note(clock)
        if (left := age.left(period)) > 0:
            await asyncio.sleep(min(left, LONGEST_NAP))
            continue

        async def rotate(clock: int = clock) -> None:
            await rotate_once(backend, clock)

        await _insist(rotate, "keys.rotation.failed")
        log.info("keys.rotated")


async def rotate_once(backend: Backend, clock: int) -> None:
    """Rotate the network keys by one generation, unless that has happened since ``clock``.

    A write whose outcome was unknown may have taken effect; two generations at once would mute
    every engine's gossip.

    Args:
        backend: where the cluster object is.
        clock: the lamport clock before the rotation.
    """

    def build(tx: Transaction) -> None:
        cluster = tx.clusters.only()
        if cluster.encryption_key_lamport_clock != clock:
            return
        keys = rotated(
            NetworkKeys(
                keys=cluster.network_bootstrap_keys, clock=cluster.encryption_key_lamport_clock
            ),
            secrets.token_bytes,
        )
        tx.update(
            replace(
                cluster,
                network_bootstrap_keys=keys.keys,
                encryption_key_lamport_clock=keys.clock,
            )
        )

    await backend.store.transact(build)


async def forget_removed(backend: Backend, period: float = CLEANING) -> None:
    """Drop removed nodes from the cluster's list once their certificates ran out, until cancelled."""

    def build(tx: Transaction) -> None:
        cluster = tx.clusters.only()
        cleaned = without_expired(cluster, backend.clock.wall())
        if cleaned is not cluster:
            tx.update(cleaned)

    async def clean() -> None:
        await backend.store.transact(build)

    while True:
        await _insist(clean, "blacklist.cleaning.failed")
        await asyncio.sleep(period)


async def _insist(step: Duty, event: str) -> None:
    """Try until it works; a write can fail while leadership changes hands."""
    while True:
        try:
            await step()
        except InvariantError:
            raise
        except SwarmError as error:
            log.warning(event, detail=str(error))
            await asyncio.sleep(RETRY)
        else:
            return
