"""Tasks placed on nodes: every check, address and name of one, within a store transaction.

A placement that cannot be served raises :class:`RefusedError`, whose refusal says what stands in the
way and what would help. No I/O.

Source: SwarmKit ``api/objects.proto``, ``manager/allocator``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from manager.allocator import (
    allocate_attachment,
    check_platform,
    is_encrypted,
    needs_ingress,
)
from manager.api.balancers import with_balancer
from manager.api.nodes import OWN_AGENT_LABEL
from manager.api.servicespecs import (
    MAX_NAME,
    check_networks,
    check_task_spec,
    runtime_networks,
)
from manager.store import Transaction, holds_addresses
from manager.store.pools import parse_address
from swarm import balancing
from swarm.errors import (
    ConflictError,
    ExhaustedError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
)
from swarm.model import (
    Annotations,
    Driver,
    Endpoint,
    Network,
    NetworkAttachment,
    NetworkAttachmentConfig,
    Node,
    NodeAvailability,
    NodeState,
    PortConfig,
    PublishMode,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    Version,
)
from swarm.scheduler.model import Placement, Reason, Refusal

NO_ANNOTATIONS: Final = Annotations()
_STARTS: Final = frozenset({TaskState.READY, TaskState.RUNNING})


class RefusedError(SwarmError):
    """A placement that cannot be served now, or ever; ``refusal`` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """One network a task is to be on."""

    network: Network
    config: NetworkAttachmentConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What all tasks of one kind have in common; made once for a batch."""

    spec: TaskSpec
    wishes: tuple[_Wish, ...]
    name: str = ""
    service_annotations: Annotations = NO_ANNOTATIONS
    endpoint: Endpoint | None = None
    endpoint_v4: Endpoint | None = None
    host_ports: tuple[PortConfig, ...] = ()
    spec_version: Version | None = None
    log_driver: Driver | None = None


class Placer:
    """Makes the tasks of one request.

    Args:
        tx: the transaction they are part of.
        now: wall time, nanoseconds.
        manager: this manager's node id, which stands in the tasks' status.
    """

    def __init__(self, tx: Transaction, *, now: int, manager: str = "") -> None:
        self._tx = tx
        self._now = now
        self._plans: dict[str, _Plan] = {}
        self._ready: dict[str, bool] = {}  # node id -> whether it runs our own agent
        self._balanced: set[tuple[str, str]] = set()
        self._status = TaskStatus(
            timestamp=now,
            state=TaskState.ASSIGNED,
            message="scheduler assigned task to node",
            applied_by=manager,
            applied_at=now,
        )

    def place(self, placement: Placement, task_id: str) -> Task:
        """Make one task; nothing of it stays when this raises.

        Raises:
            RefusedError: it cannot be served.
        """
        try:
            with self._tx.part():
                return self._place(placement, task_id)
        except (InvalidArgumentError, ConflictError) as error:
            raise _refused(Reason.INVALID, str(error), "send another placement") from error

    def _place(self, placement: Placement, task_id: str) -> Task:
        tx = self._tx
        own = self._ready.get(placement.node_id)
        if own is None:
            own = self._ready[placement.node_id] = _check_node(tx, placement.node_id)
        plan = self._plan(placement)
        self._check_platform(placement.node_id, plan.wishes)
        if placement.desired_state not in _STARTS:
            raise InvalidArgumentError("a task is made to be READY or RUNNING")
        for port in plan.host_ports:
            self._check_host_port(placement.node_id, port)
        task = Task(
            id=task_id,
            meta=tx.fresh,
            spec=plan.spec,
            service_id=placement.service_id,
            slot=placement.slot,
            node_id=placement.node_id,
            annotations=_annotations(placement, plan, task_id),
            service_annotations=plan.service_annotations,
            status=self._status,
            desired_state=placement.desired_state,
            networks=tuple(self._attach(wish) for wish in plan.wishes),
            endpoint=plan.endpoint if own else plan.endpoint_v4,
            log_driver=plan.log_driver,
            spec_version=plan.spec_version,
        )
        tx.create(task)
        balanced = [
            (task.node_id, wish.network.id)
            for wish in plan.wishes
            if (task.node_id, wish.network.id) not in self._balanced
        ]
        if balanced:
            self._balance(task.node_id, plan.wishes)
            self._balanced.update(balanced)
        return task

    def _check_platform(self, node_id: str, wishes: Iterable[_Wish]) -> None:
        for wish in wishes:
            if not is_encrypted(wish.network):
                continue
            try:
                check_platform(wish.network, self._tx.nodes.require(node_id))
            except PreconditionError as error:
                raise _refused(
                    Reason.NODE_LACKS_DRIVER,
                    str(error),
                    "place the task on a Linux node",
                    node_id=node_id,
                    network_id=wish.network.id,
                ) from error

    def _balance(self, node_id: str, wishes: Iterable[_Wish]) -> None:
        """Give the node its own address on each network; after the tasks', as engines' managers do."""
        node = balanced = self._tx.nodes.require(node_id)
        for wish in wishes:
            try:
                balanced = with_balancer(self._tx, balanced, wish.network)
            except ExhaustedError as error:
                raise self._exhausted(wish.network, str(error)) from error
        if balanced is not node:
            self._tx.update(balanced)

    def _plan(self, placement: Placement) -> _Plan:
        """Return what the task has in common with others; its own networks and spec make it its own."""
        if placement.spec is not None or placement.networks or not placement.service_id:
            return self._make_plan(placement)
        plan = self._plans.get(placement.service_id)
        if plan is None:
            plan = self._plans[placement.service_id] = self._make_plan(placement)
        return plan

    def _make_plan(self, placement: Placement) -> _Plan:
        spec, configs = placement.spec, placement.networks
        service = None
        if placement.service_id:
            service = self._tx.services.get(placement.service_id)
            if service is None:
                raise _refused(
                    Reason.SERVICE_NOT_FOUND,
                    f"service {placement.service_id} not found",
                    "place tasks of a service that exists; it may have been removed",
                    service_id=placement.service_id,
                )
            if spec is None:
                spec = service.spec.task
                configs = configs or runtime_networks(service.spec)
        if spec is None:
            raise InvalidArgumentError("a placement needs a service or a task spec")
        if placement.spec is not None:
            check_task_spec(spec)
        if spec.container is None and spec.generic is None and spec.attachment is None:
            raise InvalidArgumentError("TaskSpec: missing runtime")
        if placement.networks:
            check_networks(placement.networks)
            spec = replace(spec, networks=placement.networks)
        wishes = [self._wish(config) for config in configs or spec.networks]
        if len({wish.network.id for wish in wishes}) < len(wishes):
            raise InvalidArgumentError("a network is given twice, by id and by name")
        log_driver = spec.log_driver or self._default_log_driver()
        if service is None:
            return _Plan(spec=spec, wishes=tuple(wishes), log_driver=log_driver)
        if needs_ingress(service.spec):
            ingress = self._tx.networks.ingress()
            if ingress is None:
                raise _refused(
                    Reason.NO_INGRESS,
                    f"service {service.spec.annotations.name} publishes ports on every node, and"
                    " there is no ingress network",
                    "make one with network create --ingress, or publish in host mode",
                    service_id=service.id,
                )
            wishes.insert(0, _Wish(network=ingress, config=NetworkAttachmentConfig()))
        endpoint = service.endpoint
        return _Plan(
            spec=spec,
            wishes=tuple(wishes),
            name=service.spec.annotations.name,
            service_annotations=service.spec.annotations,
            endpoint=endpoint,
            endpoint_v4=_only_v4(endpoint),
            host_ports=tuple(
                port
                for port in (endpoint.ports if endpoint else ())
                if port.publish_mode is PublishMode.HOST and port.published_port
            ),
            spec_version=service.spec_version,
            log_driver=log_driver,
        )

    def _default_log_driver(self) -> Driver | None:
        return next(
            (cluster.spec.task_defaults.log_driver for cluster in self._tx.clusters.all()), None
        )

    def _wish(self, config: NetworkAttachmentConfig) -> _Wish:
        try:
            network = self._tx.networks.get(config.target) or self._tx.networks.resolve(
                config.target
            )
        except NotFoundError as error:
            raise _refused(
                Reason.NETWORK_NOT_FOUND,
                f"network {config.target} not found",
                "make the network first, or name another one",
                network_id=config.target,
            ) from error
        if network.spec.ingress:
            raise InvalidArgumentError(
                "a task cannot be explicitly attached to the ingress network"
                f" {network.spec.annotations.name!r}"
            )
        return _Wish(network=network, config=config)

    def _attach(self, wish: _Wish) -> NetworkAttachment:
        network, config = wish.network, wish.config
        try:
            addresses = allocate_attachment(self._tx, network, config.addresses)
        except ExhaustedError as error:
            raise self._exhausted(network, str(error)) from error
        except ConflictError as error:
            raise self._taken(network, config.addresses, str(error)) from error
        except InvalidArgumentError as error:
            raise _refused(
                Reason.ADDRESS_INVALID,
                str(error),
                "ask for an address inside the network, or for none",
                network_id=network.id,
                pool=", ".join(config.addresses),
            ) from error
        return NetworkAttachment(
            network=network,
            addresses=addresses,
            aliases=config.aliases,
            driver_attachment_opts=config.driver_attachment_opts,
        )

    def _exhausted(self, network: Network, text: str) -> RefusedError:
        full = [pool for pool in self._tx.pools(network.id) if pool.used >= pool.size]
        return _refused(
            Reason.POOL_EXHAUSTED,
            text,
            "release tasks on that network, or use one with a larger or a further subnet",
            network_id=network.id,
            pool=", ".join(str(pool.subnet) for pool in full),
        )

    def _taken(self, network: Network, asked: Sequence[str], text: str) -> RefusedError:
        for wish in asked:
            address = parse_address(wish)
            for pool in self._tx.pools(network.id):
                if address in pool and int(address) in pool.holders:
                    return _refused(
                        Reason.ADDRESS_TAKEN,
                        text,
                        "ask for another address or for none, or release its holder",
                        network_id=network.id,
                        pool=str(address),
                        holder=pool.holders[int(address)],
                    )
        return _refused(Reason.ADDRESS_TAKEN, text, "ask for no address", network_id=network.id)

    def _check_host_port(self, node_id: str, port: PortConfig) -> None:
        """Check that no task of the node holds a port of its host; the node itself checks again."""
        for task in self._tx.tasks.by_node(node_id):
            if (
                task.endpoint is None
                or task.desired_state > TaskState.RUNNING
                or not holds_addresses(task)
            ):
                continue
            for other in task.endpoint.ports:
                if (other.publish_mode, other.protocol, other.published_port) == (
                    PublishMode.HOST,
                    port.protocol,
                    port.published_port,
                ):
                    name = f"{port.published_port}/{port.protocol.name.lower()}"
                    raise _refused(
                        Reason.PORT_TAKEN,
                        f"port {name} of node {node_id} is published by task"
                        f" {task.annotations.name or task.id}",
                        "place the task on another node, or end the one that holds the port",
                        node_id=node_id,
                        task_id=task.id,
                        service_id=task.service_id,
                        port=port.published_port,
                        protocol=port.protocol,
                        holder=f"task {task.id}",
                    )


def _refused(reason: Reason, message: str, help_: str, **about: object) -> RefusedError:
    return RefusedError(Refusal(reason=reason, message=message, help=help_, **about))  # type: ignore[arg-type]  # names are the fields'


def _check_node(tx: Transaction, node_id: str) -> bool:
    """Check that a node takes tasks; say whether our own agent runs there."""
    node = tx.nodes.get(node_id)
    if node is None:
        raise _refused(
            Reason.NODE_NOT_FOUND,
            f"node {node_id} not found",
            "place the task on a node of this cluster",
            node_id=node_id,
        )
    name = _name_of(node)
    if node.status.state is not NodeState.READY:
        why = f" ({node.status.message})" if node.status.message else ""
        raise _refused(
            Reason.NODE_NOT_READY,
            f"node {name} is {node.status.state.name.lower()}{why}",
            "place the task on a node that is ready, or wait until this one is back",
            node_id=node_id,
        )
    if node.spec.availability is not NodeAvailability.ACTIVE:
        raise _refused(
            Reason.NODE_NOT_ACTIVE,
            f"node {name} takes no tasks: its availability is"
            f" {node.spec.availability.name.lower()}",
            "place the task on an active node, or make this one active with node update"
            " --availability active",
            node_id=node_id,
        )
    engine = node.description.engine if node.description else None
    if engine is None:
        return False
    if not any(each.type == "Network" and each.name == "overlay" for each in engine.plugins):
        raise _refused(
            Reason.NODE_LACKS_DRIVER,
            f"node {name} has no overlay network driver",
            "place the task on a node that has one",
            node_id=node_id,
        )
    return OWN_AGENT_LABEL in engine.labels


def _name_of(node: Node) -> str:
    return (node.description.hostname if node.description else "") or node.id


def _annotations(placement: Placement, plan: _Plan, task_id: str) -> Annotations:
    given = placement.annotations
    if given is not None and len(given.name) > MAX_NAME * 4:
        raise InvalidArgumentError("the name of a task is too long")
    if given is not None and given.labels:
        balancing.parse(given.labels)
    if not plan.name or (given is not None and given.name):
        return given or Annotations()
    name = f"{plan.name}.{placement.slot or placement.node_id}.{task_id}"
    return Annotations(name=name, labels=given.labels if given is not None else {})


def _only_v4(endpoint: Endpoint | None) -> Endpoint | None:
    """Return an endpoint as engines understand it: they know one virtual address a network."""
    if endpoint is None or not any(":" in each.addr for each in endpoint.virtual_ips):
        return endpoint
    return replace(
        endpoint,
        virtual_ips=tuple(each for each in endpoint.virtual_ips if ":" not in each.addr),
    )
