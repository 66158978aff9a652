"""``swarm lab``: a whole cluster on one machine."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarm.cli.output import print_list, steps
from swarm.errors import SwarmError

if TYPE_CHECKING:
    from swarm.lab.cluster import Lab

_COLUMNS = {
    "name": "HOST",
    "role": "ROLE",
    "address": "ADDRESS",
    "address6": "ADDRESS6",
    "netns": "NETNS",
    "daemon": "DAEMON",
}


def _lab(name: str) -> Lab:
    from swarm.lab.cluster import Lab

    return Lab(name)


@click.group()
@click.option(
    "--name", default="", envvar="SWARM_LAB", help="Which lab; several can exist side by side."
)
@click.pass_context
def lab(ctx: click.Context, name: str) -> None:
    """A cluster on this machine: every host a network namespace with a real daemon (root)."""
    ctx.obj = name


@lab.command()
@click.option("--managers", default=1, show_default=True)
@click.option("--workers", default=2, show_default=True)
@click.option("--mtu", default=1500, show_default=True, help="MTU of the underlay.")
@click.pass_obj
def up(name: str, managers: int, workers: int, mtu: int) -> None:
    """Make hosts m1.. and w1.., form a cluster, wait until every node is Ready."""
    from swarm.lab.cluster import Lab

    with steps() as shown, terminating():
        made = Lab(name, progress=shown.say)
        made.up(managers=managers, workers=workers, mtu=mtu)
    _print_status(made, "table")
    click.echo(f"\nTry: swarm lab exec {next(iter(made.state.hosts))} -- swarm node ls")


class terminating:  # noqa: N801  # reads as a statement
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that every way out cleans up."""

    def __enter__(self) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        self._before = [
            (number, signal.signal(number, interrupt)) for number in (signal.SIGTERM, signal.SIGHUP)
        ]

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)


@lab.command()
@click.pass_obj
def down(name: str) -> None:
    """Remove the lab; nothing of it stays on this machine."""
    with steps() as shown:
        shown.say("removing the lab")
        existed = _lab(name).down()
    click.echo("The lab is gone." if existed else "There is no lab.")


@lab.command(context_settings={"allow_interspersed_args": False})
@click.argument("host")
@click.argument(
    "argv", metavar="[--] COMMAND [ARG...]", nargs=-1, required=True, type=click.UNPROCESSED
)
@click.pass_obj
def exec(name: str, host: str, argv: tuple[str, ...]) -> int:  # noqa: A001  # the command's name
    """Run a command on HOST: its network, its host name, its daemon; the exit status is passed on."""
    from swarm.lab import enter, processes

    state = _lab(name).state
    state.require(host)
    words = list(argv[1:] if argv[0] == "--" else argv)
    if not words:
        raise click.UsageError("give a command after '--'")
    return enter.execute(
        str(state.netns(host)), str(state.uts(host)), words, processes.environment(state, host)
    )


@lab.command()
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@click.pass_obj
def status(name: str, form: str) -> None:
    """Show the hosts of the lab."""
    _print_status(_lab(name), form)


def _print_status(made: Lab, form: str) -> None:
    from swarm.lab.processes import alive

    state = made.state
    if form == "json":
        click.echo(json.dumps(state.describe(), indent=2))
        return
    if not state.hosts:
        click.echo("There is no lab; start one with 'swarm lab up'.")
        return
    rows = []
    for row, host in zip(state.describe()["hosts"], state.hosts.values(), strict=True):
        running = f"pid {host.pid}" if alive(host.pid, host.started) else "down"
        rows.append({**row, "daemon": "-" if host.role == "bare" else running})
    print_list(rows, _COLUMNS, form="table")


@lab.command()
@click.argument("host")
@click.option("-f", "--follow", is_flag=True, help="Go on as the log grows.")
@click.pass_obj
def logs(name: str, host: str, follow: bool) -> None:
    """Print the log of HOST's daemon and manager."""
    import time

    state = _lab(name).state
    state.require(host)
    path: Path = state.log(host)
    with path.open(errors="replace") as log:
        while True:
            text = log.read(65536)
            if text:
                click.echo(text, nl=False)
            elif not follow:
                return
            else:
                time.sleep(0.2)


@lab.command()
@click.argument("host")
@click.option(
    "--signal", "number", default=int(signal.SIGKILL), show_default=True, help="Signal number."
)
@click.option("--manager-only", is_flag=True, help="Only the manager process, not the agent.")
@click.pass_obj
def kill(name: str, host: str, number: int, manager_only: bool) -> None:
    """Kill HOST's daemon and manager; its containers stay."""
    pids = _lab(name).kill(host, number=number, manager_only=manager_only)
    click.echo(f"{host}: signal {number} to {', '.join(map(str, pids))}")


@lab.command()
@click.argument("host")
@click.pass_obj
def start(name: str, host: str) -> None:
    """Start HOST's daemon again."""
    _lab(name).start(host)
    click.echo(f"{host}: the daemon runs")


@lab.command()
@click.argument("host")
@click.pass_obj
def pause(name: str, host: str) -> None:
    """Stop HOST's control plane in its tracks (SIGSTOP)."""
    _lab(name).pause(host)


@lab.command()
@click.argument("host")
@click.pass_obj
def resume(name: str, host: str) -> None:
    """Let a paused HOST go on."""
    _lab(name).resume(host)


def _names(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


@lab.command()
@click.argument("left", metavar="A[,B...]")
@click.argument("right", metavar="C[,D...]")
@click.option("--one-way", is_flag=True, help="Only frames from left to right are lost.")
@click.pass_obj
def partition(name: str, left: str, right: str, one_way: bool) -> None:
    """Cut the underlay between two groups of hosts."""
    from swarm.lab.faults import Cut

    cuts = [Cut(sources=_names(left), targets=_names(right))]
    if not one_way:
        cuts.append(Cut(sources=_names(right), targets=_names(left)))
    _lab(name).break_underlay(cuts)


@lab.command()
@click.argument("host")
@click.option("--percent", type=float, required=True)
@click.pass_obj
def loss(name: str, host: str, percent: float) -> None:
    """Lose so many percent of the frames from and to HOST."""
    from swarm.lab.faults import Loss, check_percent

    _lab(name).break_underlay([Loss(host=host, percent=check_percent(percent))])


@lab.command()
@click.pass_obj
def heal(name: str) -> None:
    """Mend every partition and loss."""
    _lab(name).break_underlay([])


@lab.group()
def host() -> None:
    """Bare hosts, for a real Docker engine or a client from outside."""


@host.command()
@click.argument("host_name", metavar="NAME")
@click.pass_obj
def add(name: str, host_name: str) -> None:
    """Add a host on the same underlay where nothing of ours runs."""
    added = _lab(name).add_bare(host_name)
    click.echo(f"{added.name}: {added.address} {added.address6}")


@host.command()
@click.argument("host_name", metavar="NAME")
@click.pass_obj
def rm(name: str, host_name: str) -> None:
    """Remove a bare host and whatever runs on it."""
    _lab(name).remove_bare(host_name)
    click.echo(host_name)


@lab.command()
@click.option("--encrypted", is_flag=True, help="On an encrypted network, watched on the wire.")
@click.pass_obj
def demo(name: str, *, encrypted: bool) -> int:
    """Run the main job from start to end: each step announced, timed and checked."""
    from swarm.lab.demo import Demo, run_demo
    from swarm.lab.demo_encrypted import EncryptedDemo

    with terminating():
        try:
            return run_demo(name or "demo", EncryptedDemo if encrypted else Demo)
        except SwarmError as error:
            click.echo(f"Error: {error}", err=True)
            return 1


@lab.command("demo-docker")
@click.pass_obj
def demo_docker(name: str) -> int:
    """Show clusters mixed of our daemons and stock Docker engines, each step checked (needs docker.io)."""
    from swarm.lab.demo_docker import run_demo

    with terminating():
        try:
            return run_demo(name or "demodocker")
        except SwarmError as error:
            click.echo(f"Error: {error}", err=True)
            return 1
