"""``swarm scheduler``: the spread scheduler, for small clusters and for trying out."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import click

from swarm.client import DEFAULT_HOST, socket_path
from swarm.log import LEVELS, configure
from swarm.scheduler import (
    Keeper,
    SchedulerClient,
    connect,
    connect_local,
    load_credentials,
    load_managers,
)


@click.group()
def scheduler() -> None:
    """Run a scheduler: the managers store services, a scheduler places their tasks."""


@scheduler.command()
@click.option(
    "--cert",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Directory that 'swarm client-cert create' made; without it, this host must be a manager.",
)
@click.option("--manager", "managers", multiple=True, metavar="HOST:PORT", help="A manager to use.")
@click.option("--service", "names", multiple=True, metavar="NAME", help="Keep only these services.")
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
@click.pass_obj
def run(
    host: str | None,
    cert: Path | None,
    managers: tuple[str, ...],
    names: tuple[str, ...],
    log_level: str,
) -> None:
    """Keep the tasks of services running, spread over the nodes, until interrupted.

    One scheduler is enough, and two would fight over the same services. When it is not running, tasks
    go on, but nothing replaces those that are lost.
    """
    configure(level=log_level)
    with tempfile.TemporaryDirectory(prefix="swarm-scheduler-") as sockets:
        if cert is None:
            path = socket_path(host or os.environ.get("SWARM_HOST") or DEFAULT_HOST)
            connection = connect_local(path)
        else:
            connection = connect(
                managers or load_managers(cert), load_credentials(cert), directory=Path(sockets)
            )
        asyncio.run(_run(connection, names))


async def _run(
    connection: AbstractAsyncContextManager[SchedulerClient], names: tuple[str, ...]
) -> None:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # told to the type checker; a coroutine runs in one
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        async with connection as client:
            await client.nodes()  # a wrong address or certificate is said at once
            await Keeper(client, names).run()
