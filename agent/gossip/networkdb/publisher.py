"""This node's own part: its networks, its entries, and how both are kept against all odds.

An own entry is a wish. It is published with a new Lamport time whenever somebody holds something
else under its key: an earlier life of this node, a forged tombstone, a node that is gone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar

from agent.gossip.config import Timing
from agent.gossip.networkdb.own import OwnNetwork, Wish
from agent.gossip.networkdb.peers import Peer
from agent.gossip.networkdb.state import LocalState
from agent.gossip.networkdb.table import Entry, Key
from agent.gossip.networkdb.wire import (
    MAX_KEY,
    MAX_TEXT,
    MAX_VALUE,
    PART_HEADER,
    Action,
    NetworkEvent,
    NodeEvent,
    TableEvent,
    compound,
    encode,
)
from agent.gossip.swim.queue import BroadcastQueue
from agent.gossip.timers import Timer, Timers
from swarm.errors import InvalidArgumentError, PreconditionError

GOSSIP_PEERS: Final = 3
PACKETS: Final = 4  # datagrams per round and peer at most: what waits is sent soon, without a flood
ROUND_EVENTS: Final = 1024
SPARE: Final = 7.0  # e to its minus: how likely gossip alone misses some node
LOSS: Final = 0.2  # of datagrams, at which that still holds
OVERSIZE_PEERS: Final = 16  # get an own event over a stream when no datagram can carry it
REASSERT_PAUSE: Final = 1.0  # between two answers to others' versions of one own entry
MAX_OWN_NETWORKS: Final = 1 << 14  # above it, others' claims about us are no longer put right
MAX_EVENT_QUEUE: Final = 1 << 14

_T = TypeVar("_T")


class Sender(Protocol):
    """How events reach other nodes."""

    def send_datagram(self, node: str, body: bytes) -> None:
        """Send one message directly."""

    def send_stream(self, node: str, body: bytes, settle: Callable[[bool], None]) -> None:
        """Send one message over a stream; ``settle`` hears whether it was written."""


class Publisher:
    """Announces and gossips: own networks and entries, and what is relayed for others.

    Attributes:
        queue: node and network events waiting to ride on membership messages.
    """

    def __init__(
        self,
        state: LocalState,
        *,
        timing: Timing,
        timers: Timers,
        rng: random.Random,
        sender: Sender,
        draining: Callable[[str, bytes], bool],
        saw: Callable[[str, str, Key, int], None],
        room: int,
    ) -> None:
        """Prepare.

        Args:
            state: shared with the other parts.
            timing: periods.
            timers: the time line.
            rng: chooses peers.
            sender: reaches them.
            draining: tells which values older engines must get as an update.
            saw: hears that a peer holds an own entry alive: peer, network, key, time.
            room: bytes of encoded events one datagram carries.
        """
        self.state = state
        self.queue = BroadcastQueue(limit=MAX_EVENT_QUEUE)
        self._timing = timing
        self._timers = timers
        self._rng = rng
        self._transport = sender
        self._draining = draining
        self._saw = saw
        self._room = room
        self._flush_timer: Timer | None = None
        self._flushed = -math.inf
        self._announce_timer: Timer | None = None
        self._announce_entries = False

    def start(self) -> None:
        """Begin to gossip."""
        self._timers.after(self._rng.random() * self._timing.table_interval, self._table_tick)

    def join_network(self, network: str) -> bool:
        """Announce that this node takes part in a network; return False if it already does."""
        _check_name(network)
        own = self.state.own.get(network)
        if own is not None and not own.leaving:
            return False
        time = self.state.network_clock.increment()
        pause = self._timing.republish_backoff
        self.state.own[network] = OwnNetwork(
            time=time, changed=self._timers.now, republish_pause=pause
        )
        self.announce(network, time, joining=True)
        return True

    def leave_network(self, network: str) -> None:
        """Stop to take part: own entries become tombstones, others' are dropped."""
        own = self.state.own.get(network)
        if own is None or own.leaving:
            return
        time = self.state.network_clock.increment()
        for key, entry in list(self.state.store.network(network).items()):
            if entry.owner == self.state.name and not entry.deleted:
                self._bury(network, key, entry)
            elif entry.owner != self.state.name:
                self.state.drop(network, key, entry)
        self.state.own[network] = OwnNetwork(
            time=time,
            changed=self._timers.now,
            leaving=True,
            republish_pause=self._timing.republish_backoff,
        )
        self.announce(network, time, joining=False)

    def put(self, table: str, network: str, key: str, value: bytes) -> None:
        """Publish an own entry, or its new value; the same value again changes nothing.

        Raises:
            InvalidArgumentError: a name is empty, too long or holds a slash; the value is too large.
            PreconditionError: this node takes no part in the network.
        """
        _check_name(table)
        _check_name(key, MAX_KEY)
        if len(value) > MAX_VALUE:
            raise InvalidArgumentError(f"a table entry has at most {MAX_VALUE} bytes")
        own = self.state.own.get(network)
        if own is None or own.leaving:
            raise PreconditionError(f"join network {network} before publishing entries on it")
        place = Key(table, key)
        wish = own.wishes.get(place)
        current = self.state.store.get(network, place)
        held = current is not None and current.owner == self.state.name and current.visible
        if held and wish is not None and wish.value == value:
            return
        self.publish(network, own, place, value)

    def delete(self, table: str, network: str, key: str) -> None:
        """Withdraw an own entry; nothing happens if there is none."""
        own = self.state.own.get(network)
        place = Key(table, key)
        if own is None or own.wishes.pop(place, None) is None:
            return
        entry = self.state.store.get(network, place)
        if entry is not None and entry.owner == self.state.name and not entry.deleted:
            event = self._bury(network, place, entry)
            self._queue_own(network, own, place, [event])

    def announce_leave(self) -> None:
        """Tell everybody that this node goes on purpose."""
        event = NodeEvent(
            joining=False, time=self.state.network_clock.increment(), node=self.state.name
        )
        self.queue.put(f"node/{self.state.name}", encode(event))

    @property
    def leave_spread(self) -> bool:
        """Whether the announced leave has had its transmissions, or nobody is there to hear."""
        return f"node/{self.state.name}" not in self.queue or not self.state.peers.active()

    def joined(self) -> None:
        """Say that this node is here, as engines expect after a join."""
        event = NodeEvent(
            joining=True, time=self.state.network_clock.increment(), node=self.state.name
        )
        if f"node/{self.state.name}" not in self.queue:
            self.queue.put(f"node/{self.state.name}", encode(event))

    def publish(
        self, network: str, own: OwnNetwork, place: Key, value: bytes, *, fresh: bool = False
    ) -> None:
        """Write an own entry with a new time and gossip it.

        Engines up to 28 act on the wire's event type: only a drain is an update for them, any
        other change has to be a delete, holding the old value, and a create.
        """
        current = self.state.store.get(network, place)
        mine = current is not None and current.owner == self.state.name and current.visible
        update = self._draining(place.table, value)
        events: list[bytes] = []
        if current is not None and mine and current.value != value and not update and not fresh:
            time = self.state.table_clock.increment()
            events.append(
                self._encode(Action.DELETE, time, network, place, current.value, residual=True)
            )
        time = self.state.table_clock.increment()
        action = Action.UPDATE if update else Action.CREATE
        events.append(self._encode(action, time, network, place, value, residual=False))
        own.wishes[place] = Wish(value=value, asserted=self._timers.now)
        self.state.set(network, place, Entry(owner=self.state.name, time=time, value=value))
        self._queue_own(network, own, place, events)

    def _bury(self, network: str, place: Key, entry: Entry) -> bytes:
        """Turn an own entry into a tombstone with a new time; return the event that says so."""
        time = self.state.table_clock.increment()
        tomb = Entry(
            owner=self.state.name,
            time=time,
            value=entry.value,
            deleted=True,
            reap_at=self._timers.now + self._timing.tombstone_age,
        )
        self.state.set(network, place, tomb)
        return self._encode(Action.DELETE, time, network, place, entry.value, residual=True)

    def _encode(
        self,
        action: Action,
        time: int,
        network: str,
        place: Key,
        value: bytes,
        *,
        residual: bool,
    ) -> bytes:
        return encode(
            TableEvent(
                action=action,
                time=time,
                owner=self.state.name,
                network=network,
                table=place.table,
                key=place.key,
                value=value,
                residual=int(self._timing.tombstone_age) if residual else 0,
            )
        )

    def _queue_own(self, network: str, own: OwnNetwork, place: Key, events: list[bytes]) -> None:
        """Queue an own change; a delete and the create after it stay together if they fit."""
        message = events[0] if len(events) == 1 else compound(events)
        if len(message) + PART_HEADER > self._room:
            message = events[-1]
        if len(message) + PART_HEADER > self._room:
            for peer in sample(self._rng, self.state.peers.on(network), OVERSIZE_PEERS):
                self._transport.send_stream(peer.name, compound([message]), lambda _: None)
            return
        own.ours.put(place_name(place), message)
        if self._flush_timer is None:
            due = max(self._flushed + self._timing.flush_interval, self._timers.now)
            self._flush_timer = self._timers.at(due, self._flush)

    def relay(self, own: OwnNetwork, place: Key, event: bytes) -> None:
        """Queue another node's event; what no datagram can carry is left to bulk syncs."""
        if len(event) + PART_HEADER <= self._room:
            own.relayed.put(place_name(place), event)

    def announce(self, network: str, time: int, *, joining: bool) -> None:
        """Queue the news that this node joins or leaves a network."""
        event = NetworkEvent(joining=joining, time=time, node=self.state.name, network=network)
        self.queue.put(f"network/{self.state.name}/{network}", encode(event))

    def claimed(self, event: NetworkEvent) -> None:
        """Set right what somebody believes about this node: an earlier life, or a forgery."""
        own = self.state.own.get(event.network)
        if own is not None and event.time < own.time:
            return
        taking_part = own is not None and not own.leaving
        if taking_part and event.joining:
            if own is not None and event.time > own.time:
                self.announce_soon(entries=False)  # our own join would look old to them
        elif taking_part:
            self.announce_soon(entries=True)
        elif event.joining and (own is not None or len(self.state.own) < MAX_OWN_NETWORKS):
            time = self.state.network_clock.increment()
            self.state.own[event.network] = OwnNetwork(
                time=time,
                changed=self._timers.now,
                leaving=True,
                republish_pause=self._timing.republish_backoff,
            )
            self.announce(event.network, time, joining=False)

    def announce_soon(self, *, entries: bool) -> None:
        """Announce own attachments again, and own entries if others have dropped them."""
        self._announce_entries = self._announce_entries or entries
        if self._announce_timer is None:
            self._announce_timer = self._timers.after(
                self._timing.reannounce_delay, self._announce_all
            )

    def _announce_all(self) -> None:
        self._announce_timer = None
        entries, self._announce_entries = self._announce_entries, False
        for network, own in self.state.own.items():
            if own.leaving:
                continue
            own.time = self.state.network_clock.increment()
            self.announce(network, own.time, joining=True)
            if entries:
                self._republish(network, own)

    def _republish(self, network: str, own: OwnNetwork) -> None:
        for place, wish in list(own.wishes.items()):
            self.publish(network, own, place, wish.value, fresh=True)

    def reassert_against(self, peer: Peer) -> None:
        """Publish own wishes that a node now gone had overwritten."""
        for network, own in self.state.own.items():
            for place, wish in list(own.wishes.items()):
                entry = self.state.store.get(network, place)
                if entry is not None and entry.owner == peer.name:
                    self.publish(network, own, place, wish.value)

    def about_own(self, event: TableEvent, own: OwnNetwork, sender: str | None) -> None:
        """Compare what somebody holds under this node's name with what it wrote."""
        place = Key(event.table, event.key)
        alive = event.action is not Action.DELETE
        if alive and sender is not None:
            self._saw(sender, event.network, place, event.time)
        wish = own.wishes.get(place)
        current = self.state.store.get(event.network, place)
        if current is not None and current.owner == self.state.name:
            if event.time < current.time:
                return  # they are behind: they will hear
            same = alive != current.deleted and (not alive or event.value == current.value)
            if event.time == current.time and same:
                return
        if wish is not None:
            self._contest(event.network, place, wish)
        elif alive and (current is None or current.owner == self.state.name):
            # Written by an earlier life of this name, or revived: nobody else may delete it.
            stale = Entry(owner=self.state.name, time=event.time, value=event.value)
            self._queue_own(event.network, own, place, [self._bury(event.network, place, stale)])

    def _contest(self, network: str, place: Key, wish: Wish) -> None:
        """Publish an own entry again, now or a moment after it was published last."""

        def answer() -> None:
            own = self.state.own.get(network)
            if own is not None and own.wishes.get(place) is wish:
                self.publish(network, own, place, wish.value, fresh=True)

        pause = wish.asserted + REASSERT_PAUSE - self._timers.now
        if pause <= 0:
            answer()
        elif not wish.contested:
            wish.contested = True
            self._timers.after(pause, answer)

    def _table_tick(self) -> None:
        self._timers.after(self._timing.table_interval, self._table_tick)
        for network, own in self.state.own.items():
            if own.ours or own.relayed:
                self._gossip(network, own, GOSSIP_PEERS, relay=True)

    def _flush(self) -> None:
        """Send own changes directly: most clusters are small enough to be done with that."""
        self._flush_timer, self._flushed = None, self._timers.now
        for network, own in self.state.own.items():
            if own.ours:
                self._gossip(network, own, self._timing.flush_nodes, relay=False)

    def _gossip(self, network: str, own: OwnNetwork, fanout: int, *, relay: bool) -> None:
        peers = self.state.peers.on(network)
        if not peers:
            return  # what waits is kept for whoever comes, within the queue's bound
        limit = copies(len(peers) + 1)
        charge = min(fanout, len(peers))
        room = PACKETS * self._room
        taken: list[bytes] = []
        for queue in (own.ours, own.relayed) if relay else (own.ours,):
            found = queue.take(
                room=room, overhead=PART_HEADER, limit=limit, count=ROUND_EVENTS, charge=charge
            )
            room -= sum(len(event) + PART_HEADER for event in found)
            taken += found
        for events in packed(taken, self._room):
            body = compound(events)
            for peer in sample(self._rng, peers, fanout):
                self._transport.send_datagram(peer.name, body)


def copies(nodes: int) -> int:
    """Return to how many peers each node that hears of an event passes it on.

    A node that ``nodes`` others each tell ``c`` times at random is missed with probability
    ``exp(-c)``; so with ``c = ln(nodes) + 7`` that arrive, one event in a thousand misses anybody.
    Engines send about twice as many, all of them from one datagram per round: at a thousand nodes
    that lets fewer than four events per second through.
    """
    return math.ceil((math.log(nodes) + SPARE) / (1 - LOSS))


def packed(events: list[bytes], room: int) -> list[list[bytes]]:
    """Return events in as many groups as it takes for each to fit ``room``, in order."""
    groups: list[list[bytes]] = []
    left = 0
    for event in events:
        size = len(event) + PART_HEADER
        if size > left:
            groups.append([])
            left = room
        groups[-1].append(event)
        left -= size
    return groups


def place_name(place: Key) -> str:
    """Return under which name the queues hold an entry's newest event."""
    return f"{place.table}/{place.key}"


def sample(rng: random.Random, items: Sequence[_T], count: int) -> list[_T]:
    """Return up to ``count`` random items."""
    return rng.sample(items, min(count, len(items)))


def _check_name(name: str, limit: int = MAX_TEXT) -> None:
    if not name or len(name) > limit or "/" in name:
        raise InvalidArgumentError(f"{name!r} is empty, too long, or holds a slash")
