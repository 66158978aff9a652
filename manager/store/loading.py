"""Objects to and from the bytes of the log, with one shared copy of what many of them carry.

A task carries whole copies of its spec, its service's annotations and endpoint, and its networks (the
agents need them so), and a service's tasks all carry the same. Writing and reading those again and
again would cost more than everything else about a task together. So they are written once a
transaction (``parts``) and read once; networks are written as their id alone, since a network does
not change once it is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final, TypeVar

from google.protobuf.message import DecodeError

from manager.store.tables import Object, TableId
from swarm.api import codec
from swarm.api.docker.swarmkit import objects_pb2
from swarm.errors import WireError
from swarm.model import (
    Annotations,
    Cluster,
    Driver,
    Endpoint,
    Meta,
    Network,
    NetworkAttachment,
    Node,
    Service,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    Version,
)

SHARED = 1024
"""Decoded parts of each kind kept for sharing."""

LEAST = 16
"""Smaller parts, bytes, are not worth a place in the list."""

NetworkOf = Callable[[str], Network | None]

_SPEC: Final = 3
_SERVICE_ANNOTATIONS: Final = 8
_STATUS: Final = 9
_ENDPOINT: Final = 12
_LOG_DRIVER: Final = 13
_STATES: Final = {int(state): state for state in TaskState}


class Dump:
    """Writes the objects of one transaction.

    Args:
        network_of: finds a stored network.
    """

    __slots__ = ("_network_of", "_parts", "_whole")

    def __init__(self, network_of: NetworkOf) -> None:
        self._network_of = network_of
        self._parts: dict[tuple[int, int], tuple[object, bytes]] = {}  # by identity, kept alive
        self._whole: dict[int, tuple[Network, bytes]] = {}

    def __call__(self, item: Object) -> tuple[bytes, tuple[bytes, ...]]:
        """Return an object's bytes, and the parts that follow them."""
        return self._task(item) if isinstance(item, Task) else (codec.dumps(item), ())

    def _task(self, task: Task) -> tuple[bytes, tuple[bytes, ...]]:
        message = objects_pb2.Task(id=task.id, node_id=task.node_id)
        if task.service_id:
            message.service_id = task.service_id
        if task.slot:
            message.slot = task.slot
        if task.desired_state:
            message.desired_state = int(task.desired_state)  # type: ignore[assignment]  # same numbers
        _annotations_to(task.annotations, message)
        for attachment in task.networks:
            self._attachment(attachment, message.networks.add())
        if task.spec_version is not None:
            message.spec_version.SetInParent()
            message.spec_version.index = task.spec_version.index
        if task.job_iteration is not None:
            message.job_iteration.SetInParent()
            message.job_iteration.index = task.job_iteration.index
        for resource in task.assigned_generic_resources:
            message.assigned_generic_resources.add().MergeFromString(resource)
        message.volumes.extend(task.volumes)
        parts = []
        for number, value in (
            (_SPEC, task.spec),
            (_SERVICE_ANNOTATIONS, task.service_annotations),
            (_STATUS, task.status),
            (_ENDPOINT, task.endpoint),
            (_LOG_DRIVER, task.log_driver),
        ):
            if value is not None:
                parts.append(self._part(number, value))
        small = b"".join(part for part in parts if len(part) < LEAST)
        return (
            message.SerializeToString(deterministic=True) + small,
            tuple(part for part in parts if len(part) >= LEAST),
        )

    def _attachment(
        self, attachment: NetworkAttachment, message: objects_pb2.NetworkAttachment
    ) -> None:
        network = attachment.network
        stored = self._network_of(network.id)
        if stored is network or stored == network:
            message.network.id = network.id
        else:
            known = self._whole.get(id(network))
            if known is None:
                known = self._whole[id(network)] = network, codec.dumps(network)
            message.network.MergeFromString(known[1])
            message.network.SetInParent()
        message.addresses.extend(attachment.addresses)
        if attachment.aliases:
            message.aliases.extend(attachment.aliases)
        if attachment.driver_attachment_opts:
            message.driver_attachment_opts.update(attachment.driver_attachment_opts)

    def _part(self, number: int, value: object) -> bytes:
        key = number, id(value)
        known = self._parts.get(key)
        if known is None:
            data = codec.dumps(value)
            head = bytes((number << 3 | 2,))  # field numbers below 16, length-delimited
            known = self._parts[key] = value, head + _varint(len(data)) + data
        return known[1]


def load_object(
    table: TableId,
    data: bytes,
    meta: Meta,
    network_of: NetworkOf,
    *,
    parts: tuple[bytes, ...] = (),
) -> Object:
    """Return the object that ``data`` encodes.

    Args:
        table: which it belongs to.
        data: as :class:`Dump` writes it, with the parts or without.
        meta: it gets this one.
        parts: what follows ``data``.
        network_of: finds a stored network.

    Raises:
        WireError: it is no such object.
    """
    if table is TableId.TASK:
        return _load_task(_parse(objects_pb2.Task(), data), parts, meta, network_of)
    if parts:
        data = b"".join((data, *parts))
    match table:
        case TableId.NODE:
            node = _parse(objects_pb2.Node(), data)
            attachments = _attachments(node.attachments, network_of)
            del node.attachments[:]
            return replace(codec.decode(Node, node), attachments=attachments, meta=meta)
        case TableId.NETWORK:
            return replace(codec.loads(Network, data), meta=meta)
        case TableId.SERVICE:
            return replace(codec.loads(Service, data), meta=meta)
        case TableId.CLUSTER:
            return replace(codec.loads(Cluster, data), meta=meta)


def _load_task(
    message: objects_pb2.Task, parts: tuple[bytes, ...], meta: Meta, network_of: NetworkOf
) -> Task:
    common = _inline(message)
    for part in parts:
        common.update(_load_part(part))
    desired = _STATES.get(int(message.desired_state))
    if desired is None:
        raise WireError(f"{message.desired_state} is not a TaskState")
    return Task(
        id=message.id,
        meta=meta,
        spec=common.get("spec", _NO_SPEC),
        service_id=message.service_id,
        slot=message.slot,
        node_id=message.node_id,
        annotations=_annotations_from(message),
        service_annotations=common.get("service_annotations", _NO_ANNOTATIONS),
        status=common.get("status", _NO_STATUS),
        desired_state=desired,
        networks=_attachments(message.networks, network_of),
        endpoint=common.get("endpoint"),
        log_driver=common.get("log_driver"),
        spec_version=(
            Version(index=message.spec_version.index) if message.HasField("spec_version") else None
        ),
        assigned_generic_resources=tuple(
            each.SerializeToString() for each in message.assigned_generic_resources
        ),
        job_iteration=(
            Version(index=message.job_iteration.index)
            if message.HasField("job_iteration")
            else None
        ),
        volumes=tuple(message.volumes),
    )


_NO_SPEC: Final = TaskSpec()
_NO_ANNOTATIONS: Final = Annotations()
_NO_STATUS: Final = TaskStatus()
_M = TypeVar("_M", objects_pb2.Task, objects_pb2.Node)
_COMMON: Final[tuple[tuple[str, Any], ...]] = (
    ("spec", TaskSpec),
    ("service_annotations", Annotations),
    ("status", TaskStatus),
    ("endpoint", Endpoint),
    ("log_driver", Driver),
)


def _annotations_to(annotations: Annotations, message: objects_pb2.Task) -> None:
    """Write a task's own annotations; nearly always they are a name and nothing else."""
    if annotations.labels or annotations.indices:
        message.annotations.MergeFromString(codec.dumps(annotations))
    elif annotations.name:
        message.annotations.name = annotations.name


def _annotations_from(message: objects_pb2.Task) -> Annotations:
    if not message.HasField("annotations"):
        return _NO_ANNOTATIONS
    if message.annotations.labels or message.annotations.indices:
        return codec.decode(Annotations, message.annotations)
    return Annotations(name=message.annotations.name)


def _parse(message: _M, data: bytes) -> _M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a {type(message).__name__} message: {error}") from error
    return message


def _attachments(
    messages: Iterable[objects_pb2.NetworkAttachment], network_of: NetworkOf
) -> tuple[NetworkAttachment, ...]:
    return tuple(
        NetworkAttachment(
            network=_network(message.network, network_of),
            addresses=tuple(message.addresses),
            aliases=tuple(message.aliases),
            driver_attachment_opts=dict(message.driver_attachment_opts),
        )
        for message in messages
    )


def _network(message: objects_pb2.Network, network_of: NetworkOf) -> Network:
    data = message.SerializeToString(deterministic=True)
    if len(data) == len(message.id.encode()) + 2:  # the id and nothing else
        stored = network_of(message.id)
        if stored is not None:
            return stored
    return _load_network(data)


@lru_cache(maxsize=SHARED)
def _load_network(data: bytes) -> Network:
    return codec.loads(Network, data)


def _inline(message: objects_pb2.Task) -> dict[str, Any]:
    """Return the common fields that a message has itself."""
    return {
        name: _load_shared(kind, getattr(message, name).SerializeToString(deterministic=True))
        for name, kind in _COMMON
        if message.HasField(name)  # type: ignore[arg-type]  # names of fields
    }


@lru_cache(maxsize=SHARED)
def _load_part(data: bytes) -> dict[str, Any]:
    return _inline(_parse(objects_pb2.Task(), data))


@lru_cache(maxsize=SHARED)
def _load_shared(kind: Any, data: bytes) -> Any:
    return codec.loads(kind, data)


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    digits.append(number)
    return bytes(digits)
