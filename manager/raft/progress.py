"""What a leader knows of one follower, and how fast it may send to it.

::

    PROBE ──accepted──> REPLICATE        one append per heartbeat / as many as the window holds
      ^  <──rejected─────   │
      │                     │ the follower needs entries that are compacted away
      └──installed── SNAPSHOT <┘
"""

from __future__ import annotations

import enum
import hashlib
from collections import deque
from dataclasses import dataclass, field

from manager.raft.config import (
    MAX_INFLIGHT_APPENDS,
    MAX_INFLIGHT_BYTES,
    SNAPSHOT_CHUNK_BYTES,
    SNAPSHOT_WINDOW_BYTES,
)
from manager.raft.messages import Entry, Snapshot, SnapshotChunk


class Mode(enum.Enum):
    """How the leader sends to a follower."""

    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


@dataclass(slots=True)
class Outgoing:
    """A snapshot on its way to one follower; ``acked <= sent <= total``."""

    snapshot: Snapshot
    digest: bytes
    acked: int = 0
    sent: int = 0
    started: bool = False
    stalled: int = 0
    """Ticks since the follower's last answer that moved ``acked``."""

    @classmethod
    def of(cls, snapshot: Snapshot) -> Outgoing:
        """Start at the first byte."""
        return cls(snapshot, hashlib.sha256(snapshot.data).digest())

    def next_chunk(self) -> SnapshotChunk | None:
        """Return the next piece the window allows, and count it as sent."""
        total = len(self.snapshot.data)
        if self.started and (self.sent >= total or self.sent - self.acked >= SNAPSHOT_WINDOW_BYTES):
            return None
        offset, self.started = self.sent, True
        self.sent = min(total, offset + SNAPSHOT_CHUNK_BYTES)
        return SnapshotChunk(
            index=self.snapshot.index,
            snapshot_term=self.snapshot.term,
            membership=self.snapshot.membership,
            digest=self.digest,
            total=total,
            offset=offset,
            data=self.snapshot.data[offset : self.sent],
        )

    def confirm(self, offset: int) -> None:
        """The follower wants ``offset`` next; one below ``acked`` means it started over."""
        if offset > self.acked:
            self.stalled = 0
        if offset < self.acked:
            self.sent = offset
        self.acked = offset
        self.sent = max(self.sent, offset)

    def rewind(self) -> None:
        """Send again what was never confirmed."""
        self.sent, self.started, self.stalled = self.acked, False, 0


@dataclass(slots=True)
class Progress:
    """One follower. Always ``match < next``, and in REPLICATE the window lies between them."""

    next: int
    """Index of the next entry to send."""
    match: int = 0
    """Highest index known to be durable there."""
    mode: Mode = Mode.PROBE
    paused: bool = False
    """PROBE: an append is on its way, send no other before an answer or a heartbeat's."""
    heard: int | None = None
    """Leader's tick at the follower's last message in this term."""
    read_round: int = 0
    """Highest read round it confirmed."""
    commit_sent: int = 0
    """Commit index it was last told in an append."""
    outgoing: Outgoing | None = None
    """Set exactly in SNAPSHOT."""
    inflight: deque[tuple[int, int]] = field(default_factory=deque)
    """REPLICATE: (last index, bytes) of each append that waits for an answer."""
    inflight_bytes: int = 0

    @property
    def blocked(self) -> bool:
        """True when no append may be sent now."""
        if self.mode is Mode.PROBE:
            return self.paused
        if self.mode is Mode.SNAPSHOT:
            return True
        return (
            len(self.inflight) >= MAX_INFLIGHT_APPENDS or self.inflight_bytes >= MAX_INFLIGHT_BYTES
        )

    def become_probe(self) -> None:
        """Find out where the logs agree."""
        self._enter(Mode.PROBE)
        self.next = self.match + 1

    def become_replicate(self) -> None:
        """The logs agree up to ``match``: send ahead of the answers."""
        self._enter(Mode.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, snapshot: Snapshot) -> None:
        """The entries it needs are gone: send the snapshot instead."""
        self._enter(Mode.SNAPSHOT)
        self.outgoing = Outgoing.of(snapshot)
        self.next = snapshot.index + 1

    def sent(self, entries: tuple[Entry, ...], commit: int) -> None:
        """Note an append that leaves now."""
        self.commit_sent = commit
        if self.mode is Mode.PROBE:
            self.paused = True
        elif entries:
            size = sum(entry.size for entry in entries)
            self.next = entries[-1].index + 1
            self.inflight.append((entries[-1].index, size))
            self.inflight_bytes += size

    def maybe_update(self, index: int) -> bool:
        """Note that everything up to ``index`` is durable there; False when that is no news."""
        while self.inflight and self.inflight[0][0] <= index:
            self.inflight_bytes -= self.inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        return True

    def free_one(self) -> None:
        """Make room for one append in a full window: the appends in it may all be lost."""
        if self.blocked and self.inflight:
            self.inflight_bytes -= self.inflight.popleft()[1]

    def maybe_decrease(self, rejected: int, hint: int) -> bool:
        """Step back after a rejected append; False when the answer is an old one."""
        if self.mode is Mode.REPLICATE:
            if rejected <= self.match:
                return False
            self.become_probe()
            return True
        if self.mode is Mode.SNAPSHOT or self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.paused = False
        return True

    def _enter(self, mode: Mode) -> None:
        self.mode, self.paused, self.outgoing = mode, False, None
        self.inflight.clear()
        self.inflight_bytes = 0
