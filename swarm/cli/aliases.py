"""``list`` for ``ls``, ``remove`` for ``rm``: the second names that docker's commands have."""

from __future__ import annotations

from typing import Final

import click

_NAMES: Final = {"list": "ls", "remove": "rm"}


class Aliased(click.Group):
    """A group whose commands are found by docker's second names too; only the first ones are listed."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by either name."""
        return super().get_command(ctx, cmd_name) or super().get_command(
            ctx, _NAMES.get(cmd_name, cmd_name)
        )
