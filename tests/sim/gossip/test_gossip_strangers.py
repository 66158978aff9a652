"""Requests that arrive before their sender is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agent.gossip.config import LAN
from agent.gossip.networkdb.wire import BulkSync, encode

Make = Callable[..., Any]


def test_a_bulk_sync_from_somebody_not_known_yet_is_answered(simulate: Make, seed: int) -> None:
    """A node just restarted syncs at once with a peer that hears of it a moment later: it must not wait.

    Engines wait thirty seconds for the answer, and start no container meanwhile.
    """
    sim = simulate(seed, timing=LAN)
    first = sim.start("10.0.0.1")
    peer = sim.start("10.0.0.2", seeds=["10.0.0.1"])
    for host in (first, peer):
        sim.join(host, "net")
    sim.settle(10.0)

    stranger = sim.start("10.0.0.3")
    name = stranger.node.name
    request = BulkSync(time=5, unsolicited=True, node=name, networks=("net",), payload=b"")
    peer.node.db.user_message(encode(request))
    sim._after_event(peer)

    answers: list[BulkSync] = []
    receive = stranger.node.db.judge._sync
    stranger.node.db.judge._sync = lambda message: (answers.append(message), receive(message))
    stranger.node.set_seeds([("10.0.0.1", 7946)])
    sim._after_event(stranger)
    sim.run(3.0)
    mine = [each for each in answers if each.node == peer.node.name and not each.unsolicited]
    assert len(mine) == 1
    assert mine[0].time > request.time
    assert mine[0].networks == ("net",)
