"""After a restart of the agent: what an earlier one left in the kernel and on disk is taken over.

Nothing is torn down and made again: the run directory says what there should be, the data plane mends what
differs, and everybody is told the same as before under the same ids.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import structlog

from agent.balancer.hostports import HostPorts, parse
from agent.dataplane.model import Wanted
from agent.discovery.names import NameTable
from agent.gossip.records import PEER_TABLE
from agent.node.announcer import Announcer
from agent.node.endpoints import Endpoints
from agent.node.ingress import Ingress
from agent.node.leases import Leases
from agent.node.overlay import Overlay, endpoint_of
from agent.node.seams import BalancerPort, DataplanePort, MeshPort
from agent.node.state import RunDirectory
from swarm.errors import NotFoundError, SwarmError
from swarm.model import TaskState

log = structlog.get_logger(component="restore")


class Restore:
    """One take-over. Arguments as of :class:`agent.node.coordinator.Coordinator`, and its parts.

    Args:
        run_dir: what an earlier agent wrote.
        endpoints: filled.
        announcer: tells again.
        leases: reports again.
        ingress: entered again.
        dataplane: reconciled.
        balancer: hears of networks and virtual addresses.
        mesh: hears of networks.
        ports: reserved again.
        names: filled.
        start: begins an operation that goes on afterwards.
        detach: takes an endpoint off whose namespace is gone.
    """

    def __init__(
        self,
        *,
        run_dir: RunDirectory,
        endpoints: Endpoints,
        announcer: Announcer,
        leases: Leases,
        ingress: Ingress,
        dataplane: DataplanePort,
        balancer: BalancerPort,
        mesh: MeshPort,
        ports: HostPorts,
        names: NameTable,
        start: Callable[[Coroutine[Any, Any, None]], object],
        detach: Callable[[str], Coroutine[Any, Any, None]],
    ) -> None:
        self._run_dir = run_dir
        self._endpoints = endpoints
        self._announcer = announcer
        self._leases = leases
        self._ingress = ingress
        self._dataplane = dataplane
        self._balancer = balancer
        self._mesh = mesh
        self._ports = ports
        self._names = names
        self._start = start
        self._detach = detach
        self.error = ""
        """What could not be taken over, for a person."""

    async def run(self) -> None:
        """Take over; what can wait (names, reports, endpoints that are gone) follows by itself."""
        networks = {network.id: network for network in self._run_dir.networks()}
        assigned = self._ingress.assigned
        if assigned is not None and assigned.network.id in networks:
            overlay = self._endpoints.overlay_of(networks[assigned.network.id])
            overlay.held = True
            self._ingress.enter(overlay, assigned)
        for attachment in self._run_dir.attachments():
            network = networks.get(attachment.network_id)
            try:
                if network is None:
                    raise NotFoundError(f"network {attachment.network_id} is not on record")
                overlay = self._endpoints.overlay_of(network)
            except SwarmError as error:
                log.warning(
                    "attachment.unusable", endpoint=attachment.endpoint_id, reason=str(error)
                )
                self._run_dir.drop_attachment(attachment.endpoint_id)
                continue
            self._endpoints.adopt(overlay, attachment)
            self._announcer.balance(overlay, attachment)
        for overlay in self._endpoints.overlays.values():
            self._remember(overlay)
        for stale in set(networks) - set(self._endpoints.overlays):
            self._run_dir.drop_network(stale)
        await self._reconcile()
        await self._republish_ports()

    def _remember(self, overlay: Overlay) -> None:
        """Take what others had told before."""
        overlay.memory.load()
        for (table, key), value in overlay.memory.entries.items():
            overlay.take(table, key, value, self._names)
            overlay.owners[key] = overlay.memory.owners.get((table, key), "")
            if table == PEER_TABLE:
                overlay.peers.fade(key)  # whatever gossip says of its address goes before it
        overlay.pending.clear()  # the reconcile takes them as a whole

    async def _reconcile(self) -> None:
        overlays = tuple(self._endpoints.overlays.values())
        vips = {each.network.id: self._balancer.vips(each.network.id) for each in overlays}
        report = await self._dataplane.reconcile(
            Wanted(
                networks=tuple(overlay.spec for overlay in overlays),
                endpoints=tuple(
                    endpoint_of(attachment)
                    for overlay in overlays
                    for attachment in overlay.attachments.values()
                ),
                peers=tuple(peer for overlay in overlays for peer in overlay.peers.peers()),
                vips=(
                    *self._ingress.addresses,
                    *((network_id, ip) for network_id, ips in vips.items() for ip in ips),
                ),
            )
        )
        for failure in report.failed:
            log.error("reconcile.failed", kind=failure.kind, id=failure.id, reason=failure.text)
        lost = {failure.id for failure in report.failed if failure.kind == "endpoint"}
        broken = {failure.id for failure in report.failed if failure.kind == "network"}
        if broken:
            self.error = f"{len(broken)} networks could not be restored"
        for overlay in overlays:
            overlay.prepared = True
            self._balancer.open(overlay.network.id, vips[overlay.network.id])
            self._mesh.touch(overlay.network.id)
        for endpoint_id in (*report.gone, *lost):
            self._start(self._detach(endpoint_id))
        self._start(self._resume(frozenset((*report.gone, *lost))))

    async def _republish_ports(self) -> None:
        """Reserve what an earlier agent has published; its rules are still there."""
        for attachment in self._endpoints.attachments():
            if not attachment.published:
                continue
            try:
                addresses = await self._dataplane.exit_addresses(attachment.endpoint_id)
                if addresses:
                    ports = [parse(text) for text in attachment.published]
                    self._ports.publish(attachment.endpoint_id, ports, addresses)
            except SwarmError as error:
                self.error = f"published ports: {error}"
                log.warning("ports.lost", container=attachment.container_name, reason=str(error))

    async def _resume(self, dead: frozenset[str]) -> None:
        """Open the name service again and tell everybody what runs."""
        containers: dict[str, None] = {}
        for attachment in self._endpoints.attachments():
            if attachment.endpoint_id not in dead:
                containers[attachment.container_id] = None
                self._announcer.announce(
                    self._endpoints.overlays[attachment.network_id], attachment
                )
                if attachment.service is None:
                    self._leases.report(
                        attachment.attachment_id, TaskState.RUNNING, attachment.container_id
                    )
        for container_id in containers:
            async with self._endpoints.lock(container_id):
                try:
                    await self._endpoints.serve(container_id)
                except SwarmError as error:
                    log.warning(
                        "discovery.resume.failed", container=container_id, reason=str(error)
                    )
