"""What a core did or refused, as data: the driver logs it, tests assert on it."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeAlias


class Role(enum.Enum):
    """What a member is at the moment."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class Reason(enum.Enum):
    """Why a message was refused."""

    OTHER_CLUSTER = "other-cluster"
    WRONG_RECIPIENT = "wrong-recipient"
    REMOVED_MEMBER = "removed-member"
    NON_MEMBER = "non-member"
    OLDER_TERM = "older-term"
    LEASE = "lease"
    UNEXPECTED = "unexpected-in-role"
    IMPOSSIBLE_INDEX = "impossible-index"
    IMPOSSIBLE_TERM = "impossible-term"
    TWO_LEADERS = "two-leaders"
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    BAD_DIGEST = "bad-digest"
    LOG_GAP = "log-gap"
    STALE_REPLY = "stale-reply"
    NOT_LEADER = "not-leader"
    BEHIND = "log-behind"
    VOTED = "voted-for-another"
    OVERLOADED = "overloaded"
    STALE_INCARNATION = "stale-incarnation"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A message had no effect."""

    reason: Reason
    message: str
    """Kind of the message's body."""
    sender: int
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged:
    """The member took on a role (also: the same role in a new term)."""

    role: Role
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderChanged:
    """The known leader is another one, or unknown (None)."""

    leader: int | None
    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MembershipChanged:
    """Another configuration is in force (not necessarily committed yet)."""

    index: int
    voters: tuple[int, ...]
    learners: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truncated:
    """Entries from ``index`` on gave way to another leader's."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSent:
    """A follower is behind the log's front and is being sent a snapshot."""

    to: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotReceived:
    """A snapshot from the leader is complete."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumLost:
    """The leader did not hear a majority for an election time and steps down."""

    term: int
    active: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferStarted:
    """The leader hands over to a member."""

    to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferAborted:
    """The member did not take over within an election time."""

    to: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WasRemoved:
    """This member no longer belongs to the group, for good."""

    term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StateLost:
    """The leader holds this member's durable confirmation of an index its log does not reach."""

    confirmed: int
    last_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OldCopy:
    """Others heard a later life of this member: its disk is an old copy of its state."""

    incarnation: int
    seen: int


Event: TypeAlias = (
    Refused
    | RoleChanged
    | LeaderChanged
    | MembershipChanged
    | Truncated
    | SnapshotSent
    | SnapshotReceived
    | QuorumLost
    | TransferStarted
    | TransferAborted
    | WasRemoved
    | StateLost
    | OldCopy
)
