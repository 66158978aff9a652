"""How long one table event takes to reach every node, quiet and under churn, in virtual time.

The simulation runs the real cores over a simulated network (1.2 ms mean latency). An event has
converged when every node that lived all the while shows it. Churn, the same per node at every size:
each node changes an entry every 50 s on average, one node in a thousand is killed and replaced
every six seconds, and one datagram in a hundred is lost.

``OVERSWARM_BENCH_NODES`` chooses the sizes (default ``10,25,100,300,1000``).
"""

from __future__ import annotations

import gc
import math
import os
import statistics
from copy import copy
from dataclasses import dataclass, field

from support.gossip import Host, Simulation, Traffic

from agent.gossip.changes import ChangeKind, TableChange
from agent.gossip.config import LAN
from bench.table import Row, progress

SIZES = "10,25,100,300,1000"
NETWORK = "net"
VALUE = bytes(100)
WRITES_PER_NODE = 1 / 50  # per second
DEATHS_PER_NODE = 1 / 6000
LOSS = 0.01
CHURN_TIME = 12.0  # seconds over which the events are spread
TAIL = 75.0  # seconds after which an event that has not arrived counts as this late
GOAL_QUIET = 3.0
GOAL_CHURN = 10.0


@dataclass
class Event:
    """One measured event."""

    owner: str
    start: float
    waiting: set[str]
    delays: list[float] = field(default_factory=list)

    @property
    def converged(self) -> float:
        """Seconds until the last node had it."""
        return TAIL if self.waiting else max(self.delays)


class Probe:
    """Writes entries and watches them arrive."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.events: dict[str, Event] = {}
        sim.on_change = self._changed

    def write(self, host: Host) -> None:
        """Publish a fresh entry."""
        key = f"measured-{len(self.events)}"
        self.events[key] = Event(
            owner=host.node.name,
            start=self.sim.now,
            waiting={each.node.name for each in self.sim.living()},
        )
        self.sim.put(host, NETWORK, key, VALUE)

    def awaits(self, host: Host) -> bool:
        """Tell whether a node's own event is still on its way; nobody else could bring it."""
        name = host.node.name
        return any(event.waiting and event.owner == name for event in self.events.values())

    def gone(self, host: Host) -> None:
        """Stop to wait for a node."""
        for event in self.events.values():
            event.waiting.discard(host.node.name)

    def done(self) -> bool:
        """Tell whether everything arrived everywhere."""
        return not any(event.waiting for event in self.events.values())

    def _changed(self, host: Host, change: TableChange) -> None:
        event = self.events.get(change.key)
        name = host.node.name
        if event is None or change.kind is not ChangeKind.CREATE or name not in event.waiting:
            return
        event.waiting.discard(name)
        event.delays.append(self.sim.now - event.start)


def quiet(size: int) -> tuple[list[Event], Traffic, Traffic, float]:
    """Return events of a quiet cluster, traffic without and with them, and seconds each was taken."""
    sim = Simulation(size)
    hosts = _formed(sim, size)
    sim.run(2.0)
    count = 20 if size <= 100 else 10
    pause = 2.5
    before = copy(sim.traffic)
    sim.run(pause)
    idle = sim.traffic.since(before)
    probe = Probe(sim)
    before = copy(sim.traffic)
    for index in range(count):
        probe.write(hosts[index * 7 % size])
        sim.run(pause)
    busy = sim.traffic.since(before)
    sim.run(TAIL, until=probe.done)
    per_event = Traffic(
        datagrams=busy.datagrams // count,
        datagram_bytes=busy.datagram_bytes // count,
        streams=busy.streams // count,
        stream_bytes=busy.stream_bytes // count,
    )
    return list(probe.events.values()), idle, per_event, pause


def churning(size: int) -> tuple[list[Event], Traffic, float]:
    """Return events of a cluster under churn, the traffic meanwhile, and its seconds."""
    sim = Simulation(size, loss=LOSS)
    hosts = _formed(sim, size)
    sim.run(2.0)
    probe = Probe(sim)
    rng = sim.rng
    serial = 0

    def write() -> None:
        nonlocal serial
        serial += 1
        host = rng.choice(sim.living())
        mine = sorted(key for key in host.model[NETWORK] if not key.startswith("measured"))
        if mine and rng.random() < 0.5:
            sim.delete(host, NETWORK, rng.choice(mine))
        else:
            sim.put(host, NETWORK, f"noise-{serial}", VALUE)

    def replace() -> None:
        victim = rng.choice([host for host in sim.living() if not probe.awaits(host)])
        probe.gone(victim)
        sim.kill(victim)
        seeds = [host.address for host in hosts[:3] if host.up and host is not victim]
        fresh = sim.start(victim.address, seeds=seeds)
        sim.join(fresh, NETWORK)
        sim.put(fresh, NETWORK, f"born-{fresh.node.name}", VALUE)

    measured = 40 if size <= 300 else 20
    rates = [
        (size * WRITES_PER_NODE, write),
        (size * DEATHS_PER_NODE, replace),
        (measured / CHURN_TIME, lambda: probe.write(rng.choice(sim.living()))),
    ]
    total = sum(rate for rate, _ in rates)
    before, begun = copy(sim.traffic), sim.now
    warm = 4.0  # churn before the first measured event
    while len(probe.events) < measured:
        sim.run(rng.expovariate(total))
        (action,) = rng.choices([each for _, each in rates], [rate for rate, _ in rates])
        if action is not rates[2][1] or sim.now - begun > warm:
            action()
    spent = sim.now - begun
    traffic = sim.traffic.since(before)
    sim.run(TAIL, until=probe.done)
    return list(probe.events.values()), traffic, spent


def _formed(sim: Simulation, size: int) -> list[Host]:
    """Return a cluster that has met; the collector of garbage need not look at its members again."""
    gc.unfreeze()
    gc.collect()
    hosts = sim.form(size, NETWORK)
    gc.freeze()
    return hosts


def epidemic(size: int) -> float:
    """Return the seconds an epidemic needs in which no message goes to a node that has it already.

    The first nine have it at once; from then on each that has it tells three more per round.
    """
    growth = 3 / LAN.table_interval
    return max(0.0, math.log(size / (1 + LAN.flush_nodes)) / growth)


def run() -> list[Row]:
    """Measure every size."""
    rows: list[Row] = []
    sizes = [int(each) for each in os.environ.get("OVERSWARM_BENCH_NODES", SIZES).split(",")]
    for size in sizes:
        events, idle, each, pause = quiet(size)
        floor = epidemic(size)
        rows += _times(f"{size} nodes, quiet", events, floor, GOAL_QUIET)
        rows += [
            Row(
                what=f"{size} nodes, quiet: messages per node and event",
                value=(each.messages - idle.messages) / size,
                unit="messages",
                floor=1 - 1 / size,
                floor_name="each told once",
            ),
            Row(
                what=f"{size} nodes, quiet: bytes per node and event",
                value=max(0, each.datagram_bytes - idle.datagram_bytes) / size,
                unit="B",
                floor=float(len(VALUE)),
                floor_name="the value",
            ),
            Row(
                what=f"{size} nodes, idle: messages per node and second",
                value=idle.messages / size / pause,
                unit="messages",
                floor=2.0,
                floor_name="probe and ack",
            ),
            Row(
                what=f"{size} nodes, idle: bytes per node and second",
                value=idle.bytes / size / pause,
                unit="B",
            ),
        ]
        events, traffic, spent = churning(size)
        rows += _times(f"{size} nodes, churn", events, floor, GOAL_CHURN)
        rows += [
            Row(
                what=f"{size} nodes, churn: messages per node and second",
                value=traffic.messages / size / spent,
                unit="messages",
            ),
            Row(
                what=f"{size} nodes, churn: bytes per node and second",
                value=traffic.bytes / size / spent,
                unit="B",
            ),
        ]
        progress(f"{size} nodes done")
    gc.unfreeze()
    return rows + _growth(rows, min(sizes), max(sizes))


def _growth(rows: list[Row], small: int, large: int) -> list[Row]:
    """Return how many times each figure of the largest cluster is that of the smallest."""
    if small == large:
        return []
    figures = {row.what: row.value for row in rows}
    found = []
    for what, value in figures.items():
        size, _, name = what.partition(" nodes, ")
        before = figures.get(f"{small} nodes, {name}", 0.0)
        if int(size) == large and before:
            found.append(
                Row(
                    what=f"growth from {small} to {large} nodes, {name}",
                    value=value / before,
                    unit="x",
                    floor=math.log(large) / math.log(small),
                    floor_name="log n",
                )
            )
    return found


def _times(what: str, events: list[Event], floor: float, goal: float) -> list[Row]:
    all_have = sorted(event.converged for event in events)
    single = [delay for event in events for delay in event.delays]
    late = sum(len(event.waiting) for event in events)
    worst = all_have[min(len(all_have) - 1, math.ceil(0.99 * len(all_have)) - 1)]
    return [
        Row(
            what=f"{what}: all have it",
            value=statistics.median(all_have),
            best=min(all_have),
            worst=max(all_have),
            count=len(all_have),
            unit="s",
            floor=floor,
            floor_name="ideal epidemic",
        ),
        Row(
            what=f"{what}: all have it, p99",
            value=worst,
            unit="s",
            goal=f"<= {goal:g}",
        ),
        Row(
            what=f"{what}: one node has it",
            value=statistics.median([*single, *[TAIL] * late]),
            best=min(single),
            worst=TAIL if late else max(single),
            count=len(single) + late,
            unit="s",
        ),
    ]
