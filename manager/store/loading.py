"""Objects from their bytes, with one shared copy of each network they carry.

Every task and node carries whole copies of its networks (the agents need them so). Most are equal, and
decoding them again and again would cost more than everything else about a task together.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError

from manager.store.tables import Object, TableId
from swarm.api import codec
from swarm.api.docker.swarmkit import objects_pb2
from swarm.errors import WireError
from swarm.model import Cluster, Network, NetworkAttachment, Node, Service, Task

NETWORKS = 4096
"""Decoded networks kept for sharing."""


def load_object(table: TableId, data: bytes) -> Object:
    """Return the object that ``data`` encodes.

    Raises:
        WireError: it is no such object.
    """
    match table:
        case TableId.TASK:
            message = _parse(objects_pb2.Task(), data)
            networks = _attachments(message.networks)
            del message.networks[:]
            return replace(codec.decode(Task, message), networks=networks)
        case TableId.NODE:
            node = _parse(objects_pb2.Node(), data)
            attachments = _attachments(node.attachments)
            del node.attachments[:]
            return replace(codec.decode(Node, node), attachments=attachments)
        case TableId.NETWORK:
            return codec.loads(Network, data)
        case TableId.SERVICE:
            return codec.loads(Service, data)
        case TableId.CLUSTER:
            return codec.loads(Cluster, data)


_M = TypeVar("_M", objects_pb2.Task, objects_pb2.Node)


def _parse(message: _M, data: bytes) -> _M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"not a {type(message).__name__} message: {error}") from error
    return message


def _attachments(
    messages: Iterable[objects_pb2.NetworkAttachment],
) -> tuple[NetworkAttachment, ...]:
    found = []
    for message in messages:
        network = Network()
        if message.HasField("network"):
            network = _network(message.network.SerializeToString(deterministic=True))
            message.ClearField("network")
        found.append(replace(codec.decode(NetworkAttachment, message), network=network))
    return tuple(found)


@lru_cache(maxsize=NETWORKS)
def _network(data: bytes) -> Network:
    return codec.loads(Network, data)
