"""Attachments: what a manager assigned, what runs here, what gossip says, brought together.

The way of an attach: ask a manager (AttachNetwork), wait for the task on the Assignments stream, make the
network if this is its first endpoint here, write the endpoint down, plug it, then tell everybody: names,
DNS, gossip (peer record, endpoint record), and RUNNING to the manager. The way of a detach is the reverse,
and the last endpoint takes the network with it. Nothing polls.

The parts: :mod:`agent.node.leases` (the managers' side), :mod:`agent.node.endpoints` (this node's side),
:mod:`agent.node.announcer` and :mod:`agent.node.mirror` (telling and being told), :mod:`agent.node.ingress`,
:mod:`agent.node.restore`. Endpoints of services' tasks come from :mod:`agent.tasks`, which also speaks for
them to the managers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Container, Iterable

import structlog

from agent.balancer.hostports import HostPorts
from agent.dataplane.model import IPAddress, VxlanCounters
from agent.discovery.names import NameTable
from agent.gossip.changes import TableChange
from agent.node.announcer import Announcer
from agent.node.endpoints import Endpoints
from agent.node.ingress import Ingress
from agent.node.jobs import Jobs
from agent.node.leases import Leases, addresses_of
from agent.node.mirror import Mirror
from agent.node.overlay import Overlay, ips_of
from agent.node.request import AttachRequest, check
from agent.node.restore import Restore
from agent.node.seams import (
    BalancerPort,
    DataplanePort,
    DiscoveryPort,
    GossipPort,
    MeshPort,
    SessionPort,
)
from agent.node.state import Attachment, RunDirectory, Stage
from swarm.errors import (
    ConflictError,
    DeadlineError,
    PreconditionError,
    SwarmError,
    UnavailableError,
)
from swarm.model import NetworkAttachment, Node, NodeAvailability, Task, TaskState

log = structlog.get_logger(component="coordinator")


class Coordinator:
    """Everything about the networks of this node's workloads. One object per membership.

    Args:
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
        overlays: dict[str, Overlay] = {}
        self._dataplane = dataplane
        self._balancer = balancer
        self._jobs = Jobs()
        self._ready = asyncio.Event()
        self._mirror = Mirror(overlays, dataplane=dataplane, names=names)
        self._announcer = Announcer(vtep=vtep, mirror=self._mirror, names=names, balancer=balancer)
        self._endpoints = Endpoints(
            vtep=vtep,
            overlays=overlays,
            mirror=self._mirror,
            announcer=self._announcer,
            dataplane=dataplane,
            balancer=balancer,
            mesh=mesh,
            ports=ports,
            discovery=discovery,
            names=names,
            run_dir=run_dir,
            endpoint_ids=endpoint_ids,
        )
        self._leases = Leases(session, plugged=self._endpoints.by_task, ready=self._ready)
        self._ingress = Ingress(
            endpoints=self._endpoints,
            announcer=self._announcer,
            mirror=self._mirror,
            mesh=mesh,
            node=node,
        )
        self._restore = Restore(
            run_dir=run_dir,
            endpoints=self._endpoints,
            announcer=self._announcer,
            leases=self._leases,
            ingress=self._ingress,
            dataplane=dataplane,
            balancer=balancer,
            mesh=mesh,
            ports=ports,
            names=names,
            start=self._jobs.start,
            detach=self._detach,
        )
        self.availability = NodeAvailability.ACTIVE

    # -- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled; what is plugged stays plugged.

        Raises:
            InvariantError: a bug was found.
        """
        async with asyncio.TaskGroup() as group:
            group.create_task(self._jobs.run())
            group.create_task(self._leases.run())
            group.create_task(self._mirror.run())
            await asyncio.sleep(0)  # the jobs' group opens
            await self._restore.run()
            self._ready.set()
            self._jobs.start(self._ingress.hold())
            self.sweep()

    async def ready(self) -> None:
        """Wait until what an earlier agent left has been taken over."""
        await self._ready.wait()

    # -- questions -------------------------------------------------------------------------

    @property
    def error(self) -> str:
        """What is wrong with the networks as a whole, for a person."""
        found = (self._restore.error, self._ingress.error)
        return "; ".join(text for text in found if text)

    def attachments(self, container_id: str | None = None) -> list[Attachment]:
        """Return this node's endpoints (of one container), oldest first."""
        return self._endpoints.attachments(container_id)

    def overlays(self) -> list[Overlay]:
        """Return the networks in use here."""
        return list(self._endpoints.overlays.values())

    def overlay(self, text: str) -> Overlay:
        """Return a network in use here by id, name or id prefix.

        Raises:
            NotFoundError: no such network is in use here.
            InvalidArgumentError: the prefix means several.
        """
        return self._endpoints.overlay(text)

    async def counters(self, network_id: str) -> VxlanCounters:
        """Return a network's traffic; zero when the data plane does not have it."""
        try:
            return await self._dataplane.counters(network_id)
        except SwarmError:
            return VxlanCounters()

    async def flows(self, container_id: str) -> int:
        """Count the live TCP connections that lead to a container's endpoints."""
        return sum(
            [
                await self._balancer.flows(attachment.network_id, ips_of(attachment))
                for attachment in self.attachments(container_id)
            ]
        )

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
        check(request)
        return await self._jobs.do(self._attach(request))

    async def _attach(self, request: AttachRequest) -> Attachment:
        async with self._endpoints.lock(request.container_id):
            began = time.monotonic()
            self._check_free(request)
            try:
                task = await self._obtain(request)
                asked = time.monotonic()
                attachment = await self._place(task, request)
            except SwarmError:
                await self._endpoints.serve(request.container_id)  # as before this call
                raise
            self._leases.settle(task.id)
            self._leases.report(task.id, TaskState.RUNNING, request.container_id)
            log.info(
                "endpoint.attached",
                container=attachment.container_name,
                network=attachment.network_id,
                addresses=attachment.addresses,
                manager_ms=round(1000 * (asked - began), 1),
                node_ms=round(1000 * (time.monotonic() - asked), 1),
            )
            return attachment

    async def _obtain(self, request: AttachRequest) -> Task:
        """Get an attachment from a manager; meanwhile the container's name service is made."""
        task, served = await asyncio.gather(
            self._leases.obtain(request.target, request.container_id, request.wishes),
            self._endpoints.greet(request),
            return_exceptions=True,
        )
        if isinstance(task, BaseException):
            raise task
        if isinstance(served, BaseException):
            self._leases.give_back(task, served)
            raise served
        return task

    async def _place(self, task: Task, request: AttachRequest) -> Attachment:
        try:
            return await self._endpoints.place(task.id, task.networks[0], request)
        except SwarmError as error:
            self._leases.give_back(task, error)
            raise

    def _check_free(self, request: AttachRequest) -> None:
        if self.availability is not NodeAvailability.ACTIVE:
            raise PreconditionError(
                f"this node's availability is {self.availability.name.lower()}: "
                "it takes no new containers"
            )
        for attachment in self.attachments(request.container_id):
            network = self._endpoints.overlays[attachment.network_id].network
            if request.target in {network.id, network.spec.annotations.name, attachment.target}:
                raise ConflictError(
                    f"container {request.container_name} is already on network {request.target}"
                )

    async def attach_assigned(
        self, request: AttachRequest, task_id: str, assigned: NetworkAttachment
    ) -> Attachment:
        """Put a service task's namespace on a network that came with the task.

        Nobody is told of it before :meth:`set_stage` says that it serves. A second call for the
        same task and network returns what the first one made.

        Raises:
            SwarmError: as :meth:`attach`, but for what only a manager's answer can be.
        """
        check(request)
        return await self._jobs.do(self._attach_assigned(request, task_id, assigned))

    async def _attach_assigned(
        self, request: AttachRequest, task_id: str, assigned: NetworkAttachment
    ) -> Attachment:
        async with self._endpoints.lock(request.container_id):
            for known in self.attachments(request.container_id):
                if known.network_id == assigned.network.id:
                    return known
            attachment = await self._endpoints.place(task_id, assigned, request)
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
            self._endpoints.replace(changed)
            self._announcer.announce(self._endpoints.overlays[changed.network_id], changed)

    # -- detach ----------------------------------------------------------------------------

    async def detach(self, endpoint_id: str) -> None:
        """Take an endpoint off its network and give its address back; an unknown one is fine.

        Raises:
            HostError: the kernel refused; the endpoint stays.
        """
        await self._jobs.do(self._detach(endpoint_id))

    async def _detach(self, endpoint_id: str) -> None:
        attachment = self._endpoints.find(endpoint_id)
        if attachment is None:
            return
        async with self._endpoints.lock(attachment.container_id):
            attachment = self._endpoints.find(endpoint_id)
            if attachment is None:
                return
            leased, task_id = attachment.service is None, attachment.attachment_id
            if leased:
                self._leases.reserve(task_id)
            await self._endpoints.remove(attachment)
            if leased:
                self._leases.release(task_id)  # which ends the task: there is no more to report
            log.info(
                "endpoint.detached",
                container=attachment.container_name,
                network=attachment.network_id,
            )
        self._endpoints.unlock(attachment.container_id)

    async def container_gone(self, container_id: str) -> None:
        """Take every endpoint of a container that has ended off its network, the last one first."""
        await self._detach_each(self.attachments(container_id))

    async def detach_all(self, within: float) -> None:
        """Take everything off, for leaving the cluster; managers get ``within`` seconds to hear of it."""
        await self._detach_each(self.attachments())
        await self._leases.drained(within)

    async def _detach_each(self, attachments: list[Attachment]) -> None:
        for attachment in reversed(attachments):
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

    # -- what managers say -----------------------------------------------------------------

    def node_changed(self, node: Node) -> None:
        """Hear the manager's word on this node."""
        self.availability = node.spec.availability
        self._ingress.node = node
        if self._ready.is_set():
            with contextlib.suppress(PreconditionError):  # stopping
                self._jobs.start(self._ingress.hold())

    def task_assigned(self, task: Task) -> None:
        """Hear of an attachment's task that is new or changed."""
        if self._leases.offer(task):
            return
        attachment = self._endpoints.by_task(task.id)
        if attachment is None:
            self._leases.sweep((task,))
        elif task.desired_state > TaskState.RUNNING and self._leases.reserve(task.id):
            self._jobs.start(self._detach(attachment.endpoint_id))

    def task_removed(self, task_id: str) -> None:
        """Hear that a manager dropped a task; a live endpoint asks for its own address anew."""
        self._leases.withdrawn(task_id)
        attachment = self._endpoints.by_task(task_id)
        if attachment is not None and not self._leases.busy(task_id):
            self._jobs.start(self._reclaim(attachment))

    def sweep(self) -> None:
        """Give back attachments that nothing here belongs to."""
        self._leases.sweep()

    def assignments_complete(self) -> None:
        """Hear that a whole list has been applied: what is missing in it, the manager does not have."""
        self.sweep()
        for attachment in self.attachments():
            task_id = attachment.attachment_id
            if attachment.service is not None:
                continue
            if self._leases.lost(task_id) and self._leases.reserve(task_id):
                self._jobs.start(self._reclaim(attachment))

    async def _reclaim(self, old: Attachment) -> None:
        """Ask for a running endpoint's own addresses again; without them it has to go.

        A manager that lost the task may give the address to somebody else.
        """
        self._leases.settle(old.attachment_id)
        log.warning("attachment.lost", container=old.container_name, network=old.network_id)
        wishes = tuple(str(ip) for ip in ips_of(old))
        try:
            task = await self._leases.obtain(old.network_id, old.container_id, wishes)
        except (UnavailableError, DeadlineError):
            return  # the next whole list brings this back
        except SwarmError as error:
            log.warning(
                "attachment.reclaim.refused", container=old.container_name, reason=str(error)
            )
            await self._detach(old.endpoint_id)
            return
        if set(addresses_of(task.networks)) != set(old.addresses):
            self._leases.release(task.id)
            await self._detach(old.endpoint_id)
        elif self._endpoints.find(old.endpoint_id) is None:
            self._leases.release(task.id)
        else:
            self._endpoints.replace(dataclasses.replace(old, attachment_id=task.id))
            self._leases.settle(task.id)
            self._leases.report(task.id, TaskState.RUNNING, old.container_id)
            self._leases.forget(old.attachment_id)

    # -- what gossip says ------------------------------------------------------------------

    def set_gossip(self, gossip: GossipPort | None) -> None:
        """Take a new gossip node (or none): it hears of every endpoint here."""
        self._mirror.gossip = gossip
        if gossip is None:
            return
        self._ingress.publish()
        for attachment in self.attachments():
            self._announcer.publish(gossip, attachment)

    def gossip_changed(self, change: TableChange) -> None:
        """Hear of a change in a table."""
        self._mirror.changed(change)

    def confirm(self, network_id: str | None = None, owners: Container[str] | None = None) -> None:
        """Drop remembered entries (of a network, of some gossip nodes) that gossip did not repeat."""
        self._mirror.confirm(network_id, owners)
