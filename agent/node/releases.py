"""Attachments that are over here and that a manager still has to hear of."""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from agent.node.seams import SessionPort
from swarm.errors import DeadlineError, NotFoundError, StaleError, SwarmError, UnavailableError

PAUSE: Final = 1.0
"""Seconds after a manager that could not answer."""

log = structlog.get_logger(component="releases")


class Releases:
    """Sends DetachNetwork for each attachment given, in order, until a manager has answered.

    Not kept over a restart of the agent: an attachment the manager still has and this node does not
    know is given back then anyway.
    """

    def __init__(self, session: SessionPort) -> None:
        self._session = session
        self._waiting: dict[str, None] = {}
        self._more = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()

    def __contains__(self, attachment_id: str) -> bool:
        return attachment_id in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, attachment_id: str) -> None:
        """Queue one."""
        self._waiting[attachment_id] = None
        self._empty.clear()
        self._more.set()

    async def drained(self) -> None:
        """Wait until every one has been answered."""
        await self._empty.wait()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._more.wait()
            await self._session.active()
            attachment_id = next(iter(self._waiting))
            try:
                await self._session.detach_network(attachment_id)
            except NotFoundError:
                pass  # the manager has forgotten it already
            except (UnavailableError, DeadlineError, StaleError) as error:
                log.info("attachment.release.delayed", task=attachment_id, reason=str(error))
                await asyncio.sleep(PAUSE)
                continue
            except SwarmError as error:
                log.warning("attachment.release.refused", task=attachment_id, reason=str(error))
            del self._waiting[attachment_id]
            self._session.forget(attachment_id)
            if not self._waiting:
                self._more.clear()
                self._empty.set()
