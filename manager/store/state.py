"""The replicated state: tables plus what their objects claim, changed only through ``change``.

Every step can be taken back through a journal. Builds of transactions run on this very state and
are taken back before anybody else runs, so there is one code path for reading, checking and
indexing, whether a change is tried out or applied.
"""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from manager.store.claims import VXLANID_LIST, Claims, Key, claims_of, vnis_of
from manager.store.pools import LEASE, Journal, Pool, pools_of
from manager.store.subnets import Subnets
from manager.store.tables import (
    Clusters,
    Networks,
    Nodes,
    Object,
    Services,
    Table,
    TableId,
    Tasks,
    name_of,
)
from swarm.errors import ConflictError, InvalidArgumentError, PreconditionError
from swarm.model import Cluster, Network, Node, Service, Task

TABLE_IDS: dict[type[Object], TableId] = {
    Cluster: TableId.CLUSTER,
    Node: TableId.NODE,
    Network: TableId.NETWORK,
    Service: TableId.SERVICE,
    Task: TableId.TASK,
}


class State:
    """Tables, unique keys, taken subnets and address pools of the cluster.

    Attributes:
        last_vni: the VNI given last in order, 0 when none was.
        last_ports: protocol (``tcp``) to the published port given last in order.
        pools: network id to its pools; present for every allocated network.
    """

    __slots__ = (
        "_keys",
        "clusters",
        "last_ports",
        "last_vni",
        "networks",
        "nodes",
        "pools",
        "services",
        "subnets",
        "tables",
        "tasks",
    )

    def __init__(self) -> None:
        self.clusters = Clusters()
        self.nodes = Nodes()
        self.networks = Networks()
        self.services = Services()
        self.tasks = Tasks()
        self.tables: dict[TableId, Table[Any]] = {
            table.id: table
            for table in (self.clusters, self.nodes, self.networks, self.services, self.tasks)
        }
        self._keys: dict[Key, str] = {}
        self.subnets = Subnets()
        self.pools: dict[str, tuple[Pool, ...]] = {}
        self.last_vni = 0
        self.last_ports: dict[str, int] = {}

    def table_of(self, item: Object) -> Table[Any]:
        """Return the table an object belongs to."""
        return self.tables[TABLE_IDS[type(item)]]

    def holder(self, key: Key) -> str | None:
        """Return the id of the object that holds a unique key, or None."""
        return self._keys.get(key)

    def pool_of(self, network_id: str, version: int, number: int) -> Pool:
        """Return the pool of a network that an address (4 or 6, as integer) lies in.

        Raises:
            NotFoundError: no such network.
            InvalidArgumentError: the address is in none of its subnets.
        """
        for pool in self.pools.get(network_id, ()):
            if pool.covers(version, number):
                return pool
        network = self.networks.require(network_id)
        subnets = ", ".join(str(pool.subnet) for pool in self.pools.get(network_id, ()))
        address = IPv4Address(number) if version == 4 else IPv6Address(number)
        raise InvalidArgumentError(
            f"{address} is not in a subnet of network {network.spec.annotations.name or network_id}"
            f" ({subnets or 'it has none'})"
        )

    def change(self, old: Object | None, new: Object | None, now: int, journal: Journal) -> None:
        """Replace ``old`` (what the table holds now) by ``new``; None stands for absence.

        Nothing has changed when this raises.

        Args:
            old: the object before, exactly as the table holds it.
            new: the object after.
            now: nanoseconds since the epoch, from the transaction.
            journal: grows by the steps that take the change back.

        Raises:
            ConflictError: a name, VNI, port, subnet or address is taken.
            PreconditionError: a network still holds addresses of others.
            NotFoundError: an address belongs to an unknown network.
            InvalidArgumentError: an address is outside its network, or something is malformed.
        """
        before, after = claims_of(old), claims_of(new)
        item = new or old
        assert item is not None  # noqa: S101  # told to the type checker; one of the two is there
        self._check_addresses(before, after)
        if not isinstance(item, Task):  # a task claims addresses alone
            self._change_others(before, after, old, new, journal)
        self._swap_addresses(before, after, item, now, journal)
        table = self.table_of(item)
        table.swap(old, new)
        journal.append(partial(table.swap, new, old))

    def _change_others(
        self,
        before: Claims,
        after: Claims,
        old: Object | None,
        new: Object | None,
        journal: Journal,
    ) -> None:
        """Check and change everything but addresses and tables."""
        item = new or old
        assert item is not None  # noqa: S101  # as in change
        self._check_keys(after, item)
        self._check_subnets(before, after, item)
        repool = isinstance(item, Network) and (
            old is None or new is None or _ipam(old) != _ipam(new)
        )
        fresh = pools_of(new) if repool and isinstance(new, Network) else ()
        if repool:
            self._check_unused(item)
        self._swap_keys(before, after, item.id, journal)
        self._swap_subnets(before, after, item.id, journal)
        if repool:
            self._swap_pools(item.id, fresh, journal)
        if isinstance(new, Network) and (old is None or repool):
            self._note_vnis(new, journal)
        if isinstance(new, Service):
            self._note_ports(new, after.keys - before.keys, journal)

    def check(self, item: Object) -> None:
        """Say whether ``item`` could be written as far as names, VNIs, ports and subnets go.

        Raises:
            ConflictError: one of them is taken by another object.
            InvalidArgumentError: something is malformed.
        """
        before, after = claims_of(self.table_of(item).get(item.id)), claims_of(item)
        self._check_keys(after, item)
        self._check_subnets(before, after, item)

    @staticmethod
    def undo(journal: Journal, length: int = 0) -> None:
        """Take back the steps beyond the first ``length``, last first."""
        while len(journal) > length:
            journal.pop()()

    def _check_keys(self, after: Claims, item: Object) -> None:
        taken = [key for key in after.keys if self._keys.get(key, item.id) != item.id]
        if taken:
            # Always the same one: the text is remembered, and every process orders sets its own way.
            key = min(taken, key=str)
            raise ConflictError(self._taken_text(key, self._keys[key], item))

    def _taken_text(self, key: Key, holder: str, item: Object) -> str:
        match key:
            case ("ingress", _):
                return f"ingress network ({holder}) is already present"
            case ("vni", number):
                return f"VNI {number} is in use by network {self._network_name(holder)}"
            case ("port", str(protocol), number):
                service = self.services.require(holder)
                name = service.spec.annotations.name
                return (
                    f"port {number}/{protocol} is already in use by service {name!r} ({holder})"
                    " as an ingress port"
                )
            case _:
                return f"{key[0]} with name {name_of(item)} already exists"

    def _network_name(self, network_id: str) -> str:
        network = self.networks.get(network_id)
        return (network.spec.annotations.name if network else "") or network_id

    def _check_subnets(self, before: Claims, after: Claims, item: Object) -> None:
        for subnet in sorted(after.subnets - before.subnets, key=str):
            other = self.subnets.overlap(subnet, but=item.id)
            if other is not None:
                raise ConflictError(
                    f"subnet {subnet} overlaps with {other.subnet(subnet.version)} of network"
                    f" {self._network_name(other.owner)}"
                    " (Pool overlaps with other one on this address space)"
                )

    def _check_addresses(self, before: Claims, after: Claims) -> None:
        for network_id, version, number in sorted(after.addresses - before.addresses):
            pool = self.pool_of(network_id, version, number)
            holder = pool.holders.get(number)
            if holder is not None and holder != LEASE:
                raise ConflictError(
                    f"address {pool.address(number)} on network {self._network_name(network_id)} is in use by"
                    f" {holder}"
                )

    def _check_unused(self, item: Object) -> None:
        if any(pool.held for pool in self.pools.get(item.id, ())):
            raise PreconditionError(f"network {item.id} is in use")

    def _swap_keys(self, before: Claims, after: Claims, owner: str, journal: Journal) -> None:
        for key in before.keys - after.keys:
            del self._keys[key]
            journal.append(partial(self._keys.__setitem__, key, owner))
        for key in after.keys - before.keys:
            self._keys[key] = owner
            journal.append(partial(self._keys.__delitem__, key))

    def _swap_subnets(self, before: Claims, after: Claims, owner: str, journal: Journal) -> None:
        for subnet in before.subnets - after.subnets:
            self.subnets.remove(subnet, owner)
            journal.append(partial(self.subnets.add, subnet, owner))
        for subnet in after.subnets - before.subnets:
            self.subnets.add(subnet, owner)
            journal.append(partial(self.subnets.remove, subnet, owner))

    def _swap_pools(self, network_id: str, fresh: tuple[Pool, ...], journal: Journal) -> None:
        present = self.pools.pop(network_id, None)
        if present is None:
            journal.append(partial(self.pools.pop, network_id, None))
        else:
            journal.append(partial(self.pools.__setitem__, network_id, present))
        if fresh:
            self.pools[network_id] = fresh

    def _swap_addresses(
        self, before: Claims, after: Claims, item: Object, now: int, journal: Journal
    ) -> None:
        if before.addresses == after.addresses:
            return
        # In address order, so that every replica ends up with the same cursors and queues.
        for place in sorted(before.addresses - after.addresses):
            self.pool_of(*place).release(place[2], now, journal)
        holder = f"{TABLE_IDS[type(item)].noun} {item.id}"
        for network_id, version, number in sorted(after.addresses - before.addresses):
            pool = self.pool_of(network_id, version, number)
            if pool.holders.get(number) == LEASE:
                pool.fulfil(number, holder, journal)
            else:
                pool.take(number, holder, journal, in_order=(version, number) not in after.asked)

    def _note_vnis(self, network: Network, journal: Journal) -> None:
        config = network.spec.driver_config
        given = bool(config and config.options.get(VXLANID_LIST))
        vnis = vnis_of(network.driver_state)
        if vnis and not given:
            journal.append(partial(setattr, self, "last_vni", self.last_vni))
            self.last_vni = vnis[-1]

    def _note_ports(self, service: Service, fresh: frozenset[Key], journal: Journal) -> None:
        asked = {
            (port.protocol, port.published_port)
            for port in (service.spec.endpoint.ports if service.spec.endpoint else ())
        }
        for port in service.endpoint.ports if service.endpoint else ():
            name = port.protocol.name.lower()
            if (port.protocol, port.published_port) not in asked and (
                "port",
                name,
                port.published_port,
            ) in fresh:
                before = self.last_ports.get(name)
                journal.append(partial(_restore, self.last_ports, name, before))
                self.last_ports[name] = port.published_port


def _restore(ports: dict[str, int], name: str, before: int | None) -> None:
    if before is None:
        del ports[name]
    else:
        ports[name] = before


def _ipam(item: Object) -> object:
    return item.ipam.configs if isinstance(item, Network) and item.ipam else ()
