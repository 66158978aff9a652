"""Containers with networks: what the local API does with them, without gRPC."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import structlog

from agent.api.namespaces import Namespaces
from agent.balancer.hostports import parse
from agent.node import host
from agent.node.coordinator import Coordinator
from agent.node.node import Node
from agent.node.request import AttachRequest
from agent.node.state import Attachment
from agent.workload.naming import generate_name
from agent.workload.runtime import Runtime
from agent.workload.spec import State, Workload, WorkloadSpec
from swarm.errors import (
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
)

MAX_NETWORKS: Final = 64

log = structlog.get_logger(component="workloads")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One network a container is to be on; kept as JSON in the workload's spec."""

    network: str
    aliases: tuple[str, ...] = ()
    ipv4: str = ""
    ipv6: str = ""
    upstreams: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    """The container's published ports: with whichever network is its way out."""

    def encode(self) -> str:
        """Return the wish as text."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def decode(cls, text: str) -> Wish:
        """Read it back."""
        content: dict[str, Any] = json.loads(text)
        for name in ("aliases", "upstreams", "publish"):
            content[name] = tuple(content.get(name, ()))
        return cls(**content)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerOptions:
    """What a container is asked to be."""

    argv: tuple[str, ...]
    name: str = ""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cwd: str = "/"
    hostname: str = ""
    tty: bool = False
    stdin_open: bool = False
    auto_remove: bool = False
    wishes: tuple[Wish, ...] = ()
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    dns_search: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()


class Workloads:
    """Containers of this host and their endpoints.

    Args:
        runtime: holds the containers; its ``on_exit`` is taken over.
        node: holds the networks.
        rng: makes names.
    """

    def __init__(self, runtime: Runtime, node: Node, rng: Random) -> None:
        self.runtime = runtime
        self.node = node
        self._rng = rng
        self._namespaces = Namespaces()
        runtime.on_exit = self._exited

    async def create(self, options: ContainerOptions) -> Workload:
        """Make a container's namespaces; nothing runs in them yet.

        Raises:
            ConflictError: the name is taken.
            InvalidArgumentError: the options make no sense.
            PreconditionError: networks are asked for and this node is in no cluster.
            HostError: the namespaces cannot be made.
        """
        if len(options.wishes) > MAX_NETWORKS:
            raise InvalidArgumentError(f"a container can be on at most {MAX_NETWORKS} networks")
        names = [wish.network for wish in options.wishes]
        if not all(names):
            raise InvalidArgumentError("a network has no name")
        if len(set(names)) != len(names):
            raise InvalidArgumentError("a network is named twice")
        if options.publish and not names:
            raise PreconditionError("ports are published with a network: name one")
        for text in options.publish:
            parse(text)
        if names:
            self.node.coordinator()
        taken = {workload.spec.name for workload in self.runtime.list()}
        return await self.runtime.create(
            WorkloadSpec(
                id=secrets.token_hex(32),
                name=options.name or generate_name(self._rng, taken),
                argv=options.argv,
                env=options.env,
                cwd=options.cwd or "/",
                hostname=options.hostname,
                tty=options.tty,
                stdin_open=options.stdin_open,
                networks=tuple(
                    dataclasses.replace(wish, publish=options.publish).encode()
                    for wish in options.wishes
                ),
                labels=options.labels,
                created_at=time.time(),
                auto_remove=options.auto_remove,
                dns_search=options.dns_search,
            )
        )

    async def start(self, reference: str) -> list[Attachment]:
        """Attach a created container to its networks in order, then start its command.

        When anything fails, what was attached is detached again and the container stays as created.

        Raises:
            NotFoundError: no such container, or no such network.
            PreconditionError: it was started before.
            CommandError: the command cannot be executed.
            SwarmError: a network could not be attached; see :meth:`Coordinator.attach`.
        """
        workload = self.runtime.get(reference)
        spec = workload.spec
        if workload.state is not State.CREATED:
            raise PreconditionError(f"container {spec.name} was started before")
        wishes = [Wish.decode(text) for text in spec.networks]
        done: list[Attachment] = []
        try:
            for wish in wishes:
                done.append(await self._attach(workload, wish))  # noqa: PERF401  # undone on failure
            _check_published(wishes, done)
            await self._show_addresses(workload)
            await self.runtime.start(spec.id)
        except BaseException:
            if done:
                await asyncio.shield(self._undo(done))
            raise
        return self.endpoints(spec.id)

    async def connect(self, reference: str, wish: Wish) -> Attachment:
        """Attach a container that has not ended to one more network.

        Raises:
            NotFoundError: no such container or network.
            PreconditionError: it has ended.
            SwarmError: see :meth:`Coordinator.attach`.
        """
        workload = self.runtime.get(reference)
        if workload.state.over:
            raise PreconditionError(f"container {workload.spec.name} is not running")
        attachment = await self._attach(workload, wish)
        await self._show_addresses(workload)
        return attachment

    async def disconnect(self, reference: str, network: str, *, force: bool = False) -> None:
        """Take a container off a network.

        Raises:
            NotFoundError: no such container, or it is not on that network.
            HostError: the kernel refused.
        """
        try:
            container_id = self.runtime.get(reference).spec.id
        except NotFoundError:
            container_id = self._foreign(reference)
            if not container_id:
                raise
        coordinator = self.node.coordinator()
        overlay = coordinator.overlay(network)
        for attachment in overlay.attachments.values():
            if attachment.container_id == container_id:
                await coordinator.detach(attachment.endpoint_id)
                if not attachment.foreign:
                    await self._show_addresses(self.runtime.get(container_id))
                return
        if not force:
            raise NotFoundError(f"container {reference} is not connected to network {network}")

    async def attach_namespace(
        self, netns: str, wish: Wish, *, name: str = "", interface: str = ""
    ) -> Attachment:
        """Put a namespace somebody else made on a network.

        Raises:
            NotFoundError: no such namespace or network.
            SwarmError: see :meth:`Coordinator.attach`.
        """
        coordinator = self.node.coordinator()
        known = await asyncio.to_thread(self._namespaces.find, netns, coordinator.attachments())
        container_id = secrets.token_hex(32) if known is None else known.container_id
        if not name:
            name = container_id[:12] if known is None else known.container_name
        return await coordinator.attach(
            AttachRequest(
                target=wish.network,
                container_id=container_id,
                container_name=name,
                netns=netns,
                interface=interface,
                ipv4=wish.ipv4,
                ipv6=wish.ipv6,
                aliases=wish.aliases,
                foreign=True,
                upstreams=wish.upstreams or host.name_servers(),
            )
        )

    async def detach_namespace(self, reference: str, network: str = "") -> None:
        """Take a foreign namespace off one network, or off all its networks.

        Raises:
            NotFoundError: no such endpoint.
            InvalidArgumentError: the reference is empty or means several endpoints.
        """
        if not reference:
            raise InvalidArgumentError("no endpoint was named")
        coordinator = self.node.coordinator()
        foreign = [entry for entry in coordinator.attachments() if entry.foreign]
        found = [entry for entry in foreign if entry.container_name == reference]
        if not found:
            found = [entry for entry in foreign if entry.endpoint_id.startswith(reference)]
            if len(found) > 1:
                raise InvalidArgumentError(
                    f"several endpoints have ids that begin with {reference}"
                )
        if network:
            wanted = coordinator.overlay(network).network.id
            found = [entry for entry in found if entry.network_id == wanted]
        if not found:
            raise NotFoundError(f"no such attached namespace: {reference}")
        for entry in reversed(found):
            await coordinator.detach(entry.endpoint_id)

    def endpoints(self, container_id: str | None = None) -> list[Attachment]:
        """Return the endpoints here (of one container); none outside of a cluster."""
        coordinator = self._coordinator()
        return [] if coordinator is None else coordinator.attachments(container_id)

    def network_names(self) -> dict[str, str]:
        """Return the names of the networks in use here, by id."""
        coordinator = self._coordinator()
        if coordinator is None:
            return {}
        return {
            overlay.network.id: overlay.network.spec.annotations.name
            for overlay in coordinator.overlays()
        }

    def _coordinator(self) -> Coordinator | None:
        try:
            return self.node.coordinator()
        except PreconditionError:
            return None

    def _foreign(self, reference: str) -> str:
        for entry in self.endpoints():
            if entry.foreign and reference in {entry.container_name, entry.container_id}:
                return entry.container_id
        return ""

    async def _attach(self, workload: Workload, wish: Wish) -> Attachment:
        spec = workload.spec
        return await self.node.coordinator().attach(
            AttachRequest(
                target=wish.network,
                container_id=spec.id,
                container_name=spec.name,
                netns=workload.netns_path,
                ipv4=wish.ipv4,
                ipv6=wish.ipv6,
                aliases=wish.aliases,
                upstreams=wish.upstreams or host.name_servers(),
                publish=wish.publish,
            )
        )

    async def _show_addresses(self, workload: Workload) -> None:
        addresses = [
            address.partition("/")[0]
            for entry in self.endpoints(workload.spec.id)
            for address in entry.addresses
        ]
        try:
            await self.runtime.set_addresses(workload.spec.id, addresses)
        except (NotFoundError, OSError):
            return  # removed meanwhile

    async def _undo(self, done: Sequence[Attachment]) -> None:
        for attachment in reversed(done):
            try:
                await self.node.coordinator().detach(attachment.endpoint_id)
            except SwarmError as error:
                log.warning(
                    "container.undo.failed", endpoint=attachment.endpoint_id, reason=str(error)
                )

    async def _exited(self, workload: Workload) -> None:
        """Give back what an ended container held, while its namespaces still exist."""
        await self.node.container_gone(workload.spec.id)


def _check_published(wishes: Sequence[Wish], done: Sequence[Attachment]) -> None:
    if any(wish.publish for wish in wishes) and not any(each.published for each in done):
        raise PreconditionError(
            "no port can be published: all networks of the container are internal"
        )
