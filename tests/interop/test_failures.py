"""Managers, agents and engines die and come back: traffic goes on, everybody finds each other again."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from support.mixed import Mixed
from support.renewal import hellos, nearly_expired, stored

from swarm.api.docker.swarmkit import types_pb2
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]


def test_manager_killed_and_back(mixed: Mixed, network: str) -> None:
    """SIGKILL to our only manager: no ping is lost, engines are Ready again by themselves, addresses stay unique."""
    target = mixed.serve("w1", "base", network)
    first = mixed.idle("d1", "rover", network)
    mixed.eventually_pings("d1", "rover", "base")
    with mixed.steady_ping("d1", "rover", target) as counts:
        mixed.cluster.lab.kill("m1", manager_only=True)
        # The same names answer while there is no manager.
        assert mixed.pings("d1", "rover", "base")
        mixed.cluster.lab.await_ready("m1", 4)
        second = mixed.idle("d2", "fresh", network)
        mixed.eventually_pings("d2", "fresh", "base")
    assert counts[0] == counts[1], f"{counts[0]} pings sent, {counts[1]} answered"
    assert int(counts[0]) > 10
    assert len({target, first, second}) == 3
    assert {task.networks[0].addresses[0].split("/")[0] for task in mixed.tasks(network)} == {
        target, first, second,
    }  # fmt: skip


def test_manager_frozen_for_longer_than_the_heartbeats(mixed: Mixed, network: str) -> None:
    """A manager stopped in its tracks and released: engines take up their work with it without a restart."""
    mixed.idle("d1", "sleeper", network)
    mixed.cluster.lab.pause("m1")
    try:
        time.sleep(6)  # a heartbeat period and more: the engines notice that nobody answers
    finally:
        mixed.cluster.lab.resume("m1")
    mixed.cluster.lab.await_ready("m1", 4)
    mixed.idle("d2", "waker", network)
    mixed.eventually_pings("d2", "waker", "sleeper")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_engine_restarted(mixed: Mixed, network: str, number: signal.Signals) -> None:
    """An engine restarted: its containers attach anew, names lead to the new addresses, nothing leaks."""
    mixed.serve("d1", "phoenix", network, flags=("--restart", "always"))
    mixed.idle("w1", "watch", network)
    mixed.idle("d2", "other", network)
    mixed.eventually_pings("w1", "watch", "phoenix")
    mixed["d1"].stop(number)
    assert mixed.pings("d2", "other", "watch"), "the others are not disturbed"
    mixed["d1"].start()
    mixed.await_state("d1", types_pb2.NODE_STATE_READY)
    wait_until(
        lambda: bool(_address(mixed, "d1", "phoenix", network)),
        seconds=20,
        what=lambda: mixed["d1"].docker("ps", "-a"),
    )
    for host, container in (("w1", "watch"), ("d2", "other")):
        mixed.eventually_pings(host, container, "phoenix")
        wait_until(
            lambda host=host, container=container: (
                mixed.page(host, container, "http://phoenix:8080/")  # type: ignore[misc]
                == "hello from docker\n"
            ),
            seconds=20,
            what=lambda: "no page from the restarted engine",
        )
    wait_until(
        lambda: len(mixed.tasks(network)) == 3,
        seconds=30,
        what=lambda: f"one task a container, not {len(mixed.tasks(network))}",
    )


def _address(mixed: Mixed, host: str, name: str, network: str) -> str:
    return mixed.address(host, name, network)


def test_our_agent_restarted(mixed: Mixed, network: str) -> None:
    """SIGKILL to our agent and a new start: an engine's pings to its container all arrive, the name stays true."""
    target = mixed.serve("w1", "rock", network)
    mixed.idle("d1", "wave", network)
    mixed.eventually_pings("d1", "wave", "rock")
    with mixed.steady_ping("d1", "wave", target) as counts:
        mixed.cluster.lab.kill("w1")
        mixed.cluster.lab.start("w1")
        mixed.cluster.lab.await_ready("m1", 4)
        mixed.eventually_pings("d1", "wave", "rock")
    assert counts[0] == counts[1], f"{counts[0]} pings sent, {counts[1]} answered"
    assert mixed.address("w1", "rock", network) == target
    mixed.idle("d2", "later", network)
    mixed.eventually_pings("w1", "rock", "later")


def test_certificate_renewal_and_what_comes_after(
    mixed: Mixed, network: str, tmp_path: Path
) -> None:
    """An engine whose certificate runs out renews it with us; later it offers no ALPN, and is served all the same."""
    engine, lab = mixed["d1"], mixed.cluster.lab
    cluster, nodes = stored(lab, "m1", tmp_path)
    node = nodes[mixed.nodes()["d1"].id]
    path = engine.folder / "data/swarm/certificates/swarm-node.crt"
    engine.stop()
    ending = nearly_expired(cluster, node)
    path.write_bytes(ending)
    engine.start()
    wait_until(
        lambda: path.read_bytes() != ending,
        seconds=30,
        what=lambda: f"the engine does not renew: {engine.log.read_text()[-2000:]}",
        pause=0.2,
    )
    mixed.await_state("d1", types_pb2.NODE_STATE_READY)
    renewed = mixed.nodes()["d1"]
    assert renewed.id == node.id
    assert path.read_bytes().startswith(renewed.certificate.certificate.strip()[:200])
    assert renewed.certificate.role == types_pb2.NODE_ROLE_WORKER
    with hellos(lab, "d1") as offered:
        lab.kill("m1", manager_only=True)
        lab.await_ready("m1", 4)
        wait_until(lambda: bool(offered), seconds=20, what=lambda: "d1 does not call again")
        mixed.idle("d1", "veteran", network)
    assert not any(offered), "this engine gives up ALPN after a renewal; if not, the trap is gone"
    mixed.idle("w1", "youngster", network)
    mixed.eventually_pings("w1", "youngster", "veteran")
    assert (
        json.loads(engine.docker("info", "--format", "{{json .Swarm}}"))["LocalNodeState"]
        == "active"
    )
