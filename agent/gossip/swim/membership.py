"""What is known about each node, and whom to probe or gossip to."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from agent.gossip.swim.wire import NodeState, State

VERSIONS: Final = bytes((1, 5, 2, 0, 0, 0))  # minimum, maximum, current; delegate the same
MAX_MEMBERS: Final = 1 << 14
WALK_BELOW: Final = 32  # members; choosing among fewer looks at each
DRAWS: Final = 4  # attempts per member to be chosen, before looking at each
CRC_VERSION: Final = 5  # nodes whose maximum is at least this check checksums
NACK_VERSION: Final = 4
STREAM_PING_VERSION: Final = 3


@lru_cache(maxsize=MAX_MEMBERS)
def host_of(addr: bytes) -> str:
    """Return 4 or 16 raw bytes as text; asked of every member at every turn, so answers are kept."""
    return str(ipaddress.ip_address(addr))


def usable(addr: bytes, port: int) -> bool:
    """Tell whether a node can be reached at that address at all."""
    return len(addr) in {4, 16} and port > 0 and any(addr)


def compatible(versions: bytes) -> bool:
    """Tell whether a node of these versions and this one understand each other.

    The engines refuse a whole push/pull if any node in it does not fit all others; judging each
    node by itself keeps one misfit from cutting the cluster.
    """
    if len(versions) < 6:
        return False
    for low, high, current, ours_low, ours_high, ours in (
        (*versions[:3], *VERSIONS[:3]),
        (*versions[3:6], *VERSIONS[3:6]),
    ):
        if not (low <= ours <= high and ours_low <= current <= ours_high):
            return False
    return versions[0] > 0


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """One node as seen from here.

    Attributes:
        addr: 4 or 16 raw bytes.
        incarnation: raised only by the node itself.
        changed: when ``state`` changed last.
    """

    name: str
    addr: bytes
    port: int
    meta: bytes
    versions: bytes
    incarnation: int
    state: State
    changed: float

    @property
    def host(self) -> str:
        """The address as text."""
        return host_of(self.addr)

    @property
    def gone(self) -> bool:
        """Whether the node is dead or has left."""
        return self.state in {State.DEAD, State.LEFT}

    def to_wire(self) -> NodeState:
        """Return the node as push/pull carries it."""
        return NodeState(
            name=self.name,
            addr=self.addr,
            port=self.port,
            meta=self.meta,
            incarnation=self.incarnation,
            state=self.state,
            versions=self.versions,
        )


class Membership:
    """All nodes by name, and the order in which they are probed."""

    __slots__ = ("_by_name", "_next", "_ring")

    def __init__(self) -> None:
        self._by_name: dict[str, Member] = {}
        self._ring: list[str] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Member | None:
        """Return a node."""
        return self._by_name.get(name)

    def add(self, member: Member, rng: random.Random) -> None:
        """Take a node in, at a random place of the probe order."""
        self._by_name[member.name] = member
        self._ring.insert(rng.randint(0, len(self._ring)), member.name)

    def next_probe(
        self, rng: random.Random, *, skip: str, forget: Callable[[Member], bool]
    ) -> Member | None:
        """Return the node whose turn it is: each once per round, in a new order every round.

        Args:
            rng: shuffles.
            skip: the own name.
            forget: tells which nodes are dropped for good between two rounds.
        """
        for _ in range(len(self._ring) + 1):
            if self._next >= len(self._ring):
                self._new_round(rng, skip, forget)
                if not self._ring:
                    return None
            member = self._by_name[self._ring[self._next]]
            self._next += 1
            if member.name != skip and not member.gone:
                return member
        return None

    def sample(
        self, rng: random.Random, count: int, eligible: Callable[[Member], bool]
    ) -> list[Member]:
        """Return up to ``count`` random nodes that are eligible.

        Most nodes usually are: a few draws find them without a walk over everybody.
        """
        if len(self._ring) > WALK_BELOW:
            drawn: dict[str, Member] = {}
            for _ in range(DRAWS * count):
                member = self._by_name[rng.choice(self._ring)]
                if member.name not in drawn and eligible(member):
                    drawn[member.name] = member
                    if len(drawn) == count:
                        return list(drawn.values())
        found = [member for member in self._by_name.values() if eligible(member)]
        return rng.sample(found, min(count, len(found)))

    def _new_round(self, rng: random.Random, keep: str, forget: Callable[[Member], bool]) -> None:
        self._drop(m.name for m in list(self) if m.name != keep and forget(m))
        self._ring = list(self._by_name)
        rng.shuffle(self._ring)
        self._next = 0

    def _drop(self, names: Iterable[str]) -> None:
        for name in names:
            del self._by_name[name]
