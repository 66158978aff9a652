"""The root CA is replaced while a worker is away and the leader dies."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cluster import Cluster
from support.labs import clean_lab
from support.majority import MANAGERS, await_managers, leader_of, others
from support.roots import await_root

from swarm.lab.cluster import Lab
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_one_that_is_away_and_a_leader_that_dies(tmp_path: Path) -> None:
    """The worker holds the rotation open and gets in at last; whoever leads meanwhile goes on with it."""
    with clean_lab("lost") as hosts:
        hosts.build([*MANAGERS, "w1"])
        hosts.form([*MANAGERS, "w1"])
        await_managers(hosts, "m1", 3)
        cluster = Cluster(hosts)
        refuse(hosts, cluster, tmp_path)
        old = cluster.swarm("m1", "ca")
        hosts.kill("w1")
        leader = leader_of(hosts, "m1")
        rest = others(leader)
        cluster.swarm(rest[0], "ca", "--rotate", "--detach")
        hosts.kill(leader)
        await_leader(cluster, rest[0])
        assert cluster.swarm(rest[0], "ca") == old
        hosts.start(leader)
        hosts.start("w1")
        new = await_root(cluster, rest[1], old)
        await_managers(hosts, rest[0], 3)
        # Each of them finds its way with what it has on disk.
        for host in (leader, "w1"):
            hosts.kill(host)
            hosts.start(host)
        hosts.await_ready(rest[0], 4)
        assert cluster.swarm(leader, "ca") == new


def await_leader(cluster: Cluster, host: str) -> None:
    """Wait until somebody leads."""
    wait_until(
        lambda: cluster.attempt(host, "node", "ls").returncode == 0,
        seconds=30,
        what=lambda: cluster.attempt(host, "node", "ls").stderr,
    )


def refuse(hosts: Lab, cluster: Cluster, tmp_path: Path) -> None:
    """Ask for what cannot be: one line each, and the root stays."""
    old = cluster.swarm("m1", "ca")
    folder = hosts.state.state_dir("m1") / "certificates"
    leaf, key = tmp_path / "leaf.pem", folder / "swarm-node.key"
    end = "-----END CERTIFICATE-----\n"
    leaf.write_text((folder / "swarm-node.crt").read_text().partition(end)[0] + end)
    for words, text in (
        (("--ca-cert", f"{leaf}", "--ca-key", f"{key}"), "self-signed CA"),
        (("--ca-cert", f"{leaf}"), "come together"),
        (("--cert-expiry", "30m"), "minimum certificate expiry time is: 1h0m0s"),
        (("--external-ca", "protocol=cfssl,url=https://ca"), "not offered"),
    ):
        error = cluster.refused("m1", "ca", "--rotate", *words)
        assert text in error
        assert error.count("\n") == 1
    assert "requires the `--rotate` flag" in cluster.refused("m1", "ca", "--cert-expiry", "2h")
    assert "not a swarm manager" in cluster.refused("w1", "ca")
    assert cluster.swarm("m1", "ca") == old
