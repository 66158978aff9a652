"""``swarm run``, ``exec``, ``ps``, ``logs``, ``stop`` and ``rm``."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Mapping
from typing import Any

import click

from swarm.api.overswarm.v1 import local_pb2
from swarm.cli.listing import Listing, listing
from swarm.cli.output import rfc3339, since
from swarm.cli.parse import pairs, published, shown
from swarm.cli.several import for_each
from swarm.cli.stream import converse, window
from swarm.client import Client, CommandNotStartedError, connect
from swarm.errors import SwarmError

_CALL_SECONDS = 30
_START_SECONDS = 60
_ID_CHARS = 12
_COMMAND_CHARS = 30
_NANO = 1_000_000_000
_COLUMNS = {
    "ID": "CONTAINER ID",
    "Command": "COMMAND",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Ports": "PORTS",
    "Networks": "NETWORKS",
    "Names": "NAMES",
}


class _DaemonFailureError(SwarmError):
    """``run`` and ``exec`` keep 125 for failures that are not the command's own."""

    exit_code = 125


@click.command(context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Print the id and return; the command goes on.")
@click.option(
    "--name", default="", help="Name of the container; others resolve it on its networks."
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="Network to attach to; the first gives eth0, the next eth1, ...",
)
@click.option("--network-alias", "aliases", multiple=True, help="Another name on the networks.")
@click.option(
    "-p",
    "--publish",
    multiple=True,
    metavar="[[ADDRESS:]HOSTPORT:]PORT[/PROTOCOL]",
    help="Lead a port of this host to the container; ranges as 8000-8009:80-89.",
)
@click.option("--ip", default="", help="IPv4 address on the first network.")
@click.option("--ip6", default="", help="IPv6 address on the first network.")
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE")
@click.option("-w", "--workdir", default="/", show_default=True)
@click.option("--hostname", default="", help="Host name inside; the start of the id when absent.")
@click.option("-l", "--label", multiple=True, metavar="KEY=VALUE")
@click.option(
    "--dns", multiple=True, metavar="ADDRESS", help="Name server for names outside the swarm."
)
@click.option("--dns-search", multiple=True, metavar="DOMAIN")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "--rm", "auto_remove", is_flag=True, help="Remove the container when its command ends."
)
@click.argument(
    "argv", metavar="-- COMMAND [ARG...]", nargs=-1, required=True, type=click.UNPROCESSED
)
@click.pass_obj
def run(host: str | None, /, argv: tuple[str, ...], **flags: Any) -> int:
    """Run a command in network, mount and uts namespaces of its own, attached to overlay networks."""
    request = local_pb2.CreateContainerRequest(
        name=flags["name"],
        argv=argv,
        env=[f"{key}={value}" for key, value in pairs(flags["env"], what="--env").items()],
        cwd=flags["workdir"],
        hostname=flags["hostname"],
        tty=flags["tty"],
        stdin_open=flags["interactive"],
        auto_remove=flags["auto_remove"],
        networks=_wishes(flags),
        labels=pairs(flags["label"], what="--label"),
        dns=flags["dns"],
        dns_search=flags["dns_search"],
        publish=[text for each in flags["publish"] for text in published(each)],
    )
    try:
        with connect(host) as client:
            created = client.local.CreateContainer(request, timeout=_CALL_SECONDS)
            if flags["detach"]:
                _start(client, created.id)
                click.echo(created.id)
                return 0
            rows, columns = window()
            opening = local_pb2.StreamOpen(
                container=created.id,
                tty=flags["tty"],
                stdin_open=flags["interactive"],
                rows=rows,
                columns=columns,
            )
            return converse(
                client.local.AttachContainer, opening, started=lambda: _start(client, created.id)
            )
    except CommandNotStartedError:
        raise
    except SwarmError as error:
        raise _DaemonFailureError(str(error)) from error


def _wishes(flags: dict[str, Any]) -> list[local_pb2.NetworkWish]:
    wishes = [
        local_pb2.NetworkWish(network=name, aliases=flags["aliases"]) for name in flags["networks"]
    ]
    if not wishes and (flags["ip"] or flags["ip6"] or flags["aliases"]):
        raise click.BadParameter("addresses and aliases need a --network", param_hint="--ip")
    if wishes:
        wishes[0].ipv4, wishes[0].ipv6 = flags["ip"], flags["ip6"]
    return wishes


def _start(client: Client, container: str) -> None:
    client.local.StartContainer(
        local_pb2.StartContainerRequest(container=container), timeout=_START_SECONDS
    )


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE")
@click.option("-w", "--workdir", default="", help="Working directory; the container's when absent.")
@click.option("-i", "--interactive", is_flag=True, help="Pass standard input on.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.argument("container")
@click.argument(
    "argv", metavar="[--] COMMAND [ARG...]", nargs=-1, required=True, type=click.UNPROCESSED
)
@click.pass_obj
def execute(
    host: str | None,
    container: str,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    workdir: str,
    interactive: bool,
    tty: bool,
) -> int:
    """Run one more command inside a running container."""
    rows, columns = window()
    words = argv[1:] if argv[0] == "--" else argv
    opening = local_pb2.StreamOpen(
        container=container,
        argv=words,
        cwd=workdir,
        tty=tty,
        stdin_open=interactive,
        env=[f"{key}={value}" for key, value in pairs(env, what="--env").items()],
        rows=rows,
        columns=columns,
    )
    try:
        with connect(host) as client:
            return converse(client.local.ExecContainer, opening)
    except CommandNotStartedError:
        raise
    except SwarmError as error:
        raise _DaemonFailureError(str(error)) from error


@click.command()
@click.option(
    "-a", "--all", "everything", is_flag=True, help="Also show containers that have ended."
)
@listing("id", "name", "network", "status", "label", whole="Print whole ids and commands.")
@click.pass_obj
def ps(host: str | None, everything: bool, asked: Listing) -> None:
    """List the containers of this host."""
    with connect(host) as client:
        request = local_pb2.ListContainersRequest(all=everything or "status" in asked.chosen)
        found = client.local.ListContainers(request, timeout=_CALL_SECONDS).containers
    rows = [_row(each, no_trunc=asked.whole) for each in found if _matches(each, asked.chosen)]
    asked.show(rows, _COLUMNS)


def _state(container: local_pb2.Container) -> str:
    return local_pb2.ContainerState.Name(container.state).removeprefix("CONTAINER_STATE_").lower()


def _matches(container: local_pb2.Container, chosen: Mapping[str, list[str]]) -> bool:
    networks = {endpoint.network_name for endpoint in container.endpoints}
    networks |= {endpoint.network_id for endpoint in container.endpoints}
    labels = {f"{key}={value}" for key, value in container.labels.items()} | set(container.labels)
    return (
        ("id" not in chosen or any(container.id.startswith(text) for text in chosen["id"]))
        and ("name" not in chosen or any(text in container.name for text in chosen["name"]))
        and ("network" not in chosen or bool(networks.intersection(chosen["network"])))
        and ("status" not in chosen or _state(container) in chosen["status"])
        and ("label" not in chosen or labels.issuperset(chosen["label"]))
    )


def _row(container: local_pb2.Container, *, no_trunc: bool) -> dict[str, Any]:
    command = shlex.join(container.argv)
    if not no_trunc and len(command) > _COMMAND_CHARS:
        command = command[: _COMMAND_CHARS - 1] + "…"
    created = container.created_at.ToNanoseconds()
    return {
        "ID": container.id if no_trunc else container.id[:_ID_CHARS],
        "Command": f'"{command}"',
        "RunningFor": f"{since(created)} ago",
        "CreatedAt": rfc3339(created),
        "Status": _status(container),
        "State": _state(container),
        "Ports": ", ".join(sorted(map(shown, container.published))),
        "Networks": ", ".join(
            f"{endpoint.network_name} ({', '.join(text.split('/')[0] for text in endpoint.addresses)})"
            for endpoint in container.endpoints
        ),
        "Names": container.name,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(container.labels.items())),
    }


def _status(container: local_pb2.Container) -> str:
    state = container.state
    if state == local_pb2.CONTAINER_STATE_RUNNING:
        return f"Up {since(container.started_at.ToNanoseconds())}"
    if state == local_pb2.CONTAINER_STATE_EXITED:
        return f"Exited ({container.exit_code}) {since(container.finished_at.ToNanoseconds())} ago"
    return _state(container).capitalize()


@click.command()
@click.argument("container")
@click.option("-f", "--follow", is_flag=True, help="Go on until the command ends.")
@click.pass_obj
def logs(host: str | None, container: str, follow: bool) -> None:
    """Print what a container's command wrote."""
    with connect(host) as client:
        request = local_pb2.LogsContainerRequest(container=container, follow=follow)
        for part in client.local.LogsContainer(request):
            kind = part.WhichOneof("kind")
            stream = sys.stdout if kind == "stdout" else sys.stderr
            stream.buffer.write(getattr(part, kind or ""))
            stream.flush()


def _signal_number(text: str) -> int:
    name = text.upper().removeprefix("SIG")
    if name.isdigit():
        return int(name)
    try:
        return signal.Signals[f"SIG{name}"].value
    except KeyError as error:
        raise click.BadParameter(f"no signal {text!r}", param_hint="--signal") from error


@click.command()
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@click.option("-s", "--signal", "name", default="TERM", show_default=True)
@click.option(
    "-t",
    "--timeout",
    "grace",
    type=float,
    default=10.0,
    show_default=True,
    help="Seconds until the command is killed.",
)
@click.pass_obj
def stop(host: str | None, containers: tuple[str, ...], name: str, grace: float) -> int:
    """Stop containers."""
    number = _signal_number(name)

    def act(client: Client, container: str) -> None:
        request = local_pb2.StopContainerRequest(container=container, signal=number, grace=grace)
        client.local.StopContainer(request, timeout=grace + _CALL_SECONDS)

    return for_each(host, containers, act)


@click.command()
@click.argument("containers", metavar="CONTAINER...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Kill it first if it runs.")
@click.pass_obj
def rm(host: str | None, containers: tuple[str, ...], force: bool) -> int:
    """Remove containers; their addresses are free again."""

    def act(client: Client, container: str) -> None:
        request = local_pb2.RemoveContainerRequest(container=container, force=force)
        client.local.RemoveContainer(request, timeout=_CALL_SECONDS)

    return for_each(host, containers, act)
