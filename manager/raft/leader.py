"""What a leader does: replicate, commit, confirm reads, change the membership, hand over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from manager.raft import asking, handover, quorum
from manager.raft.config import (
    CAUGHT_UP_ENTRIES,
    MAX_APPEND_BYTES,
    MAX_APPEND_ENTRIES,
    MAX_PENDING_READS,
)
from manager.raft.errors import ChangeRefusal, ChangeRefusedError
from manager.raft.events import QuorumLost, Reason, SnapshotSent
from manager.raft.membership import Change, ChangeKind, Membership
from manager.raft.messages import (
    Append,
    AppendReply,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    SnapshotReply,
)
from manager.raft.progress import Mode, Progress

if TYPE_CHECKING:
    from manager.raft.core import RaftCore


def begin(core: RaftCore) -> None:
    """Start a term as its leader."""
    core.uncommitted = core.log.size_between(core.log.commit, core.log.last_index)
    for context in core.reads.pending:
        core.reads.ask((core.id, context))
    sync_peers(core)
    append(core, EntryKind.NOOP, b"")


def append(core: RaftCore, kind: EntryKind, data: bytes) -> int:
    """Add an own entry; it is sent by the next ``flush`` and counts here once it is durable."""
    entry = Entry(index=core.log.last_index + 1, term=core.term, kind=kind, data=data)
    core.log.append(entry)
    core.uncommitted += entry.size
    if kind is EntryKind.MEMBERSHIP:
        sync_peers(core)
        core.note_membership()
    return entry.index


def sync_peers(core: RaftCore) -> None:
    """Follow exactly the members of the configuration in force."""
    members = core.membership.members
    for gone in core.peers.keys() - members.keys():
        del core.peers[gone]
    for raft_id in members:
        if raft_id not in core.peers:
            core.peers[raft_id] = Progress(next=core.log.last_index + 1)
    mine = core.peers.get(core.id)
    if mine is not None:
        mine.match, mine.next = core.log.saved, core.log.saved + 1
    if core.transfer is not None and core.transfer.to not in core.peers:
        handover.end(core)


def tick(core: RaftCore) -> None:
    """Heartbeats, the quorum check, and what got stuck."""
    if core.elapsed >= core.config.election_ticks:
        core.elapsed = 0
        active = core.active_voters(core.membership)
        if len(active) < quorum.size(len(core.membership.voters)):
            core.events.append(QuorumLost(term=core.term, active=tuple(sorted(active))))
            core.become_follower(core.term, None)
            return
    if core.transfer and core.ticks - core.transfer.started >= core.config.election_ticks:
        handover.end(core)
    for progress in core.peers.values():
        if progress.outgoing is not None:
            progress.outgoing.stalled += 1
            if progress.outgoing.stalled >= core.config.election_ticks // 2:
                progress.outgoing.rewind()
    if core.ticks % core.config.heartbeat_ticks == 0:
        broadcast_heartbeat(core)


def broadcast_heartbeat(core: RaftCore) -> None:
    """Tell every member who leads, what it may commit, and the newest read round."""
    for raft_id, progress in core.peers.items():
        if raft_id != core.id:
            # Never beyond what that member confirmed: its log may differ from there on.
            commit = min(progress.match, core.log.commit)
            core.send(raft_id, Heartbeat(commit=commit, round=core.reads.round))


def flush(core: RaftCore) -> None:
    """Queue all appends and chunks the windows allow, and start a round for waiting reads."""
    if core.log.term_of(core.log.commit) == core.term and core.reads.start_round(core.log.commit):
        if core.id in core.peers:
            core.peers[core.id].read_round = core.reads.round
        broadcast_heartbeat(core)
        _answer_reads(core)
    for raft_id, progress in core.peers.items():
        if raft_id != core.id:
            while _maybe_send_append(core, raft_id, progress):
                pass
            _send_chunks(core, raft_id, progress)


def _maybe_send_append(
    core: RaftCore, to: int, progress: Progress, *, allow_empty: bool = False
) -> bool:
    """Send one append if there is something to say and the follower can take it."""
    log = core.log
    news = progress.next <= log.last_index or progress.commit_sent < log.commit
    probing = progress.mode is Mode.PROBE
    if not (news or allow_empty or probing) or progress.blocked:
        return False
    prev_term = log.term_of(progress.next - 1)
    if prev_term is None:
        progress.become_snapshot(log.snapshot)
        core.events.append(SnapshotSent(to=to, index=log.snapshot.index))
        return False
    entries = log.slice(progress.next, max_bytes=MAX_APPEND_BYTES, max_entries=MAX_APPEND_ENTRIES)
    core.send(
        to,
        Append(
            prev_index=progress.next - 1,
            prev_term=prev_term,
            entries=entries,
            commit=log.commit,
        ),
    )
    progress.sent(entries, log.commit)
    return not probing


def _send_chunks(core: RaftCore, to: int, progress: Progress) -> None:
    if progress.outgoing is not None:
        while (chunk := progress.outgoing.next_chunk()) is not None:
            core.send(to, chunk)


def _progress(core: RaftCore, message: Message[Any]) -> Progress | None:
    progress = core.peers.get(message.sender)
    if progress is None:
        core.refuse(message, Reason.NON_MEMBER)
        return None
    progress.heard = core.ticks
    return progress


def handle_append_reply(core: RaftCore, message: Message[AppendReply]) -> None:
    """Move a follower's progress, and with it perhaps the commit index."""
    body = message.body
    progress = _progress(core, message)
    if progress is None:
        return
    if body.index > core.log.last_index:
        core.refuse(message, Reason.IMPOSSIBLE_INDEX)
        return
    if body.rejected:
        hint, _ = core.log.agreement(body.hint_index, body.hint_term)
        if not progress.maybe_decrease(body.index, hint):
            core.refuse(message, Reason.STALE_REPLY)
        return
    news = progress.maybe_update(body.index)
    outgoing = progress.outgoing
    installed = outgoing is not None and body.index >= outgoing.snapshot.index
    found = progress.mode is Mode.PROBE and body.index == progress.match
    if installed or found:
        progress.become_replicate()
    if news:
        maybe_commit(core)
        handover.maybe_tell(core)


def handle_heartbeat_reply(core: RaftCore, message: Message[HeartbeatReply]) -> None:
    """A follower lives: confirm reads, and repair what a lost append left behind."""
    progress = _progress(core, message)
    if progress is None:
        return
    progress.paused = False
    if progress.mode is Mode.REPLICATE and progress.match < core.log.last_index:
        progress.free_one()
        _maybe_send_append(core, message.sender, progress, allow_empty=True)
    if message.body.round > core.reads.round:
        core.refuse(message, Reason.IMPOSSIBLE_INDEX)
        return
    if message.body.round > progress.read_round:
        progress.read_round = message.body.round
        _answer_reads(core)


def handle_snapshot_reply(core: RaftCore, message: Message[SnapshotReply]) -> None:
    """A follower says which byte of the snapshot it wants next."""
    progress = _progress(core, message)
    if progress is None:
        return
    outgoing = progress.outgoing
    if outgoing is None or outgoing.snapshot.index != message.body.index:
        core.refuse(message, Reason.STALE_REPLY)
    elif message.body.offset > len(outgoing.snapshot.data):
        core.refuse(message, Reason.IMPOSSIBLE_INDEX)
    else:
        outgoing.confirm(message.body.offset)


def handle_read_request(core: RaftCore, message: Message[ReadRequest]) -> None:
    """Confirm a read on a follower's behalf."""
    if _progress(core, message) is None:
        return
    if core.reads.size >= MAX_PENDING_READS:
        core.refuse(message, Reason.OVERLOADED)
        return
    core.reads.ask((message.sender, message.body.context))


def _answer_reads(core: RaftCore) -> None:
    rounds = {raft_id: progress.read_round for raft_id, progress in core.peers.items()}
    confirmed = quorum.reached(core.membership.voters, rounds)
    for (member, context), index in core.reads.confirm(confirmed):
        if member == core.id:
            asking.answer(core, context, index)
        else:
            core.send(member, ReadReply(context=context, index=index))


def note_saved(core: RaftCore) -> None:
    """The leader's own disk reached further; it counts like any other member's."""
    mine = core.peers.get(core.id)
    if mine is not None and mine.maybe_update(core.log.saved):
        maybe_commit(core)


def note_unreachable(progress: Progress) -> None:
    """Do not send ahead into nowhere."""
    if progress.mode is Mode.REPLICATE:
        progress.become_probe()
        progress.paused = True


def maybe_commit(core: RaftCore) -> None:
    """Commit what a majority holds, but by counting only entries of the own term.

    An older entry on a majority may still be overwritten (paper, figure 8); one of this term
    above it settles it.
    """
    log = core.log
    matches = {raft_id: progress.match for raft_id, progress in core.peers.items()}
    index = quorum.reached(core.membership.voters, matches)
    if index <= log.commit or log.term_of(index) != core.term:
        return
    core.uncommitted -= log.size_between(log.commit, index)
    core.commit_to(index)
    if core.id not in log.committed_membership.members:
        flush(core)
        handover.leave(core)


def checked_change(core: RaftCore, change: Change) -> Membership:
    """Return the configuration after ``change``, if it is safe to begin it now.

    Raises:
        ChangeRefusedError: see its reason.
    """

    def refusal(reason: ChangeRefusal) -> ChangeRefusedError:
        return ChangeRefusedError(reason, change.raft_id)

    log = core.log
    if core.transfer is not None:
        raise refusal(ChangeRefusal.TRANSFERRING)
    if log.membership_index > log.commit:
        raise refusal(ChangeRefusal.PENDING)
    if log.term_of(log.commit) != core.term:
        # Without this two leaders can each hold an uncommitted change of the same older
        # configuration, whose majorities need not overlap (found by Ongaro after the
        # dissertation, 2015).
        raise refusal(ChangeRefusal.TERM_NOT_STARTED)
    membership = core.membership.apply(change)
    if change.kind is ChangeKind.PROMOTE and not caught_up(core, change.raft_id):
        raise refusal(ChangeRefusal.NOT_CAUGHT_UP)
    if change.kind in {ChangeKind.PROMOTE, ChangeKind.REMOVE}:
        active = core.active_voters(membership)
        if core.id not in membership.members:
            active.discard(core.id)
        if len(active) < quorum.size(len(membership.voters)):
            raise refusal(ChangeRefusal.QUORUM)
    return membership


def caught_up(core: RaftCore, raft_id: int) -> bool:
    """Return whether a member follows closely enough to vote without delaying commits."""
    progress = core.peers.get(raft_id)
    return (
        progress is not None
        and progress.mode is Mode.REPLICATE
        and progress.heard is not None
        and core.ticks - progress.heard < core.config.election_ticks
        and progress.match + CAUGHT_UP_ENTRIES >= core.log.last_index
    )
