"""Tasks that a scheduler places on engines: containers there, one address for all from our side.

An engine leads its own clients to a virtual address with IPVS, which the kernel of these tests may lack; that
half is shown in ``tests/kernel``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator

import pytest
from support.cluster import PROGRAM
from support.mixed import Mixed
from support.services import Service, make, scheduler

from swarm.api.docker.swarmkit import control_pb2, specs_pb2, types_pb2
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.lab.engine import IMAGE
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PAGE = "hostname > /www/index.html && exec httpd -f -p 8080 -h /www"
"""A web server that says which container it is."""
PUBLISHED = 30188


def container(script: str = PAGE) -> specs_pb2.TaskSpec:
    """The spec of a task that runs a shell script in the image that every engine here has."""
    spec = specs_pb2.TaskSpec()
    spec.container.image = IMAGE
    spec.container.command.extend(("sh", "-c", script))
    spec.container.stop_grace_period.seconds = 1
    return spec


@pytest.fixture
def services(mixed: Mixed) -> Iterator[list[Service]]:
    """Services to remove after the test."""
    made: list[Service] = []
    yield made
    for service in made:
        end(mixed, service)


def end(mixed: Mixed, service: Service) -> None:
    """Release a service's tasks and remove it; wait until no host runs anything of it."""
    with scheduler(mixed.cluster) as stub:
        stub.Release(scheduler_pb2.ReleaseRequest(task_ids=list(service.tasks)), timeout=10)
    with mixed.cluster.lab.client("m1") as client:
        client.control.RemoveService(control_pb2.RemoveServiceRequest(service_id=service.id))
    for host in set(service.tasks.values()):
        wait_until(
            lambda host=host: service.name not in running(mixed, host),  # type: ignore[misc]
            seconds=30,
            what=lambda host=host: f"tasks stay on {host}: {running(mixed, host)}",  # type: ignore[misc]
        )


def running(mixed: Mixed, host: str) -> str:
    """The names of the containers on a host."""
    if host in mixed.engines:
        return mixed[host].docker("ps", "-a", "--format", "{{.Names}}")
    return mixed.cluster.swarm(host, "ps", "-a", "--format", "{{.Names}}")


def resolved(mixed: Mixed, host: str, name: str, what: str) -> set[str]:
    """The addresses of a name inside a container of ours."""
    return set(mixed.program(host, name, "resolve", what).stdout.split())


def pages(mixed: Mixed, host: str, name: str, url: str, count: int) -> set[str]:
    """What several fetches of a page say."""
    return {mixed.page(host, name, url).strip() for _ in range(count)}


def test_tasks_run_as_containers_and_answer_under_one_address(
    mixed: Mixed, network: str, services: list[Service]
) -> None:
    """Placed on two engines: RUNNING, with names and addresses as allocated; both answer at the VIP."""
    service = make(mixed.cluster, "shop", network, task=container())
    services.append(service)
    one, two = service.place("d1", "d2")
    service.reach("RUNNING", one, two)
    shown = json.loads(mixed["d1"].docker("inspect", f"shop.1.{one}"))[0]
    labels = shown["Config"]["Labels"]
    assert labels["com.docker.swarm.task.id"] == one
    assert labels["com.docker.swarm.service.name"] == "shop"
    assert labels["com.docker.swarm.node.id"] == mixed.nodes()["d1"].id
    tasks = {task.id: task for task in mixed.tasks(network)}
    assert tasks[one].status.container.container_id == shown["Id"]
    assert tasks[one].status.container.pid == shown["State"]["Pid"]
    given = {task.networks[0].addresses[0].split("/")[0] for task in tasks.values()}
    assert shown["NetworkSettings"]["Networks"][network]["IPAddress"] in given

    mixed.idle("w1", "shopper", network)
    wait_until(
        lambda: resolved(mixed, "w1", "shopper", "tasks.shop") == given,
        seconds=20,
        what=lambda: f"tasks.shop is {resolved(mixed, 'w1', 'shopper', 'tasks.shop')}",
    )
    (virtual,) = resolved(mixed, "w1", "shopper", "shop")
    assert virtual not in given
    hosts = {
        json.loads(mixed[host].docker("inspect", f"shop.{slot}.{task}"))[0]["Config"]["Hostname"]
        for host, slot, task in (("d1", 1, one), ("d2", 2, two))
    }
    seen: list[set[str]] = [set()]

    def both() -> bool:
        seen[0] = pages(mixed, "w1", "shopper", "http://shop:8080/", 8)
        return seen[0] == hosts

    wait_until(both, seconds=20, what=lambda: f"{seen[0]} answer, not {hosts}")
    assert mixed.pings("w1", "shopper", f"shop.1.{one}")


def test_a_task_of_ours_is_reached_from_an_engine_by_the_names_of_its_tasks(
    mixed: Mixed, network: str, services: list[Service]
) -> None:
    """A process of a service on our host, asked for on an engine: ``tasks.NAME`` and the task's own name."""
    service = make(mixed.cluster, "bakery", network)
    services.append(service)
    (task,) = service.place("w1")
    service.reach("RUNNING", task)
    mixed.idle("d1", "hungry", network)
    for name in ("tasks.bakery", f"bakery.1.{task}"):
        wait_until(
            lambda name=name: task in mixed.page("d1", "hungry", f"http://{name}:8080/"),  # type: ignore[misc]
            seconds=20,
            what=lambda name=name: mixed.page("d1", "hungry", f"http://{name}:8080/"),  # type: ignore[misc]
        )


def test_a_task_that_goes_leads_nobody_astray(
    mixed: Mixed, network: str, services: list[Service]
) -> None:
    """Of two tasks on engines one is shut down: it is reported, and the VIP leads to the other alone."""
    service = make(mixed.cluster, "pair", network, task=container())
    services.append(service)
    one, two = service.place("d1", "d2")
    service.reach("RUNNING", one, two)
    mixed.idle("w1", "asker", network)
    wait_until(
        lambda: len(pages(mixed, "w1", "asker", "http://pair:8080/", 6)) == 2,
        seconds=20,
        what=lambda: "not both tasks answer",
    )
    service.want(types_pb2.TASK_STATE_SHUTDOWN, one)
    service.reach("SHUTDOWN", one, seconds=40)
    left = json.loads(mixed["d2"].docker("inspect", f"pair.2.{two}"))[0]["Config"]["Hostname"]
    wait_until(
        lambda: len(resolved(mixed, "w1", "asker", "tasks.pair")) == 1,
        seconds=20,
        what=lambda: "the name of the task that is gone stays",
    )
    assert pages(mixed, "w1", "asker", "http://pair:8080/", 8) == {left}


def test_ends_are_reported_by_an_engine_as_they_were(mixed: Mixed, services: list[Service]) -> None:
    """A script that ends well, one that does not, and an image that is not there."""
    for name, script, state in (("well", "exit 0", "COMPLETE"), ("ill", "exit 7", "FAILED")):
        service = make(mixed.cluster, name, "", task=container(script))
        services.append(service)
        (task,) = service.place("d1")
        service.reach(state, task)
        assert ("7" in service.status(task)[1]) is (state == "FAILED")
    absent = container()
    absent.container.image = "overswarm/absent"
    service = make(mixed.cluster, "absent", "", task=absent)
    services.append(service)
    (task,) = service.place("d1")
    service.reach("REJECTED", task, seconds=60)
    assert "overswarm/absent" in service.status(task)[1]


def test_a_published_port_of_tasks_on_engines_answers_on_our_nodes(
    mixed: Mixed, network: str, services: list[Service]
) -> None:
    """From outside of the cluster, at each node of ours: every task on the engines is led to."""
    port = types_pb2.PortConfig(target_port=8080, published_port=PUBLISHED)
    service = make(mixed.cluster, "front", network, task=container(), ports=(port,))
    services.append(service)
    service.reach("RUNNING", *service.place("d1", "d2"))
    lab = mixed.cluster.lab
    if "out" not in lab.state.hosts:
        lab.add_bare("out")

    def fetch(node: str) -> str:
        url = f"http://{lab.state.require(node).address}:{PUBLISHED}/"
        result = lab.run("out", *PROGRAM, "fetch", "--timeout", "3", url)
        return result.stdout.strip() or result.stderr.strip()

    for node in ("m1", "w1"):
        seen: set[str] = set()

        def everyone(node: str = node, seen: set[str] = seen) -> bool:
            seen |= {fetch(node) for _ in range(6)}
            return len({text for text in seen if len(text) == 12}) == 2

        wait_until(everyone, seconds=30, what=lambda node=node, seen=seen: f"{node}: {seen}")  # type: ignore[misc]


def test_tasks_follow_their_engine_through_a_restart(
    mixed: Mixed, network: str, services: list[Service]
) -> None:
    """An engine stopped and started takes its task up again, or reports its end; nothing else happens to it."""
    service = make(mixed.cluster, "tough", network, task=container())
    services.append(service)
    (task,) = service.place("d2")
    service.reach("RUNNING", task)
    mixed["d2"].stop()
    mixed["d2"].start()
    mixed.await_state("d2", types_pb2.NODE_STATE_READY)
    # Swarm restarts no container of a task: its end is reported, and the scheduler replaces it.
    service.reach("FAILED", task, seconds=40)
    (heir,) = service.place("d2")
    service.reach("RUNNING", heir)
    mixed.idle("w1", "loyal", network)
    wait_until(
        lambda: (
            len(pages(mixed, "w1", "loyal", "http://tough:8080/", 2)) == 1
            and len(resolved(mixed, "w1", "loyal", "tasks.tough")) == 1
        ),
        seconds=20,
        what=lambda: str(pages(mixed, "w1", "loyal", "http://tough:8080/", 2)),
    )
    with scheduler(mixed.cluster) as stub:
        stub.Release(scheduler_pb2.ReleaseRequest(task_ids=[task]), timeout=10)


def test_a_drained_engine_is_left_and_another_takes_over(
    mixed: Mixed, network: str, services: list[Service]
) -> None:
    """``swarm service create`` and our scheduler: one task on each engine; one drained: both on the other."""
    cluster = mixed.cluster
    for host in ("d1", "d2"):
        cluster.swarm("m1", "node", "update", "--label-add", "kind=engine", host)
    created = cluster.swarm(
        *("m1", "service", "create", "--name", "mover", "--image", IMAGE, "--replicas", "2"),
        *("--network", network, "--constraint", "node.labels.kind==engine", "--", "sh", "-c", PAGE),
    )
    form = "{{.Node}} {{.CurrentState}}"
    query = ("service", "ps", "--filter", "desired-state=running", "--format", form, "mover")

    def spread() -> list[str]:
        return sorted(
            line.split()[0]
            for line in cluster.swarm("m1", *query).splitlines()
            if line.split()[1] == "Running"
        )

    argv, environment = cluster.lab.argv("m1", ("swarm", "scheduler", "run", "--service", "mover"))
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            for wanted, order in ((["d1", "d2"], "drain"), (["d2", "d2"], "active")):
                wait_until(
                    lambda wanted=wanted: spread() == wanted,  # type: ignore[misc]
                    seconds=40,
                    what=lambda: cluster.swarm("m1", "service", "ps", "--no-trunc", "mover"),
                    pause=0.3,
                )
                cluster.swarm("m1", "node", "update", "--availability", order, "d1")
            wait_until(
                lambda: "mover" not in mixed["d1"].docker("ps", "--format", "{{.Names}}"),
                seconds=20,
                what=lambda: "the drained engine keeps its container",
            )
        finally:
            process.terminate()
            for host in ("d1", "d2"):
                cluster.swarm("m1", "node", "update", "--label-rm", "kind", host)
    mixed.idle("w1", "follower", network)
    mixed.eventually_pings("w1", "follower", "tasks.mover")
    with cluster.lab.client("m1") as client:
        tasks = client.control.ListTasks(control_pb2.ListTasksRequest(), timeout=10).tasks
    of_it = {task.id: "d2" for task in tasks if task.service_id == created.strip()}
    services.append(Service(cluster, "mover", created.strip(), network, of_it))
