"""Load balancer addresses: one a node on every network in use there, and on ingress always.

They stand in ``Node.attachments`` and reach the node with its session; an engine refuses a task
on a network for which its node has none.

Source: SwarmKit ``manager/allocator/network.go``.
"""

from __future__ import annotations

from dataclasses import replace

import structlog

from manager.allocator import allocate_attachment, is_local
from manager.store import Transaction
from swarm.errors import ExhaustedError
from swarm.model import Network, NetworkAttachment, Node

log = structlog.get_logger(__name__)


def has_balancer(node: Node, network_id: str) -> bool:
    """Say whether a node has its address on a network."""
    return any(each.network.id == network_id for each in node.attachments)


def with_balancer(tx: Transaction, node: Node, network: Network) -> Node:
    """Return the node with an address on a network, a new one if it has none.

    Raises:
        ExhaustedError: the network has no address left.
    """
    if has_balancer(node, network.id) or is_local(network.spec):
        return node
    addresses = allocate_attachment(tx, network)
    attachment = NetworkAttachment(network=network, addresses=addresses)
    return replace(node, attachments=(*node.attachments, attachment))


def with_ingress(tx: Transaction, node: Node) -> Node:
    """Return the node with an address on the ingress network, if there is one and it has room.

    A full ingress network keeps no node out: everything but published ports works without it.
    The node gets an address the next time it registers.
    """
    network = tx.networks.ingress()
    if network is None:
        return node
    try:
        return with_balancer(tx, node, network)
    except ExhaustedError as error:
        log.warning("ingress.full", node=node.id, detail=str(error))
        return node


def without_balancer(node: Node, network_id: str) -> Node:
    """Return the node without its address on a network."""
    kept = tuple(each for each in node.attachments if each.network.id != network_id)
    return node if len(kept) == len(node.attachments) else replace(node, attachments=kept)
