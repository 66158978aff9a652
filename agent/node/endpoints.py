"""The networks in use on this node and the endpoints on them: made, plugged, unplugged, taken away.

The first endpoint brings a network with it, the last one takes it away, except for a network that is held
(:mod:`agent.node.ingress`). Everything about one network happens under its lock.

What is kept in the run directory is enough to tell everything again with the same ids, addresses and
records, so that a restarted agent changes nothing for anybody.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import structlog

from agent.balancer.hostports import HostPorts, parse
from agent.dataplane.model import IPAddress
from agent.discovery.names import NameTable
from agent.node import records, spec
from agent.node.announcer import Announcer, steer
from agent.node.leases import addresses_of
from agent.node.memory import EntryLog
from agent.node.mirror import Mirror
from agent.node.overlay import Overlay, endpoint_of, ips_of
from agent.node.peers import PeerTable
from agent.node.request import AttachRequest
from agent.node.seams import BalancerPort, DataplanePort, DiscoveryPort, MeshPort
from agent.node.state import Attachment, RunDirectory
from swarm.errors import ConflictError, HostError, InvalidArgumentError, NotFoundError, SwarmError
from swarm.model import Network, NetworkAttachment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MAX_INTERFACES: Final = 256

log = structlog.get_logger(component="endpoints")


class Endpoints:
    """Every endpoint here, by network. Arguments as of :class:`agent.node.coordinator.Coordinator`.

    Args:
        vtep: this node's tunnel address.
        overlays: the networks by id, filled here and read by the mirror.
        mirror: of the same networks.
        announcer: is told of what is plugged, and of what goes.
        dataplane: plugs.
        balancer: hears of networks.
        mesh: likewise.
        ports: publishes ports of this host.
        discovery: serves names to containers.
        names: hears of networks.
        run_dir: where all is written down.
        endpoint_ids: makes ids of 64 hex digits.
    """

    def __init__(
        self,
        *,
        vtep: IPAddress,
        overlays: dict[str, Overlay],
        mirror: Mirror,
        announcer: Announcer,
        dataplane: DataplanePort,
        balancer: BalancerPort,
        mesh: MeshPort,
        ports: HostPorts,
        discovery: DiscoveryPort,
        names: NameTable,
        run_dir: RunDirectory,
        endpoint_ids: Callable[[], str],
    ) -> None:
        self._vtep = vtep
        self._overlays = overlays
        self._mirror = mirror
        self._announcer = announcer
        self._dataplane = dataplane
        self._balancer = balancer
        self._mesh = mesh
        self._ports = ports
        self._discovery = discovery
        self._names = names
        self._run = run_dir
        self._endpoint_ids = endpoint_ids
        self._order = 0
        self._served: set[str] = set()
        self._of_container: dict[str, dict[str, Attachment]] = {}
        self._of_task: dict[str, Attachment] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    # -- questions -------------------------------------------------------------------------

    @property
    def overlays(self) -> Mapping[str, Overlay]:
        """The networks in use here, by id."""
        return MappingProxyType(self._overlays)

    def attachments(self, container_id: str | None = None) -> list[Attachment]:
        """Return this node's endpoints (of one container), oldest first."""
        if container_id is None:
            found = [e for overlay in self._overlays.values() for e in overlay.attachments.values()]
        else:
            found = list(self._of_container.get(container_id, {}).values())
        return sorted(found, key=lambda attachment: attachment.order)

    def find(self, endpoint_id: str) -> Attachment | None:
        """Return an endpoint by its id."""
        for overlay in self._overlays.values():
            if endpoint_id in overlay.attachments:
                return overlay.attachments[endpoint_id]
        return None

    def by_task(self, task_id: str) -> Attachment | None:
        """Return the endpoint of an attachment task; services' tasks are others' affair."""
        return self._of_task.get(task_id)

    def overlay(self, text: str) -> Overlay:
        """Return a network in use here by id, name or id prefix.

        Raises:
            NotFoundError: no such network is in use here.
            InvalidArgumentError: the prefix means several.
        """
        if not text:
            raise InvalidArgumentError("no network was named")
        if text in self._overlays:
            return self._overlays[text]
        for found in self._overlays.values():
            if found.network.spec.annotations.name == text:
                return found
        matching = [
            found for network_id, found in self._overlays.items() if network_id.startswith(text)
        ]
        if len(matching) > 1:
            raise InvalidArgumentError(f"network {text} is ambiguous")
        if not matching:
            raise NotFoundError(f"network {text} is not in use on this node")
        return matching[0]

    def _note(self, overlay: Overlay, attachment: Attachment) -> None:
        """Take an endpoint, or its successor, into all lists."""
        known = overlay.attachments.get(attachment.endpoint_id)
        if known is not None and self._of_task.get(known.attachment_id) is known:
            del self._of_task[known.attachment_id]
        overlay.attachments[attachment.endpoint_id] = attachment
        others = self._of_container.setdefault(attachment.container_id, {})
        others[attachment.endpoint_id] = attachment
        if attachment.service is None:
            self._of_task[attachment.attachment_id] = attachment

    def _strike(self, overlay: Overlay, endpoint_id: str) -> None:
        """Take an endpoint out of all lists; an unknown one is fine."""
        known = overlay.attachments.pop(endpoint_id, None)
        if known is None:
            return
        others = self._of_container[known.container_id]
        del others[endpoint_id]
        if not others:
            del self._of_container[known.container_id]
        if self._of_task.get(known.attachment_id) is known:
            del self._of_task[known.attachment_id]

    # -- containers ------------------------------------------------------------------------

    def lock(self, container_id: str) -> asyncio.Lock:
        """Return the lock that is held while a container's endpoints come and go."""
        return self._locks.setdefault(container_id, asyncio.Lock())

    def unlock(self, container_id: str) -> None:
        """Forget the lock of a container that has no endpoint any more."""
        if not self.attachments(container_id):
            self._locks.pop(container_id, None)

    async def greet(self, request: AttachRequest) -> None:
        """Serve names to a container that is about to be on its first network; there are none yet.

        Called while a manager is asked for the address: it takes as long as the rest of an attach.
        :meth:`serve` ends it again if nothing comes of that.

        Raises:
            SwarmError: it cannot be served.
        """
        if request.container_id not in self._served:
            await self._discovery.serve(
                request.container_id, request.netns, networks=(), upstreams=()
            )
            self._served.add(request.container_id)

    async def serve(self, container_id: str) -> None:
        """Bring a container's name service in line with its networks.

        Raises:
            SwarmError: it cannot be served.
        """
        attachments = self.attachments(container_id)
        networks = tuple(attachment.network_id for attachment in attachments)
        if not attachments:
            self._served.discard(container_id)
            await self._discovery.stop(container_id)
            return
        upstreams: tuple[str, ...] = ()
        if any(attachment.default_route or attachment.foreign for attachment in attachments):
            upstreams = attachments[0].upstreams
        if container_id in self._served:
            await self._discovery.update(container_id, networks, upstreams)
            return
        await self._discovery.serve(
            container_id, attachments[0].netns, networks=networks, upstreams=upstreams
        )
        self._served.add(container_id)

    # -- plug ------------------------------------------------------------------------------

    async def place(
        self, task_id: str, assigned: NetworkAttachment, request: AttachRequest
    ) -> Attachment:
        """Make the network if it is not here yet, plug the endpoint, tell everybody.

        Raises:
            SwarmError: it is not possible; nothing of it is left.
        """
        async with self.opened(assigned.network) as overlay:
            try:
                attachment = self._attachment(task_id, assigned, request, overlay)
                await self._connect(overlay, attachment)
                attachment = await self._publish_ports(overlay, attachment, request.publish)
            except BaseException:
                await self.close_if_unused(overlay)
                raise
        self._announcer.announce(overlay, attachment)
        return attachment

    @asynccontextmanager
    async def opened(self, network: Network) -> AsyncIterator[Overlay]:
        """Hold the lock of a network's overlay, which is made when there is none."""
        while True:
            overlay = self.overlay_of(network)
            async with overlay.lock:
                if overlay.closed:
                    continue  # its last endpoint went while this one waited
                yield overlay
            return

    def overlay_of(self, network: Network) -> Overlay:
        """Return a network's overlay; a new one has nothing in the kernel yet.

        Raises:
            SwarmError: the network makes no sense here.
        """
        overlay = self._overlays.get(network.id)
        if overlay is None:
            translated = spec.network_of(network, self._vtep.version)
            overlay = self._overlays[network.id] = Overlay(
                network=network,
                spec=translated,
                peers=PeerTable(translated, self._vtep),
                memory=EntryLog(self._run.memory_path(network.id)),
                balancer=self._balancer,
                mesh=self._mesh,
            )
            self._names.set_network(
                network.id, network.spec.annotations.name, ingress=network.spec.ingress
            )
        return overlay

    async def prepare(self, overlay: Overlay) -> None:
        """Make a network in the kernel unless it is there; its lock is held.

        Raises:
            HostError: the kernel cannot.
        """
        if not overlay.prepared:
            await self._dataplane.put_network(overlay.spec)
            overlay.prepared = True
            self._balancer.open(overlay.network.id)
            self._run.save_network(overlay.network)

    def adopt(self, overlay: Overlay, attachment: Attachment) -> None:
        """Take over an endpoint that an earlier agent plugged."""
        self._note(overlay, attachment)
        overlay.peers.claim(ips_of(attachment))
        self._order = max(self._order, attachment.order)

    def replace(self, attachment: Attachment) -> None:
        """Write a changed endpoint down."""
        self._note(self._overlays[attachment.network_id], attachment)
        self._run.save_attachment(attachment)

    def _attachment(
        self, task_id: str, assigned: NetworkAttachment, request: AttachRequest, overlay: Overlay
    ) -> Attachment:
        others = self.attachments(request.container_id)
        if any(other.network_id == overlay.network.id for other in others):
            raise ConflictError(
                f"container {request.container_name} is already on network {request.target}"
            )
        taken = {other.interface for other in others}
        free = (f"eth{index}" for index in range(_MAX_INTERFACES))
        interface = request.interface or next(name for name in free if name not in taken)
        addresses = addresses_of((assigned,))
        self._order = max(self._order + 1, time.time_ns())
        has_exit = any(other.default_route for other in others)
        return Attachment(
            endpoint_id=self._endpoint_ids(),
            attachment_id=task_id,
            network_id=overlay.network.id,
            target=request.target,
            container_id=request.container_id,
            container_name=request.container_name,
            netns=request.netns,
            interface=interface,
            mac=records.mac_of(addresses[0]),
            addresses=addresses,
            aliases=request.aliases,
            order=self._order,
            foreign=request.foreign,
            default_route=not (request.foreign or has_exit or overlay.spec.internal),
            upstreams=request.upstreams,
            service=request.service,
        )

    async def _connect(self, overlay: Overlay, attachment: Attachment) -> None:
        """Prepare the network if need be, write the endpoint down, plug it; the lock is held."""
        if self._mirror.gossip is not None:
            # Now, so that peers arrive while the kernel works.
            self._mirror.gossip.join_network(overlay.network.id)
        await self.prepare(overlay)
        # Written first: after a crash in between, the next start finds it in the kernel or plugs it.
        self._run.save_attachment(attachment)
        overlay.note(overlay.peers.claim(ips_of(attachment)))
        await self._mirror.flush(overlay)
        self._note(overlay, attachment)
        # Interface and name service touch different parts of the namespace: both at once.
        outcomes = await asyncio.gather(
            self._dataplane.plug(endpoint_of(attachment)),
            self._introduce(attachment),
            return_exceptions=True,
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            await self._unconnect(overlay, attachment)
            raise failures[0]
        if overlay.network.spec.ingress:
            try:
                await asyncio.to_thread(steer, overlay, attachment)
            except SwarmError:
                await self._unconnect(overlay, attachment)
                raise

    async def _introduce(self, attachment: Attachment) -> None:
        """Tell other nodes the way to a container, and the container the names of its networks."""
        self._announcer.locate(attachment)
        await self.serve(attachment.container_id)

    async def _publish_ports(
        self, overlay: Overlay, attachment: Attachment, wished: tuple[str, ...]
    ) -> Attachment:
        """Publish a container's ports, if this endpoint is its way out; the lock is held."""
        if not (wished and attachment.default_route):
            return attachment
        try:
            addresses = await self._dataplane.exit_addresses(attachment.endpoint_id)
            if not addresses:
                raise HostError("the container has no leg to the outside")
            ports = self._ports.publish(
                attachment.endpoint_id, [parse(text) for text in wished], addresses
            )
        except SwarmError:
            await self._unconnect(overlay, attachment)
            raise
        changed = dataclasses.replace(attachment, published=tuple(map(str, ports)))
        self.replace(changed)
        return changed

    # -- unplug ----------------------------------------------------------------------------

    async def remove(self, attachment: Attachment) -> None:
        """Undo :meth:`place`, and take the network away with its last endpoint.

        Raises:
            HostError: the kernel refused; the endpoint stays.
        """
        overlay = self._overlays[attachment.network_id]
        async with overlay.lock:
            await self._unconnect(overlay, attachment)
            await self.close_if_unused(overlay)

    async def _unconnect(self, overlay: Overlay, attachment: Attachment) -> None:
        """Take an endpoint out of this node, however far it came; the lock is held."""
        self._announcer.withdraw(overlay, attachment)
        self._ports.withdraw(attachment.endpoint_id)
        await self._dataplane.unplug(attachment.endpoint_id)
        self._strike(overlay, attachment.endpoint_id)
        self._run.drop_attachment(attachment.endpoint_id)
        overlay.note(overlay.peers.release(ips_of(attachment)))
        self._mirror.touch()
        try:
            await self.serve(attachment.container_id)
        except SwarmError as error:
            log.warning(
                "discovery.update.failed", container=attachment.container_name, reason=str(error)
            )

    async def close_if_unused(self, overlay: Overlay) -> None:
        """Take a network away with its last endpoint; its lock is held."""
        if overlay.attachments or overlay.closed or overlay.held:
            return
        overlay.closed = True
        network_id = overlay.network.id
        if self._overlays.get(network_id) is overlay:
            del self._overlays[network_id]
        if self._mirror.gossip is not None:
            self._mirror.gossip.leave_network(network_id)
        self._names.remove_network(network_id)
        self._balancer.forget(network_id)
        overlay.memory.remove()
        self._run.drop_network(network_id)  # before any pause: the network may come again at once
        if overlay.prepared:
            try:
                await self._dataplane.remove_network(network_id)
            except SwarmError as error:
                log.warning("network.removal.failed", network=network_id, reason=str(error))
