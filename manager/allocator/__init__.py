"""Who gets which VNI, subnet, gateway and address: pure functions over one store transaction.

What is taken is derived from the store's objects, so there is nothing to release: deleting or
changing the object does it. A caller writes what it was given within the same transaction::

    def create(tx: Transaction) -> str:
        network = allocate_network(tx, Network(id=new_id(), spec=spec))
        return tx.create(network).id


    def attach(tx: Transaction) -> str:
        network = tx.networks.resolve("web")
        addresses = allocate_attachment(tx, network, requested=("10.0.1.7",))
        task = tx.create(Task(id=new_id(), node_id=node_id, networks=(...,)))
        sync_node(tx, node_id)  # the node's load balancer address comes after the task's
        return task.id

    def serve(tx: Transaction) -> str:
        service = Service(id=new_id(), spec=spec)
        endpoint = allocate_endpoint(tx, service, networks)  # virtual addresses, published ports
        return tx.create(replace(service, endpoint=endpoint)).id

Whatever cannot be met is a typed error whose text says what stands in the way. See
``docs/allocation.md``.
"""

from manager.allocator.addresses import allocate_attachment, sync_node
from manager.allocator.endpoints import (
    HIGHEST_PORT,
    LOWEST_PORT,
    allocate_endpoint,
    needs_ingress,
)
from manager.allocator.networks import address_pools, allocate_network, remove_network
from manager.allocator.validate import (
    check_platform,
    driver_of,
    is_encrypted,
    is_local,
    validate_network_spec,
)

__all__ = [
    "HIGHEST_PORT",
    "LOWEST_PORT",
    "address_pools",
    "allocate_attachment",
    "allocate_endpoint",
    "allocate_network",
    "check_platform",
    "driver_of",
    "is_encrypted",
    "is_local",
    "needs_ingress",
    "remove_network",
    "sync_node",
    "validate_network_spec",
]
