"""Control's networks: show, list, create, remove."""

from __future__ import annotations

from typing import Any, Final

from manager import allocator
from manager.api.access import Caller
from manager.api.backend import Backend, created, nothing
from manager.api.balancers import has_balancer, with_ingress
from manager.api.checks import check_labels, present, required
from manager.api.errors import NameConflictError
from manager.api.filters import by_name, has_labels
from manager.api.server import Context
from manager.api.wire import encoded
from manager.store import Transaction, holds_addresses
from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2
from swarm.errors import ConflictError, PermissionDeniedError, PreconditionError
from swarm.model import Network, NetworkSpec

CHUNK: Final = 100
"""Nodes changed in one transaction, so that it does not outgrow its bounds."""

RESERVED_NAMES: Final = frozenset({"bridge", "host", "none", "default"})
"""Networks every engine has of its own."""

PREDEFINED: Final = "com.docker.swarm.predefined"
"""Label of networks that exist on every node by themselves."""


class Networks:
    """The network RPCs of Control."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store

    async def GetNetwork(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return one network by id."""
        await self._backend.barrier()
        network = self._store.view.networks.require(required(request.network_id, "network ID"))
        return control_pb2.GetNetworkResponse(network=encoded(network))

    async def ListNetworks(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the networks that match."""
        await self._backend.barrier()
        wanted = request.filters
        found = by_name(self._store.view.networks.all(), wanted, _name)
        return control_pb2.ListNetworksResponse(
            networks=[
                encoded(network)
                for network in found
                if has_labels(network.spec.annotations.labels, wanted.labels)
            ]
        )

    async def CreateNetwork(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Create a network with everything allocated when the call returns."""
        spec = codec.decode(NetworkSpec, present(request, "spec"))
        fresh_id = self._backend.make_id()

        def build(tx: Transaction) -> str:
            create_network(tx, spec, network_id=fresh_id)
            return fresh_id

        network_id = await self._backend.once(caller, build, repeated=created)
        if spec.ingress:
            await self._spread_ingress(network_id)
        network = self._store.view.networks.require(network_id)
        return control_pb2.CreateNetworkResponse(network=encoded(network))

    async def RemoveNetwork(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Remove a network nothing uses."""
        network_id = required(request.network_id, "network ID")

        def build(tx: Transaction) -> None:
            remove_network(tx, tx.networks.require(network_id))

        await self._backend.once(caller, build, repeated=nothing)
        return control_pb2.RemoveNetworkResponse()

    async def _spread_ingress(self, network_id: str) -> None:
        """Give every node its address, some at a time; who is missed gets it when it registers."""
        lacking = [
            node.id for node in self._store.view.nodes.all() if not has_balancer(node, network_id)
        ]
        for start in range(0, len(lacking), CHUNK):
            part = lacking[start : start + CHUNK]

            def build(tx: Transaction, part: list[str] = part) -> None:
                for node in filter(None, map(tx.nodes.get, part)):
                    tx.update(with_ingress(tx, node))

            await self._store.transact(build)


def create_network(tx: Transaction, spec: NetworkSpec, *, network_id: str) -> Network:
    """Check, allocate and create a network.

    Raises:
        InvalidArgumentError: the spec can never be right.
        PermissionDeniedError: the spec claims to be predefined.
        NameConflictError: the name is taken, upper and lower case alike.
        ConflictError: there is an ingress network already, or a subnet or VNI is taken.
        ExhaustedError: the address pools or VNIs have run out.
    """
    check_labels(spec.annotations.labels)
    if PREDEFINED in spec.annotations.labels:
        raise PermissionDeniedError(
            f"label {PREDEFINED} is for internally created predefined networks "
            "and cannot be applied by users"
        )
    name = spec.annotations.name
    if name.lower() in RESERVED_NAMES:
        raise PermissionDeniedError(f"{name} is a pre-defined network of every node")
    allocator.validate_network_spec(spec)
    if tx.networks.named(name):
        raise NameConflictError(f"network with name {name} already exists")
    if spec.ingress and (present_one := tx.networks.ingress()) is not None:
        raise ConflictError(f"ingress network ({present_one.id}) is already present")
    return tx.create(allocator.allocate_network(tx, Network(id=network_id, spec=spec)))


def remove_network(tx: Transaction, network: Network) -> None:
    """Remove a network with what is left of it on nodes.

    Raises:
        PreconditionError: something uses it; the text holds ``network <id> is in use``, by which
            engines recognise that.
    """
    if PREDEFINED in network.spec.annotations.labels:
        raise PreconditionError(
            f"{network.spec.annotations.name} is a pre-defined network and cannot be removed"
        )
    for task in tx.tasks.by_network(network.id):
        if not holds_addresses(task):
            tx.delete(task)
    allocator.remove_network(tx, network.id)


def _name(network: Network) -> str:
    return network.spec.annotations.name
