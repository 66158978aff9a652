"""Commands that take several names: each is looked up and acted on by itself, as docker does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import click

from swarm.client import Client, connect
from swarm.errors import ConflictError, NotFoundError, SwarmError

T = TypeVar("T")


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


def pick(kind: str, text: str, objects: Sequence[T], key: Callable[[T], tuple[str, str]]) -> T:
    """Return the one object that an id, a name or an unambiguous id prefix means, tried in this order.

    Args:
        kind: ``node``, for messages.
        text: as typed.
        objects: all there are.
        key: id and name of one.

    Raises:
        NotFoundError: none is called so.
        ConflictError: several are.
    """
    for found in (
        [each for each in objects if key(each)[0] == text],
        [each for each in objects if key(each)[1] == text],
        [each for each in objects if text and key(each)[0].startswith(text)],
    ):
        if len(found) > 1:
            raise ConflictError(
                f"{kind} {text} is ambiguous ({len(found)} matches found on ID prefix)"
            )
        if found:
            return found[0]
    raise NotFoundError(f"{kind} {text} not found")
