"""Typed tables with incrementally kept indexes; reading costs what the result costs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import IntEnum
from typing import Generic, TypeAlias, TypeVar

from manager.store.index import Lookup, SortedIds
from swarm.errors import InvalidArgumentError, NotFoundError
from swarm.model import (
    Cluster,
    Network,
    Node,
    PortProtocol,
    PublishMode,
    Service,
    Task,
)

Object: TypeAlias = Cluster | Node | Network | Service | Task
T = TypeVar("T", Cluster, Node, Network, Service, Task)


class TableId(IntEnum):
    """Names of the tables; values are those of the log."""

    CLUSTER = 1
    NODE = 2
    NETWORK = 3
    SERVICE = 4
    TASK = 5

    @property
    def noun(self) -> str:
        """The word for one object of the table in a sentence."""
        return self.name.lower()


class Table(Generic[T]):
    """The objects of one type by id, name and id prefix; results come in id order."""

    __slots__ = ("_ids", "_names", "_objects", "id", "kind")

    def __init__(self, table_id: TableId, kind: type[T]) -> None:
        self.id = table_id
        self.kind: type[T] = kind
        self._objects: dict[str, T] = {}
        self._ids = SortedIds()
        self._names = Lookup()

    def __len__(self) -> int:
        return len(self._objects)

    def __iter__(self) -> Iterator[T]:
        return iter(self.all())

    def __contains__(self, object_id: str) -> bool:
        return object_id in self._objects

    def get(self, object_id: str) -> T | None:
        """Return the object with exactly this id, or None."""
        return self._objects.get(object_id)

    def require(self, object_id: str) -> T:
        """Return the object with exactly this id.

        Raises:
            NotFoundError: there is none.
        """
        found = self._objects.get(object_id)
        if found is None:
            raise NotFoundError(f"{self.id.noun} {object_id} not found")
        return found

    def all(self) -> tuple[T, ...]:
        """Return every object."""
        return tuple(self._objects[each] for each in self._ids)

    def named(self, name: str) -> tuple[T, ...]:
        """Return the objects with this name, upper and lower case alike."""
        return self._select(self._names, name.lower())

    def find(self, name: str) -> T | None:
        """Return the object with this name, upper and lower case alike, or None.

        Raises:
            InvalidArgumentError: several carry it (nodes and tasks only).
        """
        return self._only(self.named(name), name)

    def by_prefix(self, prefix: str) -> tuple[T, ...]:
        """Return the objects whose id starts with ``prefix``."""
        return tuple(self._objects[each] for each in self._ids.starting(prefix))

    def resolve(self, argument: str) -> T:
        """Return what a person means: the full id, else the name, else an unambiguous id prefix.

        Raises:
            NotFoundError: nothing matches, or the argument is empty.
            InvalidArgumentError: the argument is ambiguous.

        Source: the order in which dockerd resolves node, network and service arguments.
        """
        if not argument:
            raise NotFoundError(f"{self.id.noun} name or id is empty")
        found = self.get(argument) or self.find(argument)
        found = found or self._only(self.by_prefix(argument), argument)
        return found or self.require(argument)

    def swap(self, old: T | None, new: T | None) -> None:
        """Replace ``old`` by ``new`` in every index; for the store only."""
        owner = (new or old).id  # type: ignore[union-attr]  # one of the two is there
        if new is None:
            del self._objects[owner]
            self._ids.remove(owner)
        else:
            self._objects[owner] = new
            if old is None:
                self._ids.add(owner)
        self._names.swap(owner, self._name_keys(old), self._name_keys(new))
        self._swap_more(owner, old, new)

    def _name_keys(self, item: T | None) -> Collection[str]:
        name = "" if item is None else name_of(item)
        return (name.lower(),) if name else ()

    def _swap_more(self, owner: str, old: T | None, new: T | None) -> None:
        """Maintain the indexes of one table beyond names."""

    def _select(self, index: Lookup, key: str) -> tuple[T, ...]:
        return tuple(self._objects[each] for each in index.ids(key))

    def _only(self, found: tuple[T, ...], argument: str) -> T | None:
        if len(found) > 1:
            raise InvalidArgumentError(
                f"{self.id.noun} {argument} is ambiguous ({len(found)} matches found)"
            )
        return found[0] if found else None


class Clusters(Table[Cluster]):
    """The one cluster object."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(TableId.CLUSTER, Cluster)

    def only(self) -> Cluster:
        """Return the cluster.

        Raises:
            NotFoundError: it was not created yet.
        """
        found = self.all()
        if not found:
            raise NotFoundError("cluster not found")
        return found[0]


class Nodes(Table[Node]):
    """Nodes; a node's name is its hostname, which need not be unique."""

    __slots__ = ("_networks",)

    def __init__(self) -> None:
        super().__init__(TableId.NODE, Node)
        self._networks = Lookup()

    def by_hostname(self, hostname: str) -> tuple[Node, ...]:
        """Return the nodes with this hostname, upper and lower case alike."""
        return self.named(hostname)

    def by_network(self, network_id: str) -> tuple[Node, ...]:
        """Return the nodes that hold a load balancer address on a network."""
        return self._select(self._networks, network_id)

    def _swap_more(self, owner: str, old: Node | None, new: Node | None) -> None:
        if old is None or new is None or old.attachments is not new.attachments:
            self._networks.swap(owner, _attached(old), _attached(new))


class Networks(Table[Network]):
    """Networks."""

    __slots__ = ("_ingress",)

    def __init__(self) -> None:
        super().__init__(TableId.NETWORK, Network)
        self._ingress = Lookup()

    def ingress(self) -> Network | None:
        """Return the ingress network, or None."""
        found = self._select(self._ingress, "ingress")
        return found[0] if found else None

    def _swap_more(self, owner: str, old: Network | None, new: Network | None) -> None:
        def keys(item: Network | None) -> Collection[str]:
            return ("ingress",) if item is not None and item.spec.ingress else ()

        self._ingress.swap(owner, keys(old), keys(new))


class Services(Table[Service]):
    """Services."""

    __slots__ = ("_host_ports", "_networks")

    def __init__(self) -> None:
        super().__init__(TableId.SERVICE, Service)
        self._host_ports = Lookup()
        self._networks = Lookup()

    def by_host_port(self, protocol: PortProtocol, port: int) -> tuple[Service, ...]:
        """Return the services whose tasks publish a port on their own host; several may."""
        return self._select(self._host_ports, f"{port}/{protocol.name}")

    def by_network(self, network: Network) -> tuple[Service, ...]:
        """Return the services that name a network as a target or hold a virtual address on it."""
        found = set(self._networks.ids(network.id))
        found.update(self._networks.ids(network.spec.annotations.name))
        return tuple(self._objects[each] for each in sorted(found))

    def _swap_more(self, owner: str, old: Service | None, new: Service | None) -> None:
        def keys(item: Service | None) -> Collection[str]:
            if item is None:
                return ()
            named = (*item.spec.task.networks, *item.spec.networks)
            held = item.endpoint.virtual_ips if item.endpoint else ()
            return [*(each.target for each in named), *(each.network_id for each in held)]

        def host_ports(item: Service | None) -> Collection[str]:
            endpoint = item.spec.endpoint if item is not None else None
            return [
                f"{port.published_port}/{port.protocol.name}"
                for port in (endpoint.ports if endpoint is not None else ())
                if port.publish_mode is PublishMode.HOST and port.published_port
            ]

        self._networks.swap(owner, keys(old), keys(new))
        self._host_ports.swap(owner, host_ports(old), host_ports(new))


class Tasks(Table[Task]):
    """Tasks, of services and of attached containers alike."""

    __slots__ = ("_networks", "_nodes", "_places", "_services")

    def __init__(self) -> None:
        super().__init__(TableId.TASK, Task)
        self._nodes = Lookup()
        self._services = Lookup()
        self._networks = Lookup()
        self._places: dict[tuple[str, str], int] = {}  # (node, network) -> attachments of its tasks

    def by_node(self, node_id: str) -> tuple[Task, ...]:
        """Return the tasks of a node; the empty id returns those of no node yet."""
        return self._select(self._nodes, node_id)

    def by_service(self, service_id: str) -> tuple[Task, ...]:
        """Return the tasks of a service; the empty id returns those of no service."""
        return self._select(self._services, service_id)

    def by_network(self, network_id: str) -> tuple[Task, ...]:
        """Return the tasks attached to a network or waiting to be."""
        return self._select(self._networks, network_id)

    def count_on_network(self, network_id: str) -> int:
        """Return how many tasks :meth:`by_network` returns, without making the list."""
        return self._networks.count(network_id)

    def count_on_node(self, node_id: str, network_id: str) -> int:
        """Return how many tasks of a node are attached to a network, whatever their state."""
        return self._places.get((node_id, network_id), 0)

    def _swap_more(self, owner: str, old: Task | None, new: Task | None) -> None:
        def targets(item: Task | None) -> Collection[str]:
            if item is None:
                return ()
            return [*_attached(item), *[config.target for config in item.spec.networks]]

        if not (old and new and old.node_id == new.node_id and old.service_id == new.service_id):
            self._nodes.swap(owner, (old.node_id,) if old else (), (new.node_id,) if new else ())
            self._services.swap(
                owner, (old.service_id,) if old else (), (new.service_id,) if new else ()
            )
        if not (old and new and old.networks is new.networks and old.spec is new.spec):
            self._networks.swap(owner, targets(old), targets(new))
        if not (old and new and old.networks is new.networks and old.node_id == new.node_id):
            if old is not None:
                self._count(old, -1)
            if new is not None:
                self._count(new, 1)

    def _count(self, item: Task, step: int) -> None:
        for attachment in item.networks:
            key = item.node_id, attachment.network.id
            count = self._places.get(key, 0) + step
            if count:
                self._places[key] = count
            else:
                del self._places[key]


def name_of(item: Object) -> str:
    """Return an object's name; a node's is its hostname."""
    if isinstance(item, Node):
        return item.description.hostname if item.description else ""
    if isinstance(item, Task):
        return item.annotations.name
    return item.spec.annotations.name


def _attached(item: Node | Task | None) -> Collection[str]:
    if item is None:
        return ()
    entries = item.attachments if isinstance(item, Node) else item.networks
    return [each.network.id for each in entries]
