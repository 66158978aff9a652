"""Which backends a virtual address, or a published port, has. Pure.

Every endpoint record contributes one backend under its own key; two records may name one address. The
slots of a virtual address stay dense, and a backend keeps its slot as long as it can: the last one
moves into a hole. A backend of weight W has W slots. Only the best tier that has backends gets new
flows (a service that prefers local backends has two, and what is silent is behind both). A virtual
address without any record is kept for a while, closed: whoever still uses it is to be refused at once
and not to wait for an answer.

A sticky service's slots are a table of :data:`BUCKETS` that the client's address is hashed into; every
node computes the same, and a backend that comes or goes moves few clients of the others.

Source: the table is that of Eisenbud et al., "Maglev" (NSDI 2016), 3.4, with turns by weight and
independent orders.
"""

from __future__ import annotations

import hashlib
import ipaddress
import struct
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from agent.gossip.records import Balancing, EndpointRecord

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

LINGER: Final = 60.0
"""Seconds that a virtual address refuses after its last record has gone."""

MAX_SLOTS: Final = 4096
"""Slots of one virtual address; a hostile record must not make more rules."""

MAX_WEIGHT: Final = 16
"""Slots of one backend."""

BUCKETS: Final = 1021
"""Slots of a sticky service: enough for 64 backends to be even to a few percent."""

PREFERRED, OTHERS, SILENT = 0, 1, 2
"""Tiers. A backend whose node is not heard any more gets flows only when there is no other."""


@dataclass(frozen=True, slots=True)
class Port:
    """A published port of this host, for one IP version.

    Attributes:
        version: of IP.
        protocol: ``tcp``, ``udp`` or ``sctp``.
        number: on the host.
        address: the only one of the host's where it is published; None: on all of them.
    """

    version: int
    protocol: str
    number: int
    address: IPAddress | None = None

    def __str__(self) -> str:
        place = "" if self.address is None else f"{self.address} . "
        return f"{place}{self.protocol} . {self.number}"


@dataclass(frozen=True, slots=True)
class Target:
    """An address and port that a published port leads to."""

    ip: IPAddress
    port: int

    @property
    def version(self) -> int:
        """Of IP."""
        return self.ip.version

    def __str__(self) -> str:
        return f"{self.ip} . {self.port}"


Front = IPAddress | Port
Back = IPAddress | Target


def group(front: Front) -> str:
    """Return by what name the sets, maps and chains go that a virtual address or port is in."""
    bound = isinstance(front, Port) and front.address is not None
    return f"{front.version}at" if bound else f"{front.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One address behind a virtual one, or one target behind a published port.

    Attributes:
        vip: the virtual address or port.
        ip: the backend's own address (and port), of the same family.
        serving: it takes new flows; False while it drains.
        tier: it gets flows only while no better (lower) one has a serving backend.
        weight: its share of flows, 1 to :data:`MAX_WEIGHT`.
        sticky: a client's flows all lead to one backend, as long as it serves.
    """

    vip: Front
    ip: Back
    serving: bool = True
    tier: int = PREFERRED
    weight: int = 1
    sticky: bool = False


def backend_of(
    record: EndpointRecord, vip: Front, ip: Back, *, local: bool, silent: bool = False
) -> Backend:
    """Return what a record contributes to a virtual address or port.

    Args:
        record: of the endpoint.
        vip: what clients ask for.
        ip: where it leads to.
        local: the endpoint is on this node.
        silent: its node is not heard any more.
    """
    spread_as = record.balancing or Balancing()
    tier = OTHERS if spread_as.prefer_local and not local else PREFERRED
    return Backend(
        vip=vip,
        ip=ip,
        serving=not record.service_disabled,
        tier=SILENT if silent else tier,
        weight=spread_as.weight,
        sticky=spread_as.sticky,
    )


@dataclass(frozen=True, slots=True)
class Slots:
    """What new flows of a virtual address choose from; equal slots are chosen equally often.

    Attributes:
        backs: by number of the slot.
        sticky: the client's address chooses, not chance.
    """

    backs: tuple[Back, ...] = ()
    sticky: bool = False


@dataclass(slots=True)
class Pool:
    """One virtual address.

    Attributes:
        tiers: backends that take new flows, in the order of their slots, by tier.
        members: the records that name an address, by their keys.
    """

    tiers: dict[int, list[Back]] = field(default_factory=dict)
    members: dict[Back, dict[str, Backend]] = field(default_factory=dict)

    def settle(self, ip: Back) -> None:
        """Bring one address's slots in line with its records."""
        serving = [each for each in self.members.get(ip, {}).values() if each.serving]
        home = min((each.tier for each in serving), default=None)
        for tier in {*self.tiers, *(() if home is None else (home,))}:
            weight = max((each.weight for each in serving), default=0) if tier == home else 0
            self._give(self.tiers.setdefault(tier, []), ip, min(weight, MAX_WEIGHT))

    def slots(self) -> Slots:
        """Return what new flows choose from."""
        best = min((tier for tier, backs in self.tiers.items() if backs), default=None)
        backs = () if best is None else self.tiers[best]
        if backs and any(
            each.sticky for records in self.members.values() for each in records.values()
        ):
            return Slots(spread(backs), sticky=True)
        return Slots(tuple(backs[:MAX_SLOTS]))

    @staticmethod
    def _give(slots: list[Back], ip: Back, weight: int) -> None:
        have = slots.count(ip)
        slots += [ip] * (weight - have)
        for _ in range(have - weight):
            last = slots.pop()
            if last != ip:
                slots[slots.index(ip)] = last


def spread(backs: Iterable[Back]) -> tuple[Back, ...]:
    """Return the table of :data:`BUCKETS` for a sticky service; one named W times takes W turns."""
    turns = sorted(Counter(backs).items(), key=lambda each: str(each[0]))
    walks = [(ip, weight, iter(_walk(str(ip)))) for ip, weight in turns]
    table: list[Back | None] = [None] * BUCKETS
    left = BUCKETS
    while True:
        for ip, weight, walk in walks:
            for _ in range(weight):
                table[next(bucket for bucket in walk if table[bucket] is None)] = ip
                left -= 1
                if not left:
                    return tuple(each for each in table if each is not None)


@lru_cache(maxsize=1024)
def _walk(text: str) -> tuple[int, ...]:
    """Return every bucket once, in an order of a backend's own.

    The paper's walks (a start and a step) run in parallel now and then, and such a backend's end then
    moved up to a fifth of the others' buckets; with orders that share nothing it is 2 %, and 6 % at worst.
    """
    keys = struct.unpack(f"<{BUCKETS}I", hashlib.shake_128(text.encode()).digest(4 * BUCKETS))
    return tuple(sorted(range(BUCKETS), key=keys.__getitem__))


class Table:
    """The virtual addresses of one network.

    Attributes:
        pools: by virtual address; one without members is closed.
        changed: virtual addresses to look at again.
        dead: backends of which no record speaks any more, since :meth:`take_dead`.
    """

    def __init__(self) -> None:
        self.pools: dict[Front, Pool] = {}
        self.changed: set[Front] = set()
        self.dead: set[Back] = set()
        self._records: dict[str, Backend] = {}
        self._closed: dict[Front, float] = {}
        self._uses: Counter[Back] = Counter()

    def put(self, key: str, backend: Backend, now: float) -> None:
        """Take a record, new or changed."""
        old = self._records.get(key)
        if old == backend:
            return
        if old is not None and (old.vip, old.ip) != (backend.vip, backend.ip):
            self.remove(key, now)
        if key not in self._records:
            self._uses[backend.ip] += 1
        self._records[key] = backend
        self._closed.pop(backend.vip, None)
        pool = self.pools.setdefault(backend.vip, Pool())
        pool.members.setdefault(backend.ip, {})[key] = backend
        pool.settle(backend.ip)
        self.dead.discard(backend.ip)
        self.changed.add(backend.vip)

    def remove(self, key: str, now: float) -> None:
        """Forget a record; an unknown one is fine."""
        old = self._records.pop(key, None)
        if old is None:
            return
        pool = self.pools[old.vip]
        keys = pool.members[old.ip]
        del keys[key]
        if not keys:
            del pool.members[old.ip]
        self._uses[old.ip] -= 1
        if not self._uses[old.ip]:
            del self._uses[old.ip]
            self.dead.add(old.ip)
        pool.settle(old.ip)
        if not pool.members:
            self._closed[old.vip] = now + LINGER
        self.changed.add(old.vip)

    def expire(self, now: float) -> None:
        """Let go of virtual addresses that have been closed for long enough."""
        for vip in [vip for vip, deadline in self._closed.items() if deadline <= now]:
            self._let_go(vip)

    def reuse(self, ip: IPAddress) -> None:
        """Hear that an address is an endpoint's now: it can be no closed virtual one."""
        if ip in self._closed:
            self._let_go(ip)

    def deadline(self) -> float | None:
        """Return when :meth:`expire` has something to do next."""
        return min(self._closed.values(), default=None)

    def slots(self, vip: Front) -> Slots | None:
        """Return the backends for new flows, None for an address that is no virtual one (any more)."""
        pool = self.pools.get(vip)
        return None if pool is None else pool.slots()

    def take_dead(self) -> set[Back]:
        """Return the backends that have gone since the last call."""
        dead, self.dead = self.dead, set()
        return dead

    def _let_go(self, vip: Front) -> None:
        del self._closed[vip], self.pools[vip]
        self.changed.add(vip)
