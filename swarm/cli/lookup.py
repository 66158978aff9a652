"""Objects that a command means: the cluster, and what is called by id, name or prefix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2
from swarm.client import Client
from swarm.errors import ConflictError, NotFoundError
from swarm.model import Cluster

T = TypeVar("T")
_CALL_SECONDS = 30


def the_cluster(client: Client) -> Cluster:
    """Return the cluster object, join tokens included."""
    answer = client.control.ListClusters(control_pb2.ListClustersRequest(), timeout=_CALL_SECONDS)
    return codec.decode(Cluster, answer.clusters[0])


def pick(kind: str, text: str, objects: Sequence[T], key: Callable[[T], tuple[str, str]]) -> T:
    """Return the one object that an id, a name or an unambiguous id prefix means, tried in this order.

    Args:
        kind: ``node``, for messages.
        text: as typed.
        objects: all there are.
        key: id and name of one.

    Raises:
        NotFoundError: none is called so.
        ConflictError: several are.
    """
    for found in (
        [each for each in objects if key(each)[0] == text],
        [each for each in objects if key(each)[1] == text],
        [each for each in objects if text and key(each)[0].startswith(text)],
    ):
        if len(found) > 1:
            raise ConflictError(
                f"{kind} {text} is ambiguous ({len(found)} matches found on ID prefix)"
            )
        if found:
            return found[0]
    raise NotFoundError(f"{kind} {text} not found")
