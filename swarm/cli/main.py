"""The command tree and its error boundary."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Final

import click

from swarm.errors import SwarmError

_COMMANDS: Final = {
    "attach": "swarm.cli.namespace:attach",
    "ca": "swarm.cli.authority:ca",
    "client-cert": "swarm.cli.clientcert:client_cert",
    "completion": "swarm.cli.shell:completion",
    "daemon": "swarm.cli.daemon:daemon",
    "detach": "swarm.cli.namespace:detach",
    "endpoints": "swarm.cli.network:endpoints",
    "exec": "swarm.cli.container:execute",
    "gossip": "swarm.cli.gossip:gossip",
    "info": "swarm.cli.cluster:info",
    "init": "swarm.cli.cluster:init",
    "join": "swarm.cli.cluster:join",
    "join-token": "swarm.cli.cluster:join_token",
    "lab": "swarm.cli.lab:lab",
    "leave": "swarm.cli.cluster:leave",
    "logs": "swarm.cli.container:logs",
    "network": "swarm.cli.prune:network",
    "node": "swarm.cli.node:node",
    "ps": "swarm.cli.container:ps",
    "rm": "swarm.cli.container:rm",
    "rotate-keys": "swarm.cli.gossip:rotate_keys",
    "run": "swarm.cli.container:run",
    "scheduler": "swarm.cli.scheduler:scheduler",
    "service": "swarm.cli.service:service",
    "stop": "swarm.cli.container:stop",
    "unlock": "swarm.cli.lock:unlock",
    "unlock-key": "swarm.cli.lock:unlock_key",
    "update": "swarm.cli.lock:update",
}

EXIT_FLAG: Final = 125
"""Exit status of an unknown flag or a bad flag value, as docker's."""


class Tree(click.Group):
    """A group whose branches are imported when they are used, so that small commands start fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Return the names of every command."""
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import and return one command."""
        place = _COMMANDS.get(cmd_name)
        if place is None:
            return None
        module, _, attribute = place.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"swarm version {version('overswarm')}")
        ctx.exit()


@click.command(cls=Tree, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--host",
    metavar="unix:///PATH",
    envvar="SWARM_HOST",
    help="Socket of the daemon to talk to (environment: SWARM_HOST).",
)
@click.option(
    "--version",
    is_flag=True,
    callback=_print_version,
    expose_value=False,
    is_eager=True,
    help="Print the version and exit.",
)
@click.pass_context
def swarm(ctx: click.Context, host: str | None) -> None:
    """Private networks across hosts, managed by a swarm of nodes.

    Start here: 'swarm daemon' on each host, 'swarm init' on the first, the printed 'swarm join' on the
    others, 'swarm network create --attachable NAME', and 'swarm run --network NAME -- COMMAND'.
    A whole cluster on this one machine: 'swarm lab up'.
    """
    ctx.obj = host


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    sys.exit(invoke(sys.argv[1:] if arguments is None else arguments))


def invoke(arguments: list[str]) -> int:
    """Run the command line and return its exit status; errors become one line on standard error."""
    try:
        result: Any = swarm.main(args=arguments, prog_name="swarm", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.UsageError as error:
        hint = f" See '{error.ctx.command_path} --help'." if error.ctx is not None else ""
        _complain(error.format_message().rstrip(".") + "." + hint)
        wrong_flag = isinstance(
            error, click.NoSuchOption | click.BadOptionUsage | click.BadParameter
        )
        return EXIT_FLAG if wrong_flag and not isinstance(error, click.MissingParameter) else 1
    except click.ClickException as error:
        _complain(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing more may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SwarmError as error:
        _complain(str(error))
        return getattr(error, "exit_code", 1)
    except OSError as error:
        _complain(str(error))
        return 1
    return result if isinstance(result, int) else 0


def _complain(text: str) -> None:
    click.echo(f"Error: {text}", err=True)


if __name__ == "__main__":
    main()
