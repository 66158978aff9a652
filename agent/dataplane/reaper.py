"""Removal of links without waiting for what the kernel does after it.

A removed link is gone from its namespace within a few milliseconds; the kernel then lets the request wait
until no processor can still be looking at it, which takes 10 to 50 more. That wait holds no lock, so it is
left to a thread of its own.

Source: Linux ``net/core/dev.c``, ``netdev_run_todo`` (``rcu_barrier``).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

from agent.dataplane.channel import Channel
from agent.dataplane.netlink import Message

WORKERS = 16
"""Removals under way at once; the next one waits for the oldest."""

LOOK_AGAIN = 0.0005
"""Seconds between two looks whether a link is gone; the request usually holds the look up by itself."""


class Reaper:
    """Sends removals and returns when the links are gone."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=WORKERS, thread_name_prefix="reaper")

    def close(self) -> None:
        """Wait for the last removals."""
        self._pool.shutdown(wait=True)

    def remove(self, message: Message, channel: Channel, gone: Callable[[], bool]) -> None:
        """Send a removal on a channel of its own, which is closed afterwards; return when it shows.

        Raises:
            KernelError: the kernel refused.
        """

        def send() -> None:
            try:
                channel.check([message])
            finally:
                channel.close()

        sent = self._pool.submit(send)
        while not wait([sent], LOOK_AGAIN).done:
            if gone():
                return
        sent.result()
