"""Our nodes beside nodes with the habits of stock engines.

The habits are grafted onto our own core: what stock engines forget, forge and refuse. They are no
substitute for a real engine (that is what the interop tests are for), but they can be combined
with loss and partitions as often as wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.gossip.changes import ChangeKind
from agent.gossip.config import Timing
from agent.gossip.networkdb.peers import Peer, PeerState
from agent.gossip.networkdb.table import Entry
from agent.gossip.networkdb.wire import NetworkEvent

Make = Callable[..., Any]


def graft(host: Any, *, forging: bool) -> None:
    """Give a host the habits of Docker up to 28.5 (``forging``) or 29."""
    db = host.node.db
    state = db.state

    def fail(peer: Peer) -> None:
        """Forget a failed node's entries and attachments."""
        now = db._timers.now
        peer.state, peer.changed, peer.retry_at = PeerState.FAILED, now, now
        for network, place, entry in state.entries_of(peer.name):
            state.drop(network, place, entry)
        state.peers.detach_all(peer)

    original = db.judge.attachment

    def attachment(event: NetworkEvent, data: bytes | None = None) -> bool:
        """Refuse attachments of nodes that are not active; forge tombstones for those that leave."""
        peer = state.peers.get(event.node)
        if peer is not None and peer.state is not PeerState.ACTIVE:
            return False
        held = {
            p: e for p, e in state.store.network(event.network).items() if e.owner == event.node
        }
        news = bool(original(event, data))
        if news and forging and not event.joining:
            for place, entry in held.items():
                state.set(
                    event.network,
                    place,
                    Entry(
                        owner=entry.owner,
                        time=entry.time,
                        value=entry.value,
                        deleted=True,
                        reap_at=db._timers.now + 1800.0,
                    ),
                )
        return news

    db._fail = fail
    db.judge.attachment = attachment
    db.judge._keep_early = lambda *args, **options: None
    db.exchange._attachments_for = lambda *args: []
    db.exchange._judge = db.exchange.pending.close
    db.publisher.announce_soon = lambda **options: None
    db.publisher._contest = lambda *args: None


def mixed(simulate: Make, seed: int, timing: Timing, *, forging: bool, **options: Any) -> Any:
    """Start three of ours and three with an engine's habits, all on one network."""
    sim = simulate(seed, timing=timing, **options)
    for index in range(6):
        host = sim.start(f"10.0.0.{index + 1}", seeds=["10.0.0.1", "10.0.0.2"])
        if index % 2:
            graft(host, forging=forging)
        sim.join(host, "net-a")
        sim.put(host, "net-a", f"{host.address}-first", b"v")
    return sim


@pytest.mark.parametrize("forging", [True, False])
def test_partition_between_ours_and_engines_heals(
    simulate: Make, brisk: Timing, seed: int, forging: bool
) -> None:
    """Engines forget who failed; what they forgot is told again, to them and by them."""
    sim = mixed(simulate, seed, brisk, forging=forging)
    sim.settle(30.0)
    hosts = list(sim.hosts.values())
    sim.partition(hosts[::2], hosts[1::2])
    sim.run(45.0)
    sim.put(hosts[0], "net-a", "apart", b"x")
    sim.heal()
    sim.settle(90.0)


@pytest.mark.parametrize("forging", [True, False])
def test_quick_leave_and_rejoin_beside_engines(
    simulate: Make, brisk: Timing, seed: int, forging: bool
) -> None:
    """Forged tombstones do not stick to what was published after the rejoin."""
    sim = mixed(simulate, seed, brisk, forging=forging, loss=0.2)
    sim.run(20.0)
    host = list(sim.hosts.values())[2]
    for _ in range(6):
        sim.quit(host, "net-a")
        sim.run(sim.rng.random() * 0.4)
        sim.join(host, "net-a")
        sim.put(host, "net-a", f"{host.address}-first", b"v")
        sim.run(sim.rng.random())
    sim.loss = 0.0
    sim.settle(120.0)


def test_forged_tombstone_at_our_time_is_cured(simulate: Make, brisk: Timing, seed: int) -> None:
    """An engine that missed the rejoin spreads a delete at our own time: everybody recovers."""
    sim = mixed(simulate, seed, brisk, forging=True)
    sim.settle(30.0)
    ours, engine = list(sim.hosts.values())[:2]
    state = engine.node.db.state
    ((network, place, entry),) = state.entries_of(ours.node.name)
    tomb = Entry(owner=entry.owner, time=entry.time, value=entry.value, deleted=True, reap_at=1e9)
    state.set(network, place, tomb)
    assert [c.kind for c in engine.node.take_changes()] == [ChangeKind.DELETE]
    engine.replica.pop((network, place.table, place.key))
    sim.settle(150.0)
