"""What operators are shown of one node's gossip: members, networks, tables, figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from agent.gossip.node import Node
from agent.gossip.swim import membership
from agent.gossip.swim.wire import State


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One node of the cluster as membership sees it, this one included.

    Attributes:
        incarnation: raised by the node itself whenever it refutes.
        networks: how many it takes part in.
        compared: seconds since own entries were last compared with what it holds; None: never.
        entries: how many were compared then.
        lacking: how many of them it did not hold as they are; they were published again.
    """

    name: str
    host: str
    port: int
    state: State
    incarnation: int = 0
    networks: int = 0
    compared: float | None = None
    entries: int = 0
    lacking: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """How many entries one table of one network has; see :class:`GossipStats` for the sum."""

    network: str
    table: str
    visible: int
    own: int
    tombstones: int
    hidden: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStatus:
    """One network this node takes part in.

    Attributes:
        peers: active nodes on it besides this one.
        in_sync: its first bulk syncs are done.
        syncs: bulk syncs that a peer has answered since this node joined it.
        own_queue: own events that wait to be passed on.
        relay_queue: others' events that do.
    """

    id: str
    peers: int
    in_sync: bool
    syncs: int
    own_queue: int
    relay_queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipStats:
    """Figures for operators.

    Attributes:
        queues: waiting messages by queue: ``membership``, ``events``, ``own``, ``relayed``, ``early``.
        refused: refused input by cause (see :class:`agent.gossip.refusal.Refusal`).
        health: Lifeguard's score; 0 is well.
        keys: fingerprints of the previous, the sending and the next key.
        entries: entries held, tombstones and hidden ones included.
        pending_syncs: bulk syncs whose reply is awaited.
        stalled: seconds this process did not run when it should have.
        dropped: events that queues had no room for.
        trimmed: full exchanges that could not hold every attachment.
        traffic: datagrams, streams and bytes, by what and direction: ``datagrams_sent``,
            ``datagram_bytes_sent``, ``streams_dialled``, ``stream_bytes_sent``, the same received
            (``streams_served``).
        largest_frame: bytes of the largest stream message so far; engines refuse above 20 MiB.
    """

    queues: dict[str, int]
    refused: dict[str, int]
    health: int
    keys: tuple[str, ...]
    entries: int
    pending_syncs: int
    stalled: float
    dropped: int
    trimmed: int
    traffic: dict[str, int]
    largest_frame: int


def members(node: Node) -> tuple[Member, ...]:
    """Return every known node, this one included, in order of names."""
    return tuple(_member(node, m) for m in sorted(node.swim.members, key=lambda m: m.name))


def _member(node: Node, member: membership.Member) -> Member:
    db = node.db
    peer = db.state.peers.get(member.name)
    if peer is None:
        mine = member.name == node.name
        networks = sum(not own.leaving for own in db.state.own.values()) if mine else 0
    else:
        networks = sum(not each.leaving for each in peer.attachments.values())
    compared = None if peer is None else peer.compared
    return Member(
        name=member.name,
        host=member.host,
        port=member.port,
        state=member.state,
        incarnation=member.incarnation,
        networks=networks,
        compared=None if compared is None else node.timers.now - compared.at,
        entries=0 if compared is None else compared.entries,
        lacking=0 if compared is None else compared.lacking,
    )


def tables(node: Node) -> tuple[TableStatus, ...]:
    """Return the sizes of all tables of all networks; walks over every entry."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for network, place, entry in node.db.state.store.items():
        counts = found.setdefault((network, place.table), Counter())
        if entry.visible:
            counts["visible"] += 1
            counts["own"] += entry.owner == node.name
        else:
            counts["tombstones" if entry.deleted else "hidden"] += 1
    return tuple(
        TableStatus(
            network=network,
            table=table,
            visible=counts["visible"],
            own=counts["own"],
            tombstones=counts["tombstones"],
            hidden=counts["hidden"],
        )
        for (network, table), counts in sorted(found.items())
    )


def network_states(node: Node) -> tuple[NetworkStatus, ...]:
    """Return how a node stands on each network it takes part in."""
    state = node.db.state
    return tuple(
        NetworkStatus(
            id=network,
            peers=len(state.peers.on(network)),
            in_sync=own.in_sync,
            syncs=own.syncs,
            own_queue=len(own.ours),
            relay_queue=len(own.relayed),
        )
        for network, own in sorted(state.own.items())
        if not own.leaving
    )


def figures(node: Node, traffic: Mapping[str, int], largest_frame: int) -> GossipStats:
    """Return the figures of a node and of the shell around it."""
    core, db = node.swim, node.db
    return GossipStats(
        queues={
            "membership": len(core.queue),
            "events": len(db.publisher.queue),
            "own": sum(len(own.ours) for own in db.state.own.values()),
            "relayed": sum(len(own.relayed) for own in db.state.own.values()),
            "early": len(db.early),
        },
        refused=dict(Counter(core.refusals.counts) + Counter(db.refusals.counts)),
        health=core.awareness.score,
        keys=node.keyring.fingerprints(),
        entries=db.state.store.size,
        pending_syncs=len(db.exchange.pending),
        stalled=node.timers.stalled,
        dropped=core.queue.dropped
        + db.publisher.queue.dropped
        + db.early.dropped
        + sum(own.ours.dropped + own.relayed.dropped for own in db.state.own.values()),
        trimmed=db.trimmed,
        traffic=dict(traffic),
        largest_frame=largest_frame,
    )
