"""What a benchmark returns, and the table it becomes."""

from __future__ import annotations

import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 140
"""Columns where the output is no terminal."""

_JUDGED = re.compile(r"(<=|>=) ([\d.,]+)")


class SkippedError(Exception):
    """A benchmark cannot run on this machine; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        what: was measured.
        value: in ``unit``; the median where there were several.
        unit: ``ms``, ``s``, ``/s``, ``MiB`` and so on. More is better for units that end in ``/s``.
        best: of several; None for one number.
        worst: of several; None for one number.
        count: how many there were.
        floor: the same unit, measured in the same run: what no implementation can beat, or a peer.
        floor_name: what the floor is.
        goal: what it should be, for people. One that begins ``<= 1500`` or ``>= 5000`` (in ``unit``) is
            judged by ``value``.
    """

    what: str
    value: float
    unit: str
    best: float | None = None
    worst: float | None = None
    count: int = 1
    floor: float | None = None
    floor_name: str = ""
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times worse than the floor; for times the value by it, for rates it by the value."""
        if not self.floor or not self.value:
            return None
        return self.floor / self.value if self.unit.endswith("/s") else self.value / self.floor

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None when there is none that can be judged."""
        found = _JUDGED.match(self.goal)
        if found is None:
            return None
        bound = float(found[2].replace(",", ""))
        return self.value <= bound if found[1] == "<=" else self.value >= bound

    @property
    def plain(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def of_times(
    what: str, seconds: Sequence[float], *, floor: float | None = None, **more: str
) -> Row:
    """Return the row of several times in milliseconds: median, shortest, longest; ``floor`` in seconds."""
    return Row(
        what=what,
        value=statistics.median(seconds) * 1000,
        best=min(seconds) * 1000 if len(seconds) > 1 else None,
        worst=max(seconds) * 1000 if len(seconds) > 1 else None,
        count=len(seconds),
        unit="ms",
        floor=None if floor is None else floor * 1000,
        **more,
    )


def of_rates(what: str, rates: Sequence[float], *, floor: float | None = None, **more: str) -> Row:
    """Return the row of several rates, per second: median, highest, lowest."""
    return Row(
        what=what,
        value=statistics.median(rates),
        best=max(rates) if len(rates) > 1 else None,
        worst=min(rates) if len(rates) > 1 else None,
        count=len(rates),
        unit="/s",
        floor=floor,
        **more,
    )


def progress(text: str) -> None:
    """Say on standard error what is going on, so that nobody takes a long measurement for a hang."""
    sys.stderr.write(f"  {text}\n")
    sys.stderr.flush()


def render(title: str, rows: Sequence[Row]) -> None:
    """Print a benchmark's rows."""
    table = Table(title=title, title_justify="left", highlight=False)
    table.add_column("measured", overflow="fold")
    for name in ("median", "best", "worst", "times", "floor", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("floor is", overflow="fold")
    table.add_column("goal", overflow="fold")
    for row in rows:
        table.add_row(
            row.what,
            _number(row.value, row.unit),
            _number(row.best, row.unit),
            _number(row.worst, row.unit),
            str(row.count) if row.count > 1 else "",
            _number(row.floor, row.unit),
            "" if row.ratio is None else f"{row.ratio:.1f}x",
            row.floor_name,
            row.goal + {True: " (met)", False: " (MISSED)", None: ""}[row.met],
        )
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.2f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
