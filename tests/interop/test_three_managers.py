"""Stock engines with three managers of ours: they know them all, and a leader that dies costs them nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.cluster import Cluster
from support.mixed import Mixed, engine_lab, engines_in

from swarm.api.docker.swarmkit import control_pb2, types_pb2
from swarm.errors import SwarmError
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

MANAGERS = ("m1", "m2", "m3")
ENGINES = ("d1", "d2")


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """Three managers of ours and two engines: d1 joined at the leader, d2 at a follower."""
    with engine_lab("trio") as lab:
        lab.build(list(MANAGERS))
        lab.form(list(MANAGERS))
        with engines_in(lab, ENGINES, tmp_path_factory.mktemp("trio")) as engines:
            mixed = Mixed(Cluster(lab), engines)
            token = lab.tokens("m1")["worker"]
            lead = leader(mixed)
            doors = {"d1": lead, "d2": next(each for each in MANAGERS if each != lead)}
            for host, door in doors.items():
                address = lab.state.require(door).address
                engines[host].docker("swarm", "join", "--token", token, f"{address}:2377")
            lab.await_ready("m1", 5)
            yield mixed


@pytest.fixture
def overlay(trio: Mixed) -> Iterator[str]:
    """A fresh attachable network; removed after the test with the containers on it."""
    trio.cluster.network("three")
    yield "three"
    trio.clear()
    trio.cluster.remove_network("three")


def leader(mixed: Mixed, *asked: str) -> str:
    """The host that leads, as one of those asked says; waits until one does."""
    seen: list[str] = []

    def led() -> bool:
        for host in asked or MANAGERS:
            try:
                with mixed.cluster.lab.client(host) as client:
                    nodes = client.control.ListNodes(
                        control_pb2.ListNodesRequest(), timeout=10
                    ).nodes
            except SwarmError:
                continue
            seen.extend(n.description.hostname for n in nodes if n.manager_status.leader)
            if seen:
                return True
        return False

    wait_until(led, seconds=30, what=lambda: "nobody leads")
    return seen[0]


def known_managers(mixed: Mixed, host: str) -> set[str]:
    """The managers' addresses as an engine knows them."""
    peers = json.loads(mixed[host].docker("info", "--format", "{{json .Swarm.RemoteManagers}}"))
    return {peer["Addr"] for peer in peers or ()}


def addresses(mixed: Mixed) -> set[str]:
    """The managers' addresses as they are."""
    return {f"{mixed.cluster.lab.state.require(host).address}:2377" for host in MANAGERS}


def test_engines_know_every_manager(trio: Mixed) -> None:
    """Whichever door it came in by, an engine has the whole list, also on disk for its next start."""
    expected = addresses(trio)
    for host in ENGINES:
        wait_until(
            lambda host=host: known_managers(trio, host) == expected,  # type: ignore[misc]
            seconds=20,
            what=lambda host=host: f"{host} knows {known_managers(trio, host)}",  # type: ignore[misc]
        )
        stored = json.loads((trio[host].folder / "data/swarm/state.json").read_text())
        peers = stored if isinstance(stored, list) else stored[0]
        assert {peer["addr"] for peer in peers} == expected


def test_the_leader_dies_and_engines_go_on(trio: Mixed, overlay: str) -> None:
    """SIGKILL to the leader's host processes: engines are Ready at the next one by themselves, no ping is lost.

    While the old leader is still away: orders reach the engines, they attach, and their names resolve.
    """
    lab = trio.cluster.lab
    target = trio.idle("d1", "still", overlay)
    trio.idle("d2", "walker", overlay)
    trio.eventually_pings("d2", "walker", "still")
    dead = leader(trio)
    alive = [host for host in MANAGERS if host != dead]
    with trio.steady_ping("d2", "walker", target) as counts:
        lab.kill(dead)
        try:
            after = leader(trio, *alive)
            assert after != dead
            for host in ENGINES:
                trio.await_state(host, types_pb2.NODE_STATE_READY, manager=after)
            trio.idle("d1", "newcomer", overlay)
            trio.eventually_pings("d2", "walker", "newcomer")
            trio.idle(alive[0], "ours", overlay)
            trio.eventually_pings("d1", "still", "ours")
            trio.cluster.swarm(after, "node", "update", "--availability", "drain", "d2")
            refused = trio[ENGINES[1]].attempt(
                "run", "--rm", "--network", overlay, "overswarm/busybox", "true"
            )
            assert "drain" in refused.stderr
            trio.cluster.swarm(after, "node", "update", "--availability", "active", "d2")
        finally:
            lab.start(dead)
    assert counts[0] == counts[1], f"{counts[0]} pings sent, {counts[1]} answered"
    lab.await_ready("m1", 5)
    wait_until(
        lambda: all(known_managers(trio, host) == addresses(trio) for host in ENGINES),
        seconds=20,
        what=lambda: f"not everybody is known: {[known_managers(trio, host) for host in ENGINES]}",
    )


def test_an_engine_restarts_while_its_manager_is_away(trio: Mixed, overlay: str) -> None:
    """With the leader dead an engine that starts anew finds another manager in what it stored."""
    lab = trio.cluster.lab
    trio.idle("d2", "waiting", overlay)
    dead = leader(trio)
    alive = [host for host in MANAGERS if host != dead]
    lab.kill(dead)
    try:
        trio["d1"].stop()
        trio["d1"].start()
        after = leader(trio, *alive)
        trio.await_state("d1", types_pb2.NODE_STATE_READY, manager=after)
        trio.idle("d1", "restarted", overlay)
        trio.eventually_pings("d2", "waiting", "restarted")
    finally:
        lab.start(dead)
    lab.await_ready("m1", 5)
