"""Other nodes as NetworkDB sees them, and what they are attached to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum


class PeerState(Enum):
    """Where a node stands."""

    ACTIVE = "active"
    FAILED = "failed"  # membership lost it: its entries are hidden, its attachments remembered
    LEFT = "left"  # went on purpose, or was replaced at its address: nothing of it is kept


@dataclass(slots=True, kw_only=True)
class Attachment:
    """One node on one network; ``leaving`` ones are remembered so that old joins stay refused."""

    time: int
    leaving: bool
    changed: float


@dataclass(slots=True, kw_only=True, eq=False)
class Peer:
    """One node.

    Attributes:
        time: newest network time of its node events.
        changed: when ``state`` changed last.
        retry_at: when the next attempt to reach a failed node is due.
        retry_pause: the pause before the one after that.
    """

    name: str
    host: str
    port: int
    state: PeerState
    changed: float
    time: int = 0
    retry_at: float = 0.0
    retry_pause: float = 1.0
    attachments: dict[str, Attachment] = field(default_factory=dict)


class Peers:
    """Nodes by name, with an index from networks to the nodes attached to them."""

    __slots__ = ("_attached", "_by_name")

    def __init__(self) -> None:
        self._by_name: dict[str, Peer] = {}
        self._attached: dict[str, set[str]] = {}

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Peer | None:
        """Return a node."""
        return self._by_name.get(name)

    def add(self, peer: Peer) -> None:
        """Take in a new node."""
        self._by_name[peer.name] = peer

    def forget(self, peer: Peer) -> None:
        """Drop a node and its attachments."""
        self.detach_all(peer)
        self._by_name.pop(peer.name, None)

    def attach(self, peer: Peer, network: str, attachment: Attachment) -> None:
        """Record an attachment or its end."""
        peer.attachments[network] = attachment
        if attachment.leaving:
            self._unlist(network, peer.name)
        else:
            self._attached.setdefault(network, set()).add(peer.name)

    def detach(self, peer: Peer, network: str) -> None:
        """Forget one attachment."""
        peer.attachments.pop(network, None)
        self._unlist(network, peer.name)

    def detach_all(self, peer: Peer) -> None:
        """Forget all attachments of a node."""
        for network in list(peer.attachments):
            self.detach(peer, network)

    def attached(self, peer: Peer, network: str) -> bool:
        """Tell whether a node takes part in a network."""
        return peer.name in self._attached.get(network, ())

    def on(self, network: str) -> list[Peer]:
        """Return the active nodes on a network, by name (so that a seed decides what follows)."""
        names = sorted(self._attached.get(network, ()))
        peers = (self._by_name[name] for name in names)
        return [peer for peer in peers if peer.state is PeerState.ACTIVE]

    def count_on(self, network: str) -> int:
        """Return how many nodes are attached to a network, failed ones included."""
        return len(self._attached.get(network, ()))

    def active(self) -> int:
        """Return how many nodes are active."""
        return sum(peer.state is PeerState.ACTIVE for peer in self._by_name.values())

    def at_address(self, host: str, port: int) -> list[Peer]:
        """Return the nodes last seen at an address."""
        return [p for p in self._by_name.values() if p.host == host and p.port == port]

    def _unlist(self, network: str, name: str) -> None:
        names = self._attached.get(network)
        if names is not None:
            names.discard(name)
            if not names:
                del self._attached[network]
