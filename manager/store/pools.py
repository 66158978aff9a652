"""The addresses of one subnet: who holds which, and which comes next."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from swarm.errors import InvalidArgumentError
from swarm.model import IPAMConfig, Network

Address: TypeAlias = IPv4Address | IPv6Address
Subnet: TypeAlias = IPv4Network | IPv6Network
Journal: TypeAlias = list[Callable[[], object]]
"""How to take back what was done, last step last."""

REST_NS = 60_000_000_000
"""A freed address rests this long (nanoseconds) while others are free: peers and neighbour caches
still hold it for a while. When only resting ones are left, the one freed first goes out early."""
LEASE = "an allocation in progress"
"""Holder of an address that a transaction was promised and has not written yet."""
_HIGHEST = 1 << 129
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_PLAIN = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")


@lru_cache(maxsize=65536)
def parse_address(text: str) -> Address:
    """Return the address of ``10.0.0.2`` or ``10.0.0.2/24``.

    Raises:
        InvalidArgumentError: the text is neither.
    """
    bare, _, length = text.partition("/")
    address: Address
    if _PLAIN.fullmatch(bare):  # five times as fast, and nearly all are such
        one, two, three, four = map(int, bare.split("."))
        address = IPv4Address(one << 24 | two << 16 | three << 8 | four)
    else:
        try:
            address = ip_address(bare)
        except ValueError as error:
            raise InvalidArgumentError(f"{text!r} is not an IP address") from error
    if getattr(address, "scope_id", None) is not None:
        raise InvalidArgumentError(f"{text!r} carries a scope; give the address without it")
    if "/" in text and not (
        length.isascii() and length.isdigit() and int(length) <= address.max_prefixlen
    ):
        raise InvalidArgumentError(f"{text!r} is not an IP address with a prefix length")
    return address


@lru_cache(maxsize=4096)
def parse_subnet(text: str) -> Subnet:
    """Return the network of a CIDR text.

    Raises:
        InvalidArgumentError: not a CIDR, or address bits are set beyond the prefix length.
    """
    if "/" not in text:
        raise InvalidArgumentError(f"invalid CIDR address: {text}")
    try:
        return ip_network(text)
    except ValueError as error:
        raise InvalidArgumentError(f"invalid CIDR address: {text} ({error})") from error


class Pool:
    """One allocated subnet of one network.

    Attributes:
        network_id: the network.
        subnet: the subnet.
        low, high: first and last address (as integers) handed out unasked; inside the range that
            the network's owner gave, never the network or broadcast address.
        holders: integer address to who holds it.
        size: how many addresses lie in ``low..high``.
        version: 4 or 6.
        held: how many of ``holders`` are attachments, not the network itself.
        used: how many of ``holders`` lie in ``low..high``.
        cursor: last address handed out in order, or None.
    """

    __slots__ = (
        "_first",
        "_freed",
        "_last",
        "_queue",
        "cursor",
        "held",
        "high",
        "holders",
        "low",
        "network_id",
        "size",
        "subnet",
        "used",
        "version",
    )

    def __init__(self, network_id: str, config: IPAMConfig) -> None:
        self.network_id = network_id
        self.subnet = parse_subnet(config.subnet)
        self.version = self.subnet.version
        first, last = int(self.subnet.network_address), int(self.subnet.broadcast_address)
        self._first, self._last = first, last
        self.holders: dict[int, str] = {first: "the network address"}
        if self.subnet.version == 4:
            self.holders[last] = "the broadcast address"
        for name, text in config.reserved.items():
            self.holders.setdefault(int(parse_address(text)), f"the reservation {name}")
        if config.gateway:
            self.holders.setdefault(int(parse_address(config.gateway)), "the gateway")
        self.low, self.high = first + 1, last - (self.subnet.version == 4)
        if config.range:
            part = parse_subnet(config.range)
            self.low = max(self.low, int(part.network_address))
            self.high = min(self.high, int(part.broadcast_address))
        self.size = max(self.high - self.low + 1, 0)
        self.used = sum(self.low <= each <= self.high for each in self.holders)
        self.held = 0
        self.cursor: int | None = None
        self._queue: list[tuple[int, int]] = []  # (freed at, address), in order, unheld, in range
        self._freed: dict[int, int] = {}  # the same, by address

    def __contains__(self, address: Address) -> bool:
        return self.covers(address.version, int(address))

    def covers(self, version: int, number: int) -> bool:
        """Say whether an address, as integer, lies in the subnet."""
        return self._first <= number <= self._last and version == self.version

    @property
    def resting(self) -> tuple[tuple[int, int], ...]:
        """(freed at, address) of freed addresses, oldest first."""
        return tuple(self._queue)

    def text(self, number: int) -> str:
        """Return an integer address as text with the prefix length."""
        if self.version == 4:
            return (
                f"{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
                f"/{self.subnet.prefixlen}"
            )
        return f"{self.address(number)}/{self.subnet.prefixlen}"

    def address(self, number: int) -> Address:
        """Return an integer as address of this subnet's family."""
        return IPv4Address(number) if self.version == 4 else IPv6Address(number)

    def next_free(self, now: int) -> int | None:
        """Return the next free address after the last one handed out, or None when all are held.

        Source: libnetwork's serial allocation (``com.docker.network.ipam.serial``); the rest is ours.
        """
        free = self.size - self.used
        if free <= 0:
            return None
        if not self._queue and self.cursor is not None and self.low <= self.cursor < self.high:
            number = self.cursor + 1
            if number not in self.holders:
                return number
        rested = bisect_right(self._queue, (now - REST_NS, _HIGHEST))
        if free <= len(self._queue) - rested:
            return self._queue[rested][1]
        return next(
            each
            for each in self._in_order()
            if each not in self.holders and not self._rests(each, now)
        )

    def _in_order(self) -> Iterator[int]:
        start = self.low if self.cursor is None else self.cursor + 1
        start = start if self.low <= start <= self.high else self.low
        number = start
        while number <= self.high:
            yield number
            number += 1
        number = self.low
        while number < start:
            yield number
            number += 1

    def _rests(self, number: int, now: int) -> bool:
        freed = self._freed.get(number)
        return freed is not None and freed > now - REST_NS

    def take(self, number: int, holder: str, journal: Journal, *, in_order: bool) -> None:
        """Give a free address to ``holder``; ``in_order`` moves the cursor there."""
        freed = self._freed.get(number)
        if freed is not None:
            self._wake(freed, number)
            journal.append(partial(self._rest, freed, number))
        self._hold(number, holder)
        journal.append(partial(self._unhold, number))
        if in_order and self.low <= number <= self.high:
            journal.append(partial(setattr, self, "cursor", self.cursor))
            self.cursor = number

    def release(self, number: int, now: int, journal: Journal) -> None:
        """Free a held address and let it rest."""
        holder = self._unhold(number)
        journal.append(partial(self._hold, number, holder))
        if not self.low <= number <= self.high:
            return
        for freed, old in self._queue[:2]:  # two out for one in keeps the queue short
            if freed <= now - REST_NS:
                self._wake(freed, old)
                journal.append(partial(self._rest, freed, old))
        self._rest(now, number)
        journal.append(partial(self._wake, now, number))

    def fulfil(self, number: int, holder: str, journal: Journal) -> None:
        """Give a promised address to ``holder``; the promise has moved the cursor."""
        self.holders[number] = holder
        journal.append(partial(self.holders.__setitem__, number, LEASE))

    def restore(self, cursor: int | None, resting: Iterable[tuple[int, int]]) -> None:
        """Take over the past of this subnet from a snapshot."""
        self.cursor = cursor
        for freed, number in resting:
            self._rest(freed, number)

    def _hold(self, number: int, holder: str) -> None:
        self.holders[number] = holder
        self.held += 1
        self.used += self.low <= number <= self.high

    def _unhold(self, number: int) -> str:
        self.held -= 1
        self.used -= self.low <= number <= self.high
        return self.holders.pop(number)

    def _rest(self, freed: int, number: int) -> None:
        insort(self._queue, (freed, number))
        self._freed[number] = freed

    def _wake(self, freed: int, number: int) -> None:
        del self._queue[bisect_left(self._queue, (freed, number))]
        del self._freed[number]


def pools_of(network: Network) -> tuple[Pool, ...]:
    """Return fresh pools of an allocated network, one a subnet; none before allocation."""
    configs = network.ipam.configs if network.ipam else ()
    return tuple(Pool(network.id, each) for each in configs if each.subnet)
