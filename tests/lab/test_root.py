"""The root CA is replaced under three managers and a worker that go on working."""

from __future__ import annotations

import hashlib

import pytest
from support.cluster import Cluster
from support.labs import clean_lab
from support.majority import MANAGERS, await_managers, leader_of, others
from support.roots import tls
from support.writer import Writer, check

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_a_rotation_under_work() -> None:
    """Asked of a follower: progress is shown, no write fails, containers reach each other, old tokens are worthless."""
    with clean_lab("root") as hosts:
        hosts.build([*MANAGERS, "w1", "w2"])
        hosts.form([*MANAGERS, "w1"])
        await_managers(hosts, "m1", 3)
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
        assert ledger.longest_gap() < 5
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
