"""Bounds of what managers may send."""
# the names say what is expected

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.session import wire
from swarm.api.docker.swarmkit import dispatcher_pb2, types_pb2
from swarm.errors import WireError


def test_a_real_message_is_taken_whole() -> None:
    golden = bytes.fromhex(
        "0a01731a0c0a080a016d1203613a31100a22190a116e6574776f726b696e673a676f737369701a02010220072a0152"
    )
    update = wire.session_untrusted(dispatcher_pb2.SessionMessage.FromString(golden))
    assert update.session_id == "s"
    assert update.managers[0].peer.addr == "a:1"
    assert update.keys[0].lamport_time == 7
    assert update.root_ca == b"R"
    assert update.node is None


@pytest.mark.parametrize(
    "message",
    [
        dispatcher_pb2.SessionMessage(),
        dispatcher_pb2.SessionMessage(session_id="s" * 200),
        dispatcher_pb2.SessionMessage(session_id="s", root_ca=b"x" * (65 * 1024)),
        dispatcher_pb2.SessionMessage(
            session_id="s", managers=[types_pb2.WeightedPeer()] * (wire.MAX_MANAGERS + 1)
        ),
        dispatcher_pb2.SessionMessage(
            session_id="s",
            network_bootstrap_keys=[types_pb2.EncryptionKey()] * (wire.MAX_KEYS + 1),
        ),
        dispatcher_pb2.SessionMessage(
            session_id="s",
            managers=[types_pb2.WeightedPeer(peer=types_pb2.Peer(addr="h" * 300))],
        ),
    ],
)
def test_beyond_a_bound_is_refused(message: dispatcher_pb2.SessionMessage) -> None:
    with pytest.raises(WireError):
        wire.session_untrusted(message)


def test_a_manager_without_an_address_is_left_out() -> None:
    message = dispatcher_pb2.SessionMessage(
        session_id="s", managers=[types_pb2.WeightedPeer(peer=types_pb2.Peer(node_id="x"))]
    )
    assert wire.session_untrusted(message).managers == ()


def test_a_task_without_an_id_is_refused() -> None:
    message = dispatcher_pb2.AssignmentsMessage()
    message.changes.add().assignment.task.node_id = "n"
    with pytest.raises(WireError):
        wire.assignments_untrusted(message)


def test_secrets_and_configs_are_passed_over() -> None:
    message = dispatcher_pb2.AssignmentsMessage(results_in="1")
    message.changes.add().assignment.secret = b"hush"
    assert wire.assignments_untrusted(message).changes == ()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    for kind, parse in (
        (dispatcher_pb2.SessionMessage, wire.session_untrusted),
        (dispatcher_pb2.AssignmentsMessage, wire.assignments_untrusted),
    ):
        message = kind()
        try:
            message.ParseFromString(data)
        except Exception:  # noqa: BLE001  # gRPC's concern, not the parser's
            continue
        try:
            parse(message)  # type: ignore[operator]
        except WireError:
            continue
