"""Managers on real processes: lost, paused, cut off, full, restored; with a writer running all the time.

One lab for almost all: five hosts for managers, of which three manage between the tests, and a worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.labs import clean_lab
from support.writer import Ledger, Writer, check

from swarm.api.docker.swarmkit import control_pb2, types_pb2
from swarm.errors import SwarmError
from swarm.lab import processes
from swarm.lab.cluster import Lab
from swarm.lab.faults import Cut
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

MANAGERS = ("m1", "m2", "m3")
SPARE = ("m4", "m5")


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    """A lab for all; nothing stays after it."""
    with clean_lab("mgr") as lab:
        form(lab)
        yield lab


@pytest.fixture
def managers(hosts: Lab) -> Cluster:
    """Three managers, a worker, and two hosts that belong to nobody; made anew where a test left others."""
    try:
        await_managers(hosts, "m1", 3)
        if set(statuses(hosts, "m1")) == set(MANAGERS):
            return Cluster(hosts)
    except SwarmError:
        pass
    hosts.down()
    form(hosts)
    return Cluster(hosts)


def form(lab: Lab) -> None:
    """Make the hosts, and a cluster of three managers and a worker."""
    lab.build([*MANAGERS, *SPARE, "w1"])
    lab.form([*MANAGERS, "w1"])
    await_managers(lab, "m1", 3)


def statuses(lab: Lab, host: str) -> dict[str, types_pb2.ManagerStatus]:
    """The managers by host name, as one of them sees them."""
    with lab.client(host) as opened:
        nodes = opened.control.ListNodes(control_pb2.ListNodesRequest(), timeout=10).nodes
    return {n.description.hostname: n.manager_status for n in nodes if n.HasField("manager_status")}


def await_managers(lab: Lab, host: str, count: int) -> None:
    """Wait until so many managers are reachable, one of them leading."""
    seen: list[str] = []

    def settled() -> bool:
        try:
            found = statuses(lab, host)
        except SwarmError as error:
            seen.append(str(error))
            return False
        seen.append(str(found))
        good = sum(
            each.reachability == types_pb2.RAFT_MEMBER_REACHABILITY_REACHABLE
            for each in found.values()
        )
        return len(found) == good == count and any(each.leader for each in found.values())

    wait_until(settled, seconds=40, what=lambda: f"no {count} managers: {seen[-1]}")


def leader_of(lab: Lab, host: str) -> str:
    """The host that leads."""
    return next(name for name, status in statuses(lab, host).items() if status.leader)


def await_writes(ledger: Ledger, count: int) -> None:
    """Wait for so many more acknowledgements."""
    seen = len(ledger.times)
    wait_until(
        lambda: len(ledger.times) >= seen + count,
        seconds=40,
        what=lambda: f"{len(ledger.times) - seen} of {count} writes: {ledger.failures[-3:]}",
    )


def others(host: str) -> tuple[str, ...]:
    """The managing hosts but one."""
    return tuple(each for each in MANAGERS if each != host)


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
    assert sorted(row["ManagerStatus"] for row in rows) == ["", "Leader", "Reachable", "Reachable"]
    for host in MANAGERS:
        managers.swarm("m1", "network", "rm", f"via-{host}")


def test_the_command_line_kills_a_manager_under_a_writer() -> None:
    """``swarm lab up --managers 3 --workers 1`` and ``swarm lab kill m1``, exactly as a person would."""
    with clean_lab("mcli") as lab:

        def command(*words: str) -> None:
            argv = [sys.executable, "-m", "swarm.cli.main", "lab", "--name", lab.name, *words]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr

        command("up", "--managers", "3", "--workers", "1")
        with Writer(lab, ["m2", "m3"], "cli").running() as ledger:
            await_writes(ledger, 10)
            command("kill", "m1")
            await_writes(ledger, 10)
        command("start", "m1")
        await_managers(lab, "m2", 3)
        for host in MANAGERS:
            check(lab, host, ledger)
        assert ledger.failures == []


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
        managers.swarm("m3", "node", "demote", leader_of(lab, "m1"))
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
        managers.swarm(answering, "node", "promote", host)
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


def await_managers_anywhere(managers: Cluster, count: int) -> None:
    """Wait as :func:`await_managers`, asking whichever host manages."""

    def ready() -> bool:
        for host in (*MANAGERS, *SPARE):
            try:
                found = statuses(managers.lab, host)
            except SwarmError:
                continue
            return len(found) == count and any(each.leader for each in found.values())
        return False

    wait_until(ready, seconds=40, what=lambda: f"there are no {count} managers")


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


def fill_up(path: Path) -> None:
    """Write a file until nothing more fits on its disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(descriptor, bytes(size))
    finally:
        os.close(descriptor)


def info_error(managers: Cluster, host: str) -> str:
    """What a node says is wrong with it."""
    return managers.swarm(host, "info", "--format", "{{.Error}}").strip()


def test_a_manager_with_a_full_disk_says_so_and_recovers(managers: Cluster) -> None:
    """The others go on; the one without room ends with a clear word, and is back once there is room."""
    lab = managers.lab
    host = SPARE[0]
    directory = lab.state.state_dir(host)
    if (
        managers.lab.run(host, "swarm", "info", "--format", "{{.Swarm}}").stdout.strip()
        != "inactive"
    ):
        managers.swarm(host, "leave", "--force")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "lab-full", directory], check=True)
    try:
        lab.join(host, lab.state.require("m1").address, lab.tokens("m1")["manager"])
        await_managers(lab, "m1", 4)
        fill = directory / "fill"
        with Writer(lab, MANAGERS, "full").running() as ledger:
            fill_up(fill)
            wait_until(
                lambda: "disk is full" in info_error(managers, host),
                seconds=20,
                what=lambda: info_error(managers, host),
            )
            await_writes(ledger, 10)
            fill.unlink()
            lab.kill(host)  # or its supervisor tries again within ten seconds
            lab.start(host)
            await_managers(lab, "m1", 4)
        check(lab, host, ledger)
        managers.swarm(host, "leave")
        await_managers(lab, "m1", 3)
    finally:
        if "inactive" not in lab.run(host, "swarm", "info").stdout:
            lab.run(host, "swarm", "leave", "--force")
        subprocess.run(["umount", "-l", directory], check=True)


def test_a_manager_restored_from_an_old_copy_is_refused(managers: Cluster, tmp_path: Path) -> None:
    """It would break what it confirmed: it is told, says so, and stays refused over restarts.

    The copy is as many starts old as the one that replaced it, so only what is missing gives it away.
    """
    lab = managers.lab
    host = SPARE[1]
    lab.join(host, lab.state.require("m1").address, lab.tokens("m1")["manager"])
    await_managers(lab, "m1", 4)
    raft = lab.state.state_dir(host) / "raft"
    lab.kill(host)
    shutil.copytree(raft, tmp_path / "copy")
    lab.start(host)
    await_managers(lab, "m1", 4)
    managers.swarm("m1", "network", "create", "since")
    await_managers(lab, "m1", 4)
    managers.swarm("m1", "network", "rm", "since")
    lab.kill(host)
    shutil.rmtree(raft)
    shutil.copytree(tmp_path / "copy", raft)
    lab.start(host)
    for _ in range(2):
        wait_until(
            lambda: "restored from an old copy" in info_error(managers, host),
            seconds=20,
            what=lambda: info_error(managers, host),
        )
        lab.kill(host)
        lab.start(host)
    managers.swarm("m1", "network", "create", "goes-on")
    managers.swarm("m1", "network", "rm", "goes-on")
    node = managers.swarm(host, "info", "--format", "{{.NodeID}}").strip()
    managers.swarm("m1", "node", "demote", node)
    await_managers(lab, "m1", 3)
    managers.swarm(host, "leave", "--force")


def test_a_locked_manager_takes_part_only_after_its_key(managers: Cluster) -> None:
    """Autolock on, a restart, a wrong key, the right one, a rotated one, autolock off."""
    lab = managers.lab
    told = managers.swarm("m1", "update", "--autolock=true")
    key = next(word for word in told.split() if word.startswith("SWMKEY-1-"))
    assert managers.swarm("m2", "unlock-key", "-q").strip() == key
    host = others(leader_of(lab, "m1"))[0]
    answering = next(each for each in MANAGERS if each != host)
    lab.kill(host)
    lab.start(host)
    wait_until(
        lambda: "Swarm: locked" in managers.swarm(host, "info"),
        seconds=20,
        what=lambda: managers.swarm(host, "info"),
    )
    wrong = lab.run(host, "swarm", "unlock", stdin="SWMKEY-1-" + "A" * 43 + "\n")
    assert wrong.returncode == 1
    assert "invalid key provided" in wrong.stderr
    right = lab.run(host, "swarm", "unlock", stdin=key + "\n")
    assert right.returncode == 0, right.stderr
    await_managers(lab, answering, 3)
    rotated = managers.swarm(host, "unlock-key", "--rotate", "-q").strip()
    assert rotated != key
    managers.swarm("m1", "update", "--autolock=false")
    assert "no unlock key" in managers.refused("m2", "unlock-key", "-q")
    lab.kill(host)
    lab.start(host)
    await_managers(lab, answering, 3)


def test_a_lost_quorum_is_restored_by_force_new_cluster(managers: Cluster) -> None:
    """Two of three are gone for good: every answer says so until the last one goes on alone."""
    lab = managers.lab
    managers.swarm("m1", "network", "create", "kept")
    last, *gone = MANAGERS
    for host in gone:
        lab.kill(host)
    wait_until(
        lambda: "does not have a leader" in managers.attempt(last, "node", "ls").stderr,
        seconds=20,
        what=lambda: managers.attempt(last, "node", "ls").stderr,
    )
    assert "lose the consensus" in managers.refused(last, "leave")
    address = lab.state.require(last).address
    managers.swarm(last, "init", "--force-new-cluster", "--advertise-addr", address)
    await_managers(lab, last, 1)
    assert "kept" in managers.swarm(last, "network", "ls")
    for host in gone:
        lab.start(host)
        wait_until(
            lambda host=host: "IsManager: false" in managers.swarm(host, "info"),
            seconds=40,
            what=lambda host=host: managers.swarm(host, "info"),
        )
    managers.swarm(last, "network", "rm", "kept")
    # Three again, as the other tests expect.
    for host in gone:
        node = managers.swarm(host, "info", "--format", "{{.NodeID}}").strip()
        managers.swarm(last, "node", "promote", node)
    await_managers(lab, last, 3)
