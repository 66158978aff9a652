"""Callers that wait for the log: for an entry's fate, a read point, the start of a term, a tick.

Futures only; who makes progress tells :class:`Waiting`, and every caller hears in the end.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterable
from typing import Any

from manager.raft.errors import DroppedError, QuorumLostError
from manager.raft.messages import Entry, ReadResult
from swarm.errors import SwarmError


class Waiting:
    """See the module."""

    __slots__ = ("_points", "_proposals", "_reads", "_sequence", "_terms", "_ticks")

    def __init__(self) -> None:
        self._proposals: dict[int, tuple[int, asyncio.Future[Any]]] = {}
        """Index to (term, who waits for it)."""
        self._reads: dict[int, asyncio.Future[int]] = {}
        """Context to who waits for the read point."""
        self._points: list[tuple[int, int, asyncio.Future[int]]] = []
        """Heap of read points that are not applied yet."""
        self._terms: list[asyncio.Future[None]] = []
        self._ticks: list[asyncio.Future[None]] = []
        self._sequence = itertools.count()

    # Who waits ------------------------------------------------------------------------------

    def entry(self, index: int, term: int) -> asyncio.Future[Any]:
        """Wait for what becomes of an entry that was appended here."""
        future = _future()
        self._proposals[index] = term, future
        return future

    async def read(self, context: int) -> int:
        """Wait until the read point asked for under ``context`` is known and applied."""
        future = self._reads[context] = _future()
        try:
            return int(await future)
        finally:
            self._reads.pop(context, None)

    def term(self) -> asyncio.Future[None]:
        """Wait until the term has begun here, or is over."""
        future = _future()
        self._terms.append(future)
        return future

    def tick(self) -> asyncio.Future[None]:
        """Wait for the next tick."""
        future = _future()
        self._ticks.append(future)
        return future

    # What happens ---------------------------------------------------------------------------

    def applied(self, entry: Entry, result: Any, error: SwarmError | None) -> None:
        """An entry was applied; what was appended at its place in another term is lost."""
        term, future = self._proposals.pop(entry.index, (0, None))
        if future is None:
            return
        if term != entry.term:
            error = _dropped()
        _settle(future, result, error)

    def restored(self, index: int) -> None:
        """A snapshot took the place of everything up to ``index``."""
        for each in [each for each in self._proposals if each <= index]:
            _settle(self._proposals.pop(each)[1], error=_unknown())

    def truncated(self, index: int) -> None:
        """Entries from ``index`` on gave way to another leader's."""
        for each in [each for each in self._proposals if each >= index]:
            _settle(self._proposals.pop(each)[1], error=_dropped())

    def deposed(self, commit: int) -> None:
        """This member does not lead any more; what it did not commit may come true or not."""
        for each in [each for each in self._proposals if each > commit]:
            _settle(self._proposals.pop(each)[1], error=_unknown())

    def answered(self, results: Iterable[ReadResult], applied: int) -> None:
        """Read points are known, and everything up to ``applied`` is applied."""
        for result in results:
            future = self._reads.pop(result.context, None)
            if future is None or future.done():
                continue
            if result.index is None:
                future.set_exception(
                    QuorumLostError("No majority of managers confirmed the read; try again.")
                )
            else:
                heapq.heappush(self._points, (result.index, next(self._sequence), future))
        while self._points and self._points[0][0] <= applied:
            index, _, future = heapq.heappop(self._points)
            _settle(future, index)

    def began(self) -> None:
        """The term has begun here, or is over."""
        terms, self._terms = self._terms, []
        for future in terms:
            _settle(future)

    def ticked(self) -> None:
        """A tick has passed."""
        ticks, self._ticks = self._ticks, []
        for future in ticks:
            _settle(future)

    def abandon(self) -> None:
        """Nothing will happen any more: nobody shall wait for it."""
        futures: list[asyncio.Future[Any]] = [future for _, future in self._proposals.values()]
        futures += [*self._reads.values(), *(point[2] for point in self._points), *self._ticks]
        for future in futures:
            _settle(future, error=_unknown())
        self._proposals.clear()
        self.began()


def _future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


def _settle(
    future: asyncio.Future[Any], result: Any = None, error: SwarmError | None = None
) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _dropped() -> DroppedError:
    return DroppedError("Another leader's entry took this one's place; try again.")


def _unknown() -> QuorumLostError:
    return QuorumLostError("Leadership was lost; whether the change takes effect is unknown.")
