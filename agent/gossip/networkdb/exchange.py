"""Bulk syncs: the repair of whatever gossip lost, over streams.

Nothing waits for a reply: several syncs run at once, each is recognised by its time, and large
ones, received or sent, are worked on slice by slice so that probes are answered in between.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from agent.gossip.config import Timing
from agent.gossip.networkdb.peers import Comparison, Peer
from agent.gossip.networkdb.publisher import Publisher, Sender, sample
from agent.gossip.networkdb.state import LocalState
from agent.gossip.networkdb.sync import Chunker, Pending, PendingSyncs
from agent.gossip.networkdb.table import Key
from agent.gossip.networkdb.wire import BulkSync, NetworkEvent, encode, unfold_untrusted
from agent.gossip.refusal import Refusal, Refusals
from agent.gossip.timers import Timers
from swarm.errors import WireError

IMMEDIATE: Final = 200  # syncs of up to this many events are done at once
SLICE: Final = 100  # events per slice of a larger one: a few milliseconds
MAX_JOBS: Final = 256  # large syncs waiting to be worked on
MAX_REPLIES: Final = 32  # to one peer, asked for by a few bytes each and under way at once
JOIN_PEERS: Final = 8  # bulk synced with on joining a network
MEET_PEERS: Final = 3  # bulk synced with when a push/pull reveals peers of a network
MEET_DELAY: Final = 0.1
SETTLE: Final = 1.0  # seconds between the begin of a reply and its verdict: it may come in parts
_DONE: Final = object()


class Exchange:
    """One node's bulk syncs, in both directions.

    Attributes:
        pending: requests whose reply is awaited.
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
        publisher: Publisher,
        pending: PendingSyncs,
        refusals: Refusals,
        take_event: Callable[[bytes, str], None],
    ) -> None:
        """Prepare.

        Args:
            state: shared with the other parts.
            timing: periods.
            timers: the time line.
            rng: chooses peers.
            sender: reaches them.
            draining: tells which values older engines must get as an update.
            publisher: publishes own entries again that a peer has lost.
            pending: shared with whoever sees own entries in replies.
            refusals: counts.
            take_event: applies one encoded event that a peer's sync held.
        """
        self.state = state
        self.pending = pending
        self._timing = timing
        self._timers = timers
        self._rng = rng
        self._transport = sender
        self._draining = draining
        self._publisher = publisher
        self._refusals = refusals
        self._take_event = take_event
        self._jobs: deque[Iterator[None]] = deque()
        self._met: dict[str, set[str]] = {}
        self._replying: Counter[str] = Counter()

    def start(self) -> None:
        """Begin the periodic syncs."""
        self._timers.after(self._rng.random() * self._timing.bulk_sync_interval, self._sync_tick)

    def joined(self, network: str) -> None:
        """Sync a network just joined with the peers known on it; without any it is in sync."""
        peers = sample(self._rng, self.state.peers.on(network), JOIN_PEERS)
        self._sync_many({network: peers}, first=True)
        own = self.state.own[network]
        own.in_sync = own.in_sync or own.awaiting == 0

    def met(self, network: str, node: str) -> None:
        """Hear that a push/pull revealed a peer of an own network; some of them are synced with."""
        if not self._met:
            self._timers.after(MEET_DELAY, self._meet)
        self._met.setdefault(network, set()).add(node)

    def receive(self, message: BulkSync) -> None:
        """Take another node's bulk sync, and answer it if it asks for that."""
        self.state.table_clock.witness(message.time)
        try:
            events = unfold_untrusted(message.payload) if message.payload else []
        except WireError:
            self._refusals.count(Refusal.MALFORMED)
            return
        if not message.unsolicited:
            for pending in self.pending.answered(message.node, message.time):
                self._reply_begins(pending)

        held = sum(len(self.state.store.network(network)) for network in message.networks)
        self._run(self._taking(message, events), max(len(events), held))

    def take_each(self, events: list[bytes], take: Callable[[bytes], None]) -> None:
        """Hand over the events of one message, a large one slice by slice."""
        self._run(_each(events, take), len(events))

    def _taking(self, message: BulkSync, events: list[bytes]) -> Iterator[None]:
        yield from _each(events, lambda event: self._take_event(event, message.node))
        peer = self.state.peers.get(message.node)
        if message.unsolicited and peer is not None:
            yield from self._replies(peer, message.networks)

    def _replies(self, peer: Peer, networks: Sequence[str]) -> Iterator[None]:
        """Send a peer what it asked for, unless more answers to it are under way than it can need."""
        if self._replying[peer.name] >= MAX_REPLIES:
            self._refusals.count(Refusal.OVERFLOW)
            return
        self._replying[peer.name] += 1

        def settle(_: bool) -> None:
            self._replying[peer.name] -= 1
            if not self._replying[peer.name]:
                del self._replying[peer.name]

        asked = [name for name in networks if self.state.takes_part(name)]
        yield from self._sending(peer, asked, None, settle)

    def _run(self, job: Iterator[None], size: int) -> None:
        """Do a small job at once; queue a large one, of which every slice of work does a little."""
        if size <= IMMEDIATE:
            deque(job, maxlen=0)
        elif len(self._jobs) >= MAX_JOBS:
            self._refusals.count(Refusal.OVERFLOW)
        else:
            self._jobs.append(job)

    def work(self) -> bool:
        """Do a slice of one waiting job, in turns; return whether more waits."""
        if self._jobs:
            job = self._jobs.popleft()
            if next(job, _DONE) is not _DONE:
                self._jobs.append(job)
        return bool(self._jobs)

    def _sync_tick(self) -> None:
        """Sync with one random peer per network; one sync covers every network shared with it."""
        self._timers.after(self._timing.bulk_sync_interval, self._sync_tick)
        covered: set[str] = set()
        for network in [name for name in self.state.own if self.state.takes_part(name)]:
            if network in covered:
                continue
            candidates = sample(self._rng, self.state.peers.on(network), 2)
            if not candidates:
                continue
            shared = self.state.shared(candidates[0])
            covered.update(shared)
            second = candidates[1] if len(candidates) > 1 else None
            self.sync(candidates[0], shared, otherwise=second)

    def _meet(self) -> None:
        """Sync with some of the peers a push/pull has revealed."""
        met, self._met = self._met, {}
        wanted: dict[str, list[Peer]] = {}
        for network, names in met.items():
            if self.state.takes_part(network):
                peers = [peer for peer in self.state.peers.on(network) if peer.name in names]
                wanted[network] = sample(self._rng, peers, MEET_PEERS)
        self._sync_many(wanted, first=False)

    def _sync_many(self, wanted: dict[str, list[Peer]], *, first: bool) -> None:
        """Sync networks with peers, one sync per peer, all at once."""
        by_peer: dict[str, list[str]] = {}
        for network, peers in wanted.items():
            for peer in peers:
                by_peer.setdefault(peer.name, []).append(network)
        for name, networks in by_peer.items():
            target = self.state.peers.get(name)
            if target is not None:
                self.sync(target, networks, first=first)

    def sync(
        self,
        peer: Peer,
        networks: list[str],
        *,
        otherwise: Peer | None = None,
        first: bool = False,
    ) -> None:
        """Send an unsolicited bulk sync and await the reply, without anything waiting for it."""
        if not networks:
            return
        joining = [self.state.own[network] for network in networks] if first else []
        for own in joining:
            own.awaiting += 1

        def done() -> None:
            for own in joining:
                own.awaiting -= 1
                own.in_sync = own.in_sync or own.awaiting == 0

        pending = Pending(
            peer=peer.name,
            networks=tuple(networks),
            own=self._own_times(networks),
            done=done,
        )

        def settle(sent: bool) -> None:
            if not sent and self.pending.waiting(pending):
                self.pending.close(pending)
                done()
                if otherwise is not None:
                    self.sync(otherwise, self.state.shared(otherwise))

        self.pending.add(pending)
        size = sum(len(self.state.store.network(network)) for network in networks)
        self._run(self._sending(peer, networks, pending, settle), size)

    def _own_times(self, networks: list[str]) -> dict[tuple[str, Key], int]:
        times = {}
        for network in networks:
            for place in self.state.own[network].wishes:
                entry = self.state.store.get(network, place)
                if entry is not None and entry.owner == self.state.name and entry.visible:
                    times[network, place] = entry.time
        return times

    def _give_up(self, pending: Pending) -> None:
        if self.pending.waiting(pending) and not pending.replied:
            self.pending.close(pending)
            pending.done()

    def _reply_begins(self, pending: Pending) -> None:
        if pending.replied:
            return
        pending.replied = True
        pending.done()
        self._timers.after(SETTLE, lambda: self._judge(pending))

    def _judge(self, pending: Pending) -> None:
        """Compare own entries with what the peer holds of them; publish again what it lost."""
        if self._jobs:  # the reply itself may still be in work
            self._timers.after(SETTLE, lambda: self._judge(pending))
            return
        self.pending.close(pending)
        now = self._timers.now
        lacking = 0
        for network in pending.networks:
            own = self.state.own.get(network)
            if own is None or own.leaving:
                continue
            own.syncs += 1
            lost = [
                place
                for (name, place), time in pending.own.items()
                if name == network
                and pending.seen.get((name, place), 0) < time
                and self._still(network, place, time)
            ]
            lacking += len(lost)
            if not lost:
                if pending.own:
                    own.republish_pause = self._timing.republish_backoff
                continue
            if now < own.republish_at:
                continue
            own.republish_at = now + own.republish_pause
            own.republish_pause = min(own.republish_pause * 2, self._timing.republish_limit)
            own.time = self.state.network_clock.increment()
            self._publisher.announce(network, own.time, joining=True)
            for place in lost:
                self._publisher.publish(network, own, place, own.wishes[place].value, fresh=True)
        peer = self.state.peers.get(pending.peer)
        if peer is not None:
            peer.compared = Comparison(at=now, entries=len(pending.own), lacking=lacking)

    def _still(self, network: str, place: Key, time: int) -> bool:
        """Tell whether an own entry is as it was when the sync was sent."""
        entry = self.state.store.get(network, place)
        wish = self.state.own[network].wishes.get(place)
        return (
            wish is not None
            and entry is not None
            and entry.owner == self.state.name
            and entry.time == time
        )

    def _sending(
        self,
        peer: Peer,
        networks: list[str],
        pending: Pending | None,
        settle: Callable[[bool], None],
    ) -> Iterator[None]:
        """Send everything about some networks; ``pending`` is what awaits the reply, if any.

        A large one goes in parts; only the last asks for a reply, else each would get a full one.
        """
        chunker = Chunker(self._attachments_for(peer, networks))
        store, now = self.state.store, self._timers.now
        places = [(network, place) for network in networks for place in store.network(network)]
        for index, (network, place) in enumerate(places, start=1):
            entry = store.get(network, place)
            if entry is not None:
                full = chunker.add(store.to_wire(network, place, entry, now, self._draining))
                if full is not None:
                    self._send(peer, networks, full, unsolicited=False, settle=lambda _: None)
            if index % SLICE == 0:
                yield
        time = self._send(
            peer, networks, chunker.finish(), unsolicited=pending is not None, settle=settle
        )
        if pending is not None:
            pending.time = time
            self._timers.after(self._timing.bulk_sync_timeout, lambda: self._give_up(pending))

    def _send(
        self,
        peer: Peer,
        networks: list[str],
        payload: bytes,
        *,
        unsolicited: bool,
        settle: Callable[[bool], None],
    ) -> int:
        time = self.state.table_clock.increment()
        message = BulkSync(
            time=time,
            unsolicited=unsolicited,
            node=self.state.name,
            networks=tuple(networks),
            payload=payload,
        )
        self._transport.send_stream(peer.name, encode(message), settle)
        return time

    def _attachments_for(self, target: Peer, networks: list[str]) -> list[bytes]:
        events = []
        for network in networks:
            own = self.state.own[network]  # whoever sends has just seen that it is there
            here = NetworkEvent(joining=True, time=own.time, node=self.state.name, network=network)
            events.append(encode(here))
            events += self.state.peers.events(network, besides=target)
        return events


def _each(events: list[bytes], take: Callable[[bytes], None]) -> Iterator[None]:
    """Hand over events one by one, with a pause after every slice."""
    for index, event in enumerate(events, start=1):
        take(event)
        if index % SLICE == 0:
            yield
