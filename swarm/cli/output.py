"""How lists and objects are printed: docker's tables, JSON lines, or a template."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

import click

from swarm.cli import template

Row = Mapping[str, Any]

FORMAT_HELP: Final = (
    "Output: 'table', 'json', 'table TEMPLATE' or a Go template such as '{{.Name}}'."
)
_GAP = 3
_NANO = 1_000_000_000


def print_list(
    rows: Sequence[Row], columns: Mapping[str, str], *, form: str, quiet: str = ""
) -> None:
    """Print rows the way docker prints lists.

    Args:
        rows: one mapping a row; keys are the template's field names.
        columns: field name to heading, in order, of the default table.
        form: ``table``, ``json``, ``table <template>`` or a template.
        quiet: print only this field, one a line, when not empty and no format is asked for.
    """
    if quiet and form in {"", "table"}:
        for row in rows:
            click.echo(row[quiet])
    elif form == "json":
        for row in rows:
            click.echo(json.dumps(row, separators=(",", ":"), sort_keys=True))
    elif form in {"", "table"}:
        _print_table(
            [list(columns.values()), *[[_cell(row[name]) for name in columns] for row in rows]]
        )
    elif form.startswith("table "):
        pattern = form.removeprefix("table ").replace("\\t", "\t")
        heading = {name: columns.get(name, _heading(name)) for name in template.fields(pattern)}
        lines = [
            template.render(pattern, heading),
            *(template.render(pattern, row) for row in rows),
        ]
        _print_table([line.split("\t") for line in lines])
    else:
        pattern = form.replace("\\t", "\t").replace("\\n", "\n")
        for row in rows:
            click.echo(template.render(pattern, row))


def print_objects(objects: Sequence[Row], *, form: str) -> None:
    """Print whole objects the way docker's ``inspect`` does: a JSON array, or a template for each."""
    if form in {"", "json"}:
        text = json.dumps(list(objects), indent=4 if not form else None)
        click.echo(text)
        return
    for each in objects:
        click.echo(template.render(form, each))


def _cell(value: object) -> str:
    return ("true" if value else "false") if isinstance(value, bool) else str(value)


def _heading(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).upper()


def _print_table(lines: Sequence[Sequence[str]]) -> None:
    count = max(len(line) for line in lines)
    widths = [
        max((len(line[i]) for line in lines if i < len(line)), default=0) for i in range(count)
    ]
    for line in lines:
        cells = [text.ljust(widths[i] + _GAP) for i, text in enumerate(line[:-1])]
        click.echo("".join([*cells, line[-1]]).rstrip())


def natural(text: str) -> list[tuple[int, int | str]]:
    """Return a sort key under which ``w2`` comes before ``w10``."""
    return [
        (0, int(part)) if part.isdigit() else (1, part.lower())
        for part in re.split(r"(\d+)", text)
        if part
    ]


def rfc3339(nanoseconds: int | None) -> str:
    """Return a time as docker's JSON shows it."""
    if nanoseconds is None:
        return "0001-01-01T00:00:00Z"
    seconds, rest = divmod(nanoseconds, _NANO)
    text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{rest:09d}".rstrip("0").rstrip(".") + "Z"


def ago(seconds: float) -> str:
    """Return a duration in docker's words: ``About a minute``, ``3 hours``."""
    for limit, text in (
        (1, "Less than a second"),
        (2, "1 second"),
        (60, f"{int(seconds)} seconds"),
    ):
        if seconds < limit:
            return text
    minutes = int(seconds // 60)
    if minutes < 2:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = round(seconds / 3600)
    if hours < 2:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    if days < 14:
        return f"{days} days"
    if days < 60:
        return f"{days // 7} weeks"
    return f"{days // 30} months" if days < 730 else f"{days // 365} years"


def since(nanoseconds: int) -> str:
    """Return how long ago a moment was, in docker's words."""
    return ago(max(0.0, time.time() - nanoseconds / _NANO))


class Steps:
    """Progress of long work on standard error: a spinner on a terminal, a line a step elsewhere."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._status = self._console.status("") if self._console.is_terminal else None

    def say(self, text: str) -> None:
        """Announce the step that begins now."""
        if self._status is None:
            click.echo(f"==> {text}", err=True)
        else:
            self._status.update(text)

    def start(self) -> None:
        """Show the spinner, if there is one."""
        if self._status is not None:
            self._status.start()

    def stop(self) -> None:
        """Take the spinner away."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def steps() -> Iterator[Steps]:
    """Show progress while the block runs."""
    shown = Steps()
    shown.start()
    try:
        yield shown
    finally:
        shown.stop()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show ``text`` while the block runs, on a terminal only: short work says nothing elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    with steps() as shown:
        shown.say(text)
        yield
