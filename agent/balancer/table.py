"""Which backends a virtual address, or a published port, has. Pure.

Every endpoint record contributes one backend under its own key; two records may name one address. The
slots of a virtual address stay dense, and a backend keeps its slot as long as it can: the last one
moves into a hole. A virtual address without any record is kept for a while, closed: whoever still
uses it is to be refused at once and not to wait for an answer.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

LINGER: Final = 60.0
"""Seconds that a virtual address refuses after its last record has gone."""

MAX_SLOTS: Final = 4096
"""Backends of one virtual address that get flows; a hostile record must not make more rules."""


@dataclass(frozen=True, slots=True)
class Port:
    """A published port of this host, for one IP version."""

    version: int
    protocol: str
    """``tcp``, ``udp`` or ``sctp``."""
    number: int

    def __str__(self) -> str:
        return f"{self.protocol} . {self.number}"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One address behind a virtual one, or one target behind a published port.

    Attributes:
        vip: the virtual address or port.
        ip: the backend's own address (and port), of the same family.
        serving: it takes new flows; False while it drains.
    """

    vip: Front
    ip: Back
    serving: bool = True


@dataclass(slots=True)
class Pool:
    """One virtual address.

    Attributes:
        slots: addresses that get new flows, in the order of their slots.
        members: keys of the records that name an address, by address and whether it serves.
    """

    slots: list[Back] = field(default_factory=list)
    members: dict[Back, dict[str, bool]] = field(default_factory=dict)

    def settle(self, ip: Back) -> None:
        """Bring one address's slot in line with its records."""
        wanted = any(self.members.get(ip, {}).values())
        if wanted and ip not in self.slots:
            self.slots.append(ip)
        elif not wanted and ip in self.slots:
            last = self.slots.pop()
            if last != ip:
                self.slots[self.slots.index(ip)] = last


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
        pool.members.setdefault(backend.ip, {})[key] = backend.serving
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

    def slots(self, vip: Front) -> tuple[Back, ...] | None:
        """Return the backends for new flows, None for an address that is no virtual one (any more)."""
        pool = self.pools.get(vip)
        return None if pool is None else tuple(pool.slots[:MAX_SLOTS])

    def take_dead(self) -> set[Back]:
        """Return the backends that have gone since the last call."""
        dead, self.dead = self.dead, set()
        return dead

    def _let_go(self, vip: Front) -> None:
        del self._closed[vip], self.pools[vip]
        self.changed.add(vip)
