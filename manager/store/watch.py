"""Commits as a stream: a bounded history that every watcher reads at its own pace.

A watcher holds a position and no queue, so a slow one costs nothing; when the history has moved past
its position it gets StaleError, reads the store anew and watches again.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from manager.store.changes import Commit
from swarm.errors import StaleError

HISTORY_COMMITS = 4096
"""Commits kept for watchers and for resumption."""
HISTORY_CHANGES = 65536
"""Changes kept over all these commits; the last commit is kept whatever its size."""


class History:
    """The last commits.

    Attributes:
        end: number of commits ever recorded; the position behind the last one.
    """

    __slots__ = ("_changes", "_commits", "_floor", "_listeners", "_waiters", "end")

    def __init__(self) -> None:
        self._commits: deque[Commit] = deque()
        self._changes = 0
        self._floor = 0  # index of the last change that is not kept any more
        self._waiters: set[asyncio.Future[None]] = set()
        self._listeners: set[asyncio.Event] = set()
        self.end = 0

    @property
    def start(self) -> int:
        """Position of the oldest commit kept."""
        return self.end - len(self._commits)

    def record(self, commit: Commit) -> None:
        """Append a commit and wake the watchers."""
        self._commits.append(commit)
        self._changes += len(commit.changes)
        self.end += 1
        while len(self._commits) > 1 and (
            len(self._commits) > HISTORY_COMMITS or self._changes > HISTORY_CHANGES
        ):
            gone = self._commits.popleft()
            self._changes -= len(gone.changes)
            self._floor = gone.index
        self._wake()

    def reset(self, index: int) -> None:
        """Forget everything up to and including ``index``: a snapshot replaced the state."""
        self._commits.clear()
        self._changes = 0
        self._floor = index
        self.end += 1  # every present watcher has missed something
        self._wake()

    def after(self, index: int) -> int:
        """Return the position of the first commit above ``index``.

        Raises:
            StaleError: commits above it are not kept any more.
        """
        if index < self._floor:
            raise StaleError(
                f"changes after version {index} are kept only from {self._floor} on; read anew"
            )
        return self.start + bisect_right(self._commits, index, key=lambda each: each.index)

    def at(self, position: int) -> Commit | None:
        """Return the commit at a position, or None when it is still to come.

        Raises:
            StaleError: it is not kept any more.
        """
        if position < self.start:
            raise StaleError("the watch fell behind the history of changes; read anew")
        return self._commits[position - self.start] if position < self.end else None

    async def wait(self) -> None:
        """Return when something was recorded."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        for listener in self._listeners:
            listener.set()

    @contextmanager
    def waking(self, listener: asyncio.Event) -> Iterator[None]:
        """Set an event whenever something is recorded, while the block runs."""
        self._listeners.add(listener)
        try:
            yield
        finally:
            self._listeners.discard(listener)


class Watch:
    """Commits from one position on; ``async for commit in watch``, ended by cancellation.

    Raises (from iteration):
        StaleError: the history moved past this watch, or a snapshot replaced the state.
    """

    __slots__ = ("_history", "_position")

    def __init__(self, history: History, position: int) -> None:
        self._history = history
        self._position = position

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> Commit:
        while (commit := self.next_nowait()) is None:
            await self._history.wait()
        return commit

    def waking(self, listener: asyncio.Event) -> AbstractContextManager[None]:
        """Set an event whenever there may be a next commit, while the block runs.

        For who waits for other things too; whoever waits for commits alone iterates.
        """
        return self._history.waking(listener)

    def next_nowait(self) -> Commit | None:
        """Return the next commit if it is there already.

        Raises:
            StaleError: as in iteration.
        """
        commit = self._history.at(self._position)
        if commit is not None:
            self._position += 1
        return commit
