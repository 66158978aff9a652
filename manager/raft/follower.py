"""What a member does with a leader's messages (paper 5.3 and 7)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manager.raft import asking, election
from manager.raft.events import Reason, Role, SnapshotReceived, StateLost, Truncated
from manager.raft.membership import Membership
from manager.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    Removed,
    Snapshot,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
)

if TYPE_CHECKING:
    from manager.raft.core import RaftCore


@dataclass(slots=True)
class Incoming:
    """A snapshot being assembled; another leader with the same bytes may finish it."""

    index: int
    term: int
    digest: bytes
    total: int
    membership: Membership
    leader_term: int
    data: bytearray = field(default_factory=bytearray)

    def continued_by(self, body: SnapshotChunk) -> bool:
        """Return whether the chunk is a piece of this snapshot."""
        key = (self.index, self.term, self.digest, self.total)
        return key == (body.index, body.snapshot_term, body.digest, body.total)


def follow(core: RaftCore, sender: int) -> bool:
    """Take the sender for the leader of the current term; False if another one already is."""
    if core.role is not Role.FOLLOWER:
        core.become_follower(core.term, sender)
    elif core.leader is not None and core.leader != sender:
        return False
    core.note_heard()
    core.set_leader(sender)
    return True


def handle_append(core: RaftCore, message: Message[Append]) -> None:
    """Accept entries that follow what is here, or say where the logs may agree."""
    if not follow(core, message.sender):
        core.refuse(message, Reason.TWO_LEADERS)
        return
    body, log = message.body, core.log
    if body.prev_index < log.commit:
        # Old or repeated: what is committed is known to agree.
        _accept(core, message, log.commit)
        return
    if log.term_of(body.prev_index) != body.prev_term:
        hint_index, hint_term = log.agreement(body.prev_index, body.prev_term)
        core.refuse(message, Reason.LOG_GAP)
        core.send(
            message.sender,
            AppendReply(
                index=body.prev_index, rejected=True, hint_index=hint_index, hint_term=hint_term
            ),
        )
        return
    position = log.conflict(body.entries)
    if position is not None:
        old = log.membership_index, log.membership
        cut = log.splice(body.entries[position:])
        if cut is not None:
            core.events.append(Truncated(index=cut))
        if (log.membership_index, log.membership) != old:
            core.note_membership()
    last = body.entries[-1].index if body.entries else body.prev_index
    core.commit_to(min(body.commit, last))
    _accept(core, message, last)


def _accept(core: RaftCore, message: Message[Append], index: int) -> None:
    core.send(message.sender, AppendReply(index=index), after_sync=not core.is_durable(index))


def handle_heartbeat(core: RaftCore, message: Message[Heartbeat]) -> None:
    """Note that the leader lives, and what it says is committed here."""
    if not follow(core, message.sender):
        core.refuse(message, Reason.TWO_LEADERS)
        return
    if message.body.commit > core.log.last_index:
        # The leader names no index beyond what this member confirmed as durable.
        core.refuse(message, Reason.IMPOSSIBLE_INDEX)
        core.events.append(StateLost(confirmed=message.body.commit, last_index=core.log.last_index))
        return
    core.commit_to(message.body.commit)
    core.send(message.sender, HeartbeatReply(round=message.body.round))


def handle_snapshot_chunk(core: RaftCore, message: Message[SnapshotChunk]) -> None:
    """Assemble the leader's snapshot, and install it when it is whole and news."""
    if not follow(core, message.sender):
        core.refuse(message, Reason.TWO_LEADERS)
        return
    body, log = message.body, core.log
    if body.index <= log.commit or log.term_of(body.index) == body.snapshot_term:
        core.commit_to(body.index)
        core.incoming = None
        core.send(
            message.sender,
            AppendReply(index=log.commit),
            after_sync=not core.is_durable(log.commit),
        )
        return
    incoming = core.incoming
    if incoming is None or not incoming.continued_by(body):
        if incoming is not None and (message.term, body.index) < (
            incoming.leader_term,
            incoming.index,
        ):
            core.refuse(message, Reason.STALE_REPLY)
            return
        incoming = core.incoming = Incoming(
            body.index,
            body.snapshot_term,
            body.digest,
            body.total,
            body.membership,
            message.term,
        )
    incoming.leader_term = message.term
    if body.offset == len(incoming.data):
        incoming.data += body.data
        if len(incoming.data) == incoming.total:
            _install(core, message, incoming)
            return
    core.send(message.sender, SnapshotReply(index=body.index, offset=len(incoming.data)))


def _install(core: RaftCore, message: Message[SnapshotChunk], incoming: Incoming) -> None:
    core.incoming = None
    data = bytes(incoming.data)
    if hashlib.sha256(data).digest() != incoming.digest:
        core.refuse(message, Reason.BAD_DIGEST)
        core.send(message.sender, SnapshotReply(index=incoming.index, offset=0))
        return
    core.install(
        Snapshot(
            index=incoming.index,
            term=incoming.term,
            membership=incoming.membership,
            data=data,
        )
    )
    core.events.append(SnapshotReceived(index=incoming.index))
    core.send(message.sender, AppendReply(index=incoming.index), after_sync=True)


def handle_read_reply(core: RaftCore, message: Message[ReadReply]) -> None:
    """Pass on the read point this member asked the leader for."""
    asking.answer(core, message.body.context, message.body.index)


def handle_timeout_now(core: RaftCore, message: Message[TimeoutNow]) -> None:
    """The leader hands over: campaign at once, past everybody's lease."""
    if not core.electable or core.leader not in {None, message.sender}:
        core.refuse(message, Reason.UNEXPECTED)
        return
    election.campaign(core, transfer=True)


def handle_removed(core: RaftCore, message: Message[Removed]) -> None:
    """A member says this one is out; only members of the own configuration are believed."""
    if message.sender not in core.membership.members:
        core.refuse(message, Reason.NON_MEMBER)
        return
    core.note_removed()
    if core.role is not Role.FOLLOWER:
        core.become_follower(core.term, None)
