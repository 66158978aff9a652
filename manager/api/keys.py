"""Rotation of the network keys on demand."""

from __future__ import annotations

from typing import Any, Final

from manager.api.access import Caller
from manager.api.backend import Backend
from manager.api.server import Context
from manager.duties import rotate_once
from swarm.api.overswarm.v1 import keys_pb2
from swarm.errors import PreconditionError

PAUSE: Final = 10
"""Seconds between two rotations asked for. Engines take over one generation at a time: one that is told
two at once keeps a dead key, so each must have reached every session before the next."""


class Keys:
    """``overswarm.v1.Keys``.

    Args:
        backend: where the cluster object is.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._rotated: int | None = None

    async def RotateKeys(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Make one more generation of keys now.

        Raises:
            PreconditionError: the last time is too short ago.
        """
        now = self._backend.clock.monotonic()
        if self._rotated is not None and now - self._rotated < PAUSE * 1_000_000_000:
            raise PreconditionError(
                "the keys were rotated a moment ago: nodes take over one generation at a time; "
                f"try again in {PAUSE} seconds"
            )
        before, self._rotated = self._rotated, now
        try:
            await self._backend.barrier()
            clusters = self._backend.store.view.clusters
            await rotate_once(self._backend, clusters.only().encryption_key_lamport_clock)
        except BaseException:
            self._rotated = before
            raise
        # Of the state after the write: the transaction has been applied here.
        newest = self._backend.store.view.clusters.only().encryption_key_lamport_clock
        return keys_pb2.RotateKeysResponse(lamport_time=newest)
