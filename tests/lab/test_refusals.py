"""Bad input on a real cluster: one clear line, a status, and nothing changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.cluster import Cluster

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture
def token(cluster: Cluster) -> str:
    """The worker token of the cluster."""
    return cluster.swarm("m1", "join-token", "-q", "worker").strip()


def join(cluster: Cluster, token: str, *words: str) -> str:
    """Let w3, which belongs to nobody, try to join; the refusal. It must belong to nobody afterwards."""
    error = cluster.refused("w3", "join", "--token", token, *words)
    assert cluster.swarm("w3", "info", "--format", "{{.Swarm}}").strip() == "inactive"
    return error


def test_malformed_token(cluster: Cluster) -> None:
    """A text that is no token is refused before anything is dialled."""
    assert "token" in join(cluster, "SWMTKN-nonsense", "192.0.2.1")


def test_wrong_secret(cluster: Cluster, token: str) -> None:
    """A token with another secret is refused by the manager."""
    wrong = token[:-25] + "0" * 25
    assert "token" in join(cluster, wrong, "192.0.2.1")


def test_token_of_another_cluster(cluster: Cluster, token: str) -> None:
    """A digest that does not match the manager's root is told apart from a wrong secret."""
    parts = token.split("-")
    digest = ("1" if parts[2][0] == "0" else "0") + parts[2][1:]
    error = join(cluster, "-".join([*parts[:2], digest, parts[3]]), "192.0.2.1")
    assert "another" in error or "digest" in error


def test_unreachable_manager(cluster: Cluster, token: str) -> None:
    """An address where nobody listens is named."""
    assert "192.0.2.2:2399" in join(cluster, token, "192.0.2.2:2399")


def test_address_of_another_host(cluster: Cluster, token: str) -> None:
    """An advertise, listen or data path address that this host does not have is named."""
    for flag in ("--advertise-addr", "--listen-addr", "--data-path-addr"):
        assert "198.51.100.7" in join(cluster, token, flag, "198.51.100.7", "192.0.2.1")


def test_commands_of_managers_on_a_worker(cluster: Cluster) -> None:
    """A worker says that it is none, and what to do."""
    for words in (("node", "ls"), ("network", "create", "x"), ("join-token", "worker")):
        assert "not a swarm manager" in cluster.refused("w1", *words)
    assert "swarm init" in cluster.refused("w3", "node", "ls")


def test_init_or_join_twice(cluster: Cluster, token: str) -> None:
    """A node belongs to one cluster."""
    for host, words in (("m1", ("init",)), ("w1", ("join", "--token", token, "192.0.2.1"))):
        assert "already part of a swarm" in cluster.refused(host, *words)


def test_port_in_use(cluster: Cluster) -> None:
    """Init names the port that somebody else holds, and leaves the node as it was."""
    holder = "import socket,sys; s=socket.create_server(('192.0.2.4',2377)); print('up',flush=True); sys.stdin.read()"
    argv, environment = cluster.lab.argv("w3", (sys.executable, "-c", holder))
    with subprocess.Popen(
        argv, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        error = cluster.refused(
            "w3", "init", "--listen-addr", "192.0.2.4:2377", "--advertise-addr", "192.0.2.4"
        )
        assert "2377" in error
        assert "in use" in error
        process.communicate("")
    assert cluster.swarm("w3", "info", "--format", "{{.Swarm}}").strip() == "inactive"
    cluster.swarm("w3", "init", "--listen-addr", "192.0.2.4:2377", "--advertise-addr", "192.0.2.4")
    assert "force" in cluster.refused("w3", "leave")
    cluster.swarm("w3", "leave", "--force")
    assert cluster.swarm("w3", "info", "--format", "{{.Swarm}}").strip() == "inactive"


def test_network_refusals(cluster: Cluster) -> None:
    """Names, subnets and drivers that cannot be are refused, and no network comes of it."""
    cluster.network("taken", "--subnet", "172.31.0.0/28")
    before = cluster.swarm("m1", "network", "ls", "-q")
    create = ("network", "create", "--attachable")
    assert "taken" in cluster.refused("m1", *create, "taken")
    assert "already exists" in cluster.refused("m1", *create, "TAKEN")
    assert "overlap" in cluster.refused("m1", *create, "--subnet", "172.31.0.0/24", "other").lower()
    assert "name" in cluster.refused("m1", *create, "no/such name").lower()
    assert "driver" in cluster.refused("m1", *create, "-d", "frob", "other").lower()
    assert "subnet" in cluster.refused("m1", *create, "--subnet", "10.0.0.0/8", "other").lower()
    assert cluster.swarm("m1", "network", "ls", "-q") == before
    assert "not found" in cluster.refused("m1", "network", "rm", "nobody")
    assert "not found" in cluster.refused("m1", "network", "inspect", "nobody")
    cluster.remove_network("taken")


def test_exhausted_subnet(cluster: Cluster) -> None:
    """The container that finds no address left is refused at once, and an address given back serves again."""
    cluster.network("tiny", "--subnet", "172.31.4.0/29")
    started = []
    error = ""
    for number in range(8):
        name = f"tiny{number}"
        result = cluster.attempt(
            "w1", "run", "-d", "--name", name, "--network", "tiny", "--", "sleep", "100"
        )
        if result.returncode != 0:
            error = result.stderr
            break
        started.append(name)
    assert 3 <= len(started) <= 5
    assert "172.31.4.0/29" in error or "address" in error
    cluster.swarm("w1", "rm", started[0], "-f")
    cluster.swarm("w1", "run", "-d", "--name", "again", "--network", "tiny", "--", "sleep", "100")
    cluster.remove("w1", "again", *started[1:])
    cluster.remove_network("tiny")


def test_container_refusals(cluster: Cluster) -> None:
    """Unknown networks, taken names, missing commands and unknown containers."""
    assert "nobody" in cluster.refused("w1", "run", "--network", "nobody", "--", "true", status=125)
    cluster.swarm("w1", "run", "-d", "--name", "only", "--", "sleep", "100")
    assert "only" in cluster.refused("w1", "run", "--name", "only", "--", "true", status=125)
    missing = cluster.attempt("w1", "run", "--rm", "--", "/no/such/command")
    assert missing.returncode == 127
    assert "/no/such/command" in missing.stderr
    assert cluster.attempt("w1", "run", "--rm", "--", "sh", "-c", "exit 7").returncode == 7
    assert "ghost" in cluster.refused("w1", "exec", "ghost", "true", status=125)
    assert "ghost" in cluster.refused("w1", "rm", "ghost")
    assert "running" in cluster.refused("w1", "rm", "only")
    cluster.remove("w1", "only")


def test_network_in_use_is_not_removed(cluster: Cluster) -> None:
    """A network that a container is on stays, and the refusal says so."""
    identifier = cluster.network("busy")
    cluster.serve("w1", "user", "busy")
    assert f"network {identifier} is in use" in cluster.refused("m1", "network", "rm", "busy")
    cluster.remove("w1", "user")
    cluster.remove_network("busy")


def test_rotated_token_is_dead_at_once(cluster: Cluster, token: str) -> None:
    """After a rotation the old token lets nobody in and the new one does."""
    printed = cluster.swarm("m1", "join-token", "--rotate", "worker")
    fresh = cluster.swarm("m1", "join-token", "-q", "worker").strip()
    assert fresh != token
    assert fresh in printed
    assert "token" in join(cluster, token, "192.0.2.1")
    cluster.swarm("w3", "join", "--token", fresh, "--advertise-addr", "192.0.2.4", "192.0.2.1")
    cluster.lab.await_ready("m1", 4)
    cluster.swarm("w3", "leave")
    (node,) = [
        row
        for line in cluster.swarm("m1", "node", "ls", "--format", "json").splitlines()
        if (row := json.loads(line))["Hostname"] == "w3"
    ]
    cluster.swarm("m1", "node", "rm", "--force", node["ID"])
    assert "w3" not in cluster.swarm("m1", "node", "ls")


def test_second_daemon_on_the_same_directories(cluster: Cluster) -> None:
    """Two daemons never share a run directory."""
    state = cluster.lab.state
    result = cluster.lab.run(
        "w1",
        "swarm",
        "daemon",
        "--state-dir",
        str(state.state_dir("w1")),
        "--run-dir",
        str(state.run_dir("w1")),
    )
    assert result.returncode == 1
    assert "another daemon" in result.stderr
    assert "Traceback" not in result.stderr


def test_daemon_without_root(cluster: Cluster, tmp_path: Path) -> None:
    """The daemon says that it needs root, and makes nothing."""
    start = (
        "import os, sys; from agent.daemon import main; os.setuid(65534); "
        f"sys.exit(main(['--state-dir', '{tmp_path}/s', '--run-dir', '{tmp_path}/r']))"
    )
    result = cluster.lab.run("w1", sys.executable, "-c", start)
    assert result.returncode == 1
    assert "root" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []
