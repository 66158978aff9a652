"""Who leads, as this manager knows it now, and waiting until that is somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from manager.raft.events import Role
from manager.raft.status import RaftStatus
from swarm.errors import UnavailableError

NO_LEADER: Final = (
    "The swarm does not have a leader. It's possible that too few managers are online. "
    "Make sure more than half of the managers are online."
)


class NoLeaderError(UnavailableError):
    """No manager leads: an election is under way, or too few managers answer."""

    def __init__(self) -> None:
        super().__init__(NO_LEADER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The leader of one term.

    Attributes:
        term: which term.
        addr: ``host:port`` at which managers reach it.
        here: it is this manager.
    """

    term: int
    addr: str
    here: bool


class LeaderView:
    """The leader as raft names it; ``None`` while there is none."""

    def __init__(self) -> None:
        self._current: Leader | None = None
        self._changed: asyncio.Future[None] | None = None
        self._listeners: list[Callable[[Leader | None], None]] = []

    @property
    def current(self) -> Leader | None:
        """Who leads now."""
        return self._current

    def note(self, status: RaftStatus) -> None:
        """Take in what raft says of itself."""
        member = None if status.leader_id is None else status.members.get(status.leader_id)
        here = status.role is Role.LEADER
        leader = None
        if here or member is not None:
            addr = "" if member is None else member.addr
            leader = Leader(term=status.term, addr=addr, here=here)
        if leader == self._current:
            return
        self._current = leader
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)
        for listener in self._listeners:
            listener(leader)

    def listen(self, listener: Callable[[Leader | None], None]) -> None:
        """Call back at every change, at once."""
        self._listeners.append(listener)

    async def known(self, within: float) -> Leader:
        """Return the leader, waiting for one at most ``within`` seconds.

        Raises:
            NoLeaderError: there was none all the time.
        """
        deadline = asyncio.get_running_loop().time() + within
        while self._current is None:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                raise NoLeaderError
            await self.change(left)
        return self._current

    async def change(self, within: float) -> None:
        """Wait until something changes, at most ``within`` seconds."""
        if self._changed is None or self._changed.done():
            self._changed = asyncio.get_running_loop().create_future()
        await asyncio.wait([self._changed], timeout=within)
