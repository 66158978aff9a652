"""Managers on real processes: killed, paused, cut off, more and fewer, with a writer running all the time.

One lab for all: five hosts for managers, of which three manage between the tests, and a worker.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from support.cluster import Cluster
from support.labs import clean_lab
from support.majority import (
    MANAGERS,
    SPARE,
    as_formed,
    await_managers,
    await_managers_anywhere,
    await_writes,
    form,
    leader_of,
    node_id,
    others,
)
from support.writer import Writer, check

from swarm.lab import processes
from swarm.lab.cluster import Lab
from swarm.lab.faults import Cut
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    """A lab for all; nothing stays after it."""
    with clean_lab("mgr") as lab:
        form(lab)
        yield lab


@pytest.fixture
def managers(hosts: Lab) -> Cluster:
    """Three managers, a worker, and two hosts that belong to nobody."""
    return as_formed(hosts)


def test_every_manager_answers_every_command(managers: Cluster) -> None:
    """A network made through each of them is seen through all at once; the table says who leads."""
    for host in MANAGERS:
        managers.swarm(host, "network", "create", f"via-{host}")
        for other in MANAGERS:
            assert f"via-{host}" in managers.swarm(other, "network", "ls")
    rows = [
        json.loads(line)
        for line in managers.swarm("m3", "node", "ls", "--format", "json").splitlines()
    ]
    shown = sorted(row["ManagerStatus"] for row in rows if row["ManagerStatus"])
    assert shown == ["Leader", "Reachable", "Reachable"]
    for host in MANAGERS:
        managers.swarm("m1", "network", "rm", f"via-{host}")


def test_one_to_three_to_five_to_three_managers_under_load(managers: Cluster) -> None:
    """Managers join, are demoted, leave and are promoted while a writer and attachments go on."""
    lab = managers.lab
    managers.network("load")
    for host in ("m2", "m3"):
        managers.swarm(host, "leave")
    await_managers(lab, "m1", 1)
    with Writer(lab, ["m1", "m2", "m3"], "grow").running() as ledger:
        token = lab.tokens("m1")["manager"]
        for host in ("m2", "m3"):
            lab.join(host, lab.state.require("m1").address, token)
        await_managers(lab, "m1", 3)
        for host in SPARE:
            lab.join(host, lab.state.require("m2").address, token)
        await_managers(lab, "m1", 5)
        first = managers.serve("w1", "before", "load")
        managers.swarm("m3", "node", "demote", node_id(managers, leader_of(lab, "m1")))
        await_managers_anywhere(managers, 4)
        managers.swarm("m5", "leave")
        second = managers.serve("w1", "after", "load")
        await_managers_anywhere(managers, 3)
    assert first != second
    managers.remove("w1", "before", "after")
    # Back to m1, m2, m3.
    answering = next(
        h for h in (*MANAGERS, "m4") if managers.attempt(h, "node", "ls").returncode == 0
    )
    for host in MANAGERS:
        managers.swarm(answering, "node", "promote", node_id(managers, host))
    if answering == "m4":
        await_managers(lab, answering, 4)
        answering = "m1"
    await_managers_anywhere(managers, 4)
    managers.swarm("m4", "leave")
    await_managers(lab, answering, 3)
    check(lab, "m1", ledger)
    assert len(ledger.times) > 20
    # Only who asks one that does not manage (yet, any more) hears of it; nobody else meets an error.
    demoted = ("not a swarm manager", "is not answering")
    assert [each for each in ledger.failures if not any(word in each for word in demoted)] == []


def test_kill_nine_of_the_leader_loses_nothing(managers: Cluster) -> None:
    """The others go on within seconds; what was acknowledged is there, also on the one that comes back."""
    lab = managers.lab
    leader = leader_of(lab, "m1")
    rest = others(leader)
    with Writer(lab, rest, "kill").running() as ledger:
        await_writes(ledger, 10)
        lab.kill(leader)
        await_writes(ledger, 10)
    lab.start(leader)
    await_managers(lab, rest[0], 3)
    for host in MANAGERS:
        check(lab, host, ledger)
    # The calls wait for the new leader instead of failing.
    assert ledger.failures == []
    assert ledger.longest_gap() < 6


def test_kill_nine_of_all_managers_loses_nothing(managers: Cluster) -> None:
    """As after a power cut of the whole room."""
    lab = managers.lab
    with Writer(lab, MANAGERS, "room").running() as ledger:
        await_writes(ledger, 20)
        found = [
            pid for host in MANAGERS for pid in processes.matching(lab.state, host, "-m", "agent")
        ]
        found += [
            pid for host in MANAGERS for pid in processes.matching(lab.state, host, "-m", "manager")
        ]
        processes.send(found, 9)
        wait_until(
            lambda: processes.reap() is None and not any(map(processes.start_time, found)),
            seconds=10,
            what=lambda: "processes stay",
        )
    for host in MANAGERS:
        lab.start(host)
    await_managers(lab, "m1", 3)
    for host in MANAGERS:
        check(lab, host, ledger)


def test_a_paused_leader_is_replaced_and_follows_when_it_wakes(managers: Cluster) -> None:
    """SIGSTOP for longer than an election: nothing it says afterwards undoes what the others did."""
    lab = managers.lab
    leader = leader_of(lab, "m1")
    rest = others(leader)
    with Writer(lab, rest, "pause").running() as ledger:
        await_writes(ledger, 10)
        lab.pause(leader)
        await_writes(ledger, 10)
        assert leader_of(lab, rest[0]) != leader
        lab.resume(leader)
        await_managers(lab, leader, 3)
    assert leader_of(lab, leader) != leader
    for host in MANAGERS:
        check(lab, host, ledger)


def test_a_leader_in_the_minority_stops_acknowledging(managers: Cluster) -> None:
    """Cut off in both directions: it says that there is no leader; the others go on; nothing forks."""
    lab = managers.lab
    leader = leader_of(lab, "m1")
    rest = others(leader)
    with (
        Writer(lab, rest, "major").running() as ledger,
        Writer(lab, [leader], "minor").running() as cut_off,
    ):
        await_writes(cut_off, 5)
        lab.break_underlay(
            [Cut(sources=(leader,), targets=rest), Cut(sources=rest, targets=(leader,))]
        )
        broken = time.monotonic()
        try:
            text = managers.refused(leader, "network", "create", "minority")
            assert "does not have a leader" in text
            assert time.monotonic() - broken < 20
            await_writes(ledger, 10)
        finally:
            healed = time.monotonic()
            lab.break_underlay([])
        await_managers(lab, leader, 3)
        await_writes(cut_off, 5)
    # A write whose answer was on its way at the cut is acknowledged, none after that.
    assert [at - broken for at in cut_off.times if broken + 0.5 < at < healed] == []
    for host in MANAGERS:
        check(lab, host, ledger)
        check(lab, host, cut_off)
    assert "minority" not in managers.swarm(leader, "network", "ls")


@pytest.mark.parametrize("deaf", [True, False], ids=["hears-nobody", "is-heard-by-nobody"])
def test_a_leader_that_is_cut_off_one_way_is_replaced(managers: Cluster, deaf: bool) -> None:
    """Only its frames pass, or only theirs: it steps down, or is not waited for."""
    lab = managers.lab
    leader = leader_of(lab, "m1")
    rest = others(leader)
    with Writer(lab, rest, "oneway").running() as ledger:
        one, other = (rest, (leader,)) if deaf else ((leader,), rest)
        lab.break_underlay([Cut(sources=one, targets=other)])
        try:
            await_writes(ledger, 10)
            assert leader_of(lab, rest[0]) in rest
        finally:
            lab.break_underlay([])
        await_managers(lab, leader, 3)
    for host in MANAGERS:
        check(lab, host, ledger)


def test_a_bridge_node_keeps_the_swarm_going(managers: Cluster) -> None:
    """Two managers cannot see each other, the third sees both: writes go on, leadership settles."""
    lab = managers.lab
    leader = leader_of(lab, "m1")
    bridge, cut = others(leader)
    lab.break_underlay(
        [Cut(sources=(leader,), targets=(cut,)), Cut(sources=(cut,), targets=(leader,))]
    )
    try:
        with Writer(lab, [bridge], "bridge").running() as ledger:
            await_writes(ledger, 20)
            settled = leader_of(lab, bridge)
            await_writes(ledger, 40)
            assert leader_of(lab, bridge) == settled
    finally:
        lab.break_underlay([])
    await_managers(lab, bridge, 3)
    for host in MANAGERS:
        check(lab, host, ledger)
