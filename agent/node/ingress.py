"""This node's part in the ingress network, which every node has, with or without an endpoint on it.

Unlike other load balancer addresses the one here is published: it is how nodes of ours know each other
there, and the source of what goes to an engine's tasks (:mod:`agent.balancer.mesh`).
"""

from __future__ import annotations

import asyncio
import ipaddress

import structlog

from agent.dataplane.model import IPAddress
from agent.gossip.records import PEER_TABLE
from agent.node.announcer import Announcer
from agent.node.endpoints import Endpoints
from agent.node.mirror import Mirror
from agent.node.overlay import Overlay
from agent.node.seams import MeshPort
from swarm.errors import SwarmError
from swarm.model import NetworkAttachment, Node

log = structlog.get_logger(component="ingress")


class Ingress:
    """Holds the ingress network.

    Args:
        endpoints: has the networks.
        announcer: tells of services' endpoints on it.
        mirror: knows the gossip node of the moment.
        mesh: leads published ports.
        node: the manager's last word on this node, as far as there is one.
    """

    def __init__(
        self,
        *,
        endpoints: Endpoints,
        announcer: Announcer,
        mirror: Mirror,
        mesh: MeshPort,
        node: Node | None,
    ) -> None:
        self._endpoints = endpoints
        self._announcer = announcer
        self._mirror = mirror
        self._mesh = mesh
        self.node = node
        self._lock = asyncio.Lock()  # held while this node enters or leaves
        self.error = ""
        """Why published ports do not work, for a person."""

    @property
    def assigned(self) -> NetworkAttachment | None:
        """This node's address on the ingress network, as the managers gave it."""
        attachments = () if self.node is None else self.node.attachments
        found = [each for each in attachments if each.network.spec.ingress and each.addresses]
        return found[0] if found else None

    @property
    def addresses(self) -> tuple[tuple[str, IPAddress], ...]:
        """Network and bare address, for each address of :attr:`assigned`."""
        assigned = self.assigned
        if assigned is None:
            return ()
        return tuple(
            (assigned.network.id, ipaddress.ip_interface(address).ip)
            for address in assigned.addresses
        )

    async def hold(self) -> None:
        """Take part where the managers say, and nowhere else; the network may have been made anew."""
        async with self._lock:
            assigned = self.assigned
            identity = self._mesh.identity()
            if assigned is None and identity is None:
                return
            if (
                assigned is not None
                and identity is not None
                and identity[0] == assigned.network.id
                and self._mesh.addresses() == tuple(assigned.addresses)
            ):
                return
            await self._leave()
            if assigned is not None:
                await self._take_part(assigned)

    async def _leave(self) -> None:
        identity = self._mesh.identity()
        if identity is not None and self._mirror.gossip is not None:
            network_id, key, _ = identity
            self._mirror.gossip.delete(PEER_TABLE, network_id, key)
        try:
            await self._mesh.leave()
            for overlay in [each for each in self._endpoints.overlays.values() if each.held]:
                async with overlay.lock:
                    overlay.held = False
                    await self._endpoints.close_if_unused(overlay)
        except SwarmError as error:
            self.error = f"published ports: {error}"
            log.warning("ingress.leave.failed", reason=str(error))

    async def _take_part(self, assigned: NetworkAttachment) -> None:
        try:
            async with self._endpoints.opened(assigned.network) as overlay:
                overlay.held = True
                await self._endpoints.prepare(overlay)
        except SwarmError as error:
            self.error = f"published ports: {error}"
            log.warning("ingress.failed", reason=str(error))
            return
        self.error = ""
        self.enter(overlay, assigned)
        self.publish()

    def enter(self, overlay: Overlay, assigned: NetworkAttachment) -> None:
        """Give the mesh what is known of the network."""
        addresses = [ipaddress.ip_interface(address) for address in assigned.addresses]
        self._mesh.enter(overlay.spec, addresses, overlay.peers.peers)
        for key, record in overlay.records.items():
            overlay.balance(key, record, local=False)
        for attachment in overlay.attachments.values():
            self._announcer.balance(overlay, attachment)

    def publish(self) -> None:
        """Tell the gossip node of the moment of this node's address."""
        identity = self._mesh.identity()
        if self._mirror.gossip is None or identity is None:
            return
        network_id, key, value = identity
        self._mirror.gossip.join_network(network_id)
        self._mirror.gossip.put(PEER_TABLE, network_id, key, value)
