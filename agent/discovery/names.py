"""The table of names: what every endpoint contributes, and who sees it.

Per network and name there are two kinds of holders: *hosts* (a task's own name and its task aliases)
and *services* (a service name or alias, by service id, so that a service that was removed and made
again under the same name does not answer twice). A lookup costs a few dictionary accesses, however
many names there are.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Final, Literal

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Family = Literal["A", "AAAA"]

DEFAULT_TTL: Final = 5
"""Seconds an answer may be cached. Docker says 600, and its users see dead tasks for ten minutes."""

TASKS_PREFIX: Final = "tasks."


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRecord:
    """What one endpoint on one network contributes.

    Source: ``EndpointRecord`` of libnetwork's endpoint table, with room for IPv6.
    """

    name: str
    """The container's name; also its PTR answer. May be empty: then it has none."""
    addresses: tuple[IPAddress, ...]
    """The endpoint's own addresses, of both families."""
    service_name: str = ""
    service_id: str = ""
    """Empty for a container that belongs to no service."""
    virtual_ips: tuple[IPAddress, ...] = ()
    """The service's virtual addresses; empty means DNS round robin."""
    aliases: tuple[str, ...] = ()
    """Further names of the service on this network."""
    task_aliases: tuple[str, ...] = ()
    """Further names of this container only."""
    disabled: bool = False
    """Draining: the task's names are gone, the virtual address stays while any backend remains."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the table says about a name."""

    addresses: tuple[IPAddress, ...] = ()
    """Addresses of the asked family, in random order."""
    ttl: int = DEFAULT_TTL
    known: bool = False
    """The name exists; without addresses it has none of the asked family (NODATA, not NXDOMAIN)."""


_Addresses = dict[str, tuple[IPAddress, ...]]  # by endpoint id


@dataclass(slots=True)
class _Service:
    """The backends of one service under one name.

    Virtual addresses are kept with the endpoints that stand behind them and not the other way round,
    so that the name of a service with 10,000 tasks costs no more than that of one with a single task.
    """

    virtual: dict[IPAddress, set[str]] = field(default_factory=dict)
    draining: dict[IPAddress, set[str]] = field(default_factory=dict)
    robin: _Addresses = field(default_factory=dict)

    def active(self) -> set[IPAddress]:
        """Return what the enabled backends stand for: virtual addresses before round robin."""
        return set(self.virtual) or set().union(*self.robin.values())

    def withdraw(self, endpoint_id: str, virtual_ips: tuple[IPAddress, ...]) -> None:
        """Forget one backend."""
        self.robin.pop(endpoint_id, None)
        for side in (self.virtual, self.draining):
            for address in virtual_ips:
                behind = side.get(address, set())
                behind.discard(endpoint_id)
                if not behind:
                    side.pop(address, None)

    def empty(self) -> bool:
        return not (self.virtual or self.draining or self.robin)


@dataclass(slots=True)
class _Name:
    hosts: _Addresses = field(default_factory=dict)
    services: dict[str, _Service] = field(default_factory=dict)

    def addresses(self) -> set[IPAddress]:
        found: set[IPAddress] = set()
        for addresses in self.hosts.values():
            found.update(addresses)
        for service in self.services.values():
            found |= service.active()
        if not found:
            # Only when nothing is enabled do the draining backends keep the virtual address.
            found.update(*(service.draining for service in self.services.values()))
        return found

    def empty(self) -> bool:
        return not (self.hosts or self.services)


@dataclass(slots=True)
class _Network:
    suffix: str = ""
    ingress: bool = False
    names: dict[str, _Name] = field(default_factory=dict)
    hosts: dict[IPAddress, dict[str, str]] = field(default_factory=dict)
    virtuals: dict[IPAddress, dict[str, str]] = field(default_factory=dict)
    gossip: dict[str, NameRecord] = field(default_factory=dict)
    local: dict[str, NameRecord] = field(default_factory=dict)

    def effective(self, endpoint_id: str) -> NameRecord | None:
        return self.local.get(endpoint_id) or self.gossip.get(endpoint_id)


class NameTable:
    """Every name on every network this node takes part in.

    Records come from two sources, gossip and this node's own endpoints (``local=True``, known before
    gossip echoes them). The local one wins while it is there.
    """

    def __init__(self, *, ttl: int = DEFAULT_TTL) -> None:
        self._networks: dict[str, _Network] = {}
        self.ttl = ttl
        """Seconds an answer may be cached."""

    def set_network(self, network_id: str, name: str, *, ingress: bool = False) -> None:
        """Say how a network is called, for ``NAME.NETWORK``; an ingress network has no names at all."""
        network = self._networks.setdefault(network_id, _Network())
        network.suffix = fold(name)
        network.ingress = ingress

    def remove_network(self, network_id: str) -> None:
        """Forget a network and everything on it."""
        self._networks.pop(network_id, None)

    def put(
        self, network_id: str, endpoint_id: str, record: NameRecord, *, local: bool = False
    ) -> None:
        """Set what an endpoint contributes, replacing what it did before."""
        network = self._networks.setdefault(network_id, _Network())
        before = network.effective(endpoint_id)
        (network.local if local else network.gossip)[endpoint_id] = record
        self._change(network, endpoint_id, before)

    def remove(self, network_id: str, endpoint_id: str, *, local: bool = False) -> None:
        """Take back what an endpoint contributed from one source; unknown ones are fine."""
        network = self._networks.get(network_id)
        if network is None:
            return
        before = network.effective(endpoint_id)
        (network.local if local else network.gossip).pop(endpoint_id, None)
        self._change(network, endpoint_id, before)

    def record(self, network_id: str, endpoint_id: str) -> NameRecord | None:
        """Return the record in force for an endpoint."""
        network = self._networks.get(network_id)
        return None if network is None else network.effective(endpoint_id)

    def lookup(
        self, networks: Sequence[str], name: str, family: Family, rng: Random | None = None
    ) -> Answer:
        """Look a name up for a container.

        The whole name is tried on all networks first, then as ``NAME.NETWORK``. The first network in
        the given order that knows the name answers alone, so an answer never mixes two networks.

        Args:
            networks: ids of the container's networks, in its order of preference.
            name: the queried name, case and a final dot do not matter.
            family: ``"A"`` or ``"AAAA"``.
            rng: shuffles the addresses; absent, they come in numeric order.
        """
        wanted = fold(name)
        for network, label in self._places(networks, wanted):
            entry = network.names.get(label)
            if entry is None or not (addresses := entry.addresses()):
                continue
            version = 4 if family == "A" else 6
            matching = sorted((a for a in addresses if a.version == version), key=int)
            if rng is not None:
                rng.shuffle(matching)
            return Answer(addresses=tuple(matching), ttl=self.ttl, known=True)
        return Answer(ttl=self.ttl)

    def reverse(self, networks: Sequence[str], address: IPAddress) -> str | None:
        """Return ``NAME.NETWORK`` of an address, or None: endpoints first, then virtual addresses."""
        for network in self._visible(networks):
            owners = network.hosts.get(address) or network.virtuals.get(address)
            if owners:
                name = next(iter(owners.values()))
                return f"{name}.{network.suffix}" if network.suffix else name
        return None

    def _visible(self, networks: Sequence[str]) -> Iterator[_Network]:
        for network_id in networks:
            network = self._networks.get(network_id)
            if network is not None and not network.ingress:
                yield network

    def _places(self, networks: Sequence[str], wanted: str) -> Iterator[tuple[_Network, str]]:
        for network in self._visible(networks):
            yield network, wanted
        for network in self._visible(networks):
            suffix = f".{network.suffix}"
            if network.suffix and wanted.endswith(suffix):
                yield network, wanted.removesuffix(suffix)

    def _change(self, network: _Network, endpoint_id: str, before: NameRecord | None) -> None:
        after = network.effective(endpoint_id)
        if before == after:
            return
        if before is not None:
            _withdraw(network, endpoint_id, before)
        if after is not None:
            _contribute(network, endpoint_id, after)


def _contribute(network: _Network, endpoint_id: str, record: NameRecord) -> None:
    if not record.disabled:
        for name in _host_names(record):
            network.names.setdefault(name, _Name()).hosts[endpoint_id] = record.addresses
        for name in _task_names(record):
            _service(network, name, record).robin[endpoint_id] = record.addresses
        if record.name:
            for address in record.addresses:
                network.hosts.setdefault(address, {})[endpoint_id] = fold(record.name)
    for name in _service_names(record):
        if record.virtual_ips:
            service = _service(network, name, record)
            side = service.draining if record.disabled else service.virtual
            for address in record.virtual_ips:
                side.setdefault(address, set()).add(endpoint_id)
        elif not record.disabled:
            _service(network, name, record).robin[endpoint_id] = record.addresses
    if record.service_id and record.service_name:
        for address in record.virtual_ips:
            owners = network.virtuals.setdefault(address, {})
            owners[endpoint_id] = fold(record.service_name)


def _withdraw(network: _Network, endpoint_id: str, record: NameRecord) -> None:
    for name in (*_host_names(record), *_task_names(record), *_service_names(record)):
        entry = network.names.get(name)
        if entry is None:
            continue
        entry.hosts.pop(endpoint_id, None)
        service = entry.services.get(record.service_id)
        if service is not None:
            service.withdraw(endpoint_id, record.virtual_ips)
            if service.empty():
                del entry.services[record.service_id]
        if entry.empty():
            del network.names[name]
    for table, addresses in (
        (network.hosts, record.addresses),
        (network.virtuals, record.virtual_ips),
    ):
        for address in addresses:
            owners = table.get(address)
            if owners is not None:
                owners.pop(endpoint_id, None)
                if not owners:
                    del table[address]


def _service(network: _Network, name: str, record: NameRecord) -> _Service:
    entry = network.names.setdefault(name, _Name())
    return entry.services.setdefault(record.service_id, _Service())


def _host_names(record: NameRecord) -> list[str]:
    return [fold(name) for name in (record.name, *record.task_aliases) if name]


def _service_names(record: NameRecord) -> list[str]:
    if not record.service_id:
        return []
    return [fold(name) for name in (record.service_name, *record.aliases) if name]


def _task_names(record: NameRecord) -> list[str]:
    return [TASKS_PREFIX + name for name in _service_names(record)]


def fold(name: str) -> str:
    """Return the form of a name under which it is compared: lower case, no final dot."""
    return name.lower().removesuffix(".")


def parse_address(text: str) -> IPAddress | None:
    """Read an address from a gossip record; ``<nil>``, a mask or anything unreadable is none.

    Source: libnetwork writes the text of a nil ``net.IP`` into ``virtual_ip`` when there is no VIP.
    """
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
