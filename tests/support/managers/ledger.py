"""What was truly committed, and what that gave to whom, kept apart from the code under test.

The first replica to apply an entry tells what it did; every other must tell the same, and their
snapshots at one place must be the same bytes.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from manager.store import Action, Change, Object, TableId
from manager.store.entry import load_entry
from swarm.errors import SwarmError
from swarm.model import Network, NetworkAttachment, Node, Service, Task, TaskState

Key = tuple[str, ...]
"""An object as clients know it: ("network", name), ("task", id), ("node", id), ("service", name)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What a request did, and at which position."""

    position: int
    changes: tuple[Change, ...]

    def made(self, table: TableId) -> Object | None:
        """Return the object of a table that the request created."""
        return next(
            (c.new for c in self.changes if c.kind is Action.CREATE and c.table is table), None
        )

    def deleted(self, table: TableId) -> Object | None:
        """Return the object of a table that the request deleted."""
        return next(
            (c.old for c in self.changes if c.kind is Action.DELETE and c.table is table), None
        )


class Ledger:
    """See the module.

    Attributes:
        indexes: raft indexes of the applied commands; a *position* counts them from 1.
        requests: request id to what it did.
        objects: all that exists now.
    """

    def __init__(self) -> None:
        self.indexes: list[int] = []
        self.requests: dict[str, Effect] = {}
        self.objects: dict[tuple[TableId, str], Object] = {}
        self._outcomes: list[tuple[tuple[str, ...], tuple[Change, ...]]] = []
        self._digests: dict[int, bytes] = {}
        self._attempts: set[bytes] = set()
        self._held: dict[tuple[object, ...], str] = {}
        self._subnets: dict[IPv4Network | IPv6Network, str] = {}
        self._past: defaultdict[Key, list[tuple[int, object]]] = defaultdict(list)
        self.snapshots = 0

    def position(self, index: int) -> int:
        """Return how many commands there are up to a raft index."""
        return bisect_right(self.indexes, index)

    def applied(
        self,
        position: int,
        index: int,
        data: bytes,
        results: Iterable[SwarmError | None],
        changes: tuple[Change, ...],
    ) -> None:
        """A replica applied the command that should have this position."""
        told = tuple("" if each is None else f"{type(each).__name__}: {each}" for each in results)
        if position > len(self.indexes):
            assert not self.indexes or index > self.indexes[-1], "commands run backwards"
            self.indexes.append(index)
            self._outcomes.append((told, changes))
            self._learn(position, data, told, changes)
        assert self.indexes[position - 1] == index, f"command {position} is not at {index}"
        known = self._outcomes[position - 1]
        assert known == (told, changes), f"replicas differ at {index}: {known} and {told, changes}"

    def snapshot(self, position: int, data: bytes) -> None:
        """A replica's state after so many commands has these bytes."""
        digest = hashlib.sha256(data).digest()
        known = self._digests.setdefault(position, digest)
        assert known == digest, f"replicas hold different bytes after {position} commands"
        self.snapshots += 1

    def at(self, key: Key, position: int) -> object:
        """Return what clients could know of an object after so many commands."""
        past = self._past[key]
        place = bisect_right(past, position, key=lambda each: each[0])
        return past[place - 1][1] if place else None

    def _learn(
        self, position: int, data: bytes, told: tuple[str, ...], changes: tuple[Change, ...]
    ) -> None:
        rest = iter(changes)
        for attempt, refusal in zip(load_entry(data), told, strict=True):
            assert attempt.id not in self._attempts, "one attempt is in the log twice"
            self._attempts.add(attempt.id)
            if refusal:
                continue
            mine = tuple(next(rest) for _ in attempt.edits)
            for edit, change in zip(attempt.edits, mine, strict=True):
                assert (edit.action, edit.id) == (change.kind, change.item.id)
                self._change(position, change)
            if attempt.request_id:
                assert attempt.request_id not in self.requests, (
                    f"request {attempt.request_id} took effect twice"
                )
                self.requests[attempt.request_id] = Effect(position=position, changes=mine)
        assert next(rest, None) is None, "changes of no transaction"

    def _change(self, position: int, change: Change) -> None:
        key = change.table, change.item.id
        assert self.objects.get(key) == change.old, f"{key} was {self.objects.get(key)}"
        if change.old is not None:
            self._free(change.old)
        if change.new is None:
            del self.objects[key]
        else:
            self._take(change.new)
            self.objects[key] = change.new
        self._past[known_as(change.item)].append((position, known_of(change.new)))

    # Who holds what ---------------------------------------------------------------------------

    def _take(self, item: Object) -> None:
        for thing in holdings(item):
            other = self._held.setdefault(thing, item.id)
            assert other == item.id, f"{thing} is given to {other} and to {item.id}"
            if thing[0] == "address":
                subnets = [s for s, owner in self._subnets.items() if owner == thing[1]]
                address = ip_address(str(thing[2]))
                assert item.id == thing[1] or any(address in subnet for subnet in subnets), thing
        for subnet in subnets_of(item):
            for other_subnet, owner in self._subnets.items():
                overlap = subnet.version == other_subnet.version and subnet.overlaps(other_subnet)
                assert not overlap, f"{subnet} of {item.id} overlaps {other_subnet} of {owner}"
            self._subnets[subnet] = item.id

    def _free(self, item: Object) -> None:
        for thing in set(holdings(item)):
            del self._held[thing]
        for subnet in subnets_of(item):
            del self._subnets[subnet]


def holdings(item: Object) -> Iterator[tuple[object, ...]]:
    """Return what only this object may hold: names, VNIs, ports, addresses."""
    if isinstance(item, Network):
        yield "network", item.spec.annotations.name.lower()
        options = item.driver_state.options if item.driver_state else {}
        for vni in options.get("com.docker.network.driver.overlay.vxlanid_list", "").split(","):
            yield "vni", int(vni)
        for config in item.ipam.configs if item.ipam else ():
            network = ip_network(config.subnet)
            for address in (network.network_address, network.broadcast_address, config.gateway):
                yield "address", item.id, str(address)
    elif isinstance(item, Task) and item.status.state <= TaskState.RUNNING:
        yield from _attached(item.networks)
    elif isinstance(item, Node):
        yield from _attached(item.attachments)
    elif isinstance(item, Service):
        yield "service", item.spec.annotations.name.lower()
        for vip in item.endpoint.virtual_ips if item.endpoint else ():
            yield "address", vip.network_id, vip.addr.partition("/")[0]
        for port in item.endpoint.ports if item.endpoint else ():
            yield "port", port.protocol.name, port.published_port


def _attached(attachments: Iterable[NetworkAttachment]) -> Iterator[tuple[object, ...]]:
    for each in attachments:
        for address in each.addresses:
            yield "address", each.network.id, address.partition("/")[0]


def subnets_of(item: Object) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the subnets of a network."""
    if not isinstance(item, Network) or item.ipam is None:
        return ()
    return tuple(_subnet(config.subnet) for config in item.ipam.configs)


@lru_cache(maxsize=4096)
def _subnet(text: str) -> IPv4Network | IPv6Network:
    return ip_network(text)


def known_as(item: Object) -> Key:
    """Return the name under which clients watch an object."""
    if isinstance(item, Network):
        return "network", item.spec.annotations.name
    if isinstance(item, Service):
        return "service", item.spec.annotations.name
    return type(item).__name__.lower(), item.id


ENDED = "ended"
"""What is known of a task that holds nothing any more."""
LIST = "list"
"""Label of a node under which clients append to a list."""


def known_of(item: Object | None) -> object:
    """Return what a read tells of an object."""
    if isinstance(item, Task):
        if item.status.state > TaskState.RUNNING:
            return ENDED
        return tuple(address for each in item.networks for address in each.addresses)
    if isinstance(item, Node):
        return listed(item)
    return None if item is None else item.id


def listed(node: Node) -> tuple[str, ...]:
    """Return the list that clients append to on a node."""
    return tuple(filter(None, node.spec.annotations.labels.get(LIST, "").split(" ")))
