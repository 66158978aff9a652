"""What every list of the command line is asked with: filters, a format, whole ids, ids only."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from swarm.cli.output import FORMAT_HELP, Row, print_list
from swarm.cli.parse import filters


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """How a list was asked for.

    ``chosen`` holds the values of each filter that was given; they are alternatives. ``whole`` says
    that nothing is cut off.
    """

    chosen: Mapping[str, list[str]]
    form: str
    whole: bool
    quiet: bool

    @property
    def table(self) -> bool:
        """Whether this is the table people read by default."""
        return self.form == "table" and not self.quiet

    def show(self, rows: Sequence[Row], columns: Mapping[str, str], *, key: str = "ID") -> None:
        """Print the rows; of each only the field ``key`` when that was asked for."""
        print_list(rows, columns, form=self.form, quiet=key if self.quiet else "")


def listing(
    *known: str, whole: str = "", quiet: str = "Only print ids."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the options of a list, as one argument ``asked``, a :class:`Listing`.

    Args:
        known: the filters there are; none, no ``--filter``.
        whole: the help of ``--no-trunc``; empty, no such option.
        quiet: the help of ``--quiet``; empty, no such option.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def call(*args: Any, **flags: Any) -> Any:
            asked = Listing(
                chosen=filters(flags.pop("wanted", ()), known=known),
                form=flags.pop("form"),
                whole=flags.pop("no_trunc", False),
                quiet=flags.pop("quiet", False),
            )
            return command(*args, asked=asked, **flags)

        options = [click.option("--format", "form", default="table", help=FORMAT_HELP)]
        if known:
            *some, last = known
            text = f"{', '.join(some)} or {last}." if some else f"{last}."
            options.insert(
                0,
                click.option(
                    "-f", "--filter", "wanted", multiple=True, metavar="NAME=VALUE", help=text
                ),
            )
        if whole:
            options.append(click.option("--no-trunc", is_flag=True, help=whole))
        if quiet:
            options.append(click.option("-q", "--quiet", is_flag=True, help=quiet))
        for option in reversed(options):
            call = option(call)
        return call

    return decorate
