"""The root CA is replaced under three managers and workers that go on working."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.labs import clean_lab
from support.majority import MANAGERS, await_managers, leader_of, others
from support.writer import Writer, check

from swarm.errors import SwarmError
from swarm.lab.cluster import Lab
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture(scope="module")
def hosts() -> Iterator[Lab]:
    """Three managers, a worker, and a host that belongs to nobody; nothing stays after them."""
    with clean_lab("root") as lab:
        lab.build([*MANAGERS, "w1", "w2"])
        lab.form([*MANAGERS, "w1"])
        await_managers(lab, "m1", 3)
        yield lab


def tls(cluster: Cluster, host: str) -> dict[str, str]:
    """What ``node ls`` says of each node's certificate."""
    rows = cluster.swarm(host, "node", "ls", "--format", "json").splitlines()
    return {row["Hostname"]: row["TLSStatus"] for row in map(json.loads, rows)}


def await_root(cluster: Cluster, host: str, old: str) -> str:
    """Wait until a rotation has ended and every node says so; the new root."""
    seen: list[object] = []

    def ended() -> bool:
        try:
            seen[:] = [cluster.swarm(host, "ca"), tls(cluster, host)]
        except (SwarmError, AssertionError) as error:
            seen[:] = [error, {}]
            return False
        return seen[0] != old and set(tls(cluster, host).values()) == {"Ready"}

    wait_until(ended, seconds=60, what=lambda: f"the rotation does not end: {seen[1]}")
    return str(seen[0])


def test_a_rotation_under_work(hosts: Lab) -> None:
    """Asked of a follower: the progress is shown, no write and no ping fails, old tokens are worth nothing."""
    cluster = Cluster(hosts)
    old, tokens = cluster.swarm("m1", "ca"), hosts.tokens("m1")
    assert old.startswith("-----BEGIN CERTIFICATE-----")
    cluster.network("steady")
    cluster.serve("w1", "a", "steady")
    cluster.serve("m3", "b", "steady")
    cluster.eventually_fetches("w1", "steady", "http://b:8080/")
    follower = others(leader_of(hosts, "m1"))[0]
    with Writer(hosts, MANAGERS, "root").running() as ledger:
        shown = cluster.swarm(follower, "ca", "--rotate")
        cluster.eventually_fetches("m2", "steady", "http://a:8080/")
    assert ledger.failures == []
    check(hosts, "m1", ledger)
    new = cluster.swarm("m1", "ca")
    assert new != old
    digest = hashlib.sha256(new.encode()).hexdigest()
    assert shown.startswith(f"desired root digest: sha256:{digest}\n")
    assert "  rotated TLS certificates:  4/4 nodes\n" in shown
    assert "  rotated CA certificates:   4/4 nodes\n" in shown
    assert shown.endswith(new)
    assert {cluster.swarm(host, "ca") for host in MANAGERS} == {new}
    assert set(tls(cluster, "m1").values()) == {"Ready"}
    for host in (*MANAGERS, "w1"):
        folder = hosts.state.state_dir(host) / "certificates"
        assert (folder / "swarm-root-ca.crt").read_text().strip() == new.strip()
    error = cluster.refused(
        "w2", "join", "--token", tokens["worker"], hosts.state.require("m1").address
    )
    assert "digest" in error or "token" in error
    hosts.join("w2", hosts.state.require("m2").address, hosts.tokens("m1")["worker"])
    hosts.await_ready("m1", 5)
    cluster.remove("w1", "a")
    cluster.remove("m3", "b")
    cluster.swarm("w2", "leave")
    cluster.swarm("m1", "node", "rm", "--force", "w2")


def test_one_that_is_away_and_a_leader_that_dies(hosts: Lab) -> None:
    """The worker holds the rotation open and gets in at last; whoever leads meanwhile goes on with it."""
    cluster = Cluster(hosts)
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


def test_what_is_refused(hosts: Lab, tmp_path: Path) -> None:
    """One line each, and the root stays."""
    cluster = Cluster(hosts)
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
