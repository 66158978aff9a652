"""What becomes of a message: who may say it, in which term, to a member in which role.

Every message ends in a handler, or as an event with the reason for which it was refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

from manager.raft import election, follower, leader
from manager.raft.events import OldCopy, Reason, Role
from manager.raft.faults import body_fault
from manager.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    Outdated,
    PreVote,
    PreVoteReply,
    ReadReply,
    ReadRequest,
    Removed,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
)

if TYPE_CHECKING:
    from manager.raft.core import RaftCore

Handler: TypeAlias = "Callable[[RaftCore, Message[Any]], None]"

_CAMPAIGNING: dict[type[Any], Handler] = {
    PreVote: election.handle_vote_request,
    Vote: election.handle_vote_request,
    PreVoteReply: election.handle_vote_reply,
    VoteReply: election.handle_vote_reply,
    Append: follower.handle_append,
    Heartbeat: follower.handle_heartbeat,
    SnapshotChunk: follower.handle_snapshot_chunk,
    ReadReply: follower.handle_read_reply,
    Removed: follower.handle_removed,
}

HANDLERS: Mapping[Role, Mapping[type[Any], Handler]] = MappingProxyType(
    {
        Role.FOLLOWER: {
            PreVote: election.handle_vote_request,
            Vote: election.handle_vote_request,
            Append: follower.handle_append,
            Heartbeat: follower.handle_heartbeat,
            SnapshotChunk: follower.handle_snapshot_chunk,
            ReadReply: follower.handle_read_reply,
            TimeoutNow: follower.handle_timeout_now,
            Removed: follower.handle_removed,
        },
        Role.PRE_CANDIDATE: _CAMPAIGNING,
        Role.CANDIDATE: _CAMPAIGNING,
        Role.LEADER: {
            PreVote: election.handle_vote_request,
            Vote: election.handle_vote_request,
            AppendReply: leader.handle_append_reply,
            HeartbeatReply: leader.handle_heartbeat_reply,
            SnapshotReply: leader.handle_snapshot_reply,
            ReadRequest: leader.handle_read_request,
        },
    }
)
"""Which messages of the current term mean something in which role; all others are refused."""

FROM_LEADER = (Append, Heartbeat, SnapshotChunk)
"""Only a term's leader sends these, so they name it."""


def step(core: RaftCore, message: Message[Any]) -> None:
    """Take one message from the network. Never raises for what a peer sent."""
    fault = _envelope_fault(core, message) or body_fault(message)
    if fault is not None:
        core.refuse(message, fault)
        if fault is Reason.STALE_INCARNATION:
            _tell_outdated(core, message)
        return
    if isinstance(message.body, Outdated):
        _note_outdated(core, message, message.body)
        return
    if _is_gone(core, message.sender):
        # It cannot learn of its removal from the log any more, so it is told.
        core.refuse(message, Reason.REMOVED_MEMBER)
        if not isinstance(message.body, Removed):
            core.send(message.sender, Removed())
        return
    if message.sender in core.log.membership.members:
        core.incarnations[message.sender] = message.incarnation
    accept(core, message)


def _is_gone(core: RaftCore, member: int) -> bool:
    """Return whether a member was removed for good; a leader that removed itself still says goodbye."""
    removed = core.log.membership.removed & core.log.committed_membership.removed
    return member in removed and member != core.leader


def _tell_outdated(core: RaftCore, message: Message[Any]) -> None:
    """Answer a member's earlier life; only a member restored from an old copy is still it."""
    if not isinstance(message.body, Outdated):
        seen = core.incarnations[message.sender]
        core.send(message.sender, Outdated(incarnation=message.incarnation, seen=seen))


def _note_outdated(core: RaftCore, message: Message[Any], body: Outdated) -> None:
    known = message.sender in core.log.membership.members
    if known and body.incarnation == core.incarnation < body.seen:
        core.events.append(OldCopy(incarnation=body.incarnation, seen=body.seen))
    else:
        core.refuse(message, Reason.STALE_REPLY)


def accept(core: RaftCore, message: Message[Any]) -> None:
    """Enter the message's term where it calls for that, and hand it to its handler."""
    if message.term > core.term:
        if not _meet_newer_term(core, message):
            return
    elif message.term < core.term:
        _meet_older_term(core, message)
        return
    handler = HANDLERS[core.role].get(type(message.body))
    if handler is None:
        core.refuse(message, Reason.UNEXPECTED)
        return
    handler(core, message)


def _envelope_fault(core: RaftCore, message: Message[Any]) -> Reason | None:
    if message.cluster != core.config.cluster_id:
        return Reason.OTHER_CLUSTER
    if message.to != core.id or message.sender == core.id:
        return Reason.WRONG_RECIPIENT
    if message.incarnation < core.incarnations.get(message.sender, 0):
        return Reason.STALE_INCARNATION
    return None


def _meet_newer_term(core: RaftCore, message: Message[Any]) -> bool:
    """Enter the message's term where it calls for that; False when the message ends here."""
    body = message.body
    if isinstance(body, PreVote | Vote):
        forced = isinstance(body, Vote) and body.transfer
        if not forced and core.leased:
            core.refuse(message, Reason.LEASE)
            return False
        if isinstance(body, PreVote):
            return True
    if isinstance(body, PreVoteReply) and body.granted:
        return True
    if isinstance(body, Removed):
        return True
    names_leader = isinstance(body, FROM_LEADER)
    core.become_follower(message.term, message.sender if names_leader else None)
    return True


def _meet_older_term(core: RaftCore, message: Message[Any]) -> None:
    """Refuse, and tell those who would otherwise go on for ever in their old term."""
    core.refuse(message, Reason.OLDER_TERM)
    if isinstance(message.body, FROM_LEADER):
        # Its sender hears a newer term in the answer and steps down. Without it a member
        # that once campaigned alone could never come back: it refuses the leader, and with
        # pre-vote its own campaigns no longer carry its term to anybody.
        core.send(message.sender, AppendReply(index=0))
    elif isinstance(message.body, PreVote):
        core.send(message.sender, PreVoteReply(granted=False))
    elif isinstance(message.body, Removed) and core.role is not Role.LEADER:
        follower.handle_removed(core, message)
