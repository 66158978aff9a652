"""What a manager does when it is reached at another address than the others know."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog

from manager.joining import announce_move
from manager.raft.events import Role
from manager.raft.node import RaftNode
from swarm.errors import InvariantError, SwarmError
from swarm.identity.dialer import TlsDialer

LOOK_AGAIN: Final = 0.2
"""Seconds between two looks at what may change without a word from raft."""

RETRY: Final = 1.0
"""Seconds between two tries to tell the others."""

log = structlog.get_logger(__name__)


async def follow_address(raft: RaftNode, addr: str, dialer: TlsDialer) -> None:
    """Tell the others where this manager is reached now, until cancelled; nodes learn it in their sessions.

    Args:
        raft: this manager's member of the group.
        addr: its ``host:port``.
        dialer: reaches other managers.
    """

    def moved() -> bool:
        mine = raft.status.members.get(raft.status.id)
        return mine is not None and mine.addr != addr

    while True:
        await until(raft, moved)
        status = raft.status
        try:
            if status.role is Role.LEADER:
                await raft.update_member(raft_id=status.id, addr=addr)
            else:
                others = [m.addr for m in status.members.values() if m.raft_id != status.id]
                await announce_move(others, raft_id=status.id, addr=addr, dialer=dialer)
        except InvariantError:
            raise
        except SwarmError as error:
            log.info("move.waiting", detail=str(error))
        await asyncio.sleep(RETRY)


async def until(raft: RaftNode, condition: Callable[[], bool]) -> None:
    """Wait until something is true that changes with raft's status, or soon after."""
    changed = asyncio.Event()
    end = raft.on_status(lambda _: changed.set())
    try:
        while not condition():
            changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await changed.wait()
    finally:
        end()
