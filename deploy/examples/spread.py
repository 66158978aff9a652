"""A whole scheduler: keeps N tasks of one service running, spread over the nodes that live.

Make a certificate for it on a manager, then run it anywhere::

    swarm client-cert create spread --out /etc/spread
    python spread.py --cert /etc/spread --service web --replicas 6

On a manager's host ``--socket /run/swarm/swarm.sock`` does without the certificate. It can be killed
and started again at any time: everything it knows it learns from the cluster.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections import Counter
from pathlib import Path

from swarm.model import NodeAvailability, NodeState, Task, TaskState
from swarm.scheduler import (
    Kind,
    Mirror,
    Placement,
    SchedulerClient,
    connect,
    connect_local,
    load_credentials,
    load_managers,
)

PAUSE = 5.0  # seconds before a task that ended by itself is followed by another


def alive(cluster: Mirror, task: Task) -> bool:
    """Say whether a task runs, or will, where it may."""
    node = cluster.nodes.get(task.node_id)
    if node is None or node.status.state is NodeState.DOWN:
        return False
    drained = node.spec.availability is NodeAvailability.DRAIN
    return task.desired_state <= TaskState.RUNNING >= task.status.state and not drained


def lost(cluster: Mirror, service_id: str, replicas: int) -> list[str]:
    """Return the tasks to give back: on lost or drained nodes, or of a slot beyond the last."""
    return [
        task.id
        for task in cluster.tasks_of(service_id)
        if task.desired_state < TaskState.REMOVE
        and task.status.state <= TaskState.RUNNING
        and (task.slot > replicas or not alive(cluster, task))
    ]


def lacking(cluster: Mirror, service_id: str, replicas: int, now: float) -> list[Placement]:
    """Return a placement for each slot without a live task: the least loaded nodes first."""
    tasks = cluster.tasks_of(service_id)
    living = [task for task in tasks if alive(cluster, task)]
    taken = {task.slot for task in living} | {
        task.slot  # of tasks that ended by themselves a moment ago
        for task in tasks
        if task.status.state > TaskState.RUNNING >= task.desired_state
        and now < (task.status.timestamp or 0) / 1e9 + PAUSE
    }
    load = Counter({node.id: 0 for node in cluster.live_nodes()})
    load.update(task.node_id for task in living if task.node_id in load)
    placements = []
    for slot in range(1, replicas + 1):
        if slot not in taken and load:
            node_id = min(load, key=lambda node: (load[node], node))
            load[node_id] += 1
            placements.append(Placement(node_id=node_id, service_id=service_id, slot=slot))
    return placements


async def follow(client: SchedulerClient, cluster: Mirror, news: asyncio.Event) -> None:
    """Keep the picture of the cluster up to date."""
    async for update in client.watch(kinds=[Kind.NODES, Kind.SERVICES, Kind.TASKS]):
        cluster.apply(update)
        if update.version:
            news.set()


async def keep(
    client: SchedulerClient, cluster: Mirror, news: asyncio.Event, name: str, replicas: int
) -> None:
    """Replace what is lost: whenever something changes, and now and then."""
    seen = 1
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PAUSE):
                await news.wait()
        news.clear()
        service = cluster.service(name)
        # Acting on a picture that does not show our own last step yet would repeat that step.
        if service is None or cluster.version < seen:
            continue
        if gone := lost(cluster, service.id, replicas):
            await client.release(gone)
        if placements := lacking(cluster, service.id, replicas, time.time()):
            answer = await client.create_tasks(placements)
            seen = answer.version if answer.committed else seen
            print(f"placed {len(answer.placed)} of {len(placements)}", flush=True)
            for refusal in answer.refused:
                print(f"refused: {refusal.message}; {refusal.help}", flush=True)


async def run(client: SchedulerClient, name: str, replicas: int) -> None:
    """Schedule until cancelled."""
    cluster, news = Mirror(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(follow(client, cluster, news))
        group.create_task(keep(client, cluster, news, name, replicas))


async def main() -> None:
    """Connect, and schedule until interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--service", required=True)
    parser.add_argument("--replicas", type=int, default=1)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--cert", type=Path, help="what 'swarm client-cert create' made")
    where.add_argument("--socket", type=Path, help="of the daemon on a manager's host")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spread-") as sockets:
        connection = (
            connect_local(options.socket)
            if options.socket
            else connect(
                load_managers(options.cert), load_credentials(options.cert), directory=Path(sockets)
            )
        )
        async with connection as client:
            await run(client, options.service, options.replicas)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
