"""Gossip under faults of the underlay, on real daemons: names and traffic right again in time.

Full size: ``OVERSWARM_PARTITION_SECONDS=60 OVERSWARM_CHURN_CONTAINERS=200``; short by default.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.cluster import Cluster
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
    start_probe,
    status,
)

from swarm.api.overswarm.v1 import local_pb2
from swarm.lab.faults import Cut
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PARTITION_SECONDS = float(os.environ.get("OVERSWARM_PARTITION_SECONDS", "12"))
CHURN_CONTAINERS = int(os.environ.get("OVERSWARM_CHURN_CONTAINERS", "40"))
HEAL_SECONDS = 10.0
DETECTION_SECONDS = 35.0
"""Five nodes: probed within 5 s, then suspected for 4 to 24 s, names kept 5 s longer in case the node returns."""


@pytest.fixture(scope="module")
def five() -> Iterator[Cluster]:
    """Five nodes, on each a container ``probe-HOST`` on one network."""
    with five_nodes("goss") as cluster:
        yield cluster


def test_halves_heal_within_ten_seconds(five: Cluster) -> None:
    """A partition of half the hosts heals: ten seconds later every name resolves and answers pings, everywhere."""
    wanted = probes(five)
    await_names(five, wanted, 20)
    one, other = ("m1", "w1"), ("w2", "w3", "w4")
    cut = [Cut(sources=one, targets=other), Cut(sources=other, targets=one)]
    five.lab.break_underlay(cut)
    try:
        time.sleep(PARTITION_SECONDS)  # how long it lasts is what the test is about
        assert not pings(five, "m1", wanted["probe-w3"][0])
    finally:
        five.lab.break_underlay([])
    took = await_names(five, wanted, HEAL_SECONDS)
    start = time.monotonic()
    pairs = [(host, each) for host in HOSTS for each in HOSTS if host != each]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda pair: pings(five, pair[0], wanted[f"probe-{pair[1]}"][0]), pairs)
        lost = [pair for pair, answered in zip(pairs, answers, strict=True) if not answered]
    assert lost == []
    print(  # noqa: T201  # with -s
        f"cut for {PARTITION_SECONDS:.0f} s; names right after {took:.1f} s, pings took {time.monotonic() - start:.1f} s"
    )


def test_churn_ends_with_every_answer_right(five: Cluster) -> None:
    """Containers come and go on all hosts at once; in the end every probe gets exactly what exists."""
    rng = random.Random(4)
    made: list[tuple[str, str]] = []
    names = [f"come-{number}" for number in range(CHURN_CONTAINERS)]
    wanted = probes(five)

    def churn(host: str, mine: list[str]) -> dict[str, list[str]]:
        """Start all, remove most, start some of those again; what is left."""
        left: dict[str, list[str]] = {}
        with five.lab.client(host) as client:

            def come(name: str) -> None:
                made.append((host, name))
                client.local.CreateContainer(
                    local_pb2.CreateContainerRequest(
                        name=name,
                        argv=["sleep", "3600"],
                        networks=[local_pb2.NetworkWish(network=NETWORK)],
                    ),
                    timeout=60,
                )
                answer = client.local.StartContainer(
                    local_pb2.StartContainerRequest(container=name), timeout=60
                )
                left[name] = [answer.endpoints[0].addresses[0].split("/")[0]]

            def go(name: str) -> None:
                client.local.RemoveContainer(
                    local_pb2.RemoveContainerRequest(container=name, force=True), timeout=60
                )
                made.remove((host, name))
                left[name] = []

            for name in mine:
                come(name)
            for name in mine[::2] + mine[1::4]:
                go(name)
            for name in mine[::8]:
                come(name)
        return left

    try:
        rng.shuffle(names)
        shares = {host: names[index :: len(HOSTS)] for index, host in enumerate(HOSTS)}
        start = time.monotonic()
        with ThreadPoolExecutor(len(HOSTS)) as pool:
            for left in pool.map(churn, shares.keys(), shares.values()):
                wanted |= left
        spent = time.monotonic() - start
        took = await_names(five, wanted, 30)
        print(  # noqa: T201  # with -s
            f"{CHURN_CONTAINERS} containers in {spent:.1f} s, every answer right {took:.1f} s later"
        )
        assert any(wanted[name] for name in names)
        assert any(not wanted[name] for name in names)
    finally:
        for host in HOSTS:
            mine = [name for each, name in made if each == host]
            if mine:
                five.attempt(host, "rm", "-f", *mine)
    gone = {name: [] for name in names}
    await_names(five, gone, 30)


def test_names_of_a_dead_host_go_in_time(five: Cluster) -> None:
    """The control plane of a host dies without a word: its names are gone everywhere, and return with it."""
    wanted = probes(five)
    await_names(five, wanted, 20)
    others = tuple(host for host in HOSTS if host != "w4")
    five.lab.kill("w4")
    took = await_names(five, wanted | {"probe-w4": []}, DETECTION_SECONDS, others)
    print(f"names gone everywhere {took:.1f} s after the death")  # noqa: T201  # with -s
    five.lab.start("w4")
    await_names(five, wanted, 30)


def test_a_leaving_host_takes_its_entries_along_at_once() -> None:
    """After ``swarm leave`` neither names nor kernel entries of that host remain elsewhere."""
    with clean_lab("gleav") as lab:
        lab.build(("m1", "w1"))
        lab.form(("m1", "w1"))
        cluster = Cluster(lab)
        cluster.network(NETWORK)
        for host in ("m1", "w1"):
            start_probe(cluster, host)
        wanted = probes(cluster, ("m1", "w1"))
        await_names(cluster, wanted, 20, ("m1", "w1"))
        address = wanted["probe-w1"][0]
        assert pings(cluster, "m1", address)
        assert neighbour_device(router(cluster, "m1"), address)
        cluster.swarm("w1", "leave", "--force")
        start = time.monotonic()
        await_names(cluster, wanted | {"probe-w1": []}, 5, ("m1",))

        def forgotten() -> bool:
            shown = subprocess.run(
                ["nsenter", f"--net={router(cluster, 'm1')}", "ip", "-j", "neigh", "show", address],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            return json.loads(shown.stdout or "[]") == []

        wait_until(forgotten, seconds=3, what=lambda: "the kernel still has the entry")
        print(f"names and kernel entries gone {time.monotonic() - start:.1f} s after the leave")  # noqa: T201  # with -s


def test_seeds_come_from_the_live_session(five: Cluster) -> None:
    """Workers have the manager as their seed; the only manager needs none."""
    assert status(five, "m1")["Seeds"] == []
    for host in HOSTS[1:]:
        assert status(five, host)["Seeds"] == [f"{five.lab.state.require('m1').address}:7946"]


def test_the_only_manager_is_among_others_at_once_after_a_restart(five: Cluster) -> None:
    """It has no seeds, and nobody has missed it: it calls those that it noted, then lets go of them."""
    noted = five.lab.state.run_dir("m1") / "members.json"
    wait_until(noted.exists, seconds=20, what=lambda: "m1 notes nobody")

    def alive() -> int:
        return sum(member["State"] == "alive" for member in status(five, "m1")["Members"])

    five.lab.kill("m1")
    five.lab.start("m1")
    wait_until(lambda: alive() == len(HOSTS), seconds=8, what=lambda: f"m1 knows of {alive()}")
    wait_until(
        lambda: status(five, "m1")["Seeds"] == [],
        seconds=15,
        what=lambda: f"m1 goes on to call {status(five, 'm1')['Seeds']}",
    )


def test_gossip_status_shows_everything(five: Cluster) -> None:
    """Members, keys, tables, queues and convergence are there for people and for programs."""
    wait_until(
        lambda: any(member["ComparedEntries"] >= 2 for member in status(five, "w1")["Members"]),
        seconds=90,
        what=lambda: "w1 has compared its entries with nobody",
        pause=1.0,
    )
    shown = status(five, "w1")
    assert len(shown["Members"]) >= len(HOSTS)
    assert len(shown["Keys"]) == 3
    assert {table["Table"] for table in shown["Tables"]} == {"endpoint_table", "overlay_peer_table"}
    (described,) = json.loads(five.swarm("m1", "network", "inspect", NETWORK))
    assert [table["Own"] for table in shown["Tables"] if table["Network"] == described["Id"]] == [
        1,
        1,
    ]
    (network,) = (each for each in shown["NetworkStates"] if each["Id"] == described["Id"])
    assert network["Peers"] == len(HOSTS) - 1
    assert network["InSync"]
    assert any(
        member["ComparedEntries"] >= 2 and member["LackingEntries"] == 0
        for member in shown["Members"]
    )
    text = five.swarm("w1", "gossip")
    for heading in ("COMPARED", "LACKING", "OWN QUEUE", "TOMBSTONES", "COUNTER", "(sending)"):
        assert heading in text
