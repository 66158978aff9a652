"""How long no write is accepted: the leader killed with SIGKILL, and handed over in good order.

Three manager processes on loopback with the default timings; a writer at another manager than the leader
writes one network after the other, and the gap around the event counts, less an ordinary write.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Callable

from bench.group import Group, Managed, managers
from bench.table import Row, of_times, progress
from swarm.api.docker.swarmkit import control_pb2

PATIENCE = 30.0
KILLS = 20
HANDOVERS = 10


def run() -> list[Row]:
    """Measure."""
    return asyncio.run(_measure())


async def _measure() -> list[Row]:
    async with managers(3) as group:
        ordinary: list[float] = []
        progress(f"{KILLS} times SIGKILL")
        kills = [await _gap(group, ordinary, kill=True) for _ in range(KILLS)]
        progress(f"{HANDOVERS} times SIGTERM")
        handovers = [await _gap(group, ordinary, kill=False) for _ in range(HANDOVERS)]
    floor = statistics.median(ordinary)
    return [
        of_times(
            "leader SIGKILL to next accepted write",
            kills,
            floor=floor,
            floor_name="an ordinary write",
            goal="<= 1500 ms (dockerd 16-22 s)",
        ),
        of_times(
            "graceful handover",
            handovers,
            floor=floor,
            floor_name="an ordinary write",
            goal="<= 200 ms",
        ),
    ]


async def _gap(group: Group, ordinary: list[float], *, kill: bool) -> float:
    """Return the longest time between two acknowledgements around the end of a leader."""
    leader = await group.leader()
    client = next(each for each in group.running if each is not leader)
    acknowledged: list[float] = []
    writing = asyncio.create_task(_write(client, acknowledged, f"{time.time_ns():x}"))

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                if writing.done():
                    writing.result()
                await asyncio.sleep(0.005)

    await until(lambda: len(acknowledged) >= 20)
    before = len(acknowledged)
    began = time.perf_counter()
    await leader.end(kill=kill)
    await until(lambda: len(acknowledged) >= before + 5 and acknowledged[-1] >= began + 0.3)
    writing.cancel()
    await asyncio.wait({writing})
    steps = [b - a for a, b in itertools.pairwise(acknowledged)]
    ordinary.extend(steps[: before - 2])
    await leader.start()
    await group.settled()
    after = [at for at in acknowledged if at > began]
    return max(b - a for a, b in itertools.pairwise([began, *after]))


async def _write(client: Managed, acknowledged: list[float], prefix: str) -> None:
    number = 0
    while True:
        request = control_pb2.CreateNetworkRequest()
        request.spec.annotations.name = f"n{prefix}-{number}"
        made = await client.control.CreateNetwork(request, timeout=20)
        acknowledged.append(time.perf_counter())
        await client.control.RemoveNetwork(
            control_pb2.RemoveNetworkRequest(network_id=made.network.id), timeout=20
        )
        acknowledged.append(time.perf_counter())
        number += 1
