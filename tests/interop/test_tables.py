"""The gossip tables of engines and of our agents, side by side: the same rows, through whatever happens."""

from __future__ import annotations

import json
import signal
from itertools import pairwise

import pytest
from support.mixed import Mixed

from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

EVERY = ("w1", "d1", "d2")


def network_id(mixed: Mixed, name: str) -> str:
    """The id of a network."""
    return str(json.loads(mixed.cluster.swarm("m1", "network", "inspect", name))[0]["Id"])


def fill(mixed: Mixed, network: str) -> set[str]:
    """One container on each host."""
    names = set()
    for host in EVERY:
        mixed.idle(host, f"row-{host}", network)
        names.add(f"row-{host}")
    return names


def test_tables_are_equal_and_lose_what_goes(mixed: Mixed, network: str) -> None:
    """Key, name, address, MAC, tunnel and owner agree on all hosts, after adding and after removing."""
    names = fill(mixed, network)
    identifier = network_id(mixed, network)
    rows = mixed.await_equal_tables(identifier, EVERY, names)
    # One balancer address for each engine's part of the network; ours needs none.
    assert len(rows) == 5
    assert {row.vtep for row in rows} == {
        mixed.cluster.lab.state.require(host).address for host in EVERY
    }
    for row in rows:
        assert row.mac == "02:42:" + ":".join(f"{int(part):02x}" for part in row.address.split("."))
    mixed.remove("d1", "row-d1")
    mixed.idle("w1", "row-new", network)
    mixed.remove("w1", "row-w1")
    # d1 has left the network with its last container, so it has no table any more.
    rows = mixed.await_equal_tables(identifier, ("w1", "d2"), {"row-d2", "row-new"})
    assert len(rows) == 3


def test_everybody_knows_every_member(mixed: Mixed) -> None:
    """Engines list our nodes as gossip members at their own addresses, and we list the engines."""
    hosts = ("m1", "w1", "d1", "d2")
    expected = {mixed.cluster.lab.state.require(host).address for host in hosts}
    seen: dict[str, set[str]] = {}

    def all_known() -> bool:
        for host in ("d1", "d2"):
            lines = mixed.diagnose(host, "clusterpeers").splitlines()
            seen[host] = {line.split()[-1] for line in lines if "->" in line}
        for host in ("m1", "w1"):
            status = json.loads(mixed.cluster.swarm(host, "gossip", "--format", "json"))[0]
            members = [each for each in status["Members"] if each["State"] == "alive"]
            seen[host] = {each["Address"].rpartition(":")[0] for each in members}
        return all(known == expected for known in seen.values())

    wait_until(all_known, seconds=30, what=lambda: f"not everybody is known: {seen}", pause=0.5)


def test_rows_of_a_killed_engine_go(mixed: Mixed, network: str) -> None:
    """An engine killed without a word: its names go everywhere; back again, the tables are equal."""
    names = fill(mixed, network)
    identifier = network_id(mixed, network)
    mixed.await_equal_tables(identifier, EVERY, names)
    mixed["d2"].stop(signal.SIGKILL)
    try:
        wait_until(
            lambda: (
                not mixed.resolves("w1", "row-w1", "row-d2")
                and not mixed.resolves("d1", "row-d1", "row-d2")
            ),
            seconds=30,
            what=lambda: "the dead engine's name is still answered",
            pause=0.3,
        )
        assert mixed.pings("w1", "row-w1", "row-d1"), "the others are not disturbed"
    finally:
        mixed["d2"].start()
    mixed["d2"].docker("start", "row-d2")
    mixed.await_equal_tables(identifier, EVERY, names)
    for host in ("w1", "d1"):
        mixed.eventually_pings(host, f"row-{host}", "row-d2")


def test_rows_of_our_killed_agent_go_and_come_back(mixed: Mixed, network: str) -> None:
    """Our agent killed: engines drop its names like any dead node's, and have them again once it is back."""
    names = fill(mixed, network)
    identifier = network_id(mixed, network)
    mixed.await_equal_tables(identifier, EVERY, names)
    mixed.cluster.lab.kill("w1")
    try:
        wait_until(
            lambda: "row-w1" not in {row.name for row in mixed.engine_table("d1", identifier)},
            seconds=30,
            what=lambda: "the dead agent's rows stay on the engine",
            pause=0.3,
        )
    finally:
        mixed.cluster.lab.start("w1")
    mixed.await_equal_tables(identifier, EVERY, names)
    for host in ("d1", "d2"):
        mixed.eventually_pings(host, f"row-{host}", "row-w1")


def test_keys_rotate_under_traffic(mixed: Mixed, network: str) -> None:
    """Two rotations, each a generation: engines and agents follow, nothing is undecipherable, new rows cross at once.

    The period is longer than anybody's longest pause between two sessions: an engine that misses a
    generation is mute until the next.
    """
    names = fill(mixed, network)
    identifier = network_id(mixed, network)
    lab = mixed.cluster.lab
    path = lab.state.state_dir("m1") / "manager.json"
    before = path.read_text()
    logged = {host: len(mixed[host].log.read_text()) for host in ("d1", "d2")}
    lab.kill("m1")
    path.write_text(json.dumps({**json.loads(before), "key_rotation_ns": 9_000_000_000}))
    lab.start("m1")
    try:
        lab.await_ready("m1", 4)
        for number in range(2):
            held = fingerprints(mixed)
            wait_until(
                lambda held=held: fingerprints(mixed) != held,  # type: ignore[misc]
                seconds=20,
                what=lambda: "the keys do not rotate",
                pause=0.2,
            )
            name = f"key-{number}"
            mixed.idle("d1" if number % 2 else "w1", name, network)
            names.add(name)
            mixed.await_equal_tables(identifier, EVERY, names)
        sets = generations(mixed, "w1")
        assert len(sets) >= 3
        for older, newer in pairwise(sets):
            assert newer[:2] == older[1:], "each rotation replaces one key of three"
    finally:
        lab.kill("m1")
        path.write_text(before)
        lab.start("m1")
        lab.await_ready("m1", 4)
    mixed.await_equal_tables(identifier, EVERY, names)
    for host in ("d1", "d2"):
        log = mixed[host].log.read_text()[logged[host] :]
        undecrypted = [
            line for line in log.splitlines() if "No installed keys could decrypt" in line
        ]
        assert undecrypted == []


def generations(mixed: Mixed, host: str) -> list[list[str]]:
    """The key sets a daemon of ours has had since its last start, in order, as it says in its log."""
    lines = mixed.cluster.lab.state.log(host).read_text().splitlines()
    told = [json.loads(line) for line in lines if '"gossip.' in line]
    last = max(i for i, each in enumerate(told) if each["event"] == "gossip.started")
    named = {"gossip.started", "gossip.keys.changed"}
    return [each["keys"] for each in told[last:] if each["event"] in named]


def fingerprints(mixed: Mixed) -> list[str]:
    """The keys in use on w1."""
    status = json.loads(mixed.cluster.swarm("w1", "gossip", "--format", "json"))[0]
    return list(status["Keys"])
