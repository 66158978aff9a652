"""What a manager of ours orders, an engine follows; what an engine does, our manager notices."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from support.mixed import Mixed

from swarm.api.docker.swarmkit import control_pb2, objects_pb2, types_pb2
from swarm.lab.engine import IMAGE
from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]


@pytest.fixture
def spare(mixed: Mixed) -> Iterator[Mixed]:
    """The cluster, with d2 free to be thrown out: it is a member again afterwards."""
    yield mixed
    engine = mixed["d2"]
    state = json.loads(engine.docker("info", "--format", "{{json .Swarm}}"))["LocalNodeState"]
    if state != "active":
        engine.attempt("swarm", "leave", "--force")
        rejoin(mixed)
    # An engine's diagnostic server shows the tables of its first membership for as long as it runs.
    engine.stop()
    engine.start()
    mixed.await_state("d2", types_pb2.NODE_STATE_READY)


def rejoin(mixed: Mixed) -> None:
    """Let d2 join with the token of the day."""
    token = mixed.cluster.lab.tokens("m1")["worker"]
    mixed["d2"].docker("swarm", "join", "--token", token, "192.0.2.1:2377")
    mixed.await_state("d2", types_pb2.NODE_STATE_READY)


def test_no_container_is_attached_on_a_closed_node(mixed: Mixed, network: str) -> None:
    """On a drained or paused engine a new attachment is refused; the present one goes on; active opens it again."""
    mixed.serve("d1", "before", network)
    mixed.idle("w1", "looker", network)
    mixed.eventually_pings("w1", "looker", "before")
    try:
        for availability in ("pause", "drain"):
            mixed.cluster.swarm("m1", "node", "update", "--availability", availability, "d1")
            row = json.loads(mixed.cluster.swarm("m1", "node", "inspect", "d1"))[0]
            assert row["Spec"]["Availability"] == availability
            refused = mixed["d1"].attempt("run", "--rm", "--network", network, IMAGE, "sleep", "1")
            assert refused.returncode == 125, refused.stdout
            assert availability in refused.stderr
            assert mixed.pings("w1", "looker", "before")
    finally:
        mixed.cluster.swarm("m1", "node", "update", "--availability", "active", "d1")
    mixed.idle("d1", "after", network)
    mixed.eventually_pings("w1", "looker", "after")


def test_labels_are_kept_and_shown(mixed: Mixed) -> None:
    """A label set on an engine's node is listed by filter and gone when removed; the engine stays Ready."""
    cluster = mixed.cluster
    cluster.swarm("m1", "node", "update", "--label-add", "rack=r7", "d1")
    listed = cluster.swarm("m1", "node", "ls", "-q", "--filter", "node.label=rack=r7").split()
    assert listed == [mixed.nodes()["d1"].id]
    cluster.swarm("m1", "node", "update", "--label-rm", "rack", "d1")
    assert cluster.swarm("m1", "node", "ls", "-q", "--filter", "node.label=rack=r7").split() == []
    assert mixed.nodes()["d1"].status.state == types_pb2.NODE_STATE_READY


def test_an_engine_is_never_made_a_manager(mixed: Mixed) -> None:
    """An engine would speak etcd's raft to us: neither a promotion nor a manager token makes it a manager."""
    error = mixed.cluster.refused("m1", "node", "promote", "d1")
    assert "d1" in error or mixed.nodes()["d1"].id in error
    node = mixed.nodes()["d1"]
    assert node.spec.desired_role == types_pb2.NODE_ROLE_WORKER
    assert node.role == types_pb2.NODE_ROLE_WORKER


def test_leave_rotate_rejoin(spare: Mixed) -> None:
    """``docker swarm leave`` is noticed; the old token is refused with the reason; the new one lets it in."""
    engine, cluster = spare["d2"], spare.cluster
    node = spare.nodes()["d2"].id
    old = cluster.lab.tokens("m1")["worker"]
    assert engine.docker("swarm", "leave") == "Node left the swarm.\n"
    cluster.swarm("m1", "join-token", "--rotate", "-q", "worker")
    new = cluster.lab.tokens("m1")["worker"]
    assert new != old
    refused = engine.attempt("swarm", "join", "--token", old, "192.0.2.1:2377")
    assert refused.returncode == 1
    assert "a valid join token is necessary to join this cluster" in refused.stderr
    wait_until(
        lambda: (
            {each.id: each.status.state for each in _all(spare)}[node] == types_pb2.NODE_STATE_DOWN
        ),
        seconds=20,  # three heartbeats of 5 s, with their scatter
        what=lambda: f"{node} is not Down",
    )

    engine.attempt("swarm", "leave", "--force")
    engine.docker("swarm", "join", "--token", new, "192.0.2.1:2377")
    spare.await_state("d2", types_pb2.NODE_STATE_READY)
    assert spare.nodes()["d2"].id != node, "a new life, a new identity"
    assert spare.nodes()["d1"].status.state == types_pb2.NODE_STATE_READY, (
        "members keep their place"
    )
    cluster.swarm("m1", "node", "rm", node)
    assert node not in {each.id for each in _all(spare)}


def test_a_removed_engine_stays_out(spare: Mixed, network: str) -> None:
    """``swarm node rm`` wants --force for a Ready engine; then its certificate opens nothing, its addresses are free."""
    address = spare.idle("d2", "doomed", network)
    node = spare.nodes()["d2"].id
    error = spare.cluster.refused("m1", "node", "rm", "d2")
    assert f"node {node} is not down and can't be removed" in error
    place = len(spare["d2"].log.read_text())
    spare.cluster.swarm("m1", "node", "rm", "--force", "d2")
    assert "d2" not in spare.nodes()
    assert [task for task in spare.tasks(network) if task.node_id == node] == []
    wait_until(
        lambda: "PermissionDenied" in spare["d2"].log.read_text()[place:],
        seconds=20,
        what=lambda: "the removed engine is not turned away",
    )
    assert spare.idle("w1", "heir", network, flags=("--ip", address)) == address
    assert "d2" not in spare.nodes(), "it cannot come back with its old certificate"
    spare["d2"].attempt("swarm", "leave", "--force")


def _all(mixed: Mixed) -> list[objects_pb2.Node]:
    with mixed.cluster.lab.client("m1") as client:
        return list(client.control.ListNodes(control_pb2.ListNodesRequest(), timeout=10).nodes)
