"""A host whose agent stays dead for longer than others wait for it: its containers run, and so does their traffic."""

from __future__ import annotations

import pytest
from support.cluster import PROGRAM, Cluster

from swarm.api.overswarm.v1 import local_pb2
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(300)]

SECONDS = 110
"""More than until gossip gives the host up (17) and a minute after that."""


def test_traffic_goes_on_while_an_agent_is_dead(cluster: Cluster) -> None:
    """Datagrams to its container, by an address learnt before: each answered; nobody lists it meanwhile."""
    lab = cluster.lab
    cluster.network("silence")
    cluster.swarm(
        "w1", "run", "-d", "--name", "echo", "--network", "silence", "--", *PROGRAM, "echo", "9001"
    )
    address = cluster.address("w1", "echo")
    cluster.swarm(
        "w2", "run", "-d", "--name", "knock", "--network", "silence", "--", "sleep", "600"
    )
    wait_until(
        lambda: (
            cluster.attempt("w2", "exec", "knock", *PROGRAM, "ask", address, "9001").returncode == 0
        ),
        seconds=20,
        what=lambda: "no way to the container",
    )
    lab.kill("w1")
    try:
        words = ("knock", address, "9001", str(SECONDS))
        told = lab.run("w2", "swarm", "exec", "knock", *PROGRAM, *words, timeout=SECONDS + 60)
        with lab.client("w2") as client:
            shown = client.local.ListEndpoints(local_pb2.ListEndpointsRequest(), timeout=10)
    finally:
        lab.start("w1")
    sent, answered = (int(word) for word in told.stdout.split())
    assert sent == answered > SECONDS
    assert address not in {each.address.split("/")[0] for each in shown.remote}
    lab.await_ready("m1", 3)
    cluster.remove("w1", "echo")
    cluster.remove("w2", "knock")
    cluster.remove_network("silence")
