"""Which subnets are taken, in address order, over all networks of the cluster."""

from __future__ import annotations

from bisect import bisect_left, insort
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from manager.store.pools import Subnet


class Taken(NamedTuple):
    """One taken subnet; the field order is the sort order."""

    first: int
    last: int
    owner: str

    def subnet(self, version: int) -> Subnet:
        """Return the subnet of this family."""
        length = (32 if version == 4 else 128) - (self.last - self.first).bit_length()
        return _subnet(version, self.first, length)


class Subnets:
    """Disjoint subnets in order; overlap and lowest free are found by bisection."""

    __slots__ = ("_hints", "_taken")

    def __init__(self) -> None:
        self._taken: dict[int, list[Taken]] = {4: [], 6: []}
        # (pool, prefix length) -> no subnet of that length below this address is free. Only ever
        # too low, so taking back a change needs no record of it.
        self._hints: dict[tuple[Subnet, int], int] = {}

    def __len__(self) -> int:
        return len(self._taken[4]) + len(self._taken[6])

    def overlap(self, subnet: Subnet, *, but: str = "") -> Taken | None:
        """Return a taken subnet that shares an address with ``subnet`` and is not owned by ``but``."""
        taken = self._taken[subnet.version]
        first, last = int(subnet.network_address), int(subnet.broadcast_address)
        where = bisect_left(taken, (first,))
        if where and taken[where - 1].last >= first and taken[where - 1].owner != but:
            return taken[where - 1]
        for each in taken[where:]:
            if each.first > last:
                return None
            if each.owner != but:
                return each
        return None

    def add(self, subnet: Subnet, owner: str) -> None:
        """Mark a free subnet as taken."""
        insort(self._taken[subnet.version], _taken(subnet, owner))

    def remove(self, subnet: Subnet, owner: str) -> None:
        """Mark a taken subnet as free."""
        taken = self._taken[subnet.version]
        del taken[bisect_left(taken, _taken(subnet, owner))]
        first = int(subnet.network_address)
        for (pool, length), hint in self._hints.items():
            if pool.version == subnet.version and pool.overlaps(subnet):
                self._hints[pool, length] = min(hint, max(first, int(pool.network_address)))

    def lowest_free(self, pool: Subnet, length: int, *, start: int = 0) -> Subnet | None:
        """Return the lowest free subnet of a prefix length within ``pool``, or None when it is full.

        Args:
            pool: where to look.
            length: prefix length wanted, at least the pool's own.
            start: address (integer) below which the subnet must not begin.

        Source: libnetwork's default address pools since v27.0.
        """
        size = 1 << (pool.max_prefixlen - length)
        bottom, top = int(pool.network_address), int(pool.broadcast_address)
        taken = self._taken[pool.version]
        # Also aligned down: a freed subnet may be smaller than the one now wanted.
        candidate = max(self._hints.get((pool, length), bottom) // size * size, bottom)
        candidate = max(candidate, -(-start // size) * size)
        where = bisect_left(taken, (candidate,))
        if where and taken[where - 1].last >= candidate:
            where -= 1
        while where < len(taken) and taken[where].first <= candidate + size - 1 <= top:
            candidate = max(candidate, -(-(taken[where].last + 1) // size) * size)
            where += 1
        if not start:
            self._hints[pool, length] = candidate
        if candidate + size - 1 > top:
            return None
        return _subnet(pool.version, candidate, length)


def _subnet(version: int, first: int, length: int) -> Subnet:
    return IPv4Network((first, length)) if version == 4 else IPv6Network((first, length))


def _taken(subnet: Subnet, owner: str) -> Taken:
    return Taken(int(subnet.network_address), int(subnet.broadcast_address), owner)
