"""Attachments: what a manager assigned, what runs here, what gossip says, brought together.

The way of an attach: ask a manager (AttachNetwork), wait for the task on the Assignments stream, make the
network if this is its first endpoint here, write the endpoint down, plug it, then tell everybody: names,
DNS, gossip (peer record, endpoint record), and RUNNING to the manager. The way of a detach is the reverse,
and the last endpoint takes the network with it. Nothing polls.

What is kept in the run directory is enough to do all of the telling again with the same ids, addresses
and records, so that a restarted agent changes nothing for anybody.

Load balancer addresses (``Node.attachments``) are not published: nothing answers at them, since service
traffic keeps the client's own address here, and a record for an address where nobody answers only makes
other engines program entries for it. The one on the ingress network is: it is how nodes of ours know each
other there, and the source of what goes to an engine's tasks (:mod:`agent.balancer.mesh`).

Endpoints of services' tasks come from :mod:`agent.tasks`, which also speaks for them to the managers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import secrets
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from agent.balancer.hostports import HostPorts, parse
from agent.balancer.steering import link_container
from agent.dataplane.model import IPAddress, VxlanCounters, Wanted
from agent.discovery.names import NameTable
from agent.gossip.changes import TableChange
from agent.gossip.records import PEER_TABLE
from agent.node import records, spec
from agent.node.jobs import Jobs
from agent.node.memory import EntryLog
from agent.node.mirror import Mirror
from agent.node.overlay import Overlay, endpoint_of, ips_of
from agent.node.peers import PeerTable
from agent.node.releases import Releases
from agent.node.seams import (
    BalancerPort,
    DataplanePort,
    DiscoveryPort,
    GossipPort,
    MeshPort,
    SessionPort,
)
from agent.node.state import Attachment, RunDirectory, ServicePart, Stage
from swarm.errors import (
    ConflictError,
    DeadlineError,
    HostError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
    UnavailableError,
)
from swarm.kernel.netns import in_netns
from swarm.model import (
    ContainerStatus,
    Network,
    NetworkAttachment,
    Node,
    NodeAvailability,
    Task,
    TaskState,
    TaskStatus,
)

ATTACH_TIMEOUT: Final = 20.0
"""Seconds for the manager's part of an attach, all in all; engines wait as long."""

SESSION_TIMEOUT: Final = 5.0
"""Seconds an attach waits for a session when there is none at that moment."""

MAX_ALIASES: Final = 64
MAX_NAME: Final = 253
_MAX_INTERFACES: Final = 256

log = structlog.get_logger(component="coordinator")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """A wish to put a namespace on a network."""

    target: str
    """Name, id or id prefix of the network, as typed."""
    container_id: str
    container_name: str
    netns: str
    interface: str = ""
    """Empty: the first free of eth0, eth1, ..."""
    ipv4: str = ""
    ipv6: str = ""
    aliases: tuple[str, ...] = ()
    foreign: bool = False
    """A namespace made by somebody else: its default route is not touched."""
    upstreams: tuple[str, ...] = ()
    """Name servers for all other names."""
    publish: tuple[str, ...] = ()
    """Ports of this host to lead to the container, as ``PUBLISHED:TARGET/PROTOCOL``; they are
    published with the endpoint that is its way out, and not at all if there is none."""
    service: ServicePart | None = None
    """Of a service's task."""


class Coordinator:
    """Everything about the networks of this node's workloads. One object per membership.

    Args:
        node_id: for messages.
        vtep: this node's tunnel address.
        session: with a manager.
        dataplane: running and ready.
        balancer: of the same data plane.
        mesh: likewise.
        ports: likewise.
        node: the manager's last word on this node, as far as there is one.
        discovery: running and ready; answers from ``names``.
        names: filled here.
        run_dir: where attachments are kept.
        endpoint_ids: makes ids of 64 hex digits.
    """

    def __init__(
        self,
        *,
        vtep: IPAddress,
        session: SessionPort,
        dataplane: DataplanePort,
        balancer: BalancerPort,
        mesh: MeshPort,
        ports: HostPorts,
        discovery: DiscoveryPort,
        names: NameTable,
        run_dir: RunDirectory,
        node: Node | None = None,
        endpoint_ids: Callable[[], str] = lambda: secrets.token_hex(32),
    ) -> None:
        self._vtep = vtep
        self._session = session
        self._dataplane = dataplane
        self._balancer = balancer
        self._mesh = mesh
        self._ports = ports
        self._node = node
        self._discovery = discovery
        self._names = names
        self._run = run_dir
        self._endpoint_ids = endpoint_ids
        self._overlays: dict[str, Overlay] = {}
        self._mirror = Mirror(self._overlays, dataplane=dataplane, names=names)
        self._order = 0
        self._containers: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, asyncio.Future[Task]] = {}
        self._asking: Counter[str] = Counter()
        self._ending: set[str] = set()
        self._served: set[str] = set()
        self._jobs = Jobs()
        self._releases = Releases(session)
        self._ready = asyncio.Event()
        self.availability = NodeAvailability.ACTIVE
        self.error = ""
        """What is wrong with the networks as a whole, for a person."""

    # -- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled; what is plugged stays plugged.

        Raises:
            InvariantError: a bug was found.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._jobs.run())
            group.create_task(self._releases.run())
            group.create_task(self._mirror.run())
            await asyncio.sleep(0)  # the jobs' group opens
            await self._recover()
            self._ready.set()
            self._jobs.start(self._hold_ingress())
            self.sweep()

    async def ready(self) -> None:
        """Wait until what an earlier agent left has been taken over."""
        await self._ready.wait()

    # -- questions -------------------------------------------------------------------------

    def attachments(self, container_id: str | None = None) -> list[Attachment]:
        """Return this node's endpoints (of one container), oldest first."""
        found = [
            attachment
            for overlay in self._overlays.values()
            for attachment in overlay.attachments.values()
            if container_id in {None, attachment.container_id}
        ]
        return sorted(found, key=lambda attachment: attachment.order)

    def overlays(self) -> list[Overlay]:
        """Return the networks in use here."""
        return list(self._overlays.values())

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

    async def counters(self, network_id: str) -> VxlanCounters:
        """Return a network's traffic; zero when the data plane does not have it."""
        try:
            return await self._dataplane.counters(network_id)
        except SwarmError:
            return VxlanCounters()

    # -- attach ----------------------------------------------------------------------------

    async def attach(self, request: AttachRequest) -> Attachment:
        """Put a namespace on a network; packets pass and others know when this returns.

        Runs to its end even if the caller goes away.

        Raises:
            NotFoundError: no such network, or the namespace is gone.
            InvalidArgumentError: the request makes no sense.
            ConflictError: the container is on that network already, or an address is taken.
            PermissionDeniedError: the network is not attachable.
            PreconditionError: this node takes no new work.
            UnavailableError: no manager can be reached.
            DeadlineError: the manager did not assign the attachment in time.
            HostError: the kernel cannot do it.
        """
        _check(request)
        return await self._jobs.do(self._attach(request))

    async def _attach(self, request: AttachRequest) -> Attachment:
        lock = self._containers.setdefault(request.container_id, asyncio.Lock())
        async with lock:
            began = time.monotonic()
            self._check_free(request)
            wishes = tuple(each for each in (request.ipv4, request.ipv6) if each)
            task = await self._obtain(request.target, request.container_id, wishes)
            asked = time.monotonic()
            try:
                attachment = await self._plug(task, request)
            except SwarmError as error:
                self._give_back(task, error)
                raise
            log.info(
                "endpoint.attached",
                container=attachment.container_name,
                network=attachment.network_id,
                addresses=attachment.addresses,
                manager_ms=round(1000 * (asked - began), 1),
                node_ms=round(1000 * (time.monotonic() - asked), 1),
            )
            return attachment

    async def attach_assigned(
        self, request: AttachRequest, task_id: str, assigned: NetworkAttachment
    ) -> Attachment:
        """Put a service task's namespace on a network that came with the task.

        Nobody is told of it before :meth:`set_stage` says that it serves. A second call for the
        same task and network returns what the first one made.

        Raises:
            SwarmError: as :meth:`attach`, but for what only a manager's answer can be.
        """
        _check(request)
        return await self._jobs.do(self._attach_assigned(request, task_id, assigned))

    async def _attach_assigned(
        self, request: AttachRequest, task_id: str, assigned: NetworkAttachment
    ) -> Attachment:
        lock = self._containers.setdefault(request.container_id, asyncio.Lock())
        async with lock:
            for known in self.attachments(request.container_id):
                if known.network_id == assigned.network.id:
                    return known
            attachment = await self._place(task_id, assigned, request)
        log.info(
            "endpoint.attached",
            container=attachment.container_name,
            network=attachment.network_id,
            addresses=attachment.addresses,
            task=task_id,
        )
        return attachment

    def set_stage(self, container_id: str, stage: Stage) -> None:
        """Tell everybody that a service's backend serves, or takes no new flows any more."""
        for attachment in self.attachments(container_id):
            if attachment.service is None or attachment.service.stage is stage:
                continue
            changed = dataclasses.replace(
                attachment, service=dataclasses.replace(attachment.service, stage=stage)
            )
            self._overlays[attachment.network_id].attachments[attachment.endpoint_id] = changed
            self._run.save_attachment(changed)
            self._announce(changed)

    def _check_free(self, request: AttachRequest) -> None:
        if self.availability is not NodeAvailability.ACTIVE:
            raise PreconditionError(
                f"this node's availability is {self.availability.name.lower()}: "
                "it takes no new containers"
            )
        for attachment in self.attachments(request.container_id):
            network = self._overlays[attachment.network_id].network
            if request.target in {network.id, network.spec.annotations.name, attachment.target}:
                raise ConflictError(
                    f"container {request.container_name} is already on network {request.target}"
                )

    async def _obtain(self, target: str, container_id: str, addresses: tuple[str, ...]) -> Task:
        """Ask a manager for an attachment and wait for its task."""
        try:
            async with asyncio.timeout(SESSION_TIMEOUT):
                await self._session.active()
        except TimeoutError as error:
            detail = self._session.last_error or "not connected yet"
            raise UnavailableError(f"no manager of the swarm can be reached: {detail}") from error
        attachment_id = ""
        self._asking[container_id] += 1
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT):
                attachment_id = await self._session.attach_network(target, container_id, addresses)
                return await self._assigned(attachment_id)
        except TimeoutError as error:
            raise DeadlineError(
                f"attaching to network {target} failed: the manager did not assign an address "
                f"within {ATTACH_TIMEOUT:.0f} s"
            ) from error
        finally:
            self._asking[container_id] -= 1
            if not self._asking[container_id]:
                del self._asking[container_id]
                # Whatever the manager made for a request that failed is given back.
                asyncio.get_running_loop().call_soon(self.sweep)

    async def _assigned(self, attachment_id: str) -> Task:
        task = self._session.task(attachment_id)
        if task is None or not _is_allocated(task):
            future: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
            self._waiting[attachment_id] = future
            try:
                task = await future
            finally:
                self._waiting.pop(attachment_id, None)
        if task.status.state >= TaskState.COMPLETE:
            raise PreconditionError(
                task.status.err or f"the attachment was {task.status.state.name.lower()}"
            )
        self._ending.add(task.id)  # spoken for, until it is plugged or given back
        return task

    def _give_back(self, task: Task, error: SwarmError) -> None:
        """Report a failed attach and give the attachment back."""
        self._report(task.id, TaskState.FAILED, _container(task), err=str(error))
        self._release(task.id)

    async def _plug(self, task: Task, request: AttachRequest) -> Attachment:
        self._report(task.id, TaskState.PREPARING, request.container_id)
        attachment = await self._place(task.id, task.networks[0], request)
        self._ending.discard(task.id)
        self._report(task.id, TaskState.RUNNING, request.container_id)
        return attachment

    async def _place(
        self, task_id: str, assigned: NetworkAttachment, request: AttachRequest
    ) -> Attachment:
        """Make the network if it is not here yet, plug the endpoint, tell everybody."""
        while True:
            overlay = self._overlay_of(assigned.network)
            async with overlay.lock:
                if overlay.closed:
                    continue  # its last endpoint went while this one waited
                try:
                    attachment = self._attachment(task_id, assigned, request, overlay)
                    await self._connect(overlay, attachment)
                    attachment = await self._publish_ports(overlay, attachment, request.publish)
                except BaseException:
                    await self._close_if_unused(overlay)
                    raise
            break
        self._announce(attachment)
        return attachment

    async def _publish_ports(
        self, overlay: Overlay, attachment: Attachment, wished: tuple[str, ...]
    ) -> Attachment:
        """Publish a container's ports, if this endpoint is its way out; the lock is held."""
        if not (wished and attachment.default_route):
            return attachment
        try:
            address = await self._dataplane.exit_address(attachment.endpoint_id)
            if address is None:
                raise HostError("the container has no leg to the outside")
            ports = self._ports.publish(
                attachment.endpoint_id, [parse(text) for text in wished], address
            )
        except SwarmError:
            await self._unconnect(overlay, attachment)
            raise
        changed = dataclasses.replace(attachment, published=tuple(map(str, ports)))
        overlay.attachments[attachment.endpoint_id] = changed
        self._run.save_attachment(changed)
        return changed

    async def _republish_ports(self) -> None:
        """Reserve what an earlier agent has published; its rules are still there."""
        for attachment in self.attachments():
            if not attachment.published:
                continue
            try:
                address = await self._dataplane.exit_address(attachment.endpoint_id)
                if address is not None:
                    ports = [parse(text) for text in attachment.published]
                    self._ports.publish(attachment.endpoint_id, ports, address)
            except SwarmError as error:
                self.error = f"published ports: {error}"
                log.warning("ports.lost", container=attachment.container_name, reason=str(error))

    def _overlay_of(self, network: Network) -> Overlay:
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
        addresses = _addresses((assigned,))
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
        if not overlay.prepared:
            await self._dataplane.put_network(overlay.spec)
            overlay.prepared = True
            self._balancer.open(overlay.network.id)
            self._run.save_network(overlay.network)
        # Written first: after a crash in between, the next start finds it in the kernel or plugs it.
        self._run.save_attachment(attachment)
        overlay.note(overlay.peers.claim(ips_of(attachment)))
        await self._mirror.flush(overlay)
        overlay.attachments[attachment.endpoint_id] = attachment
        # Interface and name service touch different parts of the namespace: both at once.
        outcomes = await asyncio.gather(
            self._dataplane.plug(endpoint_of(attachment)),
            self._serve(attachment.container_id),
            return_exceptions=True,
        )
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            await self._unconnect(overlay, attachment)
            raise failures[0]
        if overlay.network.spec.ingress:
            try:
                await asyncio.to_thread(_steer, overlay, attachment)
            except SwarmError:
                await self._unconnect(overlay, attachment)
                raise

    async def _unconnect(self, overlay: Overlay, attachment: Attachment) -> None:
        """Take an endpoint out of this node, however far it came; the lock is held."""
        self._ports.withdraw(attachment.endpoint_id)
        await self._dataplane.unplug(attachment.endpoint_id)
        overlay.attachments.pop(attachment.endpoint_id, None)
        self._run.drop_attachment(attachment.endpoint_id)
        overlay.note(overlay.peers.release(ips_of(attachment)))
        self._mirror.touch()
        try:
            await self._serve(attachment.container_id)
        except SwarmError as error:
            log.warning(
                "discovery.update.failed", container=attachment.container_name, reason=str(error)
            )

    async def _serve(self, container_id: str) -> None:
        """Bring a container's name service in line with its networks."""
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

    def _announce(self, attachment: Attachment) -> None:
        names = records.names_of(attachment)
        if names is not None:
            self._names.put(attachment.network_id, attachment.endpoint_id, names, local=True)
        self._balance(attachment)
        if self._mirror.gossip is not None:
            self._publish(self._mirror.gossip, attachment)

    def _balance(self, attachment: Attachment) -> None:
        """Make a service's endpoint a backend of its service on this node."""
        overlay = self._overlays[attachment.network_id]
        for key, ip in records.keys(attachment):
            record = records.endpoint_record(attachment, ip)
            subnet = overlay.spec.subnet_of(ip)
            if record is None or attachment.service is None or subnet is None:
                continue
            overlay.balance(key, record, local=True)
            if record.virtual_ip:
                self._balancer.set_local(attachment.network_id, ip, subnet.gateway)

    async def flows(self, container_id: str) -> int:
        """Count the live TCP connections that lead to a container's endpoints."""
        return sum(
            [
                await self._balancer.flows(attachment.network_id, ips_of(attachment))
                for attachment in self.attachments(container_id)
            ]
        )

    def _publish(self, gossip: GossipPort, attachment: Attachment) -> None:
        gossip.join_network(attachment.network_id)
        for entry in records.entries(attachment, str(self._vtep)):
            gossip.put(entry.table, attachment.network_id, entry.key, entry.value)

    # -- detach ----------------------------------------------------------------------------

    async def detach(self, endpoint_id: str) -> None:
        """Take an endpoint off its network and give its address back; an unknown one is fine.

        Raises:
            HostError: the kernel refused; the endpoint stays.
        """
        await self._jobs.do(self._detach(endpoint_id))

    async def container_gone(self, container_id: str) -> None:
        """Take every endpoint of a container that has ended off its network, the last one first."""
        for attachment in reversed(self.attachments(container_id)):
            try:
                await self.detach(attachment.endpoint_id)
            except SwarmError as error:
                log.warning(
                    "endpoint.detach.failed", endpoint=attachment.endpoint_id, reason=str(error)
                )

    def endpoints_gone(self, endpoint_ids: Iterable[str]) -> None:
        """Hear from the data plane that namespaces ended without being detached."""
        for endpoint_id in endpoint_ids:
            with contextlib.suppress(PreconditionError):  # stopping: the next start finds it gone
                self._jobs.start(self._detach(endpoint_id))

    async def _detach(self, endpoint_id: str) -> None:
        attachment = self._find(endpoint_id)
        if attachment is None:
            return
        lock = self._containers.setdefault(attachment.container_id, asyncio.Lock())
        async with lock:
            attachment = self._find(endpoint_id)
            if attachment is None:
                return
            if attachment.service is None:
                self._ending.add(attachment.attachment_id)
            await self._disconnect(attachment)
            if attachment.service is None:
                self._report(attachment.attachment_id, TaskState.COMPLETE, attachment.container_id)
                self._release(attachment.attachment_id)
            log.info(
                "endpoint.detached",
                container=attachment.container_name,
                network=attachment.network_id,
            )
        if not self.attachments(attachment.container_id):
            self._containers.pop(attachment.container_id, None)

    async def _disconnect(self, attachment: Attachment) -> None:
        """Undo an attach, others first: nobody sends to an endpoint that is about to go."""
        overlay = self._overlays[attachment.network_id]
        async with overlay.lock:
            if self._mirror.gossip is not None:
                for entry in reversed(records.entries(attachment, str(self._vtep))):
                    self._mirror.gossip.delete(entry.table, attachment.network_id, entry.key)
            self._names.remove(attachment.network_id, attachment.endpoint_id, local=True)
            for key, ip in records.keys(attachment):
                overlay.unbalance(key)
                if attachment.service is not None:
                    self._balancer.set_local(attachment.network_id, ip, None)
            await self._unconnect(overlay, attachment)
            await self._close_if_unused(overlay)

    async def _close_if_unused(self, overlay: Overlay) -> None:
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

    def _find(self, endpoint_id: str) -> Attachment | None:
        for overlay in self._overlays.values():
            if endpoint_id in overlay.attachments:
                return overlay.attachments[endpoint_id]
        return None

    def _release(self, attachment_id: str) -> None:
        self._ending.discard(attachment_id)
        self._releases.add(attachment_id)

    async def detach_all(self, within: float) -> None:
        """Take everything off, for leaving the cluster; managers get ``within`` seconds to hear of it."""
        for attachment in reversed(self.attachments()):
            try:
                await self._jobs.do(self._detach(attachment.endpoint_id))
            except SwarmError as error:
                log.warning(
                    "endpoint.detach.failed", endpoint=attachment.endpoint_id, reason=str(error)
                )
        try:
            async with asyncio.timeout(within):
                await self._releases.drained()
        except TimeoutError:
            log.warning("attachments.unreleased", count=len(self._releases))

    # -- what managers say -----------------------------------------------------------------

    def node_changed(self, node: Node) -> None:
        """Hear the manager's word on this node."""
        self.availability = node.spec.availability
        self._node = node
        if self._ready.is_set():
            with contextlib.suppress(PreconditionError):  # stopping
                self._jobs.start(self._hold_ingress())

    def task_assigned(self, task: Task) -> None:
        """Hear of an attachment's task that is new or changed."""
        waiting = self._waiting.get(task.id)
        if waiting is not None:
            if not waiting.done() and _is_allocated(task):
                waiting.set_result(task)
            return
        attachment = self._by_attachment(task.id)
        if attachment is None:
            self.sweep()
        elif task.desired_state > TaskState.RUNNING and task.id not in self._ending:
            self._ending.add(task.id)
            self._jobs.start(self._detach(attachment.endpoint_id))

    def task_removed(self, task_id: str) -> None:
        """Hear that a manager dropped a task; a live endpoint asks for its own address anew."""
        waiting = self._waiting.get(task_id)
        if waiting is not None and not waiting.done():
            waiting.set_exception(PreconditionError("the manager withdrew the attachment"))
        attachment = self._by_attachment(task_id)
        if attachment is not None and task_id not in self._ending and task_id not in self._releases:
            self._jobs.start(self._reclaim(attachment))

    def sweep(self) -> None:
        """Give back attachments that nothing here belongs to, and reclaim those a manager lost."""
        if not self._ready.is_set():
            return
        for task in self._session.tasks():
            about = task.spec.attachment
            if about is None or about.container_id in self._asking or task.id in self._releases:
                continue
            if task.id in self._ending or self._by_attachment(task.id) is not None:
                continue
            log.info("attachment.orphaned", task=task.id)
            self._releases.add(task.id)

    def assignments_complete(self) -> None:
        """Hear that a whole list has been applied: what is missing in it, the manager does not have."""
        self.sweep()
        for attachment in self.attachments():
            task_id = attachment.attachment_id
            if attachment.service is not None:
                continue
            if self._session.task(task_id) is None and task_id not in self._ending:
                self._ending.add(task_id)
                self._jobs.start(self._reclaim(attachment))

    def _by_attachment(self, attachment_id: str) -> Attachment | None:
        for overlay in self._overlays.values():
            for attachment in overlay.attachments.values():
                if attachment.attachment_id == attachment_id and attachment.service is None:
                    return attachment
        return None

    async def _reclaim(self, old: Attachment) -> None:
        """Ask for a running endpoint's own addresses again; without them it has to go.

        A manager that lost the task may give the address to somebody else.
        """
        self._ending.discard(old.attachment_id)
        log.warning("attachment.lost", container=old.container_name, network=old.network_id)
        wishes = tuple(str(ip) for ip in ips_of(old))
        try:
            task = await self._obtain(old.network_id, old.container_id, wishes)
        except (UnavailableError, DeadlineError):
            return  # the next whole list brings this back
        except SwarmError as error:
            log.warning(
                "attachment.reclaim.refused", container=old.container_name, reason=str(error)
            )
            await self._detach(old.endpoint_id)
            return
        overlay = self._overlays.get(old.network_id)
        if set(_addresses(task.networks)) != set(old.addresses):
            self._release(task.id)
            await self._detach(old.endpoint_id)
        elif overlay is None or old.endpoint_id not in overlay.attachments:
            self._release(task.id)
        else:
            renewed = dataclasses.replace(old, attachment_id=task.id)
            overlay.attachments[old.endpoint_id] = renewed
            self._run.save_attachment(renewed)
            self._ending.discard(task.id)
            self._report(task.id, TaskState.RUNNING, old.container_id)
            self._session.forget(old.attachment_id)

    def _report(self, task_id: str, state: TaskState, container_id: str, *, err: str = "") -> None:
        self._session.report(
            task_id,
            TaskStatus(
                timestamp=time.time_ns(),
                state=state,
                message=state.name.lower(),
                err=err,
                container=ContainerStatus(container_id=container_id) if container_id else None,
            ),
        )

    # -- what gossip says ------------------------------------------------------------------

    def set_gossip(self, gossip: GossipPort | None) -> None:
        """Take a new gossip node (or none): it hears of every endpoint here."""
        self._mirror.gossip = gossip
        if gossip is None:
            return
        self._publish_identity()
        for attachment in self.attachments():
            self._publish(gossip, attachment)

    def gossip_changed(self, change: TableChange) -> None:
        """Hear of a change in a table."""
        self._mirror.changed(change)

    def confirm(self, network_id: str | None = None, owners: Container[str] | None = None) -> None:
        """Drop remembered entries (of a network, of some gossip nodes) that gossip did not repeat."""
        self._mirror.confirm(network_id, owners)

    # -- ingress ---------------------------------------------------------------------------

    def _ingress(self) -> NetworkAttachment | None:
        """Return this node's address on the ingress network, as the managers gave it."""
        attachments = () if self._node is None else self._node.attachments
        found = [each for each in attachments if each.network.spec.ingress and each.addresses]
        return found[0] if found else None

    async def _hold_ingress(self) -> None:
        """Take part in the ingress network, which every node does."""
        assigned = self._ingress()
        if assigned is None or self._mesh.identity() is not None:
            return
        try:
            while True:
                overlay = self._overlay_of(assigned.network)
                async with overlay.lock:
                    if overlay.closed:
                        continue
                    overlay.held = True
                    if not overlay.prepared:
                        await self._dataplane.put_network(overlay.spec)
                        overlay.prepared = True
                        self._balancer.open(overlay.network.id)
                        self._run.save_network(overlay.network)
                break
        except SwarmError as error:
            self.error = f"published ports: {error}"
            log.warning("ingress.failed", reason=str(error))
            return
        self._enter_mesh(overlay, assigned)
        self._publish_identity()

    def _enter_mesh(self, overlay: Overlay, assigned: NetworkAttachment) -> None:
        address = ipaddress.ip_interface(assigned.addresses[0])
        self._mesh.enter(overlay.spec, address.ip, address.network.prefixlen, overlay.peers.peers)
        for key, record in overlay.records.items():
            overlay.balance(key, record, local=False)
        for attachment in overlay.attachments.values():
            self._balance(attachment)

    def _publish_identity(self) -> None:
        identity = self._mesh.identity()
        if self._mirror.gossip is None or identity is None:
            return
        network_id, key, value = identity
        self._mirror.gossip.join_network(network_id)
        self._mirror.gossip.put(PEER_TABLE, network_id, key, value)

    # -- start -----------------------------------------------------------------------------

    async def _recover(self) -> None:
        """Take over what an earlier agent left in the kernel and in the run directory."""
        known = {network.id: network for network in self._run.networks()}
        ingress = self._ingress()
        if ingress is not None and ingress.network.id in known:
            overlay = self._overlay_of(known[ingress.network.id])
            overlay.held = True
            self._enter_mesh(overlay, ingress)
        for attachment in self._run.attachments():
            network = known.get(attachment.network_id)
            try:
                if network is None:
                    raise NotFoundError(f"network {attachment.network_id} is not on record")
                overlay = self._overlay_of(network)
            except SwarmError as error:
                log.warning(
                    "attachment.unusable", endpoint=attachment.endpoint_id, reason=str(error)
                )
                self._run.drop_attachment(attachment.endpoint_id)
                continue
            overlay.attachments[attachment.endpoint_id] = attachment
            overlay.peers.claim(ips_of(attachment))
            self._balance(attachment)
            self._order = max(self._order, attachment.order)
        for overlay in self._overlays.values():
            overlay.memory.load()
            for (table, key), value in overlay.memory.entries.items():
                overlay.take(table, key, value, self._names)
                overlay.owners[key] = overlay.memory.owners.get((table, key), "")
                if table == PEER_TABLE:
                    overlay.peers.fade(key)  # whatever gossip says of its address goes before it
            overlay.pending.clear()  # the reconcile takes them as a whole
        for stale in set(known) - set(self._overlays):
            self._run.drop_network(stale)
        await self._reconcile()
        await self._republish_ports()

    async def _reconcile(self) -> None:
        overlays = tuple(self._overlays.values())
        vips = {each.network.id: self._balancer.vips(each.network.id) for each in overlays}
        assigned = self._ingress()
        own = [] if assigned is None else [(assigned.network.id, _bare(assigned.addresses[0]))]
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
                    *own,
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
            self._jobs.start(self._detach(endpoint_id))
        self._jobs.start(self._resume(frozenset((*report.gone, *lost))))

    async def _resume(self, dead: frozenset[str]) -> None:
        """Open the name service again and tell the manager what runs."""
        containers: dict[str, None] = {}
        for attachment in self.attachments():
            if attachment.endpoint_id not in dead:
                containers[attachment.container_id] = None
                self._announce(attachment)
                if attachment.service is None:
                    self._report(
                        attachment.attachment_id, TaskState.RUNNING, attachment.container_id
                    )
        for container_id in containers:
            async with self._containers.setdefault(container_id, asyncio.Lock()):
                try:
                    await self._serve(container_id)
                except SwarmError as error:
                    log.warning(
                        "discovery.resume.failed", container=container_id, reason=str(error)
                    )


def _check(request: AttachRequest) -> None:
    if not request.target:
        raise InvalidArgumentError("no network was named")
    if not 0 < len(request.container_name) <= MAX_NAME:
        raise InvalidArgumentError(f"a container name has 1 to {MAX_NAME} characters")
    if len(request.aliases) > MAX_ALIASES:
        raise InvalidArgumentError(f"there are more than {MAX_ALIASES} aliases")
    for alias in request.aliases:
        if not 0 < len(alias) <= MAX_NAME:
            raise InvalidArgumentError(f"an alias has 1 to {MAX_NAME} characters")
    for text, version in ((request.ipv4, 4), (request.ipv6, 6)):
        try:
            right = not text or ipaddress.ip_address(text).version == version
        except ValueError:
            right = False
        if not right:
            raise InvalidArgumentError(f"{text!r:.80} is not an IPv{version} address")


def _bare(address: str) -> IPAddress:
    return ipaddress.ip_interface(address).ip


def _steer(overlay: Overlay, attachment: Attachment) -> None:
    """Have a container answer clients of published ports the way they came; in a worker thread."""
    for ip in ips_of(attachment):
        subnet = overlay.spec.subnet_of(ip)
        if subnet is not None and ip.version == 4:
            with in_netns(attachment.netns):
                link_container(attachment.interface, str(ip), str(subnet.gateway))


def _is_allocated(task: Task) -> bool:
    return task.status.state >= TaskState.ASSIGNED and bool(
        task.status.state >= TaskState.COMPLETE or (task.networks and task.networks[0].addresses)
    )


def _container(task: Task) -> str:
    return "" if task.spec.attachment is None else task.spec.attachment.container_id


def _addresses(networks: Iterable[NetworkAttachment]) -> tuple[str, ...]:
    """Return the addresses assigned: the last IPv4 one (as engines choose), then IPv6 ones.

    Raises:
        HostError: the manager gave no usable address.
    """
    try:
        found = [ipaddress.ip_interface(address) for each in networks for address in each.addresses]
    except ValueError as error:
        raise HostError(f"the manager gave a malformed address: {error}") from error
    v4 = [interface for interface in found if interface.version == 4][-1:]
    v6 = [interface for interface in found if interface.version == 6]
    if not found:
        raise HostError("the manager gave no address")
    return tuple(str(interface) for interface in (*v4, *v6))
