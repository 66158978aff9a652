"""Managers that lost something: their disk, their state, their key, their majority; and a lab by hand."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.labs import clean_lab
from support.majority import (
    MANAGERS,
    SPARE,
    as_formed,
    await_managers,
    await_writes,
    form,
    leader_of,
    node_id,
    others,
)
from support.writer import Writer, check

from swarm.lab.cluster import Lab
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


def fill_up(path: Path) -> None:
    """Add to a file until nothing more fits on its disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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
            await_writes(ledger, 5)

            def full() -> bool:
                fill_up(fill)  # again and again: a file that is replaced leaves room
                return "disk is full" in info_error(managers, host)

            wait_until(
                full,
                seconds=30,
                what=lambda: f"{info_error(managers, host)!r} after {len(ledger.times)} writes",
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
    managers.swarm("m1", "node", "demote", node_id(managers, host))
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
        managers.swarm(last, "node", "promote", node_id(managers, host))
    await_managers(lab, last, 3)
