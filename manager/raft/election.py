"""Campaigns and votes (paper 5.2 and 5.4.1; pre-vote: dissertation 9.6)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manager.raft import quorum
from manager.raft.events import Reason, Role
from manager.raft.messages import Message, PreVote, PreVoteReply, Vote, VoteReply

if TYPE_CHECKING:
    from manager.raft.core import RaftCore


def campaign_pre_vote(core: RaftCore) -> None:
    """Ask whether a campaign could succeed, so that a futile one disturbs nobody's term."""
    core.become_pre_candidate()
    core.votes[core.id] = True
    if quorum.tally(core.membership.voters, core.votes) is quorum.Tally.WON:
        campaign(core)
        return
    body = PreVote(last_index=core.log.last_index, last_term=core.log.last_term)
    for voter in sorted(core.membership.voters - {core.id}):
        core.send(voter, body, term=core.term + 1)


def campaign(core: RaftCore, *, transfer: bool = False) -> None:
    """Ask for votes in a new term. The own vote counts once it is durable, like any other."""
    core.become_candidate()
    if core.id in core.membership.voters:
        core.send(core.id, VoteReply(granted=True))
    body = Vote(last_index=core.log.last_index, last_term=core.log.last_term, transfer=transfer)
    for voter in sorted(core.membership.voters - {core.id}):
        core.send(voter, body)


def handle_vote_request(core: RaftCore, message: Message[PreVote | Vote]) -> None:
    """Grant or refuse; a member votes once per term, for a log at least as complete as its own.

    Asked members answer even when their own configuration says they are learners or does not
    know the candidate: the candidate's may be newer (dissertation 4.2.2).
    """
    body, pre = message.body, isinstance(message.body, PreVote)
    free = (
        core.vote == message.sender
        or (core.vote is None and core.leader is None)
        or (pre and message.term > core.term)
    )
    complete = core.log.up_to_date(body.last_index, body.last_term)
    granted = free and complete
    if not granted:
        core.refuse(message, Reason.VOTED if complete else Reason.BEHIND)
    if pre:
        term = message.term if granted else core.term
        core.send(message.sender, PreVoteReply(granted=granted), term=term)
        return
    if granted:
        core.vote = message.sender
        core.elapsed = 0
    core.send(message.sender, VoteReply(granted=granted))


def handle_vote_reply(core: RaftCore, message: Message[PreVoteReply | VoteReply]) -> None:
    """Count an answer to the campaign this member runs."""
    pre = isinstance(message.body, PreVoteReply)
    granted = message.body.granted
    expected = core.term + 1 if pre and granted else core.term
    if pre != (core.role is Role.PRE_CANDIDATE) or message.term != expected:
        core.refuse(message, Reason.STALE_REPLY)
        return
    if message.sender not in core.membership.voters:
        core.refuse(message, Reason.NON_MEMBER)
        return
    core.votes.setdefault(message.sender, granted)
    outcome = quorum.tally(core.membership.voters, core.votes)
    if outcome is quorum.Tally.WON:
        if pre:
            campaign(core)
        else:
            core.become_leader()
    elif outcome is quorum.Tally.LOST:
        core.become_follower(core.term, None)
