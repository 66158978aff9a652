"""What a benchmark returns, and the table it becomes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        what: was measured.
        value: in ``unit``; a median where there were several.
        unit: ``ms``, ``s``, ``/s``.
        worst: of several; None for one number.
        floor: the same unit, measured in the same run: what no implementation can beat, or a peer.
        floor_name: what the floor is.
        goal: what it should be; None without one.
    """

    what: str
    value: float
    unit: str
    worst: float | None = None
    floor: float | None = None
    floor_name: str = ""
    goal: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times the floor; above 1 is slower, for times and rates alike."""
        if not self.floor or not self.value:
            return None
        return self.floor / self.value if self.unit == "/s" else self.value / self.floor


def of_times(
    what: str, seconds: Sequence[float], *, floor: float | None = None, **more: str
) -> Row:
    """Return the row of several times: median and worst, in milliseconds; ``floor`` in seconds."""
    return Row(
        what=what,
        value=statistics.median(seconds) * 1000,
        worst=max(seconds) * 1000,
        unit="ms",
        floor=None if floor is None else floor * 1000,
        **more,
    )


def render(title: str, rows: Sequence[Row]) -> None:
    """Print a benchmark's rows."""
    table = Table(title=title, title_justify="left", highlight=False)
    table.add_column("measured")
    for name in ("median", "worst", "floor", "ratio"):
        table.add_column(name, justify="right")
    table.add_column("floor is")
    table.add_column("goal")
    for row in rows:
        table.add_row(
            row.what,
            _number(row.value, row.unit),
            _number(row.worst, row.unit),
            _number(row.floor, row.unit),
            "" if row.ratio is None else f"{row.ratio:.1f}x",
            row.floor_name,
            row.goal,
        )
    Console(width=120).print(table)


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return ""
    return f"{value:,.2f} {unit}" if value < 10 else f"{value:,.0f} {unit}"
