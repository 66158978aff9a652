"""What the coordinator needs of its neighbours, as protocols.

The real classes are checked against these by the type checker; tests put fakes in their place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from agent.balancer.table import Backend
from agent.dataplane.model import (
    Endpoint,
    Failure,
    IPAddress,
    IPInterface,
    Network,
    Peer,
    Report,
    VxlanCounters,
    Wanted,
)
from agent.gossip.records import EndpointRecord
from agent.gossip.service import Member
from swarm.model import Task, TaskStatus


class SessionPort(Protocol):
    """Of :class:`agent.session.service.Session`."""

    @property
    def last_error(self) -> str:
        """Why there is no session."""

    async def active(self) -> None:
        """Wait for a session."""

    def task(self, task_id: str) -> Task | None:
        """Return an assigned task."""

    def tasks(self) -> tuple[Task, ...]:
        """Return all assigned tasks."""

    def report(self, task_id: str, status: TaskStatus) -> None:
        """Report a task's state."""

    def forget(self, task_id: str) -> None:
        """Stop reporting a task."""

    async def attach_network(
        self, target: str, container_id: str, addresses: tuple[str, ...] = ()
    ) -> str:
        """Ask for an attachment; return its id."""

    async def detach_network(self, attachment_id: str) -> None:
        """End an attachment."""


class GossipPort(Protocol):
    """Of :class:`agent.gossip.service.Gossip`."""

    @property
    def node_name(self) -> str:
        """This node's name in the gossip, the owner of its entries."""

    def members(self) -> tuple[Member, ...]:
        """Return every known node."""

    def join_network(self, network: str) -> None:
        """Take part in a network's tables."""

    def leave_network(self, network: str) -> None:
        """Stop to take part."""

    def put(self, table: str, network: str, key: str, value: bytes) -> None:
        """Publish an entry."""

    def delete(self, table: str, network: str, key: str) -> None:
        """Withdraw an entry."""


class DataplanePort(Protocol):
    """Of :class:`agent.dataplane.Dataplane`."""

    async def put_network(self, network: Network) -> None:
        """Make or change a network."""

    async def remove_network(self, network_id: str) -> None:
        """Remove a network."""

    async def plug(self, endpoint: Endpoint) -> None:
        """Connect a container."""

    async def unplug(self, endpoint_id: str) -> None:
        """Disconnect a container."""

    async def set_peer(self, peer: Peer) -> None:
        """Put one remote endpoint."""

    async def remove_peer(self, network_id: str, ip: IPAddress) -> None:
        """Forget one remote endpoint."""

    async def set_peers(self, network_id: str, peers: Iterable[Peer]) -> tuple[Failure, ...]:
        """Replace a network's remote endpoints; return those that could not be put."""

    async def reconcile(self, wanted: Wanted) -> Report:
        """Take over what an earlier agent left."""

    async def exit_addresses(self, endpoint_id: str) -> tuple[IPAddress, ...]:
        """Return the addresses of an endpoint's leg to the outside."""

    async def counters(self, network_id: str) -> VxlanCounters:
        """Return a network's traffic."""


class BalancerPort(Protocol):
    """Of :class:`agent.balancer.Balancer`."""

    def put(self, network_id: str, key: str, backend: Backend) -> None:
        """Take a backend's record."""

    def remove(self, network_id: str, key: str) -> None:
        """Forget a backend's record."""

    def set_local(self, network_id: str, ip: IPAddress, router: IPAddress | None) -> None:
        """Say that a backend is here, or no longer."""

    def open(self, network_id: str, vips: Collection[IPAddress] = ()) -> None:
        """Say that a network's router exists."""

    def forget(self, network_id: str) -> None:
        """Say that it is gone."""

    def vips(self, network_id: str) -> tuple[IPAddress, ...]:
        """Return a network's virtual addresses."""

    async def flows(self, network_id: str, backends: Collection[IPAddress]) -> int:
        """Count the connections that lead to backends here."""


class MeshPort(Protocol):
    """Of :class:`agent.balancer.mesh.Mesh`."""

    def enter(
        self,
        network: Network,
        addresses: Sequence[IPInterface],
        peers: Callable[[], Iterable[Peer]],
    ) -> None:
        """Take part in the ingress network."""

    def addresses(self) -> tuple[str, ...]:
        """Return this node's addresses there."""

    async def leave(self) -> None:
        """Take no part any more."""

    def identity(self) -> tuple[str, str, bytes] | None:
        """Return network, key and value of this node's own peer record there."""

    def put(
        self,
        network_id: str,
        key: str,
        record: EndpointRecord,
        *,
        local: bool,
        silent: bool = False,
    ) -> None:
        """Take an endpoint's record."""

    def remove(self, network_id: str, key: str) -> None:
        """Forget it."""

    def touch(self, network_id: str) -> None:
        """Hear that peers have changed."""


class DiscoveryPort(Protocol):
    """Of :class:`agent.discovery.service.Discovery`."""

    async def serve(
        self,
        key: str,
        netns_path: str,
        *,
        networks: tuple[str, ...],
        upstreams: tuple[str, ...] = (),
    ) -> None:
        """Serve one container."""

    async def update(
        self, key: str, networks: tuple[str, ...], upstreams: tuple[str, ...] | None = None
    ) -> None:
        """Change a served container's networks."""

    async def stop(self, key: str) -> None:
        """Stop serving a container."""
