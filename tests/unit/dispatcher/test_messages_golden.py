"""Bytes as stock engines exchange them."""

from __future__ import annotations

from manager.dispatcher.feed import Batch, BatchKind
from manager.dispatcher.service import SessionState, assignments_message, session_message
from swarm.api import codec
from swarm.api.docker.swarmkit import dispatcher_pb2
from swarm.model import (
    EncryptionKey,
    Network,
    Node,
    Peer,
    Task,
    TaskState,
    TaskStatus,
    WeightedPeer,
)


def test_heartbeat_of_five_seconds() -> None:
    answer = dispatcher_pb2.HeartbeatResponse()
    answer.period.FromNanoseconds(5 * 10**9)
    assert answer.SerializeToString().hex() == "0a020805"


def test_session_message() -> None:
    """The vector has no node; ours always has one, so it is taken out before the comparison."""
    state = SessionState(
        session_id="s",
        node=Node(id="n"),
        managers=(WeightedPeer(peer=Peer(node_id="m", addr="a:1"), weight=10),),
        keys=(EncryptionKey(subsystem="networking:gossip", key=bytes([1, 2]), lamport_time=7),),
        root=b"R",
    )
    message = session_message(state)
    assert message.node.id == "n"
    message.ClearField("node")
    assert message.SerializeToString().hex() == (
        "0a01731a0c0a080a016d1203613a31100a22190a116e6574776f726b696e673a676f7373697"
        "01a02010220072a0152"
    )


def test_assignments_message() -> None:
    task = Task(id="t", node_id="n", status=TaskStatus(state=TaskState.ASSIGNED))
    batch = Batch(
        kind=BatchKind.INCREMENTAL, applies_to="1", results_in="2", updates=(task,), removals=("g",)
    )
    message = assignments_message(batch)
    # The task: id, meta {version {}}, spec {}, node_id, both annotations {}, status; engines send
    # such empty messages, too.
    task_bytes = "0a017412020a001a0032016e3a0042004a0310c001"
    # 1 type, 2 applies_to, 3 results_in, 4 changes {1 assignment {1 task}, 2 action}
    assert message.SerializeToString().hex() == (
        f"08011201311a013222190a170a15{task_bytes}22090a050a030a01671001"
    )


def test_network_as_engines_emit_it() -> None:
    assert codec.dumps(Network(id="n1")).hex() == "0a026e3112020a001a020a00"
