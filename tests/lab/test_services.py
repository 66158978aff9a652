"""Services on real daemons: names, virtual addresses, replacement, ends, restarts."""

from __future__ import annotations

import shlex
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.asking import EXAMPLE, asked, asking, running
from support.cluster import PROGRAM, Cluster
from support.services import make

from swarm.api.docker.swarmkit import specs_pb2, types_pb2
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]


DUAL = """
import http.server, socket
from swarm.lab.workloads import _Page
class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
Server(("::", 8080), _Page).serve_forever()
"""
"""The page that PROGRAM serves, on IPv4 and IPv6."""


def client(cluster: Cluster, host: str, name: str, network: str) -> None:
    """Start a container that waits for commands."""
    cluster.swarm(host, "run", "-d", "--name", name, "--network", network, "--", "sleep", "600")


def shell(cluster: Cluster, host: str, name: str, command: str) -> str:
    """Run a shell command in a container."""
    return cluster.swarm(host, "exec", name, "sh", "-c", command)


def pages(cluster: Cluster, host: str, name: str, url: str, count: int) -> list[str]:
    """Fetch a page several times; the words of each."""
    fetch = shlex.join([*PROGRAM, "fetch", "--timeout", "3", url])
    loop = f"i=0; while [ $i -lt {count} ]; do {fetch}; i=$((i+1)); done"
    return shell(cluster, host, name, loop).splitlines()


def resolve(cluster: Cluster, host: str, name: str, what: str) -> list[str]:
    """Resolve a name in a container."""
    result = cluster.attempt(host, "exec", name, *PROGRAM, "resolve", what)
    return result.stdout.split()


def test_a_service_answers_under_one_address_with_all_its_tasks(cluster: Cluster) -> None:
    """From every node; the tasks see the client's own address; names are those of engines."""
    cluster.network("svc-a")
    service = make(cluster, "web-a", "svc-a", aliases=("www-a",))
    tasks = service.place("w1", "w2", "w2")
    service.reach("RUNNING", *tasks)
    client(cluster, "m1", "client-a", "svc-a")
    own = cluster.address("m1", "client-a")
    wait_until(
        lambda: len(resolve(cluster, "m1", "client-a", "tasks.web-a")) == 3,
        seconds=20,
        what=lambda: str(resolve(cluster, "m1", "client-a", "tasks.web-a")),
    )
    (virtual,) = resolve(cluster, "m1", "client-a", "web-a")
    assert resolve(cluster, "m1", "client-a", "www-a") == [virtual]
    addresses = set(resolve(cluster, "m1", "client-a", "tasks.web-a"))
    assert virtual not in addresses
    assert resolve(cluster, "m1", "client-a", f"web-a.1.{tasks[0]}")[0] in addresses
    lines = pages(cluster, "m1", "client-a", "http://web-a:8080/", 24)
    answers = Counter(line.split()[2] for line in lines)
    assert set(answers) == set(tasks), "the host name of a task is its id"
    assert {line.split()[-1] for line in lines} == {own}
    service.remove()
    wait_until(
        lambda: not resolve(cluster, "m1", "client-a", "web-a"),
        seconds=20,
        what=lambda: "the name stays",
    )
    cluster.remove("m1", "client-a")
    cluster.remove_network("svc-a")


def test_labels_decide_how_flows_are_spread(cluster: Cluster) -> None:
    """A sticky service keeps a client's backend, one that prefers the local one uses it while it serves."""
    cluster.network("svc-l")
    sticky = make(cluster, "sticky-l", "svc-l", labels={"overswarm.affinity": "client"})
    local = make(cluster, "local-l", "svc-l", labels={"overswarm.prefer": "local"})
    sticky.reach("RUNNING", *sticky.place("w1", "w2", "w2"))
    here, there = local.place("w1", "w2")
    local.reach("RUNNING", here, there)
    client(cluster, "w1", "client-l", "svc-l")
    for name, count in (("sticky-l", 3), ("local-l", 2)):
        wait_until(
            lambda name=name, count=count: (
                len(resolve(cluster, "w1", "client-l", f"tasks.{name}")) == count
            ),
            seconds=20,
            what=lambda name=name: str(resolve(cluster, "w1", "client-l", f"tasks.{name}")),
        )
    lines = pages(cluster, "w1", "client-l", "http://sticky-l:8080/", 10)
    assert len({line.split()[2] for line in lines}) == 1, lines
    lines = pages(cluster, "w1", "client-l", "http://local-l:8080/", 10)
    assert {line.split()[2] for line in lines} == {here}, lines
    local.want(types_pb2.TASK_STATE_SHUTDOWN, here)
    local.reach("SHUTDOWN", here)
    lines = pages(cluster, "w1", "client-l", "http://local-l:8080/", 3)
    assert {line.split()[2] for line in lines} == {there}, lines
    sticky.remove()
    local.remove()
    cluster.remove("w1", "client-l")
    cluster.remove_network("svc-l")


def test_round_robin_services_have_no_virtual_address(cluster: Cluster) -> None:
    """The name resolves to the tasks themselves."""
    cluster.network("svc-b")
    service = make(cluster, "web-b", "svc-b", dnsrr=True)
    service.reach("RUNNING", *service.place("w1", "w2"))
    client(cluster, "w1", "client-b", "svc-b")
    wait_until(
        lambda: len(resolve(cluster, "w1", "client-b", "web-b")) == 2,
        seconds=20,
        what=lambda: str(resolve(cluster, "w1", "client-b", "web-b")),
    )
    assert resolve(cluster, "w1", "client-b", "web-b") == resolve(
        cluster, "w1", "client-b", "tasks.web-b"
    )
    service.remove()
    cluster.remove("w1", "client-b")
    cluster.remove_network("svc-b")


def test_all_tasks_are_replaced_and_no_request_fails(cluster: Cluster) -> None:
    """New ones first, then the old ones drain and end; a client that never stops asking."""
    cluster.network("svc-c")
    service = make(cluster, "web-c", "svc-c")
    old = service.place("w1", "w2")
    service.reach("RUNNING", *old)
    client(cluster, "w1", "client-c", "svc-c")
    cluster.eventually_fetches("w1", "svc-c", "http://web-c:8080/")
    # One process that asks again and again until told to stop, and counts what failed.
    loop = (
        "import collections,os,urllib.request\n"
        "seen=collections.Counter()\n"
        "while not os.path.exists('/tmp/stop-c'):\n"
        "  try: seen[urllib.request.urlopen('http://web-c:8080/',timeout=3).read().split()[2]]+=1\n"
        "  except Exception as error: seen['failed '+repr(error)]+=1\n"
        "print(dict(seen))\n"
    )
    cluster.swarm(
        "w1", "run", "-d", "--name", "load-c", "--network", "svc-c", "--", "python3", "-c", loop
    )
    new = service.place("w2", "w1")
    service.reach("RUNNING", *new)
    for task in old:
        service.want(types_pb2.TASK_STATE_SHUTDOWN, task)
        service.reach("SHUTDOWN", task)
    lines = pages(cluster, "w1", "client-c", "http://web-c:8080/", 8)
    assert {line.split()[2] for line in lines} <= set(new)
    shell(cluster, "w1", "client-c", "touch /tmp/stop-c")
    seen: list[str] = [""]

    def printed() -> bool:
        seen[0] = cluster.swarm("w1", "logs", "load-c")
        return "}" in seen[0]

    wait_until(printed, seconds=10, what=lambda: seen[0])
    shell(cluster, "w1", "client-c", "rm /tmp/stop-c")
    assert "failed" not in seen[0], seen[0]
    assert all(task in seen[0] for task in (*old, *new)), seen[0]
    service.remove()
    cluster.remove("w1", "client-c", "load-c")
    cluster.remove_network("svc-c")


def test_ends_are_reported_as_they_were(cluster: Cluster) -> None:
    """A command that ends well, one that does not, one that is not there, an image."""
    for name, argv, state in (
        ("good-d", ("true",), "COMPLETE"),
        ("bad-d", ("sh", "-c", "exit 7"), "FAILED"),
        ("none-d", ("/no/such/command",), "FAILED"),
    ):
        service = make(cluster, name, "", argv=argv)
        (task,) = service.place("w1")
        service.reach(state, task)
        assert (service.status(task)[1] != "") is (state == "FAILED")
        service.remove()
    image = specs_pb2.TaskSpec()
    image.container.image = "nginx"
    service = make(cluster, "image-d", "", task=image)
    (task,) = service.place("w1")
    service.reach("REJECTED", task)
    assert "image" in service.status(task)[1]
    service.remove()


def test_a_killed_agent_finds_its_tasks_again(cluster: Cluster) -> None:
    """The task answers while the agent is dead, and runs on under the next one."""
    cluster.network("svc-e")
    service = make(cluster, "web-e", "svc-e")
    (task,) = service.place("w2")
    service.reach("RUNNING", task)
    cluster.eventually_fetches("w1", "svc-e", "http://web-e:8080/")
    client(cluster, "w1", "client-e", "svc-e")
    pid = cluster.swarm("w2", "ps", "--no-trunc", "--format", "{{.Names}}")
    assert f"web-e.1.{task}" in pid
    cluster.lab.kill("w2")
    assert task in pages(cluster, "w1", "client-e", "http://web-e:8080/", 1)[0]
    cluster.lab.start("w2")
    assert task in pages(cluster, "w1", "client-e", "http://web-e:8080/", 1)[0]
    wait_until(
        lambda: service.status(task)[0] == "RUNNING",
        seconds=30,
        what=lambda: str(service.status(task)),
    )
    assert f"web-e.1.{task}" in cluster.swarm("w2", "ps", "--no-trunc", "--format", "{{.Names}}")
    service.remove()
    cluster.remove("w1", "client-e")
    cluster.remove_network("svc-e")


def test_a_published_port_answers_on_every_node_and_tasks_see_the_client(cluster: Cluster) -> None:
    """From a host outside of the cluster: each node, all tasks, its own address; then refusal."""
    cluster.network("svc-f")
    port = types_pb2.PortConfig(target_port=8080, published_port=30088)
    service = make(cluster, "web-f", "svc-f", ports=(port,))
    tasks = service.place("w1", "w1", "w2")
    service.reach("RUNNING", *tasks)
    hosts = {name: host.address for name, host in cluster.lab.state.hosts.items()}

    def fetch(node: str, count: int = 1) -> list[str]:
        urls = shlex.join([*PROGRAM, "fetch", "--timeout", "3", f"http://{hosts[node]}:30088/"])
        loop = f"i=0; while [ $i -lt {count} ]; do {urls} 2>&1; i=$((i+1)); done"
        return cluster.lab.run("w3", "sh", "-c", loop).stdout.splitlines()

    for node in ("m1", "w1", "w2"):
        seen: list[list[str]] = [[]]

        def everyone(node: str = node, seen: list[list[str]] = seen) -> bool:
            seen[0] = fetch(node, 12)
            return {line.split()[2] for line in seen[0] if "hello" in line} == set(tasks)

        wait_until(everyone, seconds=40, what=lambda node=node, seen=seen: f"{node}: {seen[0]}")
        assert {line.split()[-1] for line in seen[0]} == {hosts["w3"]}, seen[0]
    service.remove()
    wait_until(
        lambda: "refused" in fetch("m1")[0],
        seconds=20,
        what=lambda: f"the port stays: {fetch('m1')}",
    )
    cluster.remove_network("svc-f")


def test_the_example_scheduler_empties_a_node_and_no_request_fails(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Six tasks on three nodes behind a port of every node; a foreign host asks all the time; a node is drained."""
    certificate, log = tmp_path / "robot", tmp_path / "asked"
    hosts = cluster.lab.state.hosts
    cluster.network("svc-k")
    cluster.swarm("m1", "client-cert", "create", "robot-k", "--out", str(certificate))
    cluster.swarm(
        *("m1", "service", "create", "--name", "web-k", "--replicas", "6", "--network", "svc-k"),
        *("-p", "30081:8080", "--", *PROGRAM, "serve", "8080"),
    )

    def spread() -> Counter[str]:
        form = "{{.Node}} {{.CurrentState}}"
        words = ("--filter", "desired-state=running", "--format", form, "web-k")
        lines = cluster.swarm("m1", "service", "ps", *words).splitlines()
        return Counter(line.split()[0] for line in lines if line.split()[1] == "Running")

    def await_spread(wanted: dict[str, int]) -> None:
        wait_until(lambda: spread() == wanted, seconds=60, what=lambda: str(spread()))

    scheduler = (sys.executable, str(EXAMPLE), "--cert", str(certificate))
    robot = running(cluster, "w3", *scheduler, "--service", "web-k", "--replicas", "6")
    with robot, asking(cluster, "w3", log, 30081, ["m1", "w1"]):
        await_spread({"m1": 2, "w1": 2, "w2": 2})

        def answered(since: float, count: int = 6) -> bool:
            return len({each.task for each in asked(log, since) if not each.error}) == count

        began = time.time()
        wait_until(lambda: answered(began), seconds=40, what=lambda: str(asked(log)[-3:]))
        served = time.time()
        cluster.swarm("m1", "node", "update", "--availability", "drain", "w2")
        try:
            await_spread({"m1": 3, "w1": 3})
            moved = time.time()
            wait_until(lambda: answered(moved), seconds=40, what=lambda: str(asked(log)[-3:]))
        finally:
            cluster.swarm("m1", "node", "update", "--availability", "active", "w2")
        assert [each for each in asked(log, served) if each.error] == []
        assert {each.seen for each in asked(log, served)} == {hosts["w3"].address}
    cluster.swarm("m1", "service", "rm", "web-k")
    cluster.swarm("m1", "client-cert", "revoke", "robot-k")
    cluster.remove_network("svc-k")


def test_a_containers_port_answers_on_its_host_alone(cluster: Cluster) -> None:
    """With the client's own address, over a restart of the agent; a second wish is refused."""
    cluster.network("svc-g")
    words = ("--network", "svc-g", "-p", "30099:8080", "--", *PROGRAM, "serve", "8080")
    cluster.swarm("w1", "run", "-d", "--name", "web-g", *words)
    hosts = {name: host.address for name, host in cluster.lab.state.hosts.items()}

    def fetch(node: str) -> str:
        url = f"http://{hosts[node]}:30099/"
        result = cluster.lab.run("w3", *PROGRAM, "fetch", "--timeout", "3", url)
        return result.stdout.strip() or result.stderr

    wait_until(lambda: "hello" in fetch("w1"), seconds=20, what=lambda: fetch("w1"))
    assert fetch("w1").split()[-1] == hosts["w3"]
    assert "refused" in fetch("w2")
    error = cluster.refused("w1", "run", "-d", "--name", "web2-g", *words, status=125)
    assert "30099" in error
    cluster.lab.kill("w1")
    assert "hello" in fetch("w1")
    cluster.lab.start("w1")
    assert fetch("w1").split()[-1] == hosts["w3"]
    cluster.remove("w1", "web-g", "web2-g")
    wait_until(lambda: "refused" in fetch("w1"), seconds=10, what=lambda: fetch("w1"))
    cluster.remove_network("svc-g")


def test_a_port_is_published_in_both_ip_versions(cluster: Cluster) -> None:
    """Where the network has IPv6: on all addresses, or on one, loopback included."""
    cluster.network("svc-j", "--ipv6")
    address = cluster.lab.state.hosts["w1"].address6
    for name, publish in (("all-j", "30097:8080"), ("lo-j", "[::1]:30096:8080")):
        words = ("--network", "svc-j", "-p", publish, "--", *PROGRAM, "serve", "8080")
        cluster.swarm("w1", "run", "-d", "--name", name, "--hostname", name, *words)

    def fetch(host: str, target: str) -> str:
        words = (*PROGRAM, "fetch", "--timeout", "3", f"http://{target}/")
        result = cluster.lab.run(host, *words)
        return result.stdout.strip() or result.stderr

    for host, target, name in (
        ("w3", f"[{address}]:30097", "all-j"),
        ("w3", f"{cluster.lab.state.hosts['w1'].address}:30097", "all-j"),
        ("w1", "[::1]:30096", "lo-j"),
    ):
        wait_until(
            lambda host=host, target=target, name=name: name in fetch(host, target),  # type: ignore[misc]
            seconds=20,
            what=lambda host=host, target=target: fetch(host, target),  # type: ignore[misc]
        )
    assert "refused" in fetch("w3", f"[{address}]:30096")
    listed = cluster.swarm("w1", "ps", "--format", "{{.Names}} {{.Ports}}").splitlines()
    assert "lo-j [::1]:30096->8080/tcp" in listed
    cluster.remove("w1", "all-j", "lo-j")
    assert "refused" in fetch("w3", f"[{address}]:30097")
    cluster.remove_network("svc-j")


def test_a_port_bound_to_loopback_answers_the_host_alone(cluster: Cluster) -> None:
    """A process on the host reaches it; a foreign host does not; another container may have the number elsewhere."""
    cluster.network("svc-i")
    address = cluster.lab.state.hosts["w1"].address
    for name, publish in (("lo-i", "127.0.0.1:30098:8080"), ("out-i", f"{address}:30098:8080")):
        words = ("--network", "svc-i", "-p", publish, "--", *PROGRAM, "serve", "8080")
        cluster.swarm("w1", "run", "-d", "--name", name, "--hostname", name, *words)

    def fetch(host: str, target: str) -> str:
        url = f"http://{target}:30098/"
        result = cluster.lab.run(host, *PROGRAM, "fetch", "--timeout", "3", url)
        return result.stdout.strip() or result.stderr

    wait_until(
        lambda: "lo-i" in fetch("w1", "127.0.0.1"),
        seconds=20,
        what=lambda: fetch("w1", "127.0.0.1"),
    )
    assert "out-i" in fetch("w3", address)
    listed = cluster.swarm("w1", "ps", "--format", "{{.Names}} {{.Ports}}").splitlines()
    assert {"lo-i 127.0.0.1:30098->8080/tcp", f"out-i {address}:30098->8080/tcp"} <= set(listed)
    cluster.remove("w1", "out-i")
    assert "refused" in fetch("w3", address)
    assert "lo-i" in fetch("w1", "127.0.0.1")
    error = cluster.refused(
        *("w1", "run", "--network", "svc-i", "-p", "203.0.113.9:1:1", "--", "true"), status=125
    )
    assert "203.0.113.9" in error
    cluster.remove("w1", "lo-i")
    cluster.remove_network("svc-i")


def test_the_ingress_network_is_made_anew_and_publishes_ipv6_too(cluster: Cluster) -> None:
    """A foreign client reaches every node by it and is seen as itself; so it does while an agent dies and returns."""
    hosts = cluster.lab.state.hosts
    cluster.remove_network("ingress")
    for host in ("m1", "w1", "w2"):
        wait_until(
            lambda host=host: "ovmesh0" not in cluster.lab.run(host, "ip", "-o", "link").stdout,
            seconds=20,
            what=lambda host=host: f"{host} goes on with the old one",
        )
    cluster.swarm("m1", "network", "create", "--ingress", "--ipv6", "ingress")
    cluster.network("svc-j")
    port = types_pb2.PortConfig(target_port=8080, published_port=30086)
    service = make(cluster, "web-j", "svc-j", ports=(port,), argv=(PROGRAM[0], "-c", DUAL))
    tasks = service.place("w1", "w2")
    service.reach("RUNNING", *tasks)

    def fetch(target: str, count: int = 6) -> list[str]:
        command = shlex.join([*PROGRAM, "fetch", "--timeout", "3", f"http://{target}:30086/"])
        loop = f"i=0; while [ $i -lt {count} ]; do {command} 2>&1; i=$((i+1)); done"
        return cluster.lab.run("w3", "sh", "-c", loop).stdout.splitlines()

    for node in ("m1", "w1", "w2"):
        for target, own in (
            (f"[{hosts[node].address6}]", hosts["w3"].address6),
            (hosts[node].address, hosts["w3"].address),
        ):
            seen: list[list[str]] = [[]]

            def both(target: str = target, seen: list[list[str]] = seen) -> bool:
                seen[0] = fetch(target)
                return {line.split()[2] for line in seen[0] if "hello" in line} == set(tasks)

            wait_until(both, seconds=40, what=lambda node=node, seen=seen: f"{node}: {seen[0]}")
            assert {line.split()[-1].removeprefix("::ffff:") for line in seen[0]} == {own}
    for act in (cluster.lab.kill, cluster.lab.start):
        act("w1")
        for target in (f"[{hosts['w1'].address6}]", hosts["w1"].address):
            answers = fetch(target)
            assert all("hello" in line for line in answers), (act, answers)
    service.remove()
    cluster.remove_network("svc-j", "ingress")
    cluster.swarm("m1", "network", "create", "--ingress", "ingress")


def test_a_task_in_host_mode_has_its_port_on_its_host(cluster: Cluster) -> None:
    """The number it got is reported; a second task with it on that host is refused by someone."""
    cluster.network("svc-h")
    port = types_pb2.PortConfig(
        target_port=8080, published_port=30077, publish_mode=types_pb2.PUBLISH_MODE_HOST
    )
    service = make(cluster, "web-h", "svc-h", ports=(port,))
    (task,) = service.place("w2")
    service.reach("RUNNING", task)
    address = cluster.lab.state.hosts["w2"].address
    result = cluster.lab.run("w3", *PROGRAM, "fetch", "--timeout", "3", f"http://{address}:30077/")
    assert task in result.stdout, result.stderr
    service.remove()
    cluster.remove_network("svc-h")
