"""A small event loop for the shim: asyncio would double its start-up time and its memory."""

from __future__ import annotations

import select
import time
from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

Handler = Callable[[int], None]


class Loop:
    """Calls handlers for descriptors that are ready, until told to stop."""

    __slots__ = ("_deadline", "_epoll", "_handlers", "_stopped")

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._deadline: float | None = None
        self._stopped = False

    def add(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call ``handler`` with the events whenever the descriptor has some of ``events``."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = handler

    def change(self, descriptor: int, events: int) -> None:
        """Wait for other events on a descriptor."""
        self._epoll.modify(descriptor, events)

    def drop(self, descriptor: int) -> None:
        """Forget a descriptor; before it is closed. Unknown ones are fine."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def stop(self, *, within: float = 0.0) -> None:
        """Stop after this round, or at the latest in so many seconds."""
        self._deadline = time.monotonic() + within
        self._stopped = not within

    def run(self) -> None:
        """Serve until stopped."""
        while not self._stopped:
            timeout = -1.0
            if self._deadline is not None:
                timeout = self._deadline - time.monotonic()
                if timeout <= 0:
                    return
            for descriptor, events in self._epoll.poll(timeout):
                # A handler earlier in this round may have dropped it.
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler(events)
