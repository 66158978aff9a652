"""What a user may ask of a service, and what may run as a task; nothing here looks at the store.

Source: SwarmKit ``manager/controlapi/service.go``; the bounds are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, TypeVar

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message

from manager.api.checks import check_labels
from swarm import balancing
from swarm.api.docker.swarmkit import specs_pb2
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import InvalidArgumentError, UnimplementedError, WireError
from swarm.model import (
    Annotations,
    EndpointResolutionMode,
    EndpointSpec,
    GenericRuntimeSpec,
    NetworkAttachmentConfig,
    PublishMode,
    ServiceSpec,
    TaskSpec,
)

MAX_NAME: Final = 63
MAX_PORTS: Final = 1024
"""Published ports of one service; a range is as many ports as it has."""
MAX_NETWORKS: Final = 64
"""Networks of one task."""
MAX_ALIASES: Final = 256
"""Aliases of a service or task on one network."""
MAX_TEXT: Final = 256
"""Longest alias, network name or driver option, characters."""
MAX_ADDRESSES: Final = 16
MAX_SPEC: Final = 256 * 1024
"""Size of a whole service or task spec, bytes; every task carries its own copy to its node."""
MAX_REPLICAS: Final = 1_000_000

PROCESS: Final = "process"
"""Kind of a generic task that our own agents run: a command in namespaces of its own."""

_M = TypeVar("_M", bound=Message)
_NAME: Final = re.compile(r"[a-zA-Z0-9](?:[-_]*[a-zA-Z0-9]+)*", re.ASCII)
_RESERVED_KINDS: Final = frozenset({"container", "attachment", "default"})


def check_service_spec(spec: ServiceSpec) -> None:
    """Check what a user asks of a service.

    Raises:
        InvalidArgumentError: a name, mode, network or port can never be right.
        UnimplementedError: its tasks would be of a kind services cannot have.
    """
    check_name(spec.annotations)
    balancing.parse(spec.annotations.labels)
    check_task_spec(spec.task)
    if spec.task.attachment is not None:
        raise UnimplementedError("RuntimeSpec: unimplemented runtime in service spec")
    if spec.task.container is None and spec.task.generic is None:
        raise InvalidArgumentError("TaskSpec: missing runtime")
    if spec.task.networks and spec.networks:
        raise InvalidArgumentError("ServiceSpec: networks are given in the task spec, or here")
    check_networks(spec.networks)
    _check_mode(spec)
    for config in (spec.update, spec.rollback):
        _check_update(config)
    if spec.endpoint is not None:
        check_endpoint_spec(spec.endpoint)


def check_name(annotations: Annotations) -> None:
    """Check a name that becomes a name in DNS, and labels.

    Raises:
        InvalidArgumentError: absent, too long or no DNS label; or labels out of bounds.
    """
    name = annotations.name
    if not name:
        raise InvalidArgumentError("meta: name must be provided")
    if len(name) > MAX_NAME:
        raise InvalidArgumentError(f"meta: name must be {MAX_NAME} characters or fewer")
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError("name must be valid as a DNS name component")
    check_labels(annotations.labels)


def check_task_spec(spec: TaskSpec) -> None:
    """Check what is to run, and where it is to be reached.

    Raises:
        InvalidArgumentError: it can never be right.
    """
    if spec.container is not None:
        _check_container(spec.container)
    if spec.generic is not None:
        _check_generic(spec.generic)
    check_networks(spec.networks)


def check_networks(configs: Sequence[NetworkAttachmentConfig]) -> None:
    """Check the bounds of wishes to attach.

    Raises:
        InvalidArgumentError: too many or too long, without a target, or a network twice.
    """
    if len(configs) > MAX_NETWORKS:
        raise InvalidArgumentError(f"a task may be on {MAX_NETWORKS} networks")
    seen = set()
    for config in configs:
        if not config.target:
            raise InvalidArgumentError("a network attachment names no network")
        if config.target in seen:
            raise InvalidArgumentError(f"network {config.target[:MAX_TEXT]} is given twice")
        seen.add(config.target)
        if len(config.addresses) > MAX_ADDRESSES:
            raise InvalidArgumentError(f"at most {MAX_ADDRESSES} addresses may be asked for")
        if len(config.aliases) > MAX_ALIASES:
            raise InvalidArgumentError(f"at most {MAX_ALIASES} aliases may be given")
        options = config.driver_attachment_opts
        if len(options) > MAX_ALIASES:
            raise InvalidArgumentError(f"at most {MAX_ALIASES} driver options may be given")
        for text in (config.target, *config.aliases, *options, *options.values()):
            if len(text) > MAX_TEXT:
                raise InvalidArgumentError(f"{text[:32]!r}... is longer than {MAX_TEXT}")


def check_endpoint_spec(spec: EndpointSpec) -> None:
    """Check how a service is to be reached.

    Raises:
        InvalidArgumentError: a port is out of range or given twice, or published on every node
            without a virtual address.
    """
    if len(spec.ports) > MAX_PORTS:
        raise InvalidArgumentError(f"EndpointSpec: at most {MAX_PORTS} ports may be published")
    seen = set()
    for port in spec.ports:
        if spec.mode is EndpointResolutionMode.DNSRR and port.publish_mode is PublishMode.INGRESS:
            raise InvalidArgumentError(
                "EndpointSpec: port published with ingress mode can't be used with dnsrr mode"
            )
        if not 1 <= port.target_port <= 65535:
            raise InvalidArgumentError(f"EndpointSpec: {port.target_port} is no target port")
        if port.published_port > 65535:
            raise InvalidArgumentError(f"EndpointSpec: {port.published_port} is no port")
        if not port.published_port:
            continue
        key = (port.protocol, port.published_port)
        if key in seen:
            raise InvalidArgumentError("EndpointSpec: duplicate published ports provided")
        seen.add(key)


def runtime_networks(spec: ServiceSpec) -> tuple[NetworkAttachmentConfig, ...]:
    """Return the networks of a service's tasks: of its task spec, else of the spec itself (old form)."""
    return spec.task.networks or spec.networks


def mode_of(spec: ServiceSpec) -> str:
    """Return a service's mode by its name in the contract; empty when it has none."""
    for name in ("replicated", "global_", "replicated_job", "global_job"):
        if getattr(spec, name) is not None:
            return name.rstrip("_")
    return ""


def _check_mode(spec: ServiceSpec) -> None:
    mode = mode_of(spec)
    if not mode:
        raise InvalidArgumentError("Unrecognized service mode")
    if spec.replicated is not None and spec.replicated.replicas > MAX_REPLICAS:
        raise InvalidArgumentError(f"a service may have {MAX_REPLICAS} replicas")
    if mode.endswith("_job"):
        if spec.update is not None:
            raise InvalidArgumentError("Service jobs may not have update options")
        ports = spec.endpoint.ports if spec.endpoint else ()
        if ports:
            raise InvalidArgumentError("Service jobs may not publish ports")


def _check_update(config: bytes | None) -> None:
    if config is None:
        return
    update = _parse(specs_pb2.UpdateConfig(), config, "update configuration")
    if update.delay.ToNanoseconds() < 0:
        raise InvalidArgumentError("TaskSpec: update-delay cannot be negative")
    if update.monitor.ToNanoseconds() < 0:
        raise InvalidArgumentError("TaskSpec: update-monitor cannot be negative")
    if not 0 <= update.max_failure_ratio <= 1:
        raise InvalidArgumentError(
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1"
        )


def _check_container(data: bytes) -> None:
    container = _parse(specs_pb2.ContainerSpec(), data, "ContainerSpec")
    if not container.image:
        raise InvalidArgumentError("ContainerSpec: image reference must be provided")
    if container.hostname and not _NAME.fullmatch(container.hostname.replace(".", "")):
        raise InvalidArgumentError(f"ContainerSpec: {container.hostname[:MAX_TEXT]} is no hostname")


def _check_generic(generic: GenericRuntimeSpec) -> None:
    if len(generic.kind) < 3 or len(generic.kind) > MAX_NAME or not _NAME.fullmatch(generic.kind):
        raise InvalidArgumentError(f"Generic runtime: Invalid name {generic.kind[:MAX_TEXT]!r}")
    if generic.kind in _RESERVED_KINDS:
        raise InvalidArgumentError(f"Generic runtime: {generic.kind} is a reserved name")
    if generic.payload is None:
        raise InvalidArgumentError("Generic runtime is missing payload")
    payload = _parse(any_pb2.Any(), generic.payload, "generic payload")
    if not payload.type_url:
        raise InvalidArgumentError("Generic runtime is missing payload type")
    if generic.kind == PROCESS:
        _check_process(payload)


def _check_process(payload: any_pb2.Any) -> None:
    """Check a command of our own agents' runtime."""
    process = scheduler_pb2.Process()
    if not payload.Is(process.DESCRIPTOR):
        raise InvalidArgumentError(
            f"a task of kind {PROCESS!r} carries {process.DESCRIPTOR.full_name}, not"
            f" {payload.type_url[:MAX_TEXT]}"
        )
    process = _parse(process, payload.value, "Process")
    if not process.argv or not process.argv[0]:
        raise InvalidArgumentError("Process: the command is empty")
    if any("\0" in text for text in (*process.argv, *process.env, process.cwd)):
        raise InvalidArgumentError("Process: a NUL character stands in the command")
    if any(each.find("=") < 1 for each in process.env):
        raise InvalidArgumentError("Process: an environment entry is not KEY=VALUE")
    if process.hostname and (
        len(process.hostname) > MAX_NAME or not _NAME.fullmatch(process.hostname)
    ):
        raise InvalidArgumentError(f"Process: {process.hostname[:MAX_TEXT]!r} is no hostname")


def _parse(message: _M, data: bytes, what: str) -> _M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a {what}: {error}") from error
    return message
