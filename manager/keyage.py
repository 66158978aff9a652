"""When the network keys were last rotated, as this manager saw it.

The cluster object does not say. Every manager notes it, in a file of its own, so that neither a new
leader nor a restart begins the wait anew.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

FILE: Final = "network-keys.json"
_MAX_FILE: Final = 4096
_SECOND: Final = 1_000_000_000


class KeyAge:
    """The age of the newest generation.

    Args:
        path: where to remember it; None to forget it with this process.
        wall: the time, nanoseconds since the epoch.
    """

    def __init__(self, path: Path | None, wall: Callable[[], int]) -> None:
        self._path = path
        self._wall = wall
        self._lamport: int | None = None
        self._since = wall()
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if path is not None:
                known = json.loads(path.read_bytes()[:_MAX_FILE])
                self._lamport, self._since = int(known["lamport"]), int(known["since"])

    def note(self, lamport: int, since: int | None = None) -> None:
        """Note the lamport clock of the keys in force; another one than before means new keys.

        Args:
            lamport: the clock.
            since: a time by which they were in force, nanoseconds, where they may have come while
                this manager did not run; now when absent or in the future.
        """
        now = self._wall()
        if lamport == self._lamport and self._since <= now:
            return
        self._lamport, self._since = lamport, now if since is None else min(since, now)
        if self._path is not None:
            beside = self._path.with_suffix(".new")
            with contextlib.suppress(OSError):  # then the wait is longer once, no more
                beside.write_text(json.dumps({"lamport": lamport, "since": self._since}))
                beside.replace(self._path)

    def left(self, period: float) -> float:
        """Return the seconds until keys of that age are due for rotation, at least 0."""
        return max(period - (self._wall() - self._since) / _SECOND, 0.0)
