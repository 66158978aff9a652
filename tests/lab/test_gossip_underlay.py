"""Gossip on other underlays and after longer absences: families, addresses by role, keys, drift of the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from support.cluster import PROGRAM, Cluster
from support.labs import clean_lab
from support.probes import (
    HOSTS,
    NETWORK,
    await_names,
    five_nodes,
    neighbour_device,
    pings,
    probes,
    router,
    status,
)

from swarm.api.overswarm.v1 import local_pb2
from swarm.lab.faults import Cut
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def five() -> Iterator[Cluster]:
    """Five nodes, on each a container ``probe-HOST`` on one network."""
    with five_nodes("gosu") as cluster:
        yield cluster


def test_two_missed_rotations_are_caught_up(five: Cluster) -> None:
    """A host that is cut off while the keys are rotated twice understands everybody again by itself."""
    wanted = probes(five)
    others = tuple(host for host in HOSTS if host != "w3")
    cut = [Cut(sources=others, targets=("w3",)), Cut(sources=("w3",), targets=others)]
    before = status(five, "w3")["Keys"]
    five.lab.break_underlay(cut)
    try:
        for _ in range(2):
            wait_until(
                lambda: five.attempt("m1", "rotate-keys").returncode == 0,
                seconds=20,
                what=lambda: "the keys cannot be rotated",
                pause=0.5,
            )
        assert status(five, "w3")["Keys"] == before
    finally:
        five.lab.break_underlay([])
    keys = status(five, "m1")["Keys"]
    assert set(keys) & set(before) == {before[2]}
    wait_until(
        lambda: all(status(five, host)["Keys"] == keys for host in HOSTS),
        seconds=30,
        what=lambda: f"w3 has keys {status(five, 'w3')['Keys']}, not {keys}",
    )
    await_names(five, wanted, 20)


def test_drift_of_the_kernel_is_mended(five: Cluster) -> None:
    """A tunnel entry removed behind our back is there again after the slow comparison, and counted."""
    wanted = probes(five)
    await_names(five, wanted, 20)
    address = wanted["probe-w1"][0]
    assert pings(five, "w2", address)
    netns = router(five, "w2")
    device = neighbour_device(netns, address)
    subprocess.run(
        ["nsenter", f"--net={netns}", "ip", "neigh", "del", address, "dev", device], check=True
    )
    wait_until(
        lambda: pings(five, "w2", address),
        seconds=45,
        what=lambda: "the entry does not come back",
        pause=1.0,
    )
    log = five.lab.state.log("w2").read_text()
    assert "dataplane.drifted" in log


def test_ipv6_underlay() -> None:
    """A cluster whose nodes have IPv6 addresses only carries containers, names and gossip."""
    with clean_lab("gsix") as lab:
        lab.build(("m1", "w1"))
        manager, worker = lab.state.require("m1"), lab.state.require("w1")
        cluster = Cluster(lab)
        cluster.swarm(
            "m1",
            "init",
            "--advertise-addr",
            manager.address6,
            "--listen-addr",
            f"[{manager.address6}]:2377",
        )
        token = lab.tokens("m1")["worker"]
        words = ("--advertise-addr", worker.address6, "--listen-addr", f"[{worker.address6}]:2377")
        cluster.swarm("w1", "join", "--token", token, *words, f"[{manager.address6}]:2377")
        lab.await_ready("m1", 2)
        cluster.network(NETWORK)
        cluster.serve("w1", "web", NETWORK)
        assert cluster.eventually_fetches("m1", NETWORK, "http://web:8080/").startswith(
            "hello from"
        )
        members = {member["Address"] for member in status(cluster, "m1")["Members"]}
        assert members == {f"[{manager.address6}]:7946", f"[{worker.address6}]:7946"}


def test_several_addresses_one_for_each_role() -> None:
    """Listening, advertised and data path address may differ; each is used for its role."""
    with clean_lab("gaddr") as lab:
        lab.build(("m1", "w1"))
        cluster = Cluster(lab)
        roles = {}
        for host in ("m1", "w1"):
            number = lab.state.require(host).number
            advertise, data = f"192.0.2.{210 + number}", f"192.0.2.{220 + number}"
            for extra in (advertise, data):
                lab.run(host, "ip", "addr", "add", f"{extra}/24", "dev", "eth0")
            roles[host] = (advertise, data)
        flags = {
            host: (
                "--listen-addr",
                "0.0.0.0:2377",
                "--advertise-addr",
                advertise,
                "--data-path-addr",
                data,
            )
            for host, (advertise, data) in roles.items()
        }
        cluster.swarm("m1", "init", *flags["m1"])
        cluster.swarm(
            "w1",
            "join",
            "--token",
            lab.tokens("m1")["worker"],
            *flags["w1"],
            f"{roles['m1'][0]}:2377",
        )
        lab.await_ready("m1", 2)
        cluster.network(NETWORK)
        cluster.serve("w1", "web", NETWORK)
        cluster.swarm(
            "m1", "run", "-d", "--name", "peer", "--network", NETWORK, "--", "sleep", "600"
        )
        assert cluster.eventually_fetches("m1", NETWORK, "http://web:8080/").startswith(
            "hello from"
        )
        members = {
            member["Address"]: member["State"] for member in status(cluster, "m1")["Members"]
        }
        assert members == {f"{advertise}:7946": "alive" for advertise, _ in roles.values()}
        with lab.client("m1") as client:
            remote = client.local.ListEndpoints(local_pb2.ListEndpointsRequest(), timeout=10).remote
        assert {each.vtep for each in remote} == {roles["w1"][1]}
        page = cluster.swarm("m1", "exec", "peer", *PROGRAM, "fetch", "http://web:8080/")
        assert page.startswith("hello from")
