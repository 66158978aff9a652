"""Gossip under faults of the underlay, on real daemons: names and traffic right again in time.

Full size: ``OVERSWARM_PARTITION_SECONDS=60 OVERSWARM_CHURN_CONTAINERS=200``; short by default.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.cluster import PROGRAM, Cluster
from support.labs import clean_lab

from swarm.api.overswarm.v1 import local_pb2
from swarm.lab.faults import Cut
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

HOSTS = ("m1", "w1", "w2", "w3", "w4")
NETWORK = "gossip-net"
PARTITION_SECONDS = float(os.environ.get("OVERSWARM_PARTITION_SECONDS", "12"))
CHURN_CONTAINERS = int(os.environ.get("OVERSWARM_CHURN_CONTAINERS", "40"))
HEAL_SECONDS = 10.0
DETECTION_SECONDS = 35.0
"""Five nodes: probed within 5 s, then suspected for 4 to 24 s, names kept 5 s longer in case the node returns."""

RESOLVE = """
import json, sys
import dns.exception, dns.resolver
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers, resolver.lifetime = ["127.0.0.11"], 2.0
found = {}
for name in json.load(sys.stdin):
    try:
        found[name] = sorted(str(each) for each in resolver.resolve(name, "A"))
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        found[name] = []
    except dns.exception.DNSException as error:
        found[name] = [type(error).__name__]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def five() -> Iterator[Cluster]:
    """Five nodes, on each a container ``probe-HOST`` on one network."""
    with clean_lab("goss") as lab:
        lab.build(HOSTS)
        lab.form(HOSTS)
        cluster = Cluster(lab)
        cluster.network(NETWORK)
        for host in HOSTS:
            cluster.swarm(
                host,
                "run",
                "-d",
                "--name",
                f"probe-{host}",
                "--network",
                NETWORK,
                "--",
                "sleep",
                "3600",
            )
        yield cluster


def probes(cluster: Cluster, hosts: tuple[str, ...] = HOSTS) -> dict[str, list[str]]:
    """The addresses of the probes of some hosts by name."""
    return {f"probe-{host}": [cluster.address(host, f"probe-{host}")] for host in hosts}


def resolved(cluster: Cluster, host: str, names: list[str]) -> dict[str, list[str]]:
    """What the probe of a host gets for names, all asked by one process."""
    argv = ("swarm", "exec", "-i", f"probe-{host}", sys.executable, "-c", RESOLVE)
    result = cluster.lab.run(host, *argv, stdin=json.dumps(names), timeout=120)
    assert result.returncode == 0, result.stderr
    answers: dict[str, list[str]] = json.loads(result.stdout)
    return answers


def everywhere(
    cluster: Cluster, names: list[str], hosts: tuple[str, ...] = HOSTS
) -> dict[str, dict[str, list[str]]]:
    """What every probe gets for names."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = pool.map(lambda host: resolved(cluster, host, names), hosts)
        return dict(zip(hosts, found, strict=True))


def pings(cluster: Cluster, host: str, address: str) -> bool:
    """Whether a probe reaches an address."""
    words = ("exec", f"probe-{host}", "ping", "-c", "1", "-W", "1", address)
    return cluster.attempt(host, *words).returncode == 0


def status(cluster: Cluster, host: str) -> dict[str, Any]:
    """``swarm gossip`` as JSON."""
    (shown,) = json.loads(cluster.swarm(host, "gossip", "--format", "json"))
    return dict(shown)


def await_names(
    cluster: Cluster, wanted: dict[str, list[str]], seconds: float, hosts: tuple[str, ...] = HOSTS
) -> float:
    """Wait until every probe gets exactly these answers; how long it took."""
    seen: dict[str, dict[str, list[str]]] = {}
    start = time.monotonic()

    def right() -> bool:
        seen.update(everywhere(cluster, sorted(wanted), hosts))
        return all(answers == wanted for answers in seen.values())

    def wrong() -> str:
        return str({
            host: {name: (got, wanted[name]) for name, got in answers.items() if got != wanted[name]}
            for host, answers in seen.items()
        })  # fmt: skip

    wait_until(right, seconds=seconds, what=wrong, pause=0.1)
    return time.monotonic() - start


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


def test_seeds_come_from_the_live_session(five: Cluster) -> None:
    """Workers have the manager as their seed; the only manager needs none."""
    assert status(five, "m1")["Seeds"] == []
    for host in HOSTS[1:]:
        assert status(five, host)["Seeds"] == [f"{five.lab.state.require('m1').address}:7946"]


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


def router(cluster: Cluster, host: str) -> str:
    """The namespace file of the network's router on a host."""
    found = list(cluster.lab.state.run_dir(host).rglob("netns/*"))
    assert found, "no router namespace"
    return str(found[0])


def neighbour_device(netns: str, address: str) -> str:
    """The device of a neighbour entry."""
    shown = subprocess.run(
        ["nsenter", f"--net={netns}", "ip", "-j", "neigh", "show", address],
        check=True,
        capture_output=True,
        text=True,
    )
    return str(json.loads(shown.stdout)[0]["dev"])


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


def test_a_leaving_host_takes_its_entries_along_at_once() -> None:
    """After ``swarm leave`` neither names nor kernel entries of that host remain elsewhere."""
    with clean_lab("gleav") as lab:
        lab.build(("m1", "w1"))
        lab.form(("m1", "w1"))
        cluster = Cluster(lab)
        cluster.network(NETWORK)
        for host in ("m1", "w1"):
            cluster.swarm(
                host,
                "run",
                "-d",
                "--name",
                f"probe-{host}",
                "--network",
                NETWORK,
                "--",
                "sleep",
                "600",
            )
        wanted = probes(cluster, ("m1", "w1"))
        await_names(cluster, wanted, 20, ("m1", "w1"))
        address = wanted["probe-w1"][0]
        assert pings(cluster, "m1", address)
        assert neighbour_device(router(cluster, "m1"), address)
        cluster.swarm("w1", "leave", "--force")
        start = time.monotonic()
        await_names(cluster, wanted | {"probe-w1": []}, 3, ("m1",))

        def forgotten() -> bool:
            shown = subprocess.run(
                ["nsenter", f"--net={router(cluster, 'm1')}", "ip", "-j", "neigh", "show", address],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            return json.loads(shown.stdout or "[]") == []

        wait_until(forgotten, seconds=3, what=lambda: "the kernel still has the entry")
        print(f"names and kernel entries gone {time.monotonic() - start:.1f} s after the leave")  # noqa: T201  # with -s


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
