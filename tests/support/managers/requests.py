"""What clients ask for: one class a kind of write, each with the rules its answer must obey."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from manager.allocator import allocate_attachment, sync_node
from manager.api.attachments import Wish, attach, release
from manager.api.errors import NameConflictError
from manager.api.networks import create_network, remove_network
from manager.store import VXLANID_LIST, Transaction
from manager.store.tables import TableId
from support.managers.histories import Step
from support.managers.ledger import ENDED, LIST, Effect, Key, known_of, listed
from swarm.errors import ConflictError, NotFoundError, PreconditionError, SwarmError
from swarm.model import (
    Annotations,
    Driver,
    Endpoint,
    IPAMConfig,
    IPAMOptions,
    Network,
    NetworkAttachmentConfig,
    NetworkSpec,
    PortConfig,
    Service,
    ServiceSpec,
    Task,
    TaskState,
    VirtualIP,
)

PORTS = range(30000, 30006)
"""Published ports to choose from; few, so that services compete."""

VNIS = (0, 0, 5000, 5001)
SUBNETS = ("", "", "10.9.0.0/24", "10.9.0.128/25", "10.9.1.0/24")
"""What networks ask for; few as well."""

Rule = tuple[Key, str, Step]
"""An object, what happened to it in words, and what that means for its state."""


def only(before: Callable[[Any], bool], after: Callable[[Any], Hashable] = lambda s: s) -> Step:
    """Return the step of a call that needs a state of some kind and leads to another."""
    return lambda state: (after(state),) if before(state) else ()


def is_absent(state: Any) -> bool:
    """A task that has ended may be cleared away at any time, so that may have happened too."""
    return state in {None, ENDED}


def seen(key: Key, value: object) -> Step:
    """Return the step of a read that saw a value."""
    if key[0] == "task" and value is None:
        return only(is_absent)
    return only(lambda state: state == value)


class Request(abc.ABC):
    """One write, whatever becomes of it."""

    @abc.abstractmethod
    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Do it in a transaction; what it makes gets the id ``made``. Return what is told."""

    @abc.abstractmethod
    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """Say what it means that the request took effect so."""

    @abc.abstractmethod
    def told(self, effect: Effect) -> object:
        """Return what ``build`` must have returned if the request took effect so."""

    def refused(self, error: SwarmError) -> Iterator[Rule]:
        """Say what it means that the request was refused."""
        yield from ()


@dataclass(frozen=True, slots=True)
class CreateNetwork(Request):
    """Create a network by name, with a VNI and a subnet of its choice or any (0, empty)."""

    name: str
    vni: int = 0
    subnet: str = ""

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Allocate and create."""
        spec = NetworkSpec(annotations=Annotations(name=self.name), attachable=True)
        if self.vni:
            options = {VXLANID_LIST: str(self.vni)}
            spec = replace(spec, driver_config=Driver(name="overlay", options=options))
        if self.subnet:
            ipam = IPAMOptions(configs=(IPAMConfig(subnet=self.subnet),))
            spec = replace(spec, ipam=ipam)
        return _network_told(create_network(tx, spec, network_id=made))

    def told(self, effect: Effect) -> object:
        """Return id, VNIs and subnets."""
        network = effect.made(TableId.NETWORK)
        assert isinstance(network, Network)
        return _network_told(network)

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """The name was free, and now it is not."""
        network = effect.made(TableId.NETWORK)
        assert network is not None
        step = only(lambda state: state is None, lambda _: network.id)
        yield ("network", self.name), f"create {network.id}", step

    def refused(self, error: SwarmError) -> Iterator[Rule]:
        """A name is only refused when it is taken."""
        if isinstance(error, NameConflictError):
            yield ("network", self.name), "create: taken", only(lambda state: state is not None)


def _network_told(network: Network) -> object:
    assert network.driver_state is not None
    assert network.ipam is not None
    options = tuple(network.driver_state.options.items())
    return network.id, options, tuple(config.subnet for config in network.ipam.configs)


@dataclass(frozen=True, slots=True)
class RemoveNetwork(Request):
    """Remove a network by name."""

    name: str

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Find and remove."""
        network = tx.networks.find(self.name)
        if network is None:
            raise NotFoundError(f"network {self.name} not found")
        remove_network(tx, network)
        return network.id

    def told(self, effect: Effect) -> object:
        """Return the id."""
        network = effect.deleted(TableId.NETWORK)
        assert network is not None
        return network.id

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """The name led to that network, and now to none."""
        gone = self.told(effect)
        step = only(lambda state: state == gone, lambda _: None)
        yield ("network", self.name), f"remove {gone}", step

    def refused(self, error: SwarmError) -> Iterator[Rule]:
        """Only what is not there is not found, and only what is there is in use."""
        key = ("network", self.name)
        if isinstance(error, NotFoundError):
            yield key, "remove: not found", only(lambda state: state is None)
        elif isinstance(error, PreconditionError):
            yield key, "remove: in use", only(lambda state: state is not None)


@dataclass(frozen=True, slots=True)
class Attach(Request):
    """Attach a container to a network, with an address of its choice or any; ``wish`` is its number."""

    node: str
    name: str
    wish: int = 0

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Make the task, its address, and the node's own."""
        asked: tuple[str, ...] = ()
        network = tx.networks.find(self.name)
        if network is None:
            raise NotFoundError(f"network {self.name} not found")
        pools = tx.pools(network.id)
        if self.wish:
            asked = (str(pools[0].address(pools[0].low + self.wish)),)
        config = NetworkAttachmentConfig(target=self.name, addresses=asked)
        wish = Wish(node_id=self.node, container_id="c", config=config)
        task = attach(tx, wish, task_id=made, now=tx.now)
        return task.id, network.id, known_of(task)

    def told(self, effect: Effect) -> object:
        """Return the task's id, the network's and the addresses."""
        task = effect.made(TableId.TASK)
        assert isinstance(task, Task)
        return task.id, task.networks[0].network.id, known_of(task)

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """The name led to the network; the addresses were free and are the task's now."""
        task = effect.made(TableId.TASK)
        assert isinstance(task, Task)
        network_id = task.networks[0].network.id
        addresses = known_of(task)
        text = f"attach {task.id} {addresses}"
        yield ("network", self.name), text, only(lambda state: state == network_id)
        yield ("task", task.id), text, only(lambda state: state is None, lambda _: addresses)
        for address in task.networks[0].addresses:
            step = only(lambda state: state is None, lambda _: task.id)
            yield ("address", network_id, address), text, step

    def refused(self, error: SwarmError) -> Iterator[Rule]:
        """Only a network that is not there is not found."""
        if isinstance(error, NotFoundError) and self.name in str(error):
            step = only(lambda state: state is None)
            yield ("network", self.name), "attach: not found", step


@dataclass(frozen=True, slots=True)
class Detach(Request):
    """Delete a task, or just let it end."""

    task: str
    end: bool = False

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Free what the task holds."""
        task = tx.tasks.require(self.task)
        if self.end and known_of(task) == ENDED:
            raise NotFoundError(f"task {self.task} has ended already")
        if self.end:
            status = replace(task.status, state=TaskState.COMPLETE)
            tx.update(replace(task, status=status))
            sync_node(tx, task.node_id)
        else:
            release(tx, task)
        return task.id

    def told(self, effect: Effect) -> object:
        """Return the task's id."""
        return self.task

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """The task was there; its addresses are free now."""
        task = next(c.old for c in effect.changes if c.table is TableId.TASK)
        assert isinstance(task, Task)
        text = f"{'end' if self.end else 'detach'} {self.task}"
        after = ENDED if self.end else None
        yield ("task", self.task), text, only(lambda state: state is not None, lambda _: after)
        if known_of(task) != ENDED:
            for address in task.networks[0].addresses:
                key = "address", task.networks[0].network.id, address
                yield key, text, only(lambda state: state == self.task, lambda _: None)

    def refused(self, error: SwarmError) -> Iterator[Rule]:
        """Only a task that is not there is not found."""
        if isinstance(error, NotFoundError) and self.task in str(error):
            yield ("task", self.task), "detach: not found", only(is_absent)


@dataclass(frozen=True, slots=True)
class Publish(Request):
    """Create a service with a virtual address and the first free port."""

    name: str
    network: str

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Choose and create."""
        if tx.services.named(self.name):
            raise NameConflictError(f"service {self.name} already exists")
        network = tx.networks.find(self.network)
        if network is None:
            raise NotFoundError(f"network {self.network} not found")
        port = next((each for each in PORTS if tx.holder(("port", "tcp", each)) is None), None)
        if port is None:
            raise ConflictError("all ports are taken")
        (address,) = allocate_attachment(tx, network)
        tx.create(
            Service(
                id=made,
                spec=ServiceSpec(annotations=Annotations(name=self.name)),
                endpoint=Endpoint(
                    ports=(PortConfig(target_port=80, published_port=port),),
                    virtual_ips=(VirtualIP(network_id=network.id, addr=address),),
                ),
            )
        )
        return made, port, address

    def told(self, effect: Effect) -> tuple[str, int, str]:
        """Return id, port and virtual address."""
        service = effect.made(TableId.SERVICE)
        assert isinstance(service, Service)
        assert service.endpoint is not None
        (port,), (vip,) = service.endpoint.ports, service.endpoint.virtual_ips
        return service.id, port.published_port, vip.addr

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """Name and port were free."""
        service = effect.made(TableId.SERVICE)
        assert isinstance(service, Service)
        made, port, address = self.told(effect)
        text = f"publish {made} {port} {address}"
        free = only(lambda state: state is None, lambda _: service.id)
        yield ("service", self.name), text, free
        yield ("port", str(port)), text, free

    def refused(self, error: SwarmError) -> Iterator[Rule]:
        """A name is only refused when it is taken."""
        if isinstance(error, NameConflictError):
            step = only(lambda state: state is not None)
            yield ("service", self.name), "publish: taken", step


@dataclass(frozen=True, slots=True)
class Withdraw(Request):
    """Remove a service by name."""

    name: str

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Find and delete."""
        service = tx.services.find(self.name)
        if service is None:
            raise NotFoundError(f"service {self.name} not found")
        tx.delete(service)
        return service.id

    def told(self, effect: Effect) -> object:
        """Return the id."""
        service = effect.deleted(TableId.SERVICE)
        assert service is not None
        return service.id

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """Name and port are free now."""
        service = effect.deleted(TableId.SERVICE)
        assert isinstance(service, Service)
        assert service.endpoint is not None
        gone = only(lambda state: state == service.id, lambda _: None)
        yield ("service", self.name), f"withdraw {service.id}", gone
        port = str(service.endpoint.ports[0].published_port)
        yield ("port", port), f"withdraw {service.id}", gone

    def refused(self, error: SwarmError) -> Iterator[Rule]:
        """Only what is not there is not found."""
        if isinstance(error, NotFoundError):
            step = only(lambda state: state is None)
            yield ("service", self.name), "withdraw: not found", step


@dataclass(frozen=True, slots=True)
class Append(Request):
    """Append the request's own id to a list: twice is seen, and so is a wrong order."""

    node: str

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Read, append, write."""
        node = tx.nodes.require(self.node)
        old = node.spec.annotations
        labels = {**old.labels, LIST: " ".join((*listed(node), request_id))}
        spec = replace(node.spec, annotations=replace(old, labels=labels))
        tx.update(replace(node, spec=spec))
        return (*listed(node), request_id)

    def told(self, effect: Effect) -> object:
        """Return the whole list."""
        return known_of(effect.changes[0].new)

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """The list is longer by one."""
        whole = self.told(effect)
        assert isinstance(whole, tuple)
        step = only(lambda state: state == whole[:-1], lambda _: whole)
        yield ("node", self.node), f"append {request_id}", step


@dataclass(frozen=True, slots=True)
class Sync(Request):
    """Bring a node's own addresses up to date; most of the time that changes nothing."""

    node: str

    def build(self, tx: Transaction, made: str, request_id: str) -> object:
        """Let the allocator look."""
        return sync_node(tx, self.node).id

    def told(self, effect: Effect) -> object:
        """Return the node's id."""
        return self.node

    def rules(self, request_id: str, effect: Effect) -> Iterator[Rule]:
        """Nothing that clients see."""
        yield from ()
