"""Batches of tasks while leaders die and the scheduler itself: nothing twice, nothing lost."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.labs import clean_lab
from support.services import make, node_id

from swarm.api.docker.swarmkit import control_pb2, specs_pb2, types_pb2
from swarm.errors import SwarmError
from swarm.lab.cluster import Lab
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MANAGERS = ("m1", "m2", "m3")
BATCHES = 24
SIZE = 50

PLACE = """
import asyncio, json, sys, tempfile
from pathlib import Path
from swarm.scheduler import Placement, Reason, connect, load_credentials, load_managers

directory, service, node, batches, size = sys.argv[1:]

async def main():
    with tempfile.TemporaryDirectory() as sockets:
        certificate = Path(directory)
        async with connect(
            load_managers(certificate), load_credentials(certificate), directory=Path(sockets)
        ) as client:
            for batch in range(int(batches)):
                first = batch * int(size)
                placements = [
                    Placement(node_id=node, service_id=service, slot=first + number + 1)
                    for number in range(int(size))
                ]
                while True:
                    answer = await client.create_tasks(
                        placements, atomic=True, request_id=f"batch-{batch}"
                    )
                    if answer.committed:
                        break
                    # A new leader knows a node again when that has found it.
                    assert {each.reason for each in answer.refused} == {Reason.NODE_NOT_READY}
                    await asyncio.sleep(0.2)
                placed = [each.task_id for each in answer.placed]
                print(json.dumps([batch, answer.repeated, placed]), flush=True)

asyncio.run(main())
"""
"""A scheduler that knows its request ids beforehand: started again, it begins from the first."""


def leader_of(lab: Lab) -> str:
    """The host that leads, as any manager that answers says."""
    seen = ""
    for _ in range(200):
        for host in MANAGERS:
            try:
                with lab.client(host) as opened:
                    nodes = opened.control.ListNodes(
                        control_pb2.ListNodesRequest(), timeout=2
                    ).nodes
            except SwarmError as error:
                seen = str(error)
                continue
            for node in nodes:
                if node.manager_status.leader and node.manager_status.reachability == (
                    types_pb2.RAFT_MEMBER_REACHABILITY_REACHABLE
                ):
                    return str(node.description.hostname)
        time.sleep(0.1)
    raise AssertionError(f"nobody leads: {seen}")


def lines(path: Path) -> list[tuple[int, bool, list[str]]]:
    """What the scheduler has had acknowledged; the last line may be half written."""
    whole = path.read_text().split("\n")[:-1]
    return [tuple(json.loads(line)) for line in whole if line.startswith("[")]  # others: its log


def test_batches_through_lost_leaders_and_a_killed_scheduler_take_effect_once(
    tmp_path: Path,
) -> None:
    """The leader is killed in the middle of batches, twice; so is the scheduler, which begins again."""
    with clean_lab("batch") as lab:
        lab.build([*MANAGERS, "w1"])
        lab.form([*MANAGERS, "w1"])
        lab.add_bare("robot")
        cluster = Cluster(lab)
        cluster.network("wide", "--subnet", "10.200.0.0/16")
        image = specs_pb2.TaskSpec()
        image.container.image = "none"  # refused by the node, so that nothing has to run here
        service = make(cluster, "many", "wide", task=image)
        certificate, output = tmp_path / "robot", tmp_path / "placed"
        cluster.swarm("m1", "client-cert", "create", "robot", "--out", str(certificate))
        words = (str(certificate), service.id, node_id(cluster, "w1"), str(BATCHES), str(SIZE))
        command, environment = lab.argv("robot", (sys.executable, "-c", PLACE, *words))

        def place(first: int, kill: str) -> list[tuple[int, bool, list[str]]]:
            """Run the scheduler; once ``first`` batches are acknowledged kill it, or the leader."""
            with (
                output.open("w") as file,
                subprocess.Popen(command, env=environment, stdout=file) as process,
            ):
                wait_until(
                    lambda: len(lines(output)) >= first or process.poll() is not None,
                    seconds=60,
                    what=lambda: f"{len(lines(output))} batches",
                )
                if kill == "scheduler":
                    process.kill()
                    process.wait()
                    return lines(output)
                if kill == "leader":
                    dead = leader_of(lab)
                    lab.kill(dead)
                    assert process.wait(timeout=90) == 0
                    lab.start(dead)
                assert process.wait(timeout=90) == 0
            return lines(output)

        first = place(3, "scheduler")
        second = place(6, "leader")
        third = place(BATCHES // 2, "leader")
        last = place(BATCHES, "")
        assert [batch for batch, *_ in last] == list(range(BATCHES))
        assert [batch for batch, repeated, _ in last if not repeated] == []
        told = {batch: placed for batch, _, placed in last}
        for run in (first, second, third):
            for batch, _, placed in run:
                assert set(placed) >= set(told[batch]), "an id that was told is the task's for good"
        with lab.client(leader_of(lab)) as opened:
            request = control_pb2.ListTasksRequest()
            request.filters.service_ids.append(service.id)
            found = opened.control.ListTasks(request, timeout=20).tasks
        assert sorted(task.slot for task in found) == list(range(1, BATCHES * SIZE + 1))
        assert {task.id for task in found} == {each for ids in told.values() for each in ids}
        addresses = [task.networks[0].addresses[0] for task in found]
        assert len(set(addresses)) == len(addresses)
