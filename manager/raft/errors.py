"""What the users of a raft group can meet, by cause."""

from __future__ import annotations

import enum

from swarm.errors import HostError, PreconditionError, StaleError, UnavailableError


class NotLeaderError(StaleError):
    """This member does not lead; the call was not tried and belongs to the leader.

    Attributes:
        leader_id: raft id of the leader as far as this member knows, or None during an election.
        leader_addr: its host:port, or None when unknown.
    """

    def __init__(self, leader_id: int | None = None, leader_addr: str | None = None) -> None:
        where = f"the leader is at {leader_addr}" if leader_addr else "no leader is known now"
        super().__init__(f"This manager is not the raft leader; {where}.")
        self.leader_id = leader_id
        self.leader_addr = leader_addr


class QuorumLostError(UnavailableError):
    """The group could not confirm the call: too few managers answer, or leadership was lost.

    For a proposal the outcome is unknown: it may still take effect.
    """


class DroppedError(UnavailableError):
    """The proposal certainly has no effect: refused under load, or another entry took its place."""


class ChangeRefusal(enum.Enum):
    """Why a membership change or a transfer was refused."""

    PENDING = "another membership change is still pending"
    TERM_NOT_STARTED = "the leader has not yet committed an entry in its own term"
    KNOWN = "a member with this raft id exists already"
    REMOVED = "this raft id was removed for good; join again to get a new one"
    UNKNOWN = "no member has this raft id"
    NOT_LEARNER = "the member votes already"
    NOT_VOTER = "the member does not vote yet"
    NOT_CAUGHT_UP = "the learner has not caught up with the log yet"
    LAST_VOTER = "the last voting manager cannot be removed"
    QUORUM = "too few of the remaining managers answer; the change would lose the quorum"
    FULL = "the group has as many managers as it may have"
    TRANSFERRING = "leadership is being transferred"
    NO_TARGET = "no other voting manager answers"


class ChangeRefusedError(PreconditionError):
    """The membership change is not allowed now; ``reason`` says why and what to wait for."""

    def __init__(self, reason: ChangeRefusal, raft_id: int) -> None:
        super().__init__(f"Cannot change manager {raft_id:x}: {reason.value}.")
        self.reason = reason
        self.raft_id = raft_id


class RemovedError(PreconditionError):
    """This manager was removed from the group; its raft state is of no more use."""


class StateLostError(HostError):
    """This manager's disk lacks entries it once confirmed, as after restoring an old copy of it."""


class StorageError(HostError):
    """The raft state cannot be read or written; the text names the file and what to do."""


class CorruptStateError(StorageError):
    """The raft state on disk is torn, altered or incomplete."""


class LockedError(PreconditionError):
    """The data key is wrapped under an unlock key that was not given, or a wrong one was given."""
