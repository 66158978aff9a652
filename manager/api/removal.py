"""Whether a manager may go: the others must be able to go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

from swarm.errors import PreconditionError
from swarm.model import ManagerStatus, Reachability

T = TypeVar("T")

HEARING: Final = 1.5
"""Seconds in which a new leader hears of every manager that is there."""

_PAUSE: Final = 0.05


class QuorumError(PreconditionError):
    """Too few of the other managers answer."""


def check_removal(node_id: str, managers: Mapping[str, ManagerStatus], last: str) -> None:
    """Check that the others can go on without a manager.

    Args:
        node_id: of the manager.
        managers: all of them, by node id.
        last: what to say when there is no other.

    Raises:
        PreconditionError: there is no other.
        QuorumError: too few of them answer.
    """
    rest = [status for other, status in managers.items() if other != node_id]
    if not rest:
        raise PreconditionError(last)
    reachable = sum(status.reachability is Reachability.REACHABLE for status in rest)
    if reachable < len(rest) // 2 + 1:
        raise QuorumError(
            "can't remove member from the raft: this would result in a loss of quorum"
        )


async def once_heard(attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt again while a leader of a moment ago may not have heard every manager yet.

    Raises:
        QuorumError: it still fails after :data:`HEARING`.
        SwarmError: it fails for another reason.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + HEARING
    while True:
        try:
            return await attempt()
        except QuorumError:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(_PAUSE)
