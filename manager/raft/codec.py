"""Messages to and from ``overswarm.v1.RaftMessage``; generated classes go no further than here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from manager.raft import messages as m
from manager.raft.config import MAX_TEXT_BYTES
from manager.raft.wire import decode_membership_untrusted, encode_membership
from swarm.api.overswarm.v1 import raft_pb2 as pb
from swarm.errors import WireError

_SIMPLE: dict[str, tuple[type[Any], type[Any], tuple[str, ...]]] = {
    "pre_vote": (m.PreVote, pb.RaftVote, ("last_index", "last_term")),
    "pre_vote_reply": (m.PreVoteReply, pb.RaftVoteReply, ("granted",)),
    "vote": (m.Vote, pb.RaftVote, ("last_index", "last_term", "transfer")),
    "vote_reply": (m.VoteReply, pb.RaftVoteReply, ("granted",)),
    "append_reply": (
        m.AppendReply,
        pb.RaftAppendReply,
        ("index", "rejected", "hint_index", "hint_term"),
    ),
    "heartbeat": (m.Heartbeat, pb.RaftHeartbeat, ("commit", "round")),
    "heartbeat_reply": (m.HeartbeatReply, pb.RaftHeartbeatReply, ("round",)),
    "snapshot_reply": (m.SnapshotReply, pb.RaftSnapshotReply, ("index", "offset")),
    "read_request": (m.ReadRequest, pb.RaftReadRequest, ("context",)),
    "read_reply": (m.ReadReply, pb.RaftReadReply, ("context", "index")),
    "timeout_now": (m.TimeoutNow, pb.RaftTimeoutNow, ()),
    "removed": (m.Removed, pb.RaftRemoved, ()),
    "outdated": (m.Outdated, pb.RaftOutdated, ("incarnation", "seen")),
}
"""Bodies whose fields have the same names and types on both sides: field, ours, theirs, names."""

_FIELD_OF = {ours: field for field, (ours, _, _) in _SIMPLE.items()}


def to_wire(message: m.Message[m.Body], *, reply_to: str = "") -> pb.RaftMessage:
    """Return the wire form; ``reply_to`` is the own address, for a stream's first message."""
    wire = pb.RaftMessage(
        cluster=message.cluster,
        sender=message.sender,
        to=message.to,
        term=message.term,
        incarnation=message.incarnation,
        reply_to=reply_to,
    )
    body = message.body
    if isinstance(body, m.Append):
        wire.append.CopyFrom(_append_to_wire(body))
    elif isinstance(body, m.SnapshotChunk):
        wire.snapshot_chunk.CopyFrom(_chunk_to_wire(body))
    else:
        field = _FIELD_OF[type(body)]
        _, theirs, names = _SIMPLE[field]
        values = theirs(**{name: getattr(body, name) for name in names})
        getattr(wire, field).CopyFrom(values)
    return wire


def from_wire_untrusted(wire: pb.RaftMessage) -> m.Message[m.Body]:
    """Return the message in ``wire``; what it claims is checked by the core.

    Raises:
        WireError: a text too long, or a body that is absent or unreadable.
    """
    if len(wire.cluster) > MAX_TEXT_BYTES or len(wire.reply_to) > MAX_TEXT_BYTES:
        raise WireError("A raft message carries a text that is too long.")
    field = wire.WhichOneof("body")
    if field is None:
        raise WireError("A raft message has no body, or one of a newer version.")
    special = _SPECIAL.get(field)
    if special is not None:
        body = special(getattr(wire, field))
    else:
        ours, _, names = _SIMPLE[field]
        values = getattr(wire, field)
        body = ours(**{name: getattr(values, name) for name in names})
    return m.Message(
        cluster=wire.cluster,
        sender=wire.sender,
        to=wire.to,
        term=wire.term,
        incarnation=wire.incarnation,
        body=body,
    )


def _append_to_wire(body: m.Append) -> pb.RaftAppend:
    entries = [
        pb.RaftEntry(
            index=entry.index,
            term=entry.term,
            kind=pb.RaftEntryKind.ValueType(entry.kind.value),
            data=entry.data,
        )
        for entry in body.entries
    ]
    return pb.RaftAppend(
        prev_index=body.prev_index, prev_term=body.prev_term, entries=entries, commit=body.commit
    )


def _append_untrusted(wire: pb.RaftAppend) -> m.Append:
    return m.Append(
        prev_index=wire.prev_index,
        prev_term=wire.prev_term,
        entries=tuple(_entry_untrusted(entry) for entry in wire.entries),
        commit=wire.commit,
    )


def _entry_untrusted(wire: pb.RaftEntry) -> m.Entry:
    try:
        kind = m.EntryKind(wire.kind)
    except ValueError as cause:
        raise WireError(f"A raft entry is of the unknown kind {wire.kind}.") from cause
    return m.Entry(index=wire.index, term=wire.term, kind=kind, data=wire.data)


def _chunk_to_wire(body: m.SnapshotChunk) -> pb.RaftSnapshotChunk:
    return pb.RaftSnapshotChunk(
        index=body.index,
        snapshot_term=body.snapshot_term,
        membership=encode_membership(body.membership),
        digest=body.digest,
        total=body.total,
        offset=body.offset,
        data=body.data,
    )


def _chunk_untrusted(wire: pb.RaftSnapshotChunk) -> m.SnapshotChunk:
    return m.SnapshotChunk(
        index=wire.index,
        snapshot_term=wire.snapshot_term,
        membership=decode_membership_untrusted(wire.membership),
        digest=wire.digest,
        total=wire.total,
        offset=wire.offset,
        data=wire.data,
    )


_SPECIAL: dict[str, Callable[[Any], m.Body]] = {
    "append": _append_untrusted,
    "snapshot_chunk": _chunk_untrusted,
}
