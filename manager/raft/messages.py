"""What members say to each other, what the core hands to its driver, and what the log holds."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from manager.raft.events import Event
from manager.raft.membership import Membership

ENTRY_OVERHEAD_BYTES = 32
"""What an entry costs beside its payload, when sizes are summed up."""


class EntryKind(enum.IntEnum):
    """What an entry is; the numbers stand on disk and on the wire."""

    COMMAND = 1
    NOOP = 2
    MEMBERSHIP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One slot of the log."""

    index: int
    """Position, from 1, without gaps."""
    term: int
    """Term of the leader that made it; never lower than the predecessor's."""
    kind: EntryKind = EntryKind.COMMAND
    data: bytes = b""

    @property
    def size(self) -> int:
        """Bytes this entry counts for in every limit."""
        return len(self.data) + ENTRY_OVERHEAD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state machine after applying ``index``, which replaces the log up to there."""

    index: int = 0
    term: int = 0
    membership: Membership = field(default_factory=Membership)
    """The configuration in force at ``index``."""
    data: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreVote:
    """Would you vote for me? Asks without disturbing anybody's term (dissertation 9.6).

    The envelope carries the term the sender would campaign in.
    """

    last_index: int
    last_term: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PreVoteReply:
    """``granted`` comes with the asked term, a refusal with the refuser's own."""

    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """A request for a vote; ``transfer`` overrides the lease of a living leader."""

    last_index: int
    last_term: int
    transfer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteReply:
    """A vote, sent only once it is durable."""

    granted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """Entries that follow (prev_index, prev_term); none of them just carries the commit index."""

    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...] = ()
    commit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AppendReply:
    """Accepted: everything up to ``index`` equals the leader's log and is durable.

    Rejected: ``index`` echoes prev_index; the hint is the last place where the logs may agree.
    """

    index: int
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """I lead. ``round`` numbers the leader's read confirmations and is echoed."""

    commit: int
    round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HeartbeatReply:
    """The echo of a heartbeat."""

    round: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotChunk:
    """A piece of a snapshot; pieces with the same (index, term, digest) belong together."""

    index: int
    snapshot_term: int
    membership: Membership
    digest: bytes
    """SHA-256 of the whole."""
    total: int
    """Bytes of the whole."""
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotReply:
    """The follower wants the snapshot at ``index`` from ``offset`` on."""

    index: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRequest:
    """A follower asks for a linearisable read point."""

    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadReply:
    """Reads may be served once ``index`` is applied."""

    context: int
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeoutNow:
    """Campaign at once: the leader hands over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """You were removed from the group, by an entry that is committed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outdated:
    """You speak as ``incarnation``, but were heard as a later one (``seen``): an old copy."""

    incarnation: int
    seen: int


Body: TypeAlias = (
    PreVote
    | PreVoteReply
    | Vote
    | VoteReply
    | Append
    | AppendReply
    | Heartbeat
    | HeartbeatReply
    | SnapshotChunk
    | SnapshotReply
    | ReadRequest
    | ReadReply
    | TimeoutNow
    | Removed
    | Outdated
)

B_co = TypeVar("B_co", bound=Body, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Message(Generic[B_co]):
    """The envelope every message travels in."""

    cluster: str
    sender: int
    to: int
    term: int
    incarnation: int
    """How often the sender's state was opened; grows by one with each start."""
    body: B_co


@dataclass(frozen=True, slots=True, kw_only=True)
class DurableState:
    """What a member must remember beside its log."""

    term: int = 0
    """Highest term seen; never falls."""
    vote: int | None = None
    """Candidate that got this member's vote in ``term``."""
    commit: int = 0
    """A commit index known when the state was written; may lag, only shortens a restart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What must become durable in one transaction, before ``advance`` is called.

    After it the disk holds exactly the entries ``first_index .. last of entries`` (or
    ``keep_to`` when there are none).
    """

    state: DurableState
    entries: tuple[Entry, ...] = ()
    first_index: int = 1
    """Entries before it are deleted (they are in the snapshot)."""
    prev_term: int = 0
    """Term of the entry just before ``first_index``."""
    keep_to: int = 0
    """Entries beyond it on disk are deleted first: a new leader's log replaced them."""
    snapshot: Snapshot | None = None
    """Replaces the stored snapshot."""

    @property
    def last_index(self) -> int:
        """Last index of the log after this batch."""
        return self.entries[-1].index if self.entries else self.keep_to


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a storage gives back at start."""

    state: DurableState = field(default_factory=DurableState)
    snapshot: Snapshot = field(default_factory=Snapshot)
    first_index: int = 1
    prev_term: int = 0
    entries: tuple[Entry, ...] = ()
    incarnation: int = 1

    @property
    def empty(self) -> bool:
        """True for a storage that never held a batch."""
        return not self.entries and self.state == DurableState() and self.snapshot.index == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """The answer to ``request_read``: the read point, or None when nobody could confirm it."""

    context: int
    index: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Work for the driver; every field may be handled as soon as it appears."""

    messages: tuple[Message[Body], ...] = ()
    """Send now. Whatever had to be durable before they were sent already is."""
    batch: Batch | None = None
    """Make durable, then call ``advance``. At most one is outstanding."""
    restore: Snapshot | None = None
    """Replace the state machine by it, before ``committed``. It is durable already."""
    committed: tuple[Entry, ...] = ()
    """Apply in order. Each is durable here and committed in the group."""
    reads: tuple[ReadResult, ...] = ()
    """Answer once the state machine has applied their index."""
    events: tuple[Event, ...] = ()
    """What happened, for the log and the tests."""

    @property
    def idle(self) -> bool:
        """True when there is nothing to do."""
        return not (
            self.messages
            or self.batch
            or self.restore
            or self.committed
            or self.reads
            or self.events
        )
