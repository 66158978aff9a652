"""The whole: the parts put together, nodes that come and go, full exchanges, reaping.

What is stored and relayed follows the engines; the rest is what their issue trackers taught:

- attachments travel ahead of entries in every bulk sync, and early entries wait for a while;
- a suspicion purges nothing, failure only hides, leaving removes at once;
- own entries are wishes: whatever overwrites or loses one is answered with a fresh publication;
- a peer that gave this node up, or returns, gets everything again.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import accumulate
from typing import Final, Protocol

from agent.gossip.changes import ChangeKind, TableChange
from agent.gossip.config import Timing
from agent.gossip.networkdb.early import Early
from agent.gossip.networkdb.exchange import Exchange
from agent.gossip.networkdb.judge import Judge
from agent.gossip.networkdb.peers import Peer, PeerState
from agent.gossip.networkdb.publisher import Publisher, Sender, sample
from agent.gossip.networkdb.state import LocalState
from agent.gossip.networkdb.sync import PendingSyncs
from agent.gossip.networkdb.wire import (
    GOSSIP_HEADER,
    NetworkEvent,
    PushPullState,
    decode_untrusted,
    encode,
    unfold_untrusted,
)
from agent.gossip.refusal import Refusal, Refusals
from agent.gossip.swim.membership import Member
from agent.gossip.swim.queue import retransmit_limit
from agent.gossip.swim.wire import State
from agent.gossip.timers import Timers
from swarm.errors import WireError

MAX_STATE: Final = 8 << 20  # bytes of attachments in one push/pull, where engines accept 20 MiB
MAX_PEERS: Final = 1 << 15  # those gone within the last day included
LEFT_GRACE: Final = 60.0  # a member that said it leaves and lives on after this has not left
MIN_RETRY: Final = 3.0  # longest pause between two attempts of few nodes to reach a failed one
MAX_RETRY: Final = 30.0  # and of many, each of which may be the one that mends a partition
RETRY_SHARE: Final = 8  # active nodes per second of that pause


class Transport(Sender, Protocol):
    """How NetworkDB reaches other nodes: membership knows their addresses."""

    def reconnect(self, host: str, port: int) -> None:
        """Try to exchange membership with whoever is at that address."""

    def alive(self, node: str) -> bool:
        """Tell whether membership holds a node to be alive."""


class NetworkDB:
    """One node's tables; the delegate of its membership core."""

    def __init__(
        self,
        *,
        name: str,
        host: str,
        port: int,
        timing: Timing,
        timers: Timers,
        rng: random.Random,
        transport: Transport,
        draining: Callable[[str, bytes], bool],
        datagram_room: int,
    ) -> None:
        self.refusals = Refusals()
        self.early = Early()
        self.trimmed = 0  # push/pulls that could not hold every attachment
        self.state = LocalState(name=name, host=host, port=port)
        pending = PendingSyncs()
        self.publisher = Publisher(
            self.state,
            timing=timing,
            timers=timers,
            rng=rng,
            sender=transport,
            draining=draining,
            saw=pending.saw,
            room=datagram_room - GOSSIP_HEADER - 1,
        )
        self.exchange = Exchange(
            self.state,
            timing=timing,
            timers=timers,
            rng=rng,
            sender=transport,
            draining=draining,
            publisher=self.publisher,
            pending=pending,
            refusals=self.refusals,
            take_event=lambda event, sender: self.judge.take(event, bulk=True, sender=sender),
        )
        self.judge = Judge(
            self.state,
            timing=timing,
            timers=timers,
            draining=draining,
            publisher=self.publisher,
            early=self.early,
            refusals=self.refusals,
            sync=self.exchange.receive,
            depart=self._depart,
        )
        self._timing = timing
        self._timers = timers
        self._rng = rng
        self._transport = transport

    # -- driving ---------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the periodic work; first ticks are staggered."""
        timing, rng = self._timing, self._rng
        self.publisher.start()
        self.exchange.start()
        self._timers.after(rng.random() * timing.reap_interval, self._reap_tick)
        self._timers.after(rng.random() * timing.reconnect_interval, self._reconnect_tick)

    def take_changes(self) -> list[TableChange]:
        """Return what became different for readers, in order, and forget it."""
        return self.state.take_changes()

    def work(self) -> bool:
        """Do a slice of what large messages have left to do; return whether more waits."""
        return self.exchange.work()

    # -- own networks and entries ----------------------------------------------------------

    def join_network(self, network: str) -> None:
        """Take part in a network; nothing happens if this node already does.

        Raises:
            InvalidArgumentError: the name is empty, too long, or holds a slash.
        """
        if self.publisher.join_network(network):
            self.exchange.joined(network)

    def leave_network(self, network: str) -> None:
        """Stop to take part: own entries become tombstones, others' are dropped."""
        self.publisher.leave_network(network)

    def put(self, table: str, network: str, key: str, value: bytes) -> None:
        """Publish an own entry, or its new value; the same value again changes nothing.

        Raises:
            InvalidArgumentError: a name is empty, too long or holds a slash; the value is too large.
            PreconditionError: this node takes no part in the network.
        """
        self.publisher.put(table, network, key, value)

    def delete(self, table: str, network: str, key: str) -> None:
        """Withdraw an own entry; nothing happens if there is none."""
        self.publisher.delete(table, network, key)

    def announce_leave(self) -> None:
        """Tell everybody that this node goes on purpose."""
        self.publisher.announce_leave()

    @property
    def leave_spread(self) -> bool:
        """Whether the announced leave has had its transmissions, or nobody is there to hear."""
        return self.publisher.leave_spread

    # -- delegate of the membership --------------------------------------------------------

    @property
    def pending(self) -> bool:
        """Whether node or network events wait."""
        return bool(self.publisher.queue)

    def broadcasts(self, *, room: int, overhead: int) -> list[bytes]:
        """Return node and network events that fit."""
        if not self.publisher.queue:
            return []
        limit = retransmit_limit(self._timing.retransmit_mult, self.state.peers.active() + 1)
        return self.publisher.queue.take(room=room, overhead=overhead, limit=limit, count=100)

    def user_message(self, body: bytes) -> None:
        """Take a message of any type, from a datagram or a stream."""
        try:
            events = unfold_untrusted(body)
        except WireError:
            self.refusals.count(Refusal.MALFORMED)
            return
        self.exchange.take_each(
            events, lambda event: self.judge.take(event, bulk=False, sender=None)
        )

    def local_state(self, *, join: bool) -> bytes:
        """Return the attachments of all nodes, this one included."""
        if join:
            time = self.state.network_clock.increment()
            for own in self.state.own.values():
                own.time = time
        attachments = [
            NetworkEvent(
                joining=not own.leaving, time=own.time, node=self.state.name, network=network
            )
            for network, own in self.state.own.items()
        ]
        others = [
            NetworkEvent(
                joining=not attachment.leaving,
                time=attachment.time,
                node=peer.name,
                network=network,
            )
            for peer in self.state.peers
            for network, attachment in peer.attachments.items()
        ]
        if sum(map(_state_size, others)) > MAX_STATE:
            # No engine accepts more in one message; which part goes changes from time to time.
            self.trimmed += 1
            self._rng.shuffle(others)
            sizes = accumulate(map(_state_size, others))
            others = [event for event, size in zip(others, sizes, strict=True) if size <= MAX_STATE]
        attachments += others
        return encode(
            PushPullState(
                time=self.state.network_clock.time,
                node=self.state.name,
                attachments=tuple(attachments),
            )
        )

    def merge_state(self, state: bytes) -> None:
        """Take another node's attachments; they are not gossiped any further."""
        try:
            message = decode_untrusted(state)
        except WireError:
            self.refusals.count(Refusal.MALFORMED)
            return
        if not isinstance(message, PushPullState):
            self.refusals.count(Refusal.MALFORMED)
            return
        self.state.network_clock.witness(message.time)
        sender = self.state.peers.get(message.node)
        if sender is not None:
            sender.time = max(sender.time, message.time)
        for event in message.attachments:
            self.state.network_clock.witness(event.time)
            if self.judge.attachment(event) and event.joining and event.network in self.state.own:
                self.exchange.met(event.network, event.node)

    def member_up(self, member: Member) -> None:
        """Take in a node that lives; one that had failed gets its entries back."""
        peer = self.state.peers.get(member.name)
        if peer is None:
            self._new_peer(member)
        else:
            self.state.peers.readdress(peer, member.host, member.port)
            was = peer.state
            self.state.peers.move(peer, PeerState.ACTIVE, self._timers.now)
            if was is PeerState.FAILED:
                self._restore(peer)
        for event, bulk in self.early.take(member.name):
            self.judge.take(event, bulk=bulk, sender=None)

    def member_down(self, member: Member) -> None:
        """Let go of a node: hide what is its own if it failed, drop it if it left."""
        peer = self.state.peers.get(member.name)
        if peer is None or peer.state is PeerState.LEFT:
            return
        replaced = any(
            other is not peer and other.state is PeerState.ACTIVE
            for other in self.state.peers.at_address(peer.host, peer.port)
        )
        if member.state is State.LEFT or replaced:
            self._depart(peer)
        elif peer.state is PeerState.ACTIVE:
            self._fail(peer)

    def accused(self, *, dead: bool) -> None:
        """Hear that others doubted this node; if they gave it up they need everything again."""
        if dead:
            self.publisher.announce_soon(entries=True)

    def joined(self) -> None:
        """Say that this node is here, as engines expect after a join."""
        self.publisher.joined()

    # -- peers -----------------------------------------------------------------------------

    def _new_peer(self, member: Member) -> None:
        for other in self.state.peers.at_address(member.host, member.port):
            if other.state is PeerState.FAILED:
                self._depart(other)  # restarted under a new name
        if len(self.state.peers) >= MAX_PEERS:
            for oldest in self.state.peers.away()[:1]:
                self._forget(oldest)
        self.state.peers.add(
            Peer(
                name=member.name,
                host=member.host,
                port=member.port,
                state=PeerState.ACTIVE,
                changed=self._timers.now,
            )
        )

    def _fail(self, peer: Peer) -> None:
        now = self._timers.now
        self.state.peers.move(peer, PeerState.FAILED, now)
        peer.retry_at, peer.retry_pause = now, self._timing.reconnect_interval
        until = now + self._timing.tombstone_age
        for network, place, entry in self.state.entries_of(peer.name):
            if entry.visible:
                self.state.store.hide(entry, until)
                self.state.tell(ChangeKind.DELETE, network, place, entry, entry.value)
        self.publisher.reassert_against(peer)

    def _restore(self, peer: Peer) -> None:
        for network, place, entry in self.state.entries_of(peer.name):
            if entry.hidden:
                entry.unhide()
                self.state.tell(ChangeKind.CREATE, network, place, entry, None)
        shared = [network for network in peer.attachments if self.state.takes_part(network)]
        self.exchange.sync(
            peer, [network for network in shared if self.state.peers.attached(peer, network)]
        )
        self.publisher.announce_soon(entries=False)

    def _depart(self, peer: Peer) -> None:
        self.state.peers.move(peer, PeerState.LEFT, self._timers.now)
        self.state.peers.detach_all(peer)
        self.early.take(peer.name)
        self.publisher.reassert_against(peer)
        for network, place, entry in self.state.entries_of(peer.name):
            if not entry.deleted:  # tombstones go on guarding against late copies
                self.state.drop(network, place, entry)

    # -- housekeeping ----------------------------------------------------------------------

    def _reap_tick(self) -> None:
        self._timers.after(self._timing.reap_interval, self._reap_tick)
        now, timing = self._timers.now, self._timing
        for network, place, entry in self.state.store.items():
            if entry.reap_at is not None and entry.reap_at <= now:
                self.state.store.remove(network, place)
        for network, own in list(self.state.own.items()):
            if own.leaving and now - own.changed > timing.network_age:
                del self.state.own[network]
                for place in list(self.state.store.network(network)):
                    self.state.store.remove(network, place)
        self.early.expire(now)
        for peer, network in self.state.peers.ended():
            if now - peer.attachments[network].changed > timing.network_age:
                self.state.peers.detach(peer, network)
        for peer in self.state.peers.away():
            self._reap_peer(peer, now)

    def _reap_peer(self, peer: Peer, now: float) -> None:
        away = now - peer.changed
        if self._transport.alive(peer.name):
            # Membership is right: an eviction by address, or a leave that was none.
            if peer.state is PeerState.FAILED:
                self.state.peers.move(peer, PeerState.ACTIVE, now)
                self._restore(peer)
            elif away > LEFT_GRACE:
                self.state.peers.move(peer, PeerState.ACTIVE, now)
                self.publisher.announce_soon(entries=False)
        elif away > self._timing.node_age:
            self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        for network, place, entry in self.state.entries_of(peer.name):
            self.state.drop(network, place, entry)
        self.state.peers.forget(peer)

    def _reconnect_tick(self) -> None:
        """Try one failed node: often at first, then less and less."""
        self._timers.after(self._timing.reconnect_interval, self._reconnect_tick)
        now = self._timers.now
        failed = [
            peer
            for peer in self.state.peers.away()
            if peer.state is PeerState.FAILED and peer.retry_at <= now
        ]
        for peer in sample(self._rng, failed, 1):
            peer.retry_at = now + peer.retry_pause * (0.75 + self._rng.random() / 2)
            limit = min(MAX_RETRY, max(MIN_RETRY, self.state.peers.active() / RETRY_SHARE))
            peer.retry_pause = min(peer.retry_pause * 1.5, limit)
            self._transport.reconnect(peer.host, peer.port)


def _state_size(event: NetworkEvent) -> int:
    """Return about how many bytes an attachment takes in a push/pull."""
    return len(event.node) + len(event.network) + 20
