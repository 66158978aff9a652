"""Other nodes as NetworkDB sees them, and what they are attached to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from agent.gossip.networkdb.wire import NetworkEvent, encode


class PeerState(Enum):
    """Where a node stands."""

    ACTIVE = "active"
    FAILED = "failed"  # membership lost it: its entries are hidden, its attachments remembered
    LEFT = "left"  # went on purpose, or was replaced at its address: nothing of it is kept


@dataclass(slots=True, kw_only=True)
class Attachment:
    """One node on one network; ``leaving`` ones are remembered so that old joins stay refused.

    Attributes:
        encoded: the event that says so, once it has been received or made.
    """

    time: int
    leaving: bool
    changed: float
    encoded: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the last full comparison with a node said.

    Attributes:
        at: when.
        entries: own entries compared.
        lacking: how many of them the node did not hold as they are.
    """

    at: float
    entries: int
    lacking: int


@dataclass(slots=True, kw_only=True, eq=False)
class Peer:
    """One node.

    Attributes:
        time: newest network time of its node events.
        changed: when ``state`` changed last.
        retry_at: when the next attempt to reach a failed node is due.
        retry_pause: the pause before the one after that.
        compared: the last comparison of own entries with what the node holds, if there was one.
    """

    name: str
    host: str
    port: int
    state: PeerState
    changed: float
    time: int = 0
    retry_at: float = 0.0
    retry_pause: float = 1.0
    compared: Comparison | None = None
    attachments: dict[str, Attachment] = field(default_factory=dict)


class Peers:
    """Nodes by name, with indexes by network, address and state.

    A thousand nodes look these up several times a second, so nothing here walks over all of them
    but iteration itself.
    """

    __slots__ = (
        "_attached", "_away", "_by_address", "_by_host", "_by_name", "_ended", "_known", "_on",
    )  # fmt: skip

    def __init__(self) -> None:
        self._by_name: dict[str, Peer] = {}
        self._attached: dict[str, set[str]] = {}
        self._by_address: dict[tuple[str, int], dict[str, Peer]] = {}
        self._by_host: Counter[str] = Counter()
        self._away: dict[str, Peer] = {}
        self._ended: dict[tuple[str, str], Peer] = {}
        self._known: set[bytes] = set()
        self._on: dict[str, tuple[Peer, ...]] = {}  # filled when asked, dropped when outdated

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
        self._place(peer)
        if peer.state is not PeerState.ACTIVE:
            self._away[peer.name] = peer

    def move(self, peer: Peer, state: PeerState, now: float) -> None:
        """Change where a node stands."""
        peer.state, peer.changed = state, now
        if state is PeerState.ACTIVE:
            self._away.pop(peer.name, None)
        else:
            self._away.pop(peer.name, None)
            self._away[peer.name] = peer
        for network in peer.attachments:
            self._on.pop(network, None)

    def readdress(self, peer: Peer, host: str, port: int) -> None:
        """Change a node's address."""
        if (peer.host, peer.port) != (host, port):
            self._unplace(peer)
            peer.host, peer.port = host, port
            self._place(peer)

    def forget(self, peer: Peer) -> None:
        """Drop a node and its attachments."""
        self.detach_all(peer)
        if self._by_name.pop(peer.name, None) is not None:
            self._unplace(peer)
        self._away.pop(peer.name, None)

    def attach(self, peer: Peer, network: str, attachment: Attachment) -> None:
        """Record an attachment or its end."""
        self._unknow(peer.attachments.get(network))
        peer.attachments[network] = attachment
        if attachment.encoded is not None:
            self._known.add(attachment.encoded)
        if attachment.leaving:
            self._unlist(network, peer.name)
            self._ended[peer.name, network] = peer
        else:
            self._ended.pop((peer.name, network), None)
            self._attached.setdefault(network, set()).add(peer.name)
            self._on.pop(network, None)

    def detach(self, peer: Peer, network: str) -> None:
        """Forget one attachment."""
        self._unknow(peer.attachments.pop(network, None))
        self._ended.pop((peer.name, network), None)
        self._unlist(network, peer.name)

    def detach_all(self, peer: Peer) -> None:
        """Forget all attachments of a node."""
        for network in list(peer.attachments):
            self.detach(peer, network)

    def knows(self, event: bytes) -> bool:
        """Tell whether an encoded event is what is held already: nothing is to be learnt from it."""
        return event in self._known

    def events(self, network: str, *, besides: Peer) -> list[bytes]:
        """Return the encoded attachments (ended ones too) of all nodes but one to a network."""
        found = []
        for peer in self._by_name.values():
            attachment = peer.attachments.get(network)
            if attachment is not None and peer is not besides:
                if attachment.encoded is None:
                    attachment.encoded = encode(
                        NetworkEvent(
                            joining=not attachment.leaving,
                            time=attachment.time,
                            node=peer.name,
                            network=network,
                        )
                    )
                    self._known.add(attachment.encoded)
                found.append(attachment.encoded)
        return found

    def attached(self, peer: Peer, network: str) -> bool:
        """Tell whether a node takes part in a network."""
        return peer.name in self._attached.get(network, ())

    def on(self, network: str) -> tuple[Peer, ...]:
        """Return the active nodes on a network, by name (so that a seed decides what follows)."""
        found = self._on.get(network)
        if found is None:
            names = sorted(self._attached.get(network, ()))
            peers = (self._by_name[name] for name in names)
            found = tuple(peer for peer in peers if peer.state is PeerState.ACTIVE)
            self._on[network] = found
        return found

    def away(self) -> list[Peer]:
        """Return the nodes that failed or left, in the order in which they did."""
        return list(self._away.values())

    def ended(self) -> list[tuple[Peer, str]]:
        """Return the attachments that are remembered although they ended."""
        return [(peer, network) for (_, network), peer in self._ended.items()]

    def active(self) -> int:
        """Return how many nodes are active."""
        return len(self._by_name) - len(self._away)

    def at_address(self, host: str, port: int) -> list[Peer]:
        """Return the nodes last seen at an address."""
        return list(self._by_address.get((host, port), {}).values())

    def at_host(self, host: str) -> bool:
        """Tell whether a node was last seen at a host, at whatever port."""
        return host in self._by_host

    def _unknow(self, attachment: Attachment | None) -> None:
        if attachment is not None and attachment.encoded is not None:
            self._known.discard(attachment.encoded)

    def _place(self, peer: Peer) -> None:
        self._by_address.setdefault((peer.host, peer.port), {})[peer.name] = peer
        self._by_host[peer.host] += 1

    def _unplace(self, peer: Peer) -> None:
        place = (peer.host, peer.port)
        self._by_host[peer.host] -= 1
        if not self._by_host[peer.host]:
            del self._by_host[peer.host]
        names = self._by_address.get(place)
        if names is not None:
            names.pop(peer.name, None)
            if not names:
                del self._by_address[place]

    def _unlist(self, network: str, name: str) -> None:
        self._on.pop(network, None)
        names = self._attached.get(network)
        if names is not None:
            names.discard(name)
            if not names:
                del self._attached[network]
