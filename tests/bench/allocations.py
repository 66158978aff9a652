"""Tasks placed per second through ``Scheduler.CreateTasks``, against bare synced SQLite transactions.

Real manager processes on one machine, one and three of them; the nodes' sessions are open and nobody
reads their assignments. Every task is on one network and gets an address there. The floor commits one
synced row of 600 bytes a task (and, for batches, one a batch), as a raft log of one member does.
The leader's processor time is told beside the rate: it does not depend on what else the machine does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.group import Group, Managed, managers
from bench.table import Row, of_rates, of_times
from bench.writes import _sqlite
from swarm.api.docker.swarmkit import (
    control_pb2,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    types_pb2,
)
from swarm.api.overswarm.v1 import scheduler_pb2, scheduler_pb2_grpc
from swarm.identity.dialer import TlsDialer
from swarm.identity.keystore import KeyStore

BATCHES = {1: 200, 100: 30, 1000: 8}
"""Batch size to how many of them are measured."""

WARM = 2
GOAL = 5000
LARGEST = max(BATCHES)


def run() -> list[Row]:
    """Measure."""
    floor = statistics.median(_sqlite(120))
    rows = []
    for count in (1, 3):
        measured, service = asyncio.run(_measure(count))
        managers_ = f"{count} manager{'s' * (count > 1)}"
        for size, each in measured.items():
            rows += [
                of_rates(
                    f"tasks, CreateTasks of {size}, {managers_}",
                    [size / seconds for seconds in each.times],
                    floor=size / floor,
                    floor_name=f"{size} a synced transaction",
                    goal=f">= {GOAL}" if size == LARGEST else "",
                ),
                Row(
                    what=f"the leader's processor time a task, of {size}, {managers_}",
                    value=each.processor * 1000,
                    unit="ms",
                    goal=f"<= {1000 / GOAL:g}" if size == LARGEST else "",
                ),
            ]
        rows.append(
            of_times(
                f"service of 1000 tasks, create to last address, {managers_}",
                [service],
                floor=floor,
                floor_name="one synced transaction",
            )
        )
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Batches of one size: seconds each took, and seconds of the leader's processor a task."""

    times: list[float]
    processor: float


async def _measure(count: int) -> tuple[dict[int, Measured], float]:
    async with managers(count) as group, _sessions(group) as nodes:
        leader = await group.leader()
        network = await _network(leader, "bench")
        service = await _service(leader, "bench", network)
        scheduler: Any = scheduler_pb2_grpc.SchedulerStub(leader.channel)  # type: ignore[no-untyped-call]
        found, slot = {}, 0
        for size, batches in BATCHES.items():
            times, before = [], 0.0
            for number in range(batches + WARM):
                if number == WARM:
                    before = _processor_seconds(leader)
                request = _request(service, nodes, slot, size)
                slot += size
                began = time.perf_counter()
                answer = await scheduler.CreateTasks(request, timeout=60)
                if number >= WARM:
                    times.append(time.perf_counter() - began)
                if not answer.committed:
                    raise RuntimeError(str(answer.results[0]))
            spent = _processor_seconds(leader) - before
            found[size] = Measured(times=times, processor=spent / (batches * size))
        began = time.perf_counter()
        fresh = await _service(leader, "whole", network)
        answer = await scheduler.CreateTasks(_request(fresh, nodes, 0, 1000), timeout=60)
        took = time.perf_counter() - began
        addresses = {each.placed.networks[0].addresses[0] for each in answer.results}
        if len(addresses) != 1000:
            raise RuntimeError(f"{len(addresses)} addresses for 1000 tasks")
        return found, took


def _processor_seconds(managed: Managed) -> float:
    """Return how much processor time a manager has used: what other work on the machine does not change."""
    if managed.process is None:
        raise RuntimeError("the manager does not run")
    text = Path(f"/proc/{managed.process.pid}/stat").read_text(encoding="ascii")
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _request(
    service: str, nodes: list[str], first: int, size: int
) -> scheduler_pb2.CreateTasksRequest:
    request = scheduler_pb2.CreateTasksRequest(atomic=True, request_id=f"{service}/{first}")
    for number in range(first, first + size):
        request.placements.add(
            node_id=nodes[number % len(nodes)], service_id=service, slot=number + 1
        )
    return request


async def _network(leader: Managed, name: str) -> str:
    request = control_pb2.CreateNetworkRequest()
    request.spec.annotations.name = name
    request.spec.ipam.configs.add(subnet="10.64.0.0/12")
    return str((await leader.control.CreateNetwork(request, timeout=20)).network.id)


async def _service(leader: Managed, name: str, network: str) -> str:
    request = control_pb2.CreateServiceRequest()
    spec = request.spec
    spec.annotations.name = name
    spec.task.container.image = "nginx:1.27"
    spec.task.container.env.extend(["A=1", "B=2"])
    spec.task.networks.add(target=network)
    spec.replicated.replicas = 1000
    return str((await leader.control.CreateService(request, timeout=20)).service.id)


@contextlib.asynccontextmanager
async def _sessions(group: Group) -> AsyncIterator[list[str]]:
    """Keep the managers' own nodes ready, as their agents would; their ids."""
    nodes = []
    async with asyncio.TaskGroup() as tasks, contextlib.AsyncExitStack() as stack:
        for each in group.managers:
            credentials = KeyStore(each.directory / "s" / "certificates").load()
            if credentials is None or credentials.identity is None:
                raise RuntimeError("a manager has no certificate")
            nodes.append(credentials.identity.node_id)
            dialer = TlsDialer(directory=each.directory / "session", credentials=credentials)
            stack.callback(tasks.create_task(dialer.run()).cancel)
            channel = dialer.channel(each.address)
            stack.push_async_callback(channel.close)
            opened = asyncio.Event()
            stack.callback(tasks.create_task(_session(channel, opened)).cancel)
            await opened.wait()
        yield nodes


async def _session(channel: Any, opened: asyncio.Event) -> None:
    """Open a node's session and keep it alive."""
    stub: Any = dispatcher_pb2_grpc.DispatcherStub(channel)  # type: ignore[no-untyped-call]
    engine = types_pb2.EngineDescription(
        engine_version="0",
        labels={"overswarm.version": "0"},
        plugins=[types_pb2.PluginDescription(type="Network", name="overlay")],
    )
    description = types_pb2.NodeDescription(hostname="bench", engine=engine)
    stream = stub.Session(dispatcher_pb2.SessionRequest(description=description))
    session = (await stream.read()).session_id
    opened.set()
    while True:
        await stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id=session), timeout=10)
        await asyncio.sleep(1)
