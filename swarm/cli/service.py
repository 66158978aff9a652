"""``swarm service``: what is to run, and where it is reached; a scheduler places its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import click

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2
from swarm.cli import mesh, ports, tasks
from swarm.cli.listing import Listing, listing
from swarm.cli.lookup import pick
from swarm.cli.node import all_nodes, hostname
from swarm.cli.output import FORMAT_HELP, natural, print_objects
from swarm.cli.parse import Duration, label_match
from swarm.cli.servicespec import changed, scaled, spec_of
from swarm.cli.serviceview import as_docker, mode, print_pretty
from swarm.cli.several import for_each
from swarm.client import Client, connect
from swarm.model import (
    PublishMode,
    Service,
    ServiceSpec,
    Task,
)

_CALL_SECONDS = 30
_ID_CHARS = 12
_STATUSES = 1000  # managers take no more in one question
_COLUMNS = {
    "ID": "ID",
    "Name": "NAME",
    "Mode": "MODE",
    "Replicas": "REPLICAS",
    "Image": "IMAGE",
    "Ports": "PORTS",
}


def all_services(client: Client) -> list[Service]:
    """Return every service, in natural order of names."""
    answer = client.control.ListServices(control_pb2.ListServicesRequest(), timeout=_CALL_SECONDS)
    services = [codec.decode(Service, each) for each in answer.services]
    return sorted(services, key=lambda each: natural(each.spec.annotations.name))


def resolve_service(client: Client, text: str) -> Service:
    """Return the service that an id, a name or an unambiguous id prefix means.

    Raises:
        NotFoundError: no service is called so.
        ConflictError: several are.
    """
    return pick(
        "service", text, all_services(client), lambda each: (each.id, each.spec.annotations.name)
    )


_detached = click.option(
    "-d",
    "--detach",
    is_flag=True,
    expose_value=False,
    help="Taken for docker's sake: this never waits for a scheduler.",
)


@click.group()
def service() -> None:
    """Manage services (on a manager).

    The managers store a service and give it its virtual addresses and ports. Its tasks are placed by a
    scheduler: one of your own, or 'swarm scheduler run'.
    """


@service.command()
@click.argument("command", nargs=-1)
@click.option("--name", help="Its name in the swarm and in DNS.")
@click.option("--image", default="", help="Run COMMAND in this image, on Docker engines.")
@click.option("--mode", type=click.Choice(["replicated", "global"]), default="replicated")
@click.option("--replicas", type=click.IntRange(min=0), help="Number of tasks; 1 by default.")
@click.option(
    "--endpoint-mode",
    type=click.Choice(["vip", "dnsrr"]),
    default="vip",
    help="The name resolves to one virtual address, or to every task's.",
)
@click.option(
    "-p",
    "--publish",
    multiple=True,
    metavar="PORT",
    help="[PUBLISHED:]TARGET[/PROTOCOL], or target=,published=,protocol=,mode=ingress|host.",
)
@click.option(
    "--network", multiple=True, metavar="NETWORK", help="NAME, or name=NAME,alias=ALIAS..."
)
@click.option("-e", "--env", multiple=True, metavar="KEY=VALUE")
@click.option("-w", "--workdir", default="", help="Working directory.")
@click.option("--hostname", default="", help="Host name inside the tasks.")
@click.option("-l", "--label", multiple=True, metavar="KEY=VALUE")
@click.option(
    "--constraint", multiple=True, metavar="EXPRESSION", help="Such as node.role==worker."
)
@click.option(
    "--replicas-max-per-node", type=click.IntRange(min=0), default=0, help="0 for no limit."
)
@click.option("--restart-condition", type=click.Choice(["none", "on-failure", "any"]))
@click.option("--restart-delay", type=Duration(), metavar="DURATION", help="5s by default.")
@click.option("--restart-max-attempts", type=click.IntRange(min=0), default=0)
@click.option("--update-parallelism", type=click.IntRange(min=0), help="1 by default; 0 for all.")
@click.option("--update-order", type=click.Choice(["stop-first", "start-first"]))
@_detached
@click.pass_obj
def create(host: str | None, /, command: tuple[str, ...], **flags: Any) -> None:
    """Create a service that runs COMMAND, and print its id.

    Its tasks appear as soon as a scheduler places them ('swarm scheduler run').
    """
    if flags["mode"] == "global" and flags["replicas"] is not None:
        raise click.UsageError("replicas can only be used with replicated mode")
    if not command and not flags["image"]:
        raise click.UsageError("give a command to run, or an --image")
    with connect(host) as client:
        spec = spec_of(client, command, flags)
        answer = client.control.CreateService(
            control_pb2.CreateServiceRequest(spec=_encoded(spec)), timeout=_CALL_SECONDS
        )
    click.echo(answer.service.id)


@service.command("ls")
@listing("id", "label", "mode", "name")
@click.pass_obj
def ls(host: str | None, asked: Listing) -> None:
    """List services."""
    with connect(host) as client:
        services = [each for each in all_services(client) if _matches(each, asked.chosen)]
        status = _statuses(client, [each.id for each in services])
    rows = [
        {
            "ID": each.id[:_ID_CHARS],
            "Name": each.spec.annotations.name,
            "Mode": mode(each.spec),
            "Replicas": f"{status[each.id].running_tasks}/{status[each.id].desired_tasks}",
            "Image": tasks.what(each.spec.task),
            "Ports": ports.shown(each.endpoint.ports if each.endpoint else (), PublishMode.INGRESS),
        }
        for each in services
    ]
    asked.show(rows, _COLUMNS)


def _statuses(client: Client, ids: Sequence[str]) -> dict[str, Any]:
    found = {}
    for start in range(0, len(ids), _STATUSES):
        answer = client.control.ListServiceStatuses(
            control_pb2.ListServiceStatusesRequest(services=ids[start : start + _STATUSES]),
            timeout=_CALL_SECONDS,
        )
        found.update({each.service_id: each for each in answer.statuses})
    return found


def _matches(item: Service, chosen: Mapping[str, list[str]]) -> bool:
    annotations = item.spec.annotations
    return (
        ("id" not in chosen or any(item.id.startswith(text) for text in chosen["id"]))
        and (
            "name" not in chosen
            or any(annotations.name.startswith(text) for text in chosen["name"])
        )
        and ("mode" not in chosen or mode(item.spec) in chosen["mode"])
        and label_match(dict(annotations.labels), chosen.get("label", []))
    )


@service.command()
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@click.option("-f", "--format", "form", default="", help=FORMAT_HELP)
@click.option("--pretty", is_flag=True, help="Print it for people.")
@click.pass_obj
def inspect(host: str | None, names: tuple[str, ...], form: str, pretty: bool) -> None:
    """Show services in full."""
    with connect(host) as client:
        found = [resolve_service(client, name) for name in names]
        seen = _source_addresses(client, found)
    if pretty:
        for each in found:
            print_pretty(each, mesh.shown(seen[each.id]))
        return
    print_objects([as_docker(each, seen[each.id]) for each in found], form=form)


def _source_addresses(client: Client, services: Sequence[Service]) -> dict[str, dict[str, Any]]:
    """Return what becomes of clients' addresses, for each service."""
    request = control_pb2.ListTasksRequest()
    request.filters.service_ids.extend(each.id for each in services)
    answer = client.control.ListTasks(request, timeout=_CALL_SECONDS)
    found = [codec.decode(Task, each) for each in answer.tasks]
    nodes = {each.id: each for each in all_nodes(client)}
    return {
        item.id: mesh.source_address(
            item, [each for each in found if each.service_id == item.id], nodes
        )
        for item in services
    }


@service.command("ps")
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@listing("id", "name", "node", "desired-state", whole="Print whole ids and errors.")
@click.pass_obj
def ps(host: str | None, names: tuple[str, ...], asked: Listing) -> None:
    """List the tasks of services, past ones below those that follow them."""
    with connect(host) as client:
        services = [resolve_service(client, name) for name in names]
        request = control_pb2.ListTasksRequest()
        request.filters.service_ids.extend(each.id for each in services)
        answer = client.control.ListTasks(request, timeout=_CALL_SECONDS)
        nodes = {each.id: hostname(each) for each in all_nodes(client)}
    found = [codec.decode(Task, each) for each in answer.tasks]
    tasks.show(found, nodes, asked)


@service.command()
@click.argument("name", metavar="SERVICE")
@click.option("--image", help="Another image.")
@click.option("--args", metavar="COMMAND", help="Another command, as one text.")
@click.option("--replicas", type=click.IntRange(min=0))
@click.option("--endpoint-mode", type=click.Choice(["vip", "dnsrr"]))
@click.option("--publish-add", multiple=True, metavar="PORT", help="As --publish of create.")
@click.option("--publish-rm", multiple=True, metavar="TARGET[/PROTOCOL]")
@click.option("--network-add", multiple=True, metavar="NETWORK")
@click.option("--network-rm", multiple=True, metavar="NETWORK")
@click.option("--env-add", multiple=True, metavar="KEY=VALUE")
@click.option("--env-rm", multiple=True, metavar="KEY")
@click.option("--label-add", multiple=True, metavar="KEY=VALUE")
@click.option("--label-rm", multiple=True, metavar="KEY")
@click.option("--update-parallelism", type=click.IntRange(min=0))
@click.option("--update-order", type=click.Choice(["stop-first", "start-first"]))
@click.option("--force", is_flag=True, help="Replace every task even if nothing changes.")
@click.option("--rollback", is_flag=True, help="Go back to the spec before; nothing else changes.")
@_detached
@click.pass_obj
def update(host: str | None, /, name: str, **flags: Any) -> None:
    """Change a service; a scheduler replaces its tasks."""
    if not any(value not in {None, (), False} for value in map(_hashable, flags.values())):
        raise click.UsageError("nothing to change: see the flags")
    with connect(host) as client:
        current = resolve_service(client, name)
        if flags["rollback"]:
            _send(client, current, None)
        else:
            _send(client, current, changed(client, current.spec, flags))
    click.echo(name)


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _send(client: Client, current: Service, spec: ServiceSpec | None) -> None:
    request = control_pb2.UpdateServiceRequest(service_id=current.id)
    request.service_version.index = current.meta.version.index
    if spec is None:
        request.rollback = control_pb2.UpdateServiceRequest.PREVIOUS
    else:
        request.spec.CopyFrom(_encoded(spec))
    client.control.UpdateService(request, timeout=_CALL_SECONDS)


@service.command()
@click.argument("targets", metavar="SERVICE=REPLICAS...", nargs=-1, required=True)
@_detached
@click.pass_obj
def scale(host: str | None, targets: tuple[str, ...]) -> int:
    """Change the number of tasks of services."""
    for target in targets:
        _, _, count = target.partition("=")
        if not count.isascii() or not count.isdigit():
            raise click.UsageError(f"{target!r} is not SERVICE=REPLICAS")

    def act(client: Client, target: str) -> str:
        name, _, count = target.partition("=")
        current = resolve_service(client, name)
        spec = replace(current.spec, replicated=scaled(current.spec, int(count)))
        _send(client, current, spec)
        return f"{name} scaled to {count}"

    return for_each(host, targets, act)


@service.command()
@_detached
@click.argument("name", metavar="SERVICE")
@click.pass_obj
def rollback(host: str | None, name: str) -> None:
    """Go back to a service's spec before the last change."""
    with connect(host) as client:
        _send(client, resolve_service(client, name), None)
    click.echo(name)


@service.command()
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@click.pass_obj
def rm(host: str | None, names: tuple[str, ...]) -> int:
    """Remove services; their tasks end."""

    def act(client: Client, name: str) -> None:
        request = control_pb2.RemoveServiceRequest(service_id=resolve_service(client, name).id)
        client.control.RemoveService(request, timeout=_CALL_SECONDS)

    return for_each(host, names, act)


def _encoded(value: object) -> Any:
    """Return a model object's message, typed loosely: which one follows from the object's class."""
    return codec.encode(value)
