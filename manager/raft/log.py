"""The log as the core sees it: snapshot, entries, and how far each stage has come.

All entries behind the snapshot's front are in memory, so the core reads no disk. Always::

    first_index - 1 <= snapshot.index         (some entries stay for slow followers)
    applied <= commit <= last_index
    saved <= saving <= last_index             (durable, handed to the disk, in memory)
"""

from __future__ import annotations

from manager.raft.membership import Membership
from manager.raft.messages import Entry, EntryKind, Snapshot, Stored
from manager.raft.wire import decode_membership_untrusted
from swarm.errors import InvariantError


class Log:
    """Entries with their indexes; knows nothing of leaders or followers."""

    __slots__ = (
        "_entries",
        "_memberships",
        "applied",
        "commit",
        "first_index",
        "prev_term",
        "saved",
        "saving",
        "snapshot",
    )

    def __init__(self, stored: Stored) -> None:
        self.snapshot = stored.snapshot
        self.first_index = stored.first_index
        self.prev_term = stored.prev_term
        self._entries: list[Entry] = list(stored.entries)
        # Ascending; the first is the snapshot's, which no truncation can undo.
        self._memberships: list[tuple[int, Membership]] = []
        self._reload_memberships()
        self.saved = self.saving = self.last_index
        self.applied = stored.snapshot.index
        self.commit = max(stored.snapshot.index, min(stored.state.commit, self.last_index))

    @property
    def last_index(self) -> int:
        """Index of the last entry; of the snapshot when there is none; 0 at birth."""
        return self.first_index + len(self._entries) - 1

    @property
    def last_term(self) -> int:
        """Term of the last entry."""
        return self._entries[-1].term if self._entries else self.prev_term

    @property
    def membership(self) -> Membership:
        """The latest configuration in the log, committed or not: the one in force."""
        return self._memberships[-1][1]

    @property
    def membership_index(self) -> int:
        """Where the configuration in force stands."""
        return self._memberships[-1][0]

    @property
    def committed_membership(self) -> Membership:
        """The latest configuration that no leader can take back."""
        return self.membership_at(self.commit)

    def membership_at(self, index: int) -> Membership:
        """Return the configuration after ``index`` (at or behind the snapshot)."""
        return next(m for at, m in reversed(self._memberships) if at <= max(index, self._base))

    def term_of(self, index: int) -> int | None:
        """Return the entry's term, or None when it is compacted away or not there yet."""
        position = index - self.first_index
        if 0 <= position < len(self._entries):
            return self._entries[position].term
        return self.prev_term if position == -1 else None

    def slice(self, start: int, *, max_bytes: int, max_entries: int) -> tuple[Entry, ...]:
        """Return entries from ``start`` on, at least one if there is one, within the bounds."""
        position = start - self.first_index
        stop, size = position, 0
        limit = min(len(self._entries), position + max_entries)
        while stop < limit and (stop == position or size + self._entries[stop].size <= max_bytes):
            size += self._entries[stop].size
            stop += 1
        return tuple(self._entries[position:stop])

    def unsaved(self) -> tuple[Entry, ...]:
        """Return the entries no batch has carried yet."""
        return tuple(self._entries[self.saving + 1 - self.first_index :])

    def size_between(self, after: int, upto: int) -> int:
        """Return the size of the entries ``after`` + 1 to ``upto``."""
        entries = self._entries[after + 1 - self.first_index : upto + 1 - self.first_index]
        return sum(entry.size for entry in entries)

    def append(self, entry: Entry) -> None:
        """Add a leader's own entry at the end."""
        if entry.index != self.last_index + 1 or entry.term < self.last_term:
            raise InvariantError(f"Entry {entry.index} cannot follow {self.last_index}.")
        self._entries.append(entry)
        if entry.kind is EntryKind.MEMBERSHIP:
            self._memberships.append((entry.index, decode_membership_untrusted(entry.data)))

    def conflict(self, entries: tuple[Entry, ...]) -> int | None:
        """Return the position in ``entries`` of the first one the log lacks or disagrees with."""
        for position, entry in enumerate(entries):
            if self.term_of(entry.index) != entry.term:
                return position
        return None

    def splice(self, entries: tuple[Entry, ...]) -> int | None:
        """Make ``entries`` the log's end; return where the old log was cut, if it was.

        Args:
            entries: non-empty; the first follows an entry of this log and is not committed.
        """
        start = entries[0].index
        if start <= self.commit or start > self.last_index + 1:
            raise InvariantError(f"Entries from {start} on, commit {self.commit}.")
        cut = start if start <= self.last_index else None
        if cut is not None:
            del self._entries[start - self.first_index :]
            while self._memberships[-1][0] >= start:
                self._memberships.pop()
            self.saved = min(self.saved, start - 1)
            self.saving = min(self.saving, start - 1)
        for entry in entries:
            self.append(entry)
        return cut

    def agreement(self, index: int, term: int) -> tuple[int, int]:
        """Return the last (index', term') with index' <= ``index`` and term' <= ``term``.

        A log that has ``term`` at ``index`` can agree with this one up to there at most, which
        skips a whole term per round trip. Source: Raft paper, end of section 5.3.
        """
        index = min(index, self.last_index)
        while True:
            found = self.term_of(index)
            if found is None:
                return index, 0
            if found <= term:
                return index, found
            index -= 1

    def up_to_date(self, last_index: int, last_term: int) -> bool:
        """Return whether a log that ends so is at least as complete as this one (section 5.4.1)."""
        return (last_term, last_index) >= (self.last_term, self.last_index)

    def take_committed(self, max_entries: int) -> tuple[Entry, ...]:
        """Hand out the next entries that are committed and durable here; they count as applied."""
        stop = min(self.commit, self.saved, self.applied + max_entries)
        if stop <= self.applied:
            return ()
        start = self.applied + 1 - self.first_index
        self.applied = stop
        return tuple(self._entries[start : stop + 1 - self.first_index])

    def compact(self, index: int, data: bytes, *, trailing: int) -> Snapshot:
        """Replace the log's front by the state machine's ``data`` at ``index`` (applied)."""
        term = self.term_of(index)
        if term is None or not self.snapshot.index < index <= self.applied:
            raise InvariantError(f"Cannot snapshot {index}, applied {self.applied}.")
        self.snapshot = Snapshot(
            index=index, term=term, membership=self.membership_at(index), data=data
        )
        first = max(self.first_index, index - trailing + 1)
        prev_term = self.term_of(first - 1)
        if prev_term is None:
            raise InvariantError(f"No term at {first - 1}.")
        self.prev_term = prev_term
        del self._entries[: first - self.first_index]
        self.first_index = first
        self._reload_memberships()
        return self.snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Forget every entry: a leader's snapshot takes the whole log's place."""
        self.snapshot = snapshot
        self.first_index, self.prev_term = snapshot.index + 1, snapshot.term
        self._entries.clear()
        self._reload_memberships()
        self.commit = self.saved = self.saving = snapshot.index

    @property
    def _base(self) -> int:
        return self._memberships[0][0]

    def _reload_memberships(self) -> None:
        self._memberships = [(self.snapshot.index, self.snapshot.membership)]
        self._memberships += [
            (entry.index, decode_membership_untrusted(entry.data))
            for entry in self._entries
            if entry.kind is EntryKind.MEMBERSHIP and entry.index > self.snapshot.index
        ]
