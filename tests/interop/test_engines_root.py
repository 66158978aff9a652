"""Our root is replaced, and stock engines follow; for theirs and us see ``test_we_join.py``."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from support.mixed import Mixed

from swarm.api.docker.swarmkit import types_pb2
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]


def rows(mixed: Mixed) -> dict[str, dict[str, str]]:
    """``swarm node ls`` by host name."""
    lines = mixed.cluster.swarm("m1", "node", "ls", "--format", "json").splitlines()
    return {row["Hostname"]: row for row in map(json.loads, lines)}


def certificates(mixed: Mixed, host: str) -> Path:
    """Where an engine keeps its certificate and root."""
    return mixed[host].folder / "data" / "swarm" / "certificates"


def await_end(mixed: Mixed, old: str) -> str:
    """Wait until everybody has the new root; return it."""
    wait_until(
        lambda: (
            mixed.cluster.swarm("m1", "ca") != old
            and {row["TLSStatus"] for row in rows(mixed).values()} == {"Ready"}
        ),
        seconds=60,
        what=lambda: f"the rotation does not end: {rows(mixed)}",
        pause=0.3,
    )
    return mixed.cluster.swarm("m1", "ca")


def test_engines_follow_our_root(mixed: Mixed, network: str) -> None:
    """Renewed through the cross-signed root, then told the new one; no ping is lost, work goes on after."""
    target = mixed.serve("w1", "before", network)
    mixed.idle("d1", "watch", network)
    mixed.eventually_pings("d1", "watch", "before")
    old = mixed.cluster.swarm("m1", "ca")
    before = {
        host: (certificates(mixed, host) / "swarm-node.crt").read_bytes() for host in ("d1", "d2")
    }
    with mixed.steady_ping("d1", "watch", target) as counts:
        mixed.cluster.swarm("m1", "ca", "--rotate", "--detach")
        new = await_end(mixed, old)
    assert counts[0] == counts[1], f"{counts[0]} pings sent, {counts[1]} answered"
    for host, pem in before.items():
        assert (certificates(mixed, host) / "swarm-node.crt").read_bytes() != pem
        assert (certificates(mixed, host) / "swarm-root-ca.crt").read_text().strip() == new.strip()
    mixed.cluster.lab.await_ready("m1", 4)
    mixed.idle("d2", "after", network)
    mixed.eventually_pings("d2", "after", "before")
    # An engine that starts anew finds its way with what it has stored.
    mixed["d2"].stop(signal.SIGTERM)
    mixed["d2"].start()
    mixed.await_state("d2", types_pb2.NODE_STATE_READY)


def test_an_engine_that_is_away_holds_the_rotation_open(mixed: Mixed, network: str) -> None:
    """Its old certificate gets it in when it is back, and the rotation ends."""
    old = mixed.cluster.swarm("m1", "ca")
    mixed["d2"].stop(signal.SIGKILL)
    mixed.cluster.swarm("m1", "ca", "--rotate", "--detach")
    mixed.idle("d1", "meanwhile", network)
    assert mixed.cluster.swarm("m1", "ca") == old
    mixed["d2"].start()
    mixed.await_state("d2", types_pb2.NODE_STATE_READY)
    await_end(mixed, old)
    mixed.idle("d2", "returned", network)
    mixed.eventually_pings("d2", "returned", "meanwhile")
