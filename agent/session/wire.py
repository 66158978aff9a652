"""What managers send, parsed: protobuf messages to the core's dataclasses, every size bounded.

A manager is authenticated, yet may be broken or not ours; nothing it sends may hang or blow up the node.
"""

from __future__ import annotations

from typing import Final

from agent.session.messages import AssignmentsUpdate, SessionUpdate, TaskChange
from swarm.api import codec
from swarm.api.docker.swarmkit import dispatcher_pb2
from swarm.errors import WireError
from swarm.identity.certs import MAX_PEM
from swarm.model import EncryptionKey, Node, Task, WeightedPeer

MAX_MANAGERS: Final = 64
MAX_KEYS: Final = 32
MAX_ID: Final = 128
"""Characters in a session id, task id, sequence mark; real ones have 25 or fewer."""
MAX_ADDRESS: Final = 280
MAX_CHANGES: Final = 65_536
MAX_ATTACHMENTS: Final = 4096
MAX_MESSAGE: Final = 64 << 20
"""Largest message taken from a manager, bytes; a task takes about one kilobyte."""


def session_untrusted(message: dispatcher_pb2.SessionMessage) -> SessionUpdate:
    """Convert a message of the Session stream.

    Raises:
        WireError: a bound is exceeded, the session id is missing, or an enumeration is unknown.
    """
    session_id = _text("session id", message.session_id, MAX_ID)
    if not session_id:
        raise WireError("the manager gave no session id")
    _count("managers", len(message.managers), MAX_MANAGERS)
    _count("keys", len(message.network_bootstrap_keys), MAX_KEYS)
    if len(message.root_ca) > MAX_PEM:
        raise WireError(f"the root certificate is larger than {MAX_PEM} bytes")
    node = None
    if message.HasField("node"):
        _count("attachments", len(message.node.attachments), MAX_ATTACHMENTS)
        node = codec.decode(Node, message.node)
    managers = tuple(codec.decode(WeightedPeer, each) for each in message.managers)
    for entry in managers:
        _text("manager address", entry.peer.addr, MAX_ADDRESS)
        _text("manager id", entry.peer.node_id, MAX_ID)
    return SessionUpdate(
        session_id=session_id,
        node=node,
        managers=tuple(entry for entry in managers if entry.peer.addr),
        keys=tuple(codec.decode(EncryptionKey, each) for each in message.network_bootstrap_keys),
        root_ca=message.root_ca,
    )


def assignments_untrusted(message: dispatcher_pb2.AssignmentsMessage) -> AssignmentsUpdate:
    """Convert a message of the Assignments stream; secrets, configs and volumes are left out.

    Raises:
        WireError: a bound is exceeded, a task has no id, or an enumeration is unknown.
    """
    _count("changes", len(message.changes), MAX_CHANGES)
    if message.type not in {
        dispatcher_pb2.AssignmentsMessage.COMPLETE,
        dispatcher_pb2.AssignmentsMessage.INCREMENTAL,
    }:
        raise WireError(f"{message.type} is not a type of assignments")
    return AssignmentsUpdate(
        complete=message.type == dispatcher_pb2.AssignmentsMessage.COMPLETE,
        applies_to=_text("sequence mark", message.applies_to, MAX_ID),
        results_in=_text("sequence mark", message.results_in, MAX_ID),
        changes=tuple(
            _change(change)
            for change in message.changes
            if change.assignment.WhichOneof("item") == "task"
        ),
    )


def _change(change: dispatcher_pb2.AssignmentChange) -> TaskChange:
    task_id = _text("task id", change.assignment.task.id, MAX_ID)
    if not task_id:
        raise WireError("an assigned task has no id")
    if change.action == dispatcher_pb2.AssignmentChange.REMOVE:
        return TaskChange(task_id=task_id)
    return TaskChange(task_id=task_id, task=codec.decode(Task, change.assignment.task))


def _count(what: str, count: int, limit: int) -> None:
    if count > limit:
        raise WireError(f"the manager sent {count} {what}, at most {limit} are accepted")


def _text(what: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise WireError(f"the manager sent a {what} of {len(text)} characters")
    return text
