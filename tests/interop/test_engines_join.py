"""Stock engines in our cluster: Ready, attached, reached by name, refused with the right words."""

from __future__ import annotations

import ipaddress
import json
import time

import pytest
from support.cluster import PROGRAM
from support.mixed import Mixed

from swarm.lab.engine import IMAGE

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PAIRS = [("d1", "w1"), ("w1", "d1"), ("d1", "d2")]


def test_engines_are_ready_nodes_with_their_own_description(mixed: Mixed) -> None:
    """Both engines are Ready, with the version, platform and network plugin they really have."""
    rows = {
        row["Hostname"]: row
        for row in map(
            json.loads, mixed.cluster.swarm("m1", "node", "ls", "--format", "json").splitlines()
        )
    }
    for host, engine in mixed.engines.items():
        assert rows[host]["Status"] == "Ready"
        assert rows[host]["Availability"] == "Active"
        assert rows[host]["ManagerStatus"] == ""
        assert rows[host]["TLSStatus"] == "Ready"
        assert rows[host]["EngineVersion"] == engine.version()
        shown = json.loads(mixed.cluster.swarm("m1", "node", "inspect", host))[0]
        said = json.loads(engine.docker("info", "--format", "{{json .}}"))
        assert shown["ID"] == said["Swarm"]["NodeID"]
        assert shown["Description"]["Platform"] == {
            "Architecture": said["Architecture"],
            "OS": said["OSType"],
        }
        assert shown["Description"]["Resources"]["MemoryBytes"] == said["MemTotal"]
        assert shown["Description"]["Resources"]["NanoCPUs"] == said["NCPU"] * 10**9
        assert {"Type": "Network", "Name": "overlay"} in shown["Description"]["Engine"]["Plugins"]
        assert shown["Status"]["Addr"] == engine.address
        assert said["Swarm"]["LocalNodeState"] == "active"
        assert [peer["Addr"] for peer in said["Swarm"]["RemoteManagers"]] == ["192.0.2.1:2377"]


def test_a_container_on_an_engine_gets_its_address_from_our_allocator(
    mixed: Mixed, network: str
) -> None:
    """Addresses on engines and on our hosts come from one pool, in order, each with its task."""
    given = [
        mixed.idle("d1", "alloc-a", network),
        mixed.idle("w1", "alloc-b", network),
        mixed.idle("d2", "alloc-c", network),
    ]
    (shown,) = json.loads(mixed.cluster.swarm("m1", "network", "inspect", network))
    subnet = ipaddress.ip_network(shown["IPAM"]["Config"][0]["Subnet"])
    assert len(set(given)) == 3
    assert all(ipaddress.ip_address(text) in subnet for text in given)
    assert given == sorted(given, key=ipaddress.ip_address)
    tasks = {task.networks[0].addresses[0].split("/")[0]: task for task in mixed.tasks(network)}
    assert set(given) == set(tasks)
    nodes = mixed.nodes()
    assert [tasks[text].node_id for text in given] == [
        nodes[host].id for host in ("d1", "w1", "d2")
    ]


def test_an_engine_shows_our_network_as_it_is(mixed: Mixed, network: str) -> None:
    """``docker network inspect`` on the engine agrees with ours: id, subnet, gateway, VNI, flags, peers."""
    mixed.idle("d1", "see-a", network)
    mixed.idle("w1", "see-b", network)
    mixed.eventually_pings("d1", "see-a", "see-b")
    (theirs,) = json.loads(mixed["d1"].docker("network", "inspect", network))
    (ours,) = json.loads(mixed.cluster.swarm("m1", "network", "inspect", network))
    for key in (
        "Name",
        "Id",
        "Scope",
        "Driver",
        "Internal",
        "Attachable",
        "Ingress",
        "Labels",
        "ConfigOnly",
    ):
        assert theirs[key] == ours[key], key
    assert theirs["IPAM"]["Config"] == ours["IPAM"]["Config"]
    assert theirs["Options"] == ours["Options"]
    assert {peer["IP"] for peer in theirs["Peers"]} == {
        mixed.cluster.lab.state.require(host).address for host in ("d1", "w1")
    }


@pytest.mark.parametrize(("client", "server"), PAIRS)
def test_ping_page_and_datagrams_by_name(
    mixed: Mixed, network: str, client: str, server: str
) -> None:
    """ICMP and TCP by name, UDP and TCP of full-size packets: whoever asks and whoever answers."""
    address = mixed.serve(server, "site", network)
    own = mixed.idle(client, "visitor", network)
    mixed.eventually_pings(client, "visitor", "site")
    page = mixed.page(client, "visitor", "http://site:8080/")
    if server in mixed.engines:
        assert page == "hello from docker\n"
    else:
        assert page.endswith(f" to {own}\n"), "the client's own address reaches the server"

    asked = [*PROGRAM, "echo", "9000"]
    mixed.run("w1", "echo-ours", network, *asked)
    place = mixed.address("w1", "echo-ours", network)
    mixed.eventually_echoes(client, "visitor", place, "9000")
    for size in (
        1,
        1400,
        1422,
        4000,
    ):  # the last but one fills the MTU of 1450, the last is in fragments
        answer = mixed.program(client, "visitor", "ask", place, "9000", "--size", str(size))
        assert answer.stdout == f"{size}\n", answer.stderr

    if client in mixed.engines:
        ping = mixed[client].run_in
        assert (
            ping("visitor", "ping", "-c1", "-W1", "-M", "do", "-s", "1422", address).returncode == 0
        )
        assert (
            ping("visitor", "ping", "-c1", "-W1", "-M", "do", "-s", "1423", address).returncode != 0
        )
    else:
        assert (
            mixed.execute(
                client, "visitor", "ping", "-c1", "-W1", "-M", "do", "-s", "1422", address
            ).returncode
            == 0
        )


def test_an_engine_asks_datagrams_of_an_engine_and_of_us(mixed: Mixed, network: str) -> None:
    """A UDP echo in a container's network on an engine answers our container at full size."""
    address = mixed.idle("d1", "udp-d", network)
    mixed.idle("w1", "udp-w", network)
    mixed.eventually_pings("w1", "udp-w", "udp-d")
    engine = mixed["d1"]
    pid = engine.docker("inspect", "--format", "{{.State.Pid}}", "udp-d").strip()
    words, environment = mixed.cluster.lab.argv(
        "d1", engine.within(["nsenter", "--target", pid, "--net", *PROGRAM, "echo", "9001"])
    )
    import subprocess

    with subprocess.Popen(words, env=environment) as echo:
        try:
            seen = []
            for _ in range(50):
                answer = mixed.program(
                    "w1", "udp-w", "ask", "udp-d", "9001", "--size", "1422", "--timeout", "0.5"
                )
                seen.append(answer.stderr)
                if answer.returncode == 0:
                    break
            assert answer.stdout == "1422\n", seen[-1]
            assert mixed.address("d1", "udp-d", network) == address
        finally:
            echo.kill()


def test_a_megabyte_arrives_whole_on_an_engine(mixed: Mixed, network: str) -> None:
    """A bulk transfer from our container to an engine's network arrives byte for byte, in full segments."""
    mixed.idle("d2", "sink", network)
    mixed.run(
        "w1", "source", network, *PROGRAM, "give", "9000", "--seconds", "0.5", "--rate", "20000000"
    )
    mixed.eventually_pings("d2", "sink", "source")
    received = mixed["d2"].run_in(
        "sink", *PROGRAM, "take", mixed.address("w1", "source", network), "9000"
    )
    assert received.stdout.split()[:2] == mixed.cluster.swarm("w1", "logs", "source").split()
    assert mixed.execute("d2", "sink", "cat", "/sys/class/net/eth0/mtu").stdout.strip() == "1450"


def test_a_requested_address_is_given_once(mixed: Mixed) -> None:
    """``docker run --ip`` gets that address; a second one for it, or one outside, is refused in time."""
    mixed.cluster.network("fixednet", "--subnet", "172.31.7.0/24")
    try:
        assert mixed.idle("d1", "fixed", "fixednet", flags=("--ip", "172.31.7.77")) == "172.31.7.77"
        for host, wish in (("d2", "172.31.7.77"), ("d2", "10.77.0.1")):
            began = time.monotonic()
            refused = mixed[host].attempt(
                "run", "--rm", "--network", "fixednet", "--ip", wish, IMAGE, "sleep", "1"
            )
            assert refused.returncode == 125
            assert wish in refused.stderr
            assert time.monotonic() - began < 10, (
                "the refusal must not wait for Docker's own 20 s limit"
            )
        refused = mixed.cluster.attempt(
            "w1", "run", "--network", "fixednet", "--ip", "172.31.7.77", "--", "true"
        )
        assert "172.31.7.77" in refused.stderr
    finally:
        mixed.remove("d1", "fixed")
        mixed.cluster.remove_network("fixednet")


def test_refusals_in_docker_words(mixed: Mixed) -> None:
    """An unknown network and one that is not attachable are refused at once, in the words Docker's users know."""
    mixed.cluster.swarm("m1", "network", "create", "closednet")
    try:
        refused = mixed["d1"].attempt("run", "--rm", "--network", "nosuchnet", IMAGE, "sleep", "1")
        assert refused.returncode == 125
        assert "network nosuchnet not found" in refused.stderr
        refused = mixed["d1"].attempt("run", "--rm", "--network", "closednet", IMAGE, "sleep", "1")
        assert refused.returncode == 125
        assert "PermissionDenied" in refused.stderr
        assert "closednet not manually attachable" in refused.stderr
    finally:
        mixed.cluster.remove_network("closednet")


def test_connect_and_disconnect_while_running(mixed: Mixed, network: str) -> None:
    """``docker network connect`` adds an alias that we resolve; after disconnect nobody does, and the task is gone."""
    engine = mixed["d1"]
    mixed.made.append(("d1", "late"))
    engine.docker("run", "-d", "--stop-timeout", "1", "--name", "late", IMAGE, "sleep", "1000")
    mixed.idle("w1", "watcher", network)
    engine.docker("network", "connect", "--alias", "latecomer", network, "late")
    mixed.eventually_pings("w1", "watcher", "latecomer")
    assert len(mixed.tasks(network)) == 2
    engine.docker("network", "disconnect", network, "late")
    from swarm.lab.processes import wait_until

    wait_until(
        lambda: not mixed.resolves("w1", "watcher", "latecomer") and len(mixed.tasks(network)) == 1,
        seconds=20,
        what=lambda: f"latecomer stays: {mixed.tasks(network)}",
    )


def test_a_network_in_use_on_an_engine_stays(mixed: Mixed, network: str) -> None:
    """``swarm network rm`` is refused, in Docker's words, while a container on an engine uses the network."""
    mixed.idle("d1", "user", network)
    error = mixed.cluster.refused("m1", "network", "rm", network)
    assert "in use by task" in error
    assert mixed.execute("d1", "user", "ping", "-c1", "-W1", "user").returncode == 0


def test_many_at_once(mixed: Mixed, network: str) -> None:
    """Twelve containers on two engines and our host, at the same time: twelve addresses, one session each."""
    from concurrent.futures import ThreadPoolExecutor

    before = {host: mixed.sessions(node.id) for host, node in mixed.nodes().items()}
    jobs = [(host, f"crowd-{host}-{i}") for i in range(4) for host in ("d1", "d2", "w1")]
    with ThreadPoolExecutor(max_workers=6) as pool:
        addresses = list(pool.map(lambda job: mixed.idle(job[0], job[1], network), jobs))
    assert len(set(addresses)) == 12
    mixed.idle("w1", "counter", network)
    for _, name in jobs:
        mixed.eventually_pings("w1", "counter", name)
    # A gap in the stream of assignments would make an engine open it again and again.
    after = {host: mixed.sessions(node.id) for host, node in mixed.nodes().items()}
    assert after == before
