"""An asyncio event loop in virtual time: one for each simulated process, all on one clock.

It knows tasks, futures, timers and work for an executor, which is all that a manager's inside
needs. It runs what is ready, in order, and stands still otherwise. Nothing waits for real, no
thread runs, and equal seeds give equal runs.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from support.managers.clock import Clock

T = TypeVar("T")

Work = Callable[[Callable[..., Any], tuple[Any, ...], Callable[[Any], None]], None]
"""Does a blocking call some time later and hands its result on."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module.

    Attributes:
        paused: nothing runs; timers and work that come due wait, as after SIGSTOP.
        failures: what tasks and callbacks raised to nobody.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        work: Work | None = None,
        after: Callable[[], None] | None = None,
        rate: float = 1.0,
    ) -> None:
        """Make a loop.

        Args:
            clock: the world's.
            work: does what would be another thread's.
            after: called after each turn.
            rate: how many of the loop's seconds pass in one of the clock's.
        """
        self._clock = clock
        self._work = work
        self._after = after
        self._rate = rate
        self._ready: deque[asyncio.Handle] = deque()
        self._turning = False
        self.paused = False
        self.failures: list[BaseException] = []

    # Running --------------------------------------------------------------------------------

    def turn(self) -> None:
        """Run until nothing is ready.

        Raises:
            BaseException: what was raised to nobody.
        """
        if self.paused or self._turning:
            return
        self._turning = True
        before = events._get_running_loop()
        events._set_running_loop(self)
        try:
            while self._ready:
                handle = self._ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(before)
            self._turning = False
        if self.failures:
            raise self.failures[0]
        if self._after is not None:
            self._after()

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task from outside the loop, whose failure is everybody's."""
        task = self.create_task(coroutine)
        task.add_done_callback(lambda done: done.cancelled() or done.result())
        self.turn()
        return task

    # What asyncio asks of a loop --------------------------------------------------------------

    def time(self) -> float:
        """Seconds since the world began, by this process's clock."""
        return self._clock.now * self._rate / 1000

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        """Queue a callback."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Queue a callback for later (seconds)."""
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Queue a callback for a time of this loop's clock."""
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        delay = max(0, math.ceil((when - self.time()) * 1000 / self._rate))

        def due() -> None:
            if not timer.cancelled():
                self._ready.append(timer)
                self.turn()

        self._clock.after(delay, due)
        return timer

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a task."""
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Have the world do blocking work; its result comes when virtual time has passed."""
        assert self._work is not None, "this loop has nobody for blocking work"
        future = self.create_future()

        def done(result: Any) -> None:
            if not future.done():
                future.set_result(result)
            self.turn()

        self._work(func, args, done)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what was raised to nobody."""
        error = context.get("exception")
        self.failures.append(error or AssertionError(context["message"]))

    def get_debug(self) -> bool:
        """Say no."""
        return False

    def is_running(self) -> bool:
        """Say whether a callback runs now."""
        return self._turning

    def is_closed(self) -> bool:
        """Say no."""
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave a cancelled timer where it is."""
