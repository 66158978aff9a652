"""How long a death goes unnoticed, and how many living nodes are taken for dead, under loss.

Virtual time, default timing. A death is noticed when every living node holds the victim for dead. A
false positive is one living node that another held for dead at any moment; each sample watches the
cluster for a minute besides the deaths.
"""

from __future__ import annotations

import statistics

from support.gossip import Simulation

from agent.gossip.config import LAN
from agent.gossip.swim.suspicion import bounds
from bench.table import Row

NETWORK = "net"
SIZES = {10: 5, 50: 5, 200: 2}
"""Nodes, and how many clusters of that size are watched."""
LOSSES = (0.0, 0.01, 0.05, 0.2)
WATCH = 60.0
LIMIT = 120.0


def sample(size: int, loss: float, seed: int) -> tuple[float, int, int]:
    """Return seconds until all notice one death, false positives, and suspicions of living nodes."""
    sim = Simulation(seed, loss=loss)
    hosts = sim.form(size, NETWORK)
    sim.run(WATCH)
    victim = sim.rng.choice(hosts)
    sim.kill(victim)
    start, living = sim.now, sim.living()
    lost = victim.node.name

    def noticed() -> bool:
        found = (host.node.swim.members.get(lost) for host in living)
        return all(member is None or member.gone for member in found)

    sim.run(LIMIT, until=noticed)
    took = sim.now - start
    downs, suspected = set(), 0
    for host in living:
        for trace in host.traces:
            if trace.data.get("member") != lost:
                if trace.event == "gossip.member.down":
                    downs.add((host.address, trace.data["member"]))
                suspected += trace.event == "gossip.member.suspected"
    return took, len(downs), suspected


def run() -> list[Row]:
    """Measure."""
    rows = []
    for size, seeds in SIZES.items():
        limits = bounds(
            nodes=size,
            probe_interval=LAN.probe_interval,
            mult=LAN.suspicion_mult,
            max_mult=LAN.suspicion_max_mult,
        )
        for loss in LOSSES:
            samples = [sample(size, loss, seed) for seed in range(seeds)]
            times = [took for took, _, _ in samples]
            what = f"{size} nodes, {loss:.0%} loss"
            rows += [
                Row(
                    what=f"{what}: all know of a death",
                    value=statistics.median(times),
                    best=min(times),
                    worst=max(times),
                    count=len(times),
                    unit="s",
                    floor=limits.minimum,
                    floor_name="shortest suspicion",
                ),
                Row(
                    what=f"{what}: living nodes held for dead by another, in {len(samples)} minutes",
                    value=sum(downs for _, downs, _ in samples),
                    unit="cases",
                    goal="<= 0" if loss <= 0.05 else "",
                ),
                Row(
                    what=f"{what}: living nodes suspected, per node and minute",
                    value=sum(each for _, _, each in samples) / len(samples) / size / (WATCH / 60),
                    unit="cases",
                ),
            ]
    return rows
