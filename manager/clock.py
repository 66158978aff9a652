"""The two clocks of the manager, passed to whatever needs the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Wall time for people and certificates, monotonic time for deadlines; both in nanoseconds."""

    wall: Callable[[], int] = time.time_ns
    monotonic: Callable[[], int] = time.monotonic_ns

    def now(self) -> datetime:
        """Return the wall time, aware, UTC."""
        return datetime.fromtimestamp(self.wall() / 1e9, UTC)
