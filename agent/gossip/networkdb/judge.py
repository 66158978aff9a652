"""What a node makes of others' events: nodes, attachments, entries.

The newest Lamport time wins, the first one of two equal ones. What is news is passed on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from agent.gossip.config import Timing
from agent.gossip.networkdb.early import Early
from agent.gossip.networkdb.own import OwnNetwork
from agent.gossip.networkdb.peers import Attachment, Peer, PeerState
from agent.gossip.networkdb.publisher import Publisher
from agent.gossip.networkdb.state import LocalState
from agent.gossip.networkdb.table import Entry, Key
from agent.gossip.networkdb.wire import (
    Action,
    BulkSync,
    NetworkEvent,
    NodeEvent,
    PushPullState,
    TableEvent,
    decode_untrusted,
    encode,
)
from agent.gossip.refusal import Refusal, Refusals
from agent.gossip.timers import Timers
from swarm.errors import WireError

MAX_ENTRIES: Final = 1 << 20  # of all networks, tombstones included
MAX_PEER_NETWORKS: Final = 1 << 14  # of one peer
RELAY_BACKLOG: Final = 500  # above it, entries from bulk syncs are not relayed as well
RELAY_RESIDUAL: Final = 300  # seconds; younger tombstones for unknown keys are not worth relaying


class Judge:
    """Applies events to the state of one node."""

    def __init__(
        self,
        state: LocalState,
        *,
        timing: Timing,
        timers: Timers,
        draining: Callable[[str, bytes], bool],
        publisher: Publisher,
        early: Early,
        refusals: Refusals,
        sync: Callable[[BulkSync], None],
        depart: Callable[[Peer], None],
    ) -> None:
        """Prepare.

        Args:
            state: shared with the other parts.
            timing: how long things are remembered.
            timers: the time line.
            draining: tells which values older engines must get as an update.
            publisher: passes on what is news, and answers what is said of this node.
            early: keeps what depends on something not heard of yet.
            refusals: counts.
            sync: takes a bulk sync.
            depart: lets go of a node that says it leaves.
        """
        self.state = state
        self.refusals = refusals
        self.early = early
        self._timing = timing
        self._timers = timers
        self._draining = draining
        self._publisher = publisher
        self._sync = sync
        self._depart = depart

    def take(self, data: bytes, *, bulk: bool, sender: str | None) -> None:
        """Take one encoded event.

        Args:
            data: the event.
            bulk: it came in a bulk sync.
            sender: whose, if so.
        """
        state = self.state
        if state.peers.knows(data) or state.store.knows(data, besides=state.name):
            return
        try:
            message = decode_untrusted(data)
        except WireError:
            self.refusals.count(Refusal.MALFORMED)
            return
        match message:
            case TableEvent():
                self._table_event(message, data, bulk=bulk, sender=sender)
            case NetworkEvent():
                self._network_event(message, data, bulk=bulk)
            case NodeEvent():
                self._node_event(message, data)
            case BulkSync():
                if bulk:
                    self.refusals.count(Refusal.MALFORMED)  # never within another
                else:
                    self._sync(message)
                    if message.unsolicited and state.peers.get(message.node) is None:
                        # It waits for an answer, which can be sent as soon as its address is known.
                        request = replace(message, payload=b"")
                        self._keep_early(message.node, encode(request), bulk=False)
            case PushPullState():
                self.refusals.count(Refusal.MALFORMED)  # only ever beside membership states

    def _node_event(self, event: NodeEvent, data: bytes) -> None:
        self.state.network_clock.witness(event.time)
        if event.node == self.state.name:
            return
        peer = self.state.peers.get(event.node)
        if peer is not None and event.time <= peer.time:
            return
        if peer is None or peer.state is not PeerState.ACTIVE:
            self.refusals.count(Refusal.UNKNOWN_NODE)
            return
        peer.time = event.time
        if not event.joining:
            self._depart(peer)
        self._publisher.queue.put(f"node/{event.node}", data)

    def _network_event(self, event: NetworkEvent, data: bytes, *, bulk: bool) -> None:
        self.state.network_clock.witness(event.time)
        if event.node == self.state.name:
            self._publisher.claimed(event)
            return
        if self.state.peers.get(event.node) is None:
            self._keep_early(event.node, data, bulk=bulk)
        elif self.attachment(event, data):
            self._publisher.queue.put(f"network/{event.node}/{event.network}", data)

    def attachment(self, event: NetworkEvent, data: bytes | None = None) -> bool:
        """Apply an attachment if it is news; return whether it was."""
        if event.node == self.state.name:
            self._publisher.claimed(event)
            return False
        peer = self.state.peers.get(event.node)
        if peer is None or peer.state is PeerState.LEFT:
            self.refusals.count(Refusal.UNKNOWN_NODE)
            return False
        known = peer.attachments.get(event.network)
        if known is None and not event.joining:
            return False
        if known is None and len(peer.attachments) >= MAX_PEER_NETWORKS:
            self.refusals.count(Refusal.TABLE_FULL)
            return False
        if known is not None and event.time <= known.time:
            return False
        was_attached = self.state.peers.attached(peer, event.network)
        self.state.peers.attach(
            peer,
            event.network,
            Attachment(
                time=event.time,
                leaving=not event.joining,
                changed=self._timers.now,
                encoded=data,
            ),
        )
        if not event.joining:
            for place, entry in list(self.state.store.network(event.network).items()):
                if entry.owner == peer.name and not entry.deleted:
                    self.state.drop(event.network, place, entry)
        elif not was_attached:
            for early, bulk in self.early.take(peer.name):
                self.take(early, bulk=bulk, sender=None)
        return True

    def _keep_early(self, owner: str, data: bytes, *, bulk: bool) -> None:
        until = self._timers.now + self._timing.early_age
        self.early.keep(owner, data, until=until, bulk=bulk)

    def _table_event(
        self, event: TableEvent, data: bytes, *, bulk: bool, sender: str | None
    ) -> None:
        self.state.table_clock.witness(event.time)
        own = self.state.own.get(event.network)
        if own is None or own.leaving:
            return
        if event.owner == self.state.name:
            self._publisher.about_own(event, own, sender)
            return
        place = Key(event.table, event.key)
        current = self.state.store.get(event.network, place)
        if current is not None and event.time <= current.time:
            return
        peer = self.state.peers.get(event.owner)
        if peer is not None and peer.state is PeerState.LEFT:
            self.refusals.count(Refusal.UNKNOWN_NODE)
            return
        if peer is None or not self.state.peers.attached(peer, event.network):
            self.refusals.count(Refusal.NOT_ATTACHED)
            self._keep_early(event.owner, data, bulk=bulk)
            return
        wish = own.wishes.get(place)
        if wish is not None and self._was_us(peer):
            self._publisher.publish(event.network, own, place, wish.value)
            return
        if current is None and self.state.store.size >= MAX_ENTRIES:
            self.refusals.count(Refusal.TABLE_FULL)
            return
        self._apply(event, data, place, current, peer)
        if self._worth_relaying(event, own, known=current is not None, bulk=bulk):
            self._publisher.relay(own, place, data)

    def _was_us(self, peer: Peer) -> bool:
        """Tell whether a node is an earlier life of this one, or gone: it cannot own our entries."""
        return peer.state is PeerState.FAILED or ((peer.host, peer.port) == self.state.address)

    def _apply(
        self, event: TableEvent, data: bytes, place: Key, current: Entry | None, peer: Peer
    ) -> None:
        now, age = self._timers.now, self._timing.tombstone_age
        deleted = event.action is Action.DELETE
        hidden = not deleted and peer.state is PeerState.FAILED
        reap_at: float | None = None
        if deleted:
            reap_at = now + (min(event.residual, age) if event.residual else age)
        elif hidden:
            # Announced again while its owner is away does not make it younger.
            kept = current.reap_at if current is not None and current.hidden else None
            reap_at = kept if kept is not None else now + min(event.residual or age, age)
        self.state.set(
            event.network,
            place,
            Entry(
                owner=event.owner,
                time=event.time,
                value=event.value,
                deleted=deleted,
                hidden=hidden,
                reap_at=reap_at,
                encoded=data if self._as_synced(event, reap_at) else None,
            ),
        )

    def _as_synced(self, event: TableEvent, reap_at: float | None) -> bool:
        """Tell whether an event is byte by byte what a bulk sync has to say of the entry."""
        plain = event.action is Action.CREATE and not event.residual and reap_at is None
        return plain and not self._draining(event.table, event.value)

    def _worth_relaying(
        self, event: TableEvent, own: OwnNetwork, *, known: bool, bulk: bool
    ) -> bool:
        if not own.in_sync or (bulk and len(own.relayed) > RELAY_BACKLOG):
            return False
        if event.action is Action.DELETE and not known:
            return bulk and event.residual > RELAY_RESIDUAL
        return True
