"""What a well-formed peer never sends: checks of a message by itself and of its envelope."""

from __future__ import annotations

from typing import Any

from manager.raft.config import (
    MAX_APPEND_ENTRIES,
    MAX_ENTRY_BYTES,
    MAX_INDEX,
    MAX_SNAPSHOT_BYTES,
    SNAPSHOT_CHUNK_BYTES,
)
from manager.raft.events import Reason
from manager.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    PreVote,
    ReadReply,
    SnapshotChunk,
    SnapshotReply,
    Vote,
)
from manager.raft.wire import decode_membership_untrusted
from swarm.errors import WireError


def body_fault(message: Message[Any]) -> Reason | None:
    """Return why no correct peer could have sent this, or None.

    Runs on every message, so what depends on this member's own state is not looked at here.
    """
    body = message.body
    if not 0 <= message.term <= MAX_INDEX:
        return Reason.IMPOSSIBLE_TERM
    if isinstance(body, Append):
        return _append_fault(message.term, body)
    if isinstance(body, SnapshotChunk):
        return _chunk_fault(message.term, body)
    if isinstance(body, PreVote | Vote):
        if body.last_term >= message.term:
            return Reason.IMPOSSIBLE_TERM
        return _range_fault(body.last_index, body.last_term)
    if isinstance(body, AppendReply):
        return _range_fault(body.index, body.hint_index, body.hint_term)
    if isinstance(body, Heartbeat):
        return _range_fault(body.commit, body.round)
    if isinstance(body, HeartbeatReply):
        return _range_fault(body.round)
    if isinstance(body, SnapshotReply):
        return _range_fault(body.index, body.offset)
    if isinstance(body, ReadReply):
        return _range_fault(body.index)
    return None


def _range_fault(*values: int) -> Reason | None:
    if all(0 <= value <= MAX_INDEX for value in values):
        return None
    return Reason.IMPOSSIBLE_INDEX


def _append_fault(term: int, body: Append) -> Reason | None:
    if len(body.entries) > MAX_APPEND_ENTRIES:
        return Reason.OVERSIZED
    index, entry_term = body.prev_index, body.prev_term
    if (fault := _range_fault(index, entry_term, body.commit)) is not None:
        return fault
    if (index == 0) != (entry_term == 0):
        return Reason.IMPOSSIBLE_INDEX
    for entry in body.entries:
        if entry.index != index + 1 or entry.index > MAX_INDEX:
            return Reason.IMPOSSIBLE_INDEX
        if entry.term < entry_term or entry.term == 0:
            return Reason.IMPOSSIBLE_TERM
        if (fault := _entry_fault(entry)) is not None:
            return fault
        index, entry_term = entry.index, entry.term
    return Reason.IMPOSSIBLE_TERM if entry_term > term else None


def _entry_fault(entry: Entry) -> Reason | None:
    if entry.kind is EntryKind.MEMBERSHIP:
        try:
            decode_membership_untrusted(entry.data)
        except WireError:
            return Reason.MALFORMED
    elif len(entry.data) > MAX_ENTRY_BYTES:
        return Reason.OVERSIZED
    return None


def _chunk_fault(term: int, body: SnapshotChunk) -> Reason | None:
    if body.total > MAX_SNAPSHOT_BYTES or len(body.data) > SNAPSHOT_CHUNK_BYTES:
        return Reason.OVERSIZED
    if not 0 < body.snapshot_term <= term:
        return Reason.IMPOSSIBLE_TERM
    if not 0 < body.index <= MAX_INDEX or not 0 <= body.offset <= body.total - len(body.data):
        return Reason.IMPOSSIBLE_INDEX
    if not body.data and body.total:
        return Reason.MALFORMED
    return None
