"""Commands that take several names: each is looked up and acted on by itself, as docker does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import click

from swarm.client import Client, connect
from swarm.errors import SwarmError


def for_each(
    host: str | None, names: Sequence[str], act: Callable[[Client, str], str | None]
) -> int:
    """Act on every name; one that fails is told on stderr and keeps no other from its turn.

    Args:
        host: where the daemon listens; None for the default.
        names: as typed.
        act: returns the line to print; None for the name itself, empty for nothing.

    Returns:
        The exit status: 1 if any failed.
    """
    failed = 0
    for name in names:
        try:
            with connect(host) as client:
                line = act(client, name)
        except SwarmError as error:
            click.echo(f"Error: {error}", err=True)
            failed = 1
        else:
            if line != "":
                click.echo(name if line is None else line)
    return failed
