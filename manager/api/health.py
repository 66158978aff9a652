"""Health: whether the parts of this manager serve."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from manager.api.access import Caller
from manager.api.server import Context
from swarm.api.docker.swarmkit import health_pb2
from swarm.errors import NotFoundError

RAFT: Final = "Raft"
CONTROL: Final = "ControlAPI"

_SERVING: Final = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class Health:
    """The Health service; ``raft`` says whether this manager has a leader to follow or is it."""

    def __init__(self, raft: Callable[[], bool]) -> None:
        self._raft = raft

    async def Check(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Say whether a part of this manager serves; no name means the process."""
        if request.service not in {"", RAFT, CONTROL}:
            raise NotFoundError(f"unknown service {request.service[:64]!r}")
        serving = not request.service or self._raft()
        return health_pb2.HealthCheckResponse(status=_SERVING if serving else _NOT_SERVING)
