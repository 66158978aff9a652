"""``swarm service``: what is to run, and where it is reached; a scheduler places its tasks."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
from google.protobuf import any_pb2

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2, specs_pb2
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.cli import mesh, ports, tasks
from swarm.cli.lookup import pick
from swarm.cli.network import resolve_network
from swarm.cli.node import all_nodes, hostname
from swarm.cli.output import FORMAT_HELP, natural, print_list, print_objects, rfc3339
from swarm.cli.parse import Duration, filters, label_match, pairs
from swarm.cli.several import for_each
from swarm.client import Client, connect
from swarm.errors import InvalidArgumentError
from swarm.model import (
    Annotations,
    EndpointResolutionMode,
    EndpointSpec,
    GenericRuntimeSpec,
    NetworkAttachmentConfig,
    PortConfig,
    PublishMode,
    ReplicatedService,
    Service,
    ServiceSpec,
    Task,
    TaskSpec,
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
        spec = _spec(client, command, flags)
        answer = client.control.CreateService(
            control_pb2.CreateServiceRequest(spec=_encoded(spec)), timeout=_CALL_SECONDS
        )
    click.echo(answer.service.id)


def _spec(client: Client, command: tuple[str, ...], flags: dict[str, Any]) -> ServiceSpec:
    runtime = _container(command, flags) if flags["image"] else _process(command, flags)
    replicated = flags["mode"] == "replicated"
    name = flags["name"] or ((command[0] if command else flags["image"]).rpartition("/")[2])
    return ServiceSpec(
        annotations=Annotations(
            name=name.partition(":")[0], labels=pairs(flags["label"], what="--label")
        ),
        task=replace(
            runtime,
            networks=tuple(_network(client, text) for text in flags["network"]),
            restart=_restart(flags),
            placement=_placement(flags["constraint"], flags["replicas_max_per_node"]),
        ),
        replicated=(
            ReplicatedService(replicas=1 if flags["replicas"] is None else flags["replicas"])
            if replicated
            else None
        ),
        global_=None if replicated else b"",
        update=_update(flags["update_parallelism"], flags["update_order"]),
        endpoint=EndpointSpec(
            mode=EndpointResolutionMode[flags["endpoint_mode"].upper()],
            ports=ports.service_ports(flags["publish"]),
        ),
    )


def _process(command: Sequence[str], flags: dict[str, Any]) -> TaskSpec:
    payload = any_pb2.Any()
    payload.Pack(
        scheduler_pb2.Process(
            argv=command,
            env=_env(flags["env"]),
            cwd=flags["workdir"],
            hostname=flags["hostname"],
        )
    )
    return TaskSpec(
        generic=GenericRuntimeSpec(
            kind=tasks.PROCESS, payload=payload.SerializeToString(deterministic=True)
        )
    )


def _container(command: Sequence[str], flags: dict[str, Any]) -> TaskSpec:
    container = specs_pb2.ContainerSpec(
        image=flags["image"],
        args=command,
        env=_env(flags["env"]),
        dir=flags["workdir"],
        hostname=flags["hostname"],
    )
    return TaskSpec(container=container.SerializeToString(deterministic=True))


def _env(texts: Sequence[str]) -> list[str]:
    for text in texts:
        if text.find("=") < 1:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE", param_hint="--env")
    return list(texts)


def _network(client: Client, text: str) -> NetworkAttachmentConfig:
    """Return the attachment that ``--network`` means, by the network's id as docker sends it."""
    if "=" not in text:
        return NetworkAttachmentConfig(target=resolve_network(client, text).id)
    name, aliases, options = "", [], {}
    for part in text.split(","):
        key, _, value = part.partition("=")
        match key:
            case "name":
                name = value
            case "alias":
                aliases.append(value)
            case "driver-opt":
                option, _, content = value.partition("=")
                options[option] = content
            case _:
                raise click.BadParameter(f"{part!r} is not name=, alias= or driver-opt=")
    if not name:
        raise click.BadParameter(f"{text!r} names no network", param_hint="--network")
    return NetworkAttachmentConfig(
        target=resolve_network(client, name).id,
        aliases=tuple(aliases),
        driver_attachment_opts=options,
    )


def _restart(flags: dict[str, Any]) -> bytes | None:
    condition, delay = flags["restart_condition"], flags["restart_delay"]
    attempts = flags["restart_max_attempts"]
    if condition is None and delay is None and not attempts:
        return None
    names = {
        "none": specs_pb2.RESTART_CONDITION_NONE,
        "on-failure": specs_pb2.RESTART_CONDITION_ON_FAILURE,
        "any": specs_pb2.RESTART_CONDITION_ANY,
    }
    policy = specs_pb2.RestartPolicy(condition=names[condition or "any"], max_attempts=attempts)
    if delay is not None:
        policy.delay.FromNanoseconds(delay)
    return policy.SerializeToString()


def _placement(constraints: Sequence[str], limit: int) -> bytes | None:
    from swarm.scheduler.constraints import parse

    try:
        for text in constraints:
            parse(text)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error), param_hint="--constraint") from error
    if not constraints and not limit:
        return None
    return specs_pb2.Placement(constraints=constraints, max_replicas=limit).SerializeToString()


def _update(
    parallelism: int | None, order: str | None, before: bytes | None = None
) -> bytes | None:
    if parallelism is None and order is None:
        return before
    config = specs_pb2.UpdateConfig.FromString(before or b"")
    if before is None or parallelism is not None:
        config.parallelism = 1 if parallelism is None else parallelism
    if order is not None:
        config.order = (
            specs_pb2.UPDATE_ORDER_START_FIRST
            if order == "start-first"
            else specs_pb2.UPDATE_ORDER_STOP_FIRST
        )
    return config.SerializeToString()


@service.command("ls")
@click.option(
    "-f", "--filter", "wanted", multiple=True, metavar="NAME=VALUE", help="id, label, mode or name."
)
@click.option("--format", "form", default="table", help=FORMAT_HELP)
@click.option("-q", "--quiet", is_flag=True, help="Only print ids.")
@click.pass_obj
def ls(host: str | None, wanted: tuple[str, ...], form: str, quiet: bool) -> None:
    """List services."""
    chosen = filters(wanted, known={"id", "label", "mode", "name"})
    with connect(host) as client:
        services = [each for each in all_services(client) if _matches(each, chosen)]
        status = _statuses(client, [each.id for each in services])
    rows = [
        {
            "ID": each.id[:_ID_CHARS],
            "Name": each.spec.annotations.name,
            "Mode": _mode(each.spec),
            "Replicas": f"{status[each.id].running_tasks}/{status[each.id].desired_tasks}",
            "Image": tasks.what(each.spec.task),
            "Ports": ports.shown(each.endpoint.ports if each.endpoint else (), PublishMode.INGRESS),
        }
        for each in services
    ]
    print_list(rows, _COLUMNS, form=form, quiet="ID" if quiet else "")


def _statuses(client: Client, ids: Sequence[str]) -> dict[str, Any]:
    found = {}
    for start in range(0, len(ids), _STATUSES):
        answer = client.control.ListServiceStatuses(
            control_pb2.ListServiceStatusesRequest(services=ids[start : start + _STATUSES]),
            timeout=_CALL_SECONDS,
        )
        found.update({each.service_id: each for each in answer.statuses})
    return found


def _matches(item: Service, chosen: dict[str, list[str]]) -> bool:
    annotations = item.spec.annotations
    return (
        ("id" not in chosen or any(item.id.startswith(text) for text in chosen["id"]))
        and (
            "name" not in chosen
            or any(annotations.name.startswith(text) for text in chosen["name"])
        )
        and ("mode" not in chosen or _mode(item.spec) in chosen["mode"])
        and label_match(dict(annotations.labels), chosen.get("label", []))
    )


def _mode(spec: ServiceSpec) -> str:
    names = ("replicated", "global_", "replicated_job", "global_job")
    found = next((name for name in names if getattr(spec, name) is not None), "")
    return found.rstrip("_").replace("_", "-")


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
            _print_pretty(each, mesh.shown(seen[each.id]))
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


def as_docker(item: Service, source: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a service as docker's API shows it, with ``SourceAddress``, which is ours."""
    result: dict[str, Any] = {
        "ID": item.id,
        "Version": {"Index": item.meta.version.index},
        "CreatedAt": rfc3339(item.meta.created_at),
        "UpdatedAt": rfc3339(item.meta.updated_at),
        "Spec": _spec_as_docker(item.spec),
    }
    if item.previous_spec is not None:
        result["PreviousSpec"] = _spec_as_docker(item.previous_spec)
    endpoint: dict[str, Any] = {"Spec": {}}
    if item.endpoint is not None:
        endpoint["Spec"] = _endpoint_as_docker(item.endpoint.spec)
        if item.endpoint.ports:
            endpoint["Ports"] = [_port_as_docker(each) for each in item.endpoint.ports]
        if item.endpoint.virtual_ips:
            endpoint["VirtualIPs"] = [
                {"NetworkID": each.network_id, "Addr": each.addr}
                for each in item.endpoint.virtual_ips
            ]
    if source:
        endpoint["SourceAddress"] = source
    result["Endpoint"] = endpoint
    return result


def _spec_as_docker(spec: ServiceSpec) -> dict[str, Any]:
    template: dict[str, Any] = {}
    if spec.task.container is not None:
        container = specs_pb2.ContainerSpec.FromString(spec.task.container)
        template["ContainerSpec"] = {"Image": container.image}
        for key, values in (("Args", container.args), ("Env", container.env)):
            if values:
                template["ContainerSpec"][key] = list(values)
    process = tasks.process_of(spec.task)
    if process is not None:
        template["ProcessSpec"] = {
            "Args": list(process.argv),
            "Env": list(process.env),
            "Dir": process.cwd,
            "Hostname": process.hostname,
        }
    elif spec.task.generic is not None:
        template["GenericSpec"] = {
            "Kind": spec.task.generic.kind,
            "Payload": base64.b64encode(spec.task.generic.payload or b"").decode(),
        }
    networks = spec.task.networks or spec.networks
    if networks:
        template["Networks"] = [
            {"Target": each.target, **({"Aliases": list(each.aliases)} if each.aliases else {})}
            for each in networks
        ]
    if spec.task.placement is not None:
        placement = specs_pb2.Placement.FromString(spec.task.placement)
        template["Placement"] = {
            "Constraints": list(placement.constraints),
            "MaxReplicas": placement.max_replicas,
        }
    template["ForceUpdate"] = spec.task.force_update
    mode: dict[str, Any] = {"Global": {}}
    if spec.replicated is not None:
        mode = {"Replicated": {"Replicas": spec.replicated.replicas}}
    return {
        "Name": spec.annotations.name,
        "Labels": dict(spec.annotations.labels),
        "TaskTemplate": template,
        "Mode": mode,
        "EndpointSpec": _endpoint_as_docker(spec.endpoint),
    }


def _endpoint_as_docker(spec: EndpointSpec | None) -> dict[str, Any]:
    spec = spec or EndpointSpec()
    result: dict[str, Any] = {"Mode": spec.mode.name.lower()}
    if spec.ports:
        result["Ports"] = [_port_as_docker(each) for each in spec.ports]
    return result


def _port_as_docker(port: PortConfig) -> dict[str, Any]:
    result: dict[str, Any] = {
        "Protocol": port.protocol.name.lower(),
        "TargetPort": port.target_port,
        "PublishMode": port.publish_mode.name.lower(),
    }
    if port.published_port:
        result["PublishedPort"] = port.published_port
    return result


def _print_pretty(item: Service, source: str) -> None:
    spec = item.spec
    addresses = item.endpoint.virtual_ips if item.endpoint else ()
    published = item.endpoint.ports if item.endpoint else ()
    lines = [
        ("ID", item.id),
        ("Name", spec.annotations.name),
        *(("Label", f"{key}={value}") for key, value in spec.annotations.labels.items()),
        ("Service mode", _mode(spec)),
        ("Replicas", str(spec.replicated.replicas) if spec.replicated else ""),
        ("Runs", tasks.what(spec.task)),
        ("Networks", ", ".join(each.target for each in spec.task.networks or spec.networks)),
        ("Endpoint mode", _endpoint_as_docker(spec.endpoint)["Mode"]),
        *(("Virtual address", f"{each.addr} on {each.network_id}") for each in addresses),
        ("Published", ports.shown(published, PublishMode.INGRESS)),
        ("Client's address", source),
        ("Published on hosts", ports.shown(published, PublishMode.HOST)),
    ]
    for name, value in lines:
        if value:
            click.echo(f"{name + ':':<20}{value}")


@service.command("ps")
@click.argument("names", metavar="SERVICE...", nargs=-1, required=True)
@click.option(
    "-f",
    "--filter",
    "wanted",
    multiple=True,
    metavar="NAME=VALUE",
    help="id, name, node or desired-state.",
)
@click.option("--format", "form", default="table", help=FORMAT_HELP)
@click.option("--no-trunc", is_flag=True, help="Print whole ids and errors.")
@click.option("-q", "--quiet", is_flag=True, help="Only print ids.")
@click.pass_obj
def ps(
    host: str | None,
    names: tuple[str, ...],
    wanted: tuple[str, ...],
    form: str,
    no_trunc: bool,
    quiet: bool,
) -> None:
    """List the tasks of services, past ones below those that follow them."""
    chosen = filters(wanted, known={"id", "name", "node", "desired-state"})
    with connect(host) as client:
        services = [resolve_service(client, name) for name in names]
        request = control_pb2.ListTasksRequest()
        request.filters.service_ids.extend(each.id for each in services)
        answer = client.control.ListTasks(request, timeout=_CALL_SECONDS)
        nodes = {each.id: hostname(each) for each in all_nodes(client)}
    found = [codec.decode(Task, each) for each in answer.tasks]
    rows = tasks.rows(found, nodes, chosen, whole=no_trunc, tree=form == "table")
    print_list(rows, tasks.COLUMNS, form=form, quiet="ID" if quiet else "")


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
            _send(client, current, _changed(client, current.spec, flags))
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


def _changed(client: Client, spec: ServiceSpec, flags: dict[str, Any]) -> ServiceSpec:
    labels = dict(spec.annotations.labels)
    for key in flags["label_rm"]:
        labels.pop(key, None)
    labels.update(pairs(flags["label_add"], what="--label-add"))
    replicated = spec.replicated
    if flags["replicas"] is not None:
        replicated = _scaled(spec, flags["replicas"])
    return replace(
        spec,
        annotations=replace(spec.annotations, labels=labels),
        task=_changed_task(client, spec, flags),
        networks=(),
        replicated=replicated,
        update=_update(flags["update_parallelism"], flags["update_order"], spec.update),
        endpoint=_changed_endpoint(spec.endpoint or EndpointSpec(), flags),
    )


def _scaled(spec: ServiceSpec, replicas: int) -> ReplicatedService:
    if spec.replicated is None:
        raise InvalidArgumentError("scale can only be used with replicated mode")
    return ReplicatedService(replicas=replicas)


def _changed_endpoint(spec: EndpointSpec, flags: dict[str, Any]) -> EndpointSpec:
    kept = tuple(
        port
        for port in spec.ports
        if not any(ports.matches(port, text) for text in flags["publish_rm"])
    )
    mode = flags["endpoint_mode"]
    return replace(
        spec,
        mode=spec.mode if mode is None else EndpointResolutionMode[mode.upper()],
        ports=(*kept, *ports.service_ports(flags["publish_add"])),
    )


def _changed_task(client: Client, spec: ServiceSpec, flags: dict[str, Any]) -> TaskSpec:
    gone = {resolve_network(client, text).id for text in flags["network_rm"]} | set(
        flags["network_rm"]
    )
    networks = tuple(
        each for each in spec.task.networks or spec.networks if each.target not in gone
    )
    networks += tuple(_network(client, text) for text in flags["network_add"])
    task = replace(
        spec.task,
        networks=networks,
        force_update=spec.task.force_update + bool(flags["force"]),
    )
    words = shlex.split(flags["args"]) if flags["args"] is not None else None
    if task.container is not None:
        container = specs_pb2.ContainerSpec.FromString(task.container)
        container.image = flags["image"] or container.image
        _set(container.args, words)
        _set(container.env, _changed_env(container.env, flags))
        return replace(task, container=container.SerializeToString(deterministic=True))
    process = tasks.process_of(task)
    if process is None or task.generic is None:
        return task
    if flags["image"]:
        raise InvalidArgumentError("this service runs a command, not an image")
    _set(process.argv, words)
    _set(process.env, _changed_env(process.env, flags))
    payload = any_pb2.Any()
    payload.Pack(process)
    data = payload.SerializeToString(deterministic=True)
    return replace(task, generic=replace(task.generic, payload=data))


def _changed_env(env: Sequence[str], flags: dict[str, Any]) -> list[str]:
    added = _env(flags["env_add"])
    gone = {*flags["env_rm"], *(text.partition("=")[0] for text in added)}
    return [*(text for text in env if text.partition("=")[0] not in gone), *added]


def _set(field: Any, values: Sequence[str] | None) -> None:
    if values is not None:
        del field[:]
        field.extend(values)


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
        spec = replace(current.spec, replicated=_scaled(current.spec, int(count)))
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
