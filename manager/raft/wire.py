"""Bytes of a membership inside a log entry or a snapshot header (JSON, deterministic)."""

from __future__ import annotations

import json
from typing import Any

from manager.raft.config import MAX_MEMBERS, MAX_REMOVED, MAX_TEXT_BYTES
from manager.raft.membership import Member, Membership
from swarm.errors import WireError

_VERSION = 1
MAX_MEMBERSHIP_BYTES = 1024 + MAX_MEMBERS * (12 * MAX_TEXT_BYTES + 64) + 20 * MAX_REMOVED


def encode_membership(membership: Membership) -> bytes:
    """Return the same bytes for equal memberships."""
    members = [[m.raft_id, m.node_id, m.addr, m.learner] for m in membership.members.values()]
    value = [_VERSION, members, sorted(membership.removed)]
    return json.dumps(value, separators=(",", ":")).encode()


def decode_membership_untrusted(data: bytes) -> Membership:
    """Return the membership in ``data``.

    Raises:
        WireError: not a membership of this version, or beyond the bounds in ``config``.
    """
    if len(data) > MAX_MEMBERSHIP_BYTES:
        raise WireError(f"A membership of {len(data)} bytes is too large.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise WireError("A membership is not valid JSON.") from cause
    if not isinstance(value, list) or len(value) != 3 or value[0] != _VERSION:
        raise WireError("A membership has an unknown shape or version.")
    _, members, removed = value
    if not isinstance(members, list) or len(members) > MAX_MEMBERS:
        raise WireError("A membership lists too many members.")
    if not isinstance(removed, list) or len(removed) > MAX_REMOVED:
        raise WireError("A membership lists too many removed members.")
    if not all(_is_id(item) for item in removed):
        raise WireError("A removed member's raft id is out of range.")
    decoded = [_member(item) for item in members]
    by_id = {member.raft_id: member for member in decoded}
    if len(by_id) != len(decoded) or not by_id.keys().isdisjoint(removed):
        raise WireError("A raft id stands twice in a membership.")
    return Membership(members=by_id, removed=frozenset(removed))


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**63


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value.encode()) <= MAX_TEXT_BYTES


def _member(item: Any) -> Member:
    if (
        not isinstance(item, list)
        or len(item) != 4
        or not _is_id(item[0])
        or not _is_text(item[1])
        or not _is_text(item[2])
        or not isinstance(item[3], bool)
    ):
        raise WireError("A member's record has an unknown shape.")
    return Member(raft_id=item[0], node_id=item[1], addr=item[2], learner=item[3])
