"""Services as the flags of ``swarm service create`` and ``update`` describe them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click
from google.protobuf import any_pb2

from swarm.api.docker.swarmkit import specs_pb2
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.cli import ports, tasks
from swarm.cli.network import resolve_network
from swarm.cli.parse import pairs
from swarm.client import Client
from swarm.errors import InvalidArgumentError
from swarm.model import (
    Annotations,
    EndpointResolutionMode,
    EndpointSpec,
    GenericRuntimeSpec,
    NetworkAttachmentConfig,
    ReplicatedService,
    ServiceSpec,
    TaskSpec,
)


def spec_of(client: Client, command: tuple[str, ...], flags: dict[str, Any]) -> ServiceSpec:
    """Return the spec that the flags of ``create`` describe.

    Raises:
        click.BadParameter: a flag makes no sense.
        NotFoundError: it names a network that does not exist.
    """
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


def changed(client: Client, spec: ServiceSpec, flags: dict[str, Any]) -> ServiceSpec:
    """Return a spec with what the flags of ``update`` change; raises as :func:`spec_of`."""
    labels = dict(spec.annotations.labels)
    for key in flags["label_rm"]:
        labels.pop(key, None)
    labels.update(pairs(flags["label_add"], what="--label-add"))
    replicated = spec.replicated
    if flags["replicas"] is not None:
        replicated = scaled(spec, flags["replicas"])
    return replace(
        spec,
        annotations=replace(spec.annotations, labels=labels),
        task=_changed_task(client, spec, flags),
        networks=(),
        replicated=replicated,
        update=_update(flags["update_parallelism"], flags["update_order"], spec.update),
        endpoint=_changed_endpoint(spec.endpoint or EndpointSpec(), flags),
    )


def scaled(spec: ServiceSpec, replicas: int) -> ReplicatedService:
    """Return the mode of a replicated service with another number of tasks.

    Raises:
        InvalidArgumentError: it is not replicated.
    """
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
