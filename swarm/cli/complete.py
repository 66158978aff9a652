"""Names that a shell completes: networks, nodes, as the daemon knows them at that moment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from swarm.client import Client, connect
from swarm.errors import SwarmError

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(names: Callable[[Client], Iterable[tuple[str, str]]]) -> Completer:
    """Return what completes an argument.

    Args:
        names: asks the daemon; returns names, each with a word of help.
    """

    def complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        host = ctx.find_root().params.get("host") or os.environ.get("SWARM_HOST")
        given = {text for value in ctx.params.values() for text in _texts(value)}
        try:
            with connect(host) as client:
                found = list(names(client))
        except SwarmError:
            return []  # no daemon, or no manager: nothing to offer, and nothing to say
        return [
            CompletionItem(name, help=text)
            for name, text in found
            if name.startswith(incomplete) and name not in given
        ]

    return complete


def _texts(value: object) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else ()
