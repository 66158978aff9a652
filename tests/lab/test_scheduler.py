"""The example scheduler on a host of its own, over TLS, keeping a service alive through the loss of a node."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.asking import EXAMPLE, asked, asking, running
from support.cluster import PROGRAM, Cluster
from support.labs import clean_lab

from swarm.lab.faults import Cut
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

WORKERS = ("w1", "w2", "w3")
DETECTED = 60.0
"""Seconds: three missed heartbeats of five seconds, and room for a busy machine."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Cluster]:
    """A manager that runs nothing, three workers, and a host that belongs to nobody."""
    with clean_lab("sched") as lab:
        lab.build(["m1", *WORKERS])
        lab.form(["m1", *WORKERS])
        lab.add_bare("robot")
        cluster = Cluster(lab)
        cluster.swarm("m1", "node", "update", "--availability", "drain", "m1")
        yield cluster


def state_of(cluster: Cluster, host: str) -> str:
    """What the manager says of a node."""
    form = "{{.Hostname}}={{.Status}}"
    lines = cluster.swarm("m1", "node", "ls", "--format", form).splitlines()
    return dict(line.split("=") for line in lines)[host]


def tasks(cluster: Cluster, service: str) -> list[tuple[str, str, str]]:
    """The wanted tasks of a service: name, node, state."""
    form = "{{.Name}}|{{.Node}}|{{.CurrentState}}"
    lines = cluster.swarm(
        "m1", "service", "ps", "--filter", "desired-state=running", "--format", form, service
    )
    return [
        (name, node, state.split()[0])
        for name, node, state in (line.split("|") for line in lines.splitlines())
    ]


def await_spread(cluster: Cluster, service: str, wanted: dict[str, int], seconds: float) -> None:
    """Wait until exactly so many tasks run on each host."""
    seen: list[object] = []

    def there() -> bool:
        found = tasks(cluster, service)
        seen.append(found)
        return all(state == "Running" for *_, state in found) and wanted == Counter(
            node for _, node, _ in found
        )

    wait_until(there, seconds=seconds, what=lambda: f"{service}: {seen[-1]}")


def containers(cluster: Cluster, host: str) -> int:
    """How many containers run on a host."""
    return len(cluster.swarm(host, "ps", "-q").split())


def test_six_replicas_live_on_through_the_loss_of_a_worker(fleet: Cluster, tmp_path: Path) -> None:
    """Two on each of three; a worker dies: three on each of two; it returns, and holds none of the old."""
    certificate = tmp_path / "robot"
    fleet.network("blue")
    fleet.swarm("m1", "client-cert", "create", "robot", "--out", str(certificate))
    fleet.swarm(
        *("m1", "service", "create", "--name", "web", "--replicas", "6", "--network", "blue"),
        *("--", *PROGRAM, "serve", "8080"),
    )
    assert "0/6" in fleet.swarm("m1", "service", "ls")
    scheduler = (sys.executable, str(EXAMPLE), "--cert", str(certificate))
    with running(fleet, "robot", *scheduler, "--service", "web", "--replicas", "6") as process:
        await_spread(fleet, "web", dict.fromkeys(WORKERS, 2), 60)
        assert "6/6" in fleet.swarm("m1", "service", "ls")
        fleet.lab.kill("w3")
        await_spread(fleet, "web", {"w1": 3, "w2": 3}, DETECTED)
        assert sorted(name for name, *_ in tasks(fleet, "web")) == [
            f"web.{slot}" for slot in range(1, 7)
        ]
        fleet.lab.start("w3")
        fleet.lab.await_ready("m1", 4)
        wait_until(
            lambda: containers(fleet, "w3") == 0,
            seconds=60,
            what=lambda: fleet.swarm("w3", "ps"),
        )
        await_spread(fleet, "web", {"w1": 3, "w2": 3}, 30)
        assert process.poll() is None
        fleet.swarm("m1", "client-cert", "revoke", "robot")
        wait_until(
            lambda: process.poll() is not None, seconds=30, what=lambda: "it goes on revoked"
        )
        assert process.returncode != 0
        assert "revoked" in (process.communicate()[0])


def test_a_dead_host_costs_a_foreign_client_nothing_once_it_is_known(
    fleet: Cluster, tmp_path: Path
) -> None:
    """Any node answers for all six, who see the client itself; a host dies; after its detection no request fails."""
    certificate, log = tmp_path / "robot", tmp_path / "asked"
    robot = fleet.lab.state.hosts["robot"].address
    fleet.network("green")
    fleet.swarm("m1", "client-cert", "create", "robot2", "--out", str(certificate))
    fleet.swarm(
        *("m1", "service", "create", "--name", "shop", "--replicas", "6", "--network", "green"),
        *("-p", "30080:8080", "--", *PROGRAM, "serve", "8080"),
    )
    scheduler = (sys.executable, str(EXAMPLE), "--cert", str(certificate))
    with running(fleet, "robot", *scheduler, "--service", "shop", "--replicas", "6"):
        await_spread(fleet, "shop", dict.fromkeys(WORKERS, 2), 60)
        for host in ("m1", *WORKERS):
            with asking(fleet, "robot", log, 30080, [host]):
                wait_until(
                    lambda: len({each.task for each in asked(log)} - {""}) == 6,
                    seconds=40,
                    what=lambda host=host: f"{host}: {asked(log)[-6:]}",
                )
            assert {each.seen for each in asked(log) if not each.error} == {robot}
        with asking(fleet, "robot", log, 30080, ["m1", "w1", "w2"]):
            wait_until(
                lambda: len({each.task for each in asked(log)}) == 6,
                seconds=20,
                what=lambda: f"{asked(log)[-6:]}",
            )
            assert not [each for each in asked(log) if each.error]
            others = tuple(name for name in fleet.lab.state.hosts if name != "w3")
            fleet.lab.break_underlay(
                [Cut(sources=("w3",), targets=others), Cut(sources=others, targets=("w3",))]
            )
            fleet.lab.kill("w3")
            wait_until(
                lambda: state_of(fleet, "w3") == "Down",
                seconds=DETECTED,
                what=lambda: state_of(fleet, "w3"),
            )
            detected = time.time()
            await_spread(fleet, "shop", {"w1": 3, "w2": 3}, DETECTED)
            wait_until(
                lambda: (
                    len({each.task for each in asked(log, detected)}) >= 6
                    and len(asked(log, detected)) > 300
                ),
                seconds=40,
                what=lambda: f"{asked(log)[-6:]}",
            )
        after = asked(log, detected)
        assert [each for each in after if each.error] == []
        assert {each.seen for each in after} == {robot}
        fleet.lab.break_underlay([])
        fleet.lab.start("w3")
        fleet.lab.await_ready("m1", 4)
        await_spread(fleet, "shop", {"w1": 3, "w2": 3}, 30)
    fleet.swarm("m1", "service", "rm", "shop")
    fleet.swarm("m1", "client-cert", "revoke", "robot2")


def test_the_command_lines_scheduler_scales_updates_and_removes(fleet: Cluster) -> None:
    """On the manager's own socket; a service's end is its tasks' end."""
    fleet.swarm(
        *("m1", "service", "create", "--name", "api", "--replicas", "3"),
        *("--update-order", "start-first", "--", "sleep", "600"),
    )
    with running(fleet, "m1", "swarm", "scheduler", "run", "--service", "api"):
        await_spread(fleet, "api", dict.fromkeys(WORKERS, 1), 60)
        before = {name for name, *_ in tasks(fleet, "api")}
        form = "{{.ID}} {{.Name}}"
        old = set(fleet.swarm("m1", "service", "ps", "--format", form, "api").splitlines())
        fleet.swarm("m1", "service", "update", "--args", "sleep 601", "api")
        wait_until(
            lambda: (
                not old
                & set(
                    fleet.swarm(
                        *("m1", "service", "ps", "--filter", "desired-state=running"),
                        *("--format", form, "api"),
                    ).splitlines()
                )
            ),
            seconds=90,
            what=lambda: fleet.swarm("m1", "service", "ps", "api"),
        )
        await_spread(fleet, "api", dict.fromkeys(WORKERS, 1), 60)
        assert {name for name, *_ in tasks(fleet, "api")} == before
        fleet.swarm("m1", "service", "scale", "api=1")
        wait_until(
            lambda: len(tasks(fleet, "api")) == 1,
            seconds=30,
            what=lambda: fleet.swarm("m1", "service", "ps", "api"),
        )
        fleet.swarm("m1", "service", "rm", "api")
    for host in WORKERS:
        wait_until(
            lambda host=host: "sleep" not in fleet.swarm(host, "ps"),
            seconds=60,
            what=lambda host=host: fleet.swarm(host, "ps"),
        )
