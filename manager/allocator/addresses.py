"""Addresses of attachments: tasks, load balancers, virtual addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from manager.allocator.validate import driver_of, is_local
from manager.store.claims import holds_addresses
from manager.store.pools import Address, Pool, parse_address
from manager.store.transaction import Transaction
from swarm.errors import (
    ConflictError,
    ExhaustedError,
    InvalidArgumentError,
    PreconditionError,
)
from swarm.model import Network, NetworkAttachment, Node

MAX_REQUESTED = 16
"""Addresses one attachment may ask for."""


def allocate_attachment(
    tx: Transaction, network: Network, requested: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return addresses for one attachment: one IPv4 and, on a dual-stack network, one IPv6.

    They are kept for this transaction, which must write them into a task, node or service;
    deleting or changing that object, or the end of its task, frees them.

    Args:
        tx: the transaction that writes the object.
        network: an allocated network. One that every node makes for itself gives no addresses.
        requested: at most one address of each family, bare or CIDR.

    Returns:
        ``ip/prefixlen`` of the subnets, IPv4 first.

    Raises:
        NotFoundError: no such network.
        PreconditionError: the network was not allocated yet.
        InvalidArgumentError: a requested address is malformed, outside the network, or one too many.
        ConflictError: a requested address is taken; the text says by whom.
        ExhaustedError: no address is left.

    Source: libnetwork ``ipams/defaultipam``: in order, not lowest free. Rest after freeing, IPv6,
    and refusing what cannot be met are ours.
    """
    network = tx.networks.require(network.id)
    name = network.spec.annotations.name or network.id
    wishes = _wishes(requested)
    pools = tx.pools(network.id)
    if is_local(network.spec):
        if wishes:
            raise InvalidArgumentError(
                f"network {name} ({driver_of(network.spec)}) gives out addresses on each node by"
                " itself; none can be asked for here"
            )
        return ()
    if not pools:
        raise PreconditionError(f"network {name} has no subnets yet")
    addresses = []
    for version in sorted({pool.subnet.version for pool in pools} | set(wishes)):
        family = [pool for pool in pools if pool.subnet.version == version]
        if version in wishes:
            addresses.append(_take(tx, family, wishes[version], name))
        else:
            addresses.append(_pick(tx, family, name))
    return tuple(addresses)


def sync_node(tx: Transaction, node_id: str) -> Node:
    """Give a node its load balancer addresses and free those it needs no more; return the node.

    It needs one on the ingress network and one on every overlay network that a task on it uses.
    Addresses it has already stay.

    Raises:
        NotFoundError: no such node.
        ExhaustedError: a network has no address left.
    """
    node = tx.nodes.require(node_id)
    wanted: dict[str, Network] = {}
    ingress = tx.networks.ingress()
    if ingress is not None and tx.pools(ingress.id):
        wanted[ingress.id] = ingress
    for task in tx.tasks.by_node(node_id):
        if not holds_addresses(task):
            continue
        for each in task.networks:
            network = tx.networks.get(each.network.id)
            if network is not None and tx.pools(network.id):
                wanted[network.id] = network
    kept = [each for each in node.attachments if each.network.id in wanted]
    present = {each.network.id for each in kept}
    for network in wanted.values():
        if network.id not in present:
            addresses = allocate_attachment(tx, network)
            kept.append(NetworkAttachment(network=network, addresses=addresses))
    return tx.update(replace(node, attachments=tuple(kept)))


def _wishes(requested: Sequence[str]) -> dict[int, Address]:
    if len(requested) > MAX_REQUESTED:
        raise InvalidArgumentError(f"at most {MAX_REQUESTED} addresses may be asked for")
    wishes: dict[int, Address] = {}
    for text in requested:
        if not text:
            continue
        address = parse_address(text)
        if wishes.setdefault(address.version, address) != address:
            raise InvalidArgumentError(
                f"one IPv{address.version} address may be asked for, not both"
                f" {wishes[address.version]} and {address}"
            )
    return wishes


def _take(tx: Transaction, pools: list[Pool], wish: Address, name: str) -> str:
    for pool in pools:
        if wish in pool:
            holder = pool.holders.get(int(wish))
            if holder is not None:
                raise ConflictError(f"address {wish} on network {name} is in use by {holder}")
            tx.lease(pool, int(wish), in_order=False)
            return pool.text(int(wish))
    subnets = ", ".join(str(pool.subnet) for pool in pools) or f"no IPv{wish.version} subnet"
    raise InvalidArgumentError(f"address {wish} is not in network {name} ({subnets})")


def _pick(tx: Transaction, pools: list[Pool], name: str) -> str:
    for pool in pools:
        number = pool.next_free(tx.now)
        if number is not None:
            tx.lease(pool, number, in_order=True)
            return pool.text(number)
    subnets = ", ".join(str(pool.subnet) for pool in pools)
    raise ExhaustedError(
        f"no address is left in {subnets} on network {name}; end attachments that are not needed,"
        " or make a network with a larger or a further subnet"
    )
