"""Remote endpoints that gossip tells a node of: 5000 programmed at once, changed one by one, removed.

The floor is the kernel alone: the same messages (neighbour, forwarding entry, route), packed beforehand and
sent in batches without an answer each.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from netns.dataplane.conftest import World, network_of

from bench.table import Row

PEERS = 5000
TURNS = 5


def run() -> Sequence[Row]:
    """Program, program again, change one, remove."""
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
        world = World(Path(folder))
        try:
            net = network_of(1, "10.7.0.0/16")
            one, _ = world.pair(planes=1)
            one.plane("put_network", net)
            turns = [one.call("timed_peers", net, PEERS, "192.0.2.2") for _ in range(TURNS)]
        finally:
            world.close()
    names = (
        ("programmed at once", "kernel", "<= 5 us"),
        ("told again, unchanged", "", ""),
        ("one more", "", ""),
        ("compared", "", ""),
        ("removed at once", "", ""),
    )
    floor = statistics.median(turn["kernel"] for turn in turns)
    return [
        Row(
            what=f"{PEERS} remote endpoints {what}, each",
            value=1e6 * statistics.median(turn[what] for turn in turns),
            best=1e6 * min(turn[what] for turn in turns),
            worst=1e6 * max(turn[what] for turn in turns),
            count=TURNS,
            unit="us",
            floor=1e6 * floor if floored else None,
            floor_name="the kernel alone, batched" if floored else "",
            goal=goal,
        )
        for what, floored, goal in names
    ]
