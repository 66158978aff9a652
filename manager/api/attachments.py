"""Attachment of containers that somebody else runs: the ResourceAllocator service.

One transaction makes the task, its address and, for the first task of a network on a node, the
node's own address there; so what cannot be had is said at once instead of keeping ``docker run``
waiting. Tasks are counted: after an engine restart the new attachment comes before the old one
goes, and the node's address must stay in between.

Source: SwarmKit ``manager/resourceapi/allocator.go``, ``manager/allocator``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from manager.allocator import allocate_attachment, check_platform
from manager.api.access import Caller
from manager.api.backend import Backend, created, nothing
from manager.api.balancers import with_balancer, without_balancer
from manager.api.checks import MAX_ID, required
from manager.api.server import Context
from manager.store import Transaction
from swarm.api import codec
from swarm.api.docker.swarmkit import resource_pb2
from swarm.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
)
from swarm.model import (
    Network,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkAttachmentSpec,
    Node,
    NodeAvailability,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
)

MAX_TARGET: Final = 256
MAX_ADDRESSES: Final = 16
MAX_ALIASES: Final = 256
MAX_OPTIONS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One attachment as asked for."""

    node_id: str
    container_id: str
    config: NetworkAttachmentConfig


class Attachments:
    """The RPCs of ResourceAllocator."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def AttachNetwork(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Attach a container of the calling node; return the id of the task that stands for it."""
        wish = _wish_untrusted(request, caller.node_id)
        now, fresh_id = self._backend.clock.wall(), self._backend.make_id()

        def build(tx: Transaction) -> str:
            attach(tx, wish, task_id=fresh_id, now=now)
            return fresh_id

        task_id = await self._backend.once(caller, build, repeated=created)
        return resource_pb2.AttachNetworkResponse(attachment_id=task_id)

    async def DetachNetwork(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Detach what the calling node attached."""
        task_id = required(request.attachment_id, "attachment ID")

        def build(tx: Transaction) -> None:
            task = tx.tasks.get(task_id)
            if task is None or task.spec.attachment is None:
                raise NotFoundError(f"attachment {task_id} not found")
            if task.node_id != caller.node_id:
                raise PermissionDeniedError(
                    f"attachment {task_id} doesn't belong to node {caller.node_id}"
                )
            release(tx, task)

        await self._backend.once(caller, build, repeated=nothing)
        return resource_pb2.DetachNetworkResponse()


def attach(tx: Transaction, wish: Wish, *, task_id: str, now: int) -> Task:
    """Make the attachment task and every address it needs; it can go to the node at once.

    Args:
        tx: the transaction it is part of.
        wish: what is asked for.
        task_id: the id it gets.
        now: wall time, nanoseconds.

    Raises:
        NotFoundError: no such network or node.
        InvalidArgumentError: an ambiguous network, the ingress network, or a wrong address.
        PermissionDeniedError: the network is not attachable.
        PreconditionError: the node takes nothing, has no overlay driver, or cannot encrypt.
        ConflictError: the asked address is taken.
        ExhaustedError: no address is left.
    """
    network = attachable_network(tx, wish.config.target)
    node = ready_node(tx, wish.node_id)
    check_platform(network, node)
    attachment = NetworkAttachment(
        network=network,
        addresses=allocate_attachment(tx, network, wish.config.addresses),
        aliases=wish.config.aliases,
        driver_attachment_opts=wish.config.driver_attachment_opts,
    )
    task = Task(
        id=task_id,
        node_id=node.id,
        spec=TaskSpec(
            attachment=NetworkAttachmentSpec(container_id=wish.container_id),
            networks=(_by_id(wish.config, network),),
        ),
        status=TaskStatus(state=TaskState.ASSIGNED, timestamp=now, message="attached"),
        desired_state=TaskState.RUNNING,
        networks=(attachment,),
    )
    tx.create(task)
    balanced = with_balancer(tx, node, network)
    if balanced is not node:
        tx.update(balanced)
    return task


def release(tx: Transaction, task: Task) -> None:
    """Delete a task, and the node's own addresses on networks it was the last to use there."""
    tx.delete(task)
    node = tx.nodes.get(task.node_id)
    if node is None:
        return
    kept = node
    for attachment in task.networks:
        network = attachment.network
        if not network.spec.ingress and not in_use(tx, node.id, network.id):
            kept = without_balancer(kept, network.id)
    if kept is not node:
        tx.update(kept)


def in_use(tx: Transaction, node_id: str, network_id: str) -> bool:
    """Say whether any task of a node is on a network."""
    return tx.tasks.count_on_node(node_id, network_id) > 0


def attachable_network(tx: Transaction, target: str) -> Network:
    """Find the network a person or an engine means, and check that containers may attach to it.

    Raises:
        NotFoundError: nothing matches.
        InvalidArgumentError: ambiguous, or the ingress network.
        PermissionDeniedError: not attachable.
    """
    try:
        network = tx.networks.resolve(target)
    except NotFoundError as error:
        raise NotFoundError(f"network {target} not found") from error
    if network.spec.ingress:
        raise InvalidArgumentError(f"network {target} is the ingress network: nothing may attach")
    if not network.spec.attachable:
        raise PermissionDeniedError(f"network {target} not manually attachable")
    return network


def ready_node(tx: Transaction, node_id: str) -> Node:
    """Find a node and check that it may take an attachment.

    Raises:
        NotFoundError: no such node.
        PreconditionError: it is paused or drained, or has no overlay network driver.
    """
    node = tx.nodes.require(node_id)
    availability = node.spec.availability
    if availability is not NodeAvailability.ACTIVE:
        raise PreconditionError(
            f"node {node_id} takes no attachments: its availability is {availability.name.lower()}"
        )
    engine = node.description.engine if node.description else None
    if engine is not None and not any(
        plugin.type == "Network" and plugin.name == "overlay" for plugin in engine.plugins
    ):
        raise PreconditionError(f"node {node_id} has no overlay network driver")
    return node


def _by_id(config: NetworkAttachmentConfig, network: Network) -> NetworkAttachmentConfig:
    return NetworkAttachmentConfig(
        target=network.id,
        aliases=config.aliases,
        addresses=config.addresses,
        driver_attachment_opts=config.driver_attachment_opts,
    )


def _wish_untrusted(request: Any, node_id: str) -> Wish:
    if not request.HasField("config"):
        raise InvalidArgumentError("network attachment config must be provided")
    config = codec.decode(NetworkAttachmentConfig, request.config)
    if not config.target:
        raise InvalidArgumentError("network must be provided")
    for what, value, limit in (
        ("network name", config.target, MAX_TARGET),
        ("container ID", request.container_id, MAX_ID),
        ("list of addresses", config.addresses, MAX_ADDRESSES),
        ("list of aliases", config.aliases, MAX_ALIASES),
        ("list of driver options", config.driver_attachment_opts, MAX_OPTIONS),
    ):
        if len(value) > limit:
            raise InvalidArgumentError(f"the {what} is longer than {limit}")
    return Wish(node_id=node_id, container_id=request.container_id, config=config)
