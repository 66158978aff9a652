"""Writes per second and their latency: 1, 3 and 5 managers on one machine, against bare synced SQLite.

Every write is ``network create`` through a manager's local socket (the leader's, or another's that passes it
on), all processes sharing this machine's processors and its one disk. The floor commits rows of the same
size, one synced transaction each, as the raft log does; for the rate, one each for writes that came at once.
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from bench.group import Group, managers
from bench.table import Row, of_rates, of_times, progress
from swarm.api.docker.swarmkit import control_pb2

SEQUENTIAL = 60
CONCURRENT = 300
ROUNDS = 5
AT_ONCE = 32
ROW_BYTES = 600


def run() -> list[Row]:
    """Measure."""
    rows: list[Row] = []
    for count in (1, 3, 5):
        progress(f"{count} of 1, 3 and 5 managers")
        # Before and after, so that a moment's load on the disk does not pass for its speed.
        floor = _sqlite(SEQUENTIAL)
        measured = asyncio.run(_measure(count))
        floor += _sqlite(SEQUENTIAL)
        median = statistics.median(floor)
        if not rows:
            rows.append(of_times("bare synced SQLite transaction", floor))
        title = f"network create, {count} manager{'s' * (count > 1)}"
        rows.append(
            of_times(
                title,
                measured.at_leader,
                floor=median,
                floor_name="one synced transaction",
                goal="<= 18 (dockerd 7-18 ms)" if count == 3 else "",
            )
        )
        if measured.elsewhere:
            rows.append(
                of_times(
                    "  through a follower",
                    measured.elsewhere,
                    floor=median,
                    floor_name="one synced transaction",
                )
            )
        rows.append(
            of_rates(
                f"  {AT_ONCE} at once",
                measured.rates,
                floor=1 / median,
                floor_name="synced transactions",
            )
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Seconds of single writes at the leader and at a follower, and writes per second of many at once."""

    at_leader: list[float]
    elsewhere: list[float]
    rates: list[float]


def _sqlite(count: int) -> list[float]:
    times = []
    with tempfile.TemporaryDirectory(prefix="ob") as directory:
        connection = sqlite3.connect(Path(directory) / "floor.db", isolation_level=None)
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE log (idx INTEGER PRIMARY KEY, sealed BLOB)")
        for index in range(count):
            began = time.perf_counter()
            connection.execute("INSERT INTO log VALUES (?, ?)", (index, bytes(ROW_BYTES)))
            times.append(time.perf_counter() - began)
        connection.close()
    return times


async def _measure(count: int) -> Measured:
    async with managers(count) as group:
        leader = await group.leader()
        others = [each for each in group.running if each is not leader]
        at_leader = await _latencies(leader.control, "leader")
        elsewhere = await _latencies(others[0].control, "other") if others else []
        rates = [await _rate(group, number) for number in range(ROUNDS)]
        return Measured(at_leader=at_leader, elsewhere=elsewhere, rates=rates)


async def _latencies(control: object, name: str) -> list[float]:
    for number in range(10):
        await _create(control, f"{name}-warm{number}")
    times = []
    for number in range(SEQUENTIAL):
        began = time.perf_counter()
        await _create(control, f"{name}-{number}")
        times.append(time.perf_counter() - began)
    return times


async def _rate(group: Group, round_: int) -> float:
    control = (await group.leader()).control
    numbers = iter(range(CONCURRENT))

    async def writer() -> None:
        for number in numbers:
            await _create(control, f"many{round_}-{number}")

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(writer())
    return CONCURRENT / (time.perf_counter() - began)


async def _create(control: object, name: str) -> None:
    request = control_pb2.CreateNetworkRequest()
    request.spec.annotations.name = name
    await control.CreateNetwork(request, timeout=20)  # type: ignore[attr-defined]
