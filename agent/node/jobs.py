"""Operations that run to their end, whoever waits for them.

A client that hangs up cancels its call; an attach cut in the middle would leave half an endpoint. So each
operation is a task of this object's group, and the caller only waits for its outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from swarm.errors import InvariantError, PreconditionError, UnavailableError

T = TypeVar("T")


class Jobs:
    """A group of operations; ``run()`` owns them."""

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._open: set[asyncio.Future[Any]] = set()

    async def run(self) -> None:
        """Carry operations out until cancelled; those under way are cancelled then.

        Raises:
            InvariantError: an operation found a bug.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None
            for waiting in tuple(self._open):
                if not waiting.done():
                    waiting.set_exception(UnavailableError("the daemon is shutting down"))
                    waiting.exception()  # nobody may be waiting

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Begin an operation; the future tells its outcome and need not be looked at."""
        if self._group is None:
            work.close()
            raise PreconditionError("the node is shutting down")
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._open.add(outcome)
        outcome.add_done_callback(self._open.discard)
        self._group.create_task(_settle(work, outcome))
        return outcome

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run an operation and return its result; cancelling the caller does not stop it."""
        return await asyncio.shield(self.start(work))


async def _settle(work: Coroutine[Any, Any, T], outcome: asyncio.Future[T]) -> None:
    try:
        result = await work
    except asyncio.CancelledError:
        raise
    except InvariantError as error:
        _fail(outcome, error)
        raise
    except Exception as error:  # noqa: BLE001  # handed to whoever asked
        _fail(outcome, error)
    else:
        if not outcome.done():
            outcome.set_result(result)


def _fail(outcome: asyncio.Future[Any], error: Exception) -> None:
    if not outcome.done():
        outcome.set_exception(error)
        outcome.exception()  # mark it as seen: the caller may be gone
