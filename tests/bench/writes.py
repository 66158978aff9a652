"""Writes per second and their latency: 1, 3 and 5 managers on one machine, against bare synced SQLite.

Every write is ``network create`` through a manager's local socket, all processes sharing this machine's
processors and its one disk. The floor commits rows of the same size, one synced transaction each, as the
raft log does (and one each for the writes that came together, for the rate).
"""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

from bench.group import Group, managers
from bench.table import Row, of_times
from swarm.api.docker.swarmkit import control_pb2

SEQUENTIAL = 60
CONCURRENT = 400
AT_ONCE = 32
ROW_BYTES = 600


def run() -> list[Row]:
    """Measure."""
    floor = _sqlite(SEQUENTIAL * 3)
    median = statistics.median(floor)
    rows = [of_times("bare synced SQLite transaction", floor)]
    for count in (1, 3, 5):
        latencies, rate = asyncio.run(_measure(count))
        rows += [
            of_times(
                f"network create, {count} manager{'s' * (count > 1)}",
                latencies,
                floor=median,
                floor_name="one synced transaction",
                goal="dockerd 7-18 ms" if count == 3 else "",
            ),
            Row(
                what=f"  {AT_ONCE} at once",
                value=rate,
                unit="/s",
                floor=1 / median,
                floor_name="synced transactions",
            ),
        ]
    return rows


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


async def _measure(count: int) -> tuple[list[float], float]:
    async with managers(count) as group:
        leader = await group.leader()
        for number in range(10):
            await _create(leader.control, f"warm{number}")
        latencies = []
        for number in range(SEQUENTIAL):
            began = time.perf_counter()
            await _create(leader.control, f"one{number}")
            latencies.append(time.perf_counter() - began)
        return latencies, await _rate(group)


async def _rate(group: Group) -> float:
    control = (await group.leader()).control
    numbers = iter(range(CONCURRENT))

    async def writer() -> None:
        for number in numbers:
            await _create(control, f"many{number}")

    began = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(AT_ONCE):
            tasks.create_task(writer())
    return CONCURRENT / (time.perf_counter() - began)


async def _create(control: object, name: str) -> None:
    request = control_pb2.CreateNetworkRequest()
    request.spec.annotations.name = name
    await control.CreateNetwork(request, timeout=20)  # type: ignore[attr-defined]
