"""A disk in memory: it keeps what was synced, and nothing else."""

from __future__ import annotations

from dataclasses import replace

from manager.raft.messages import Batch, Entry, Stored


class Disk:
    """What survives a crash. Applies a batch at the moment its sync ends.

    Attributes:
        stored: all but the entries.
        entries: by index.
        votes: every vote ever stored, by term.
        old: restored from an old copy, so that it may contradict what it once held.
    """

    def __init__(self) -> None:
        self.stored = Stored(incarnation=0)
        self.entries: dict[int, Entry] = {}
        self.votes: dict[int, int] = {}
        self.old = False

    def save(self, batch: Batch) -> None:
        """Store a batch, and check that it fits what is there."""
        old = self.stored
        assert batch.state.term >= old.state.term, "the durable term fell"
        if batch.state.vote is not None:
            given = self.votes.setdefault(batch.state.term, batch.state.vote)
            assert given == batch.state.vote, f"two votes in term {batch.state.term}"
        for index in [i for i in self.entries if not batch.first_index <= i <= batch.keep_to]:
            del self.entries[index]
        for entry in batch.entries:
            self.entries[entry.index] = entry
        assert len(self.entries) == batch.last_index - batch.first_index + 1, "a gap in the log"
        self.stored = replace(
            old,
            state=batch.state,
            snapshot=batch.snapshot or old.snapshot,
            first_index=batch.first_index,
            prev_term=batch.prev_term,
        )

    @property
    def last_index(self) -> int:
        """Last index on disk."""
        return self.stored.first_index + len(self.entries) - 1

    def holds(self, index: int, term: int | None) -> bool:
        """Return whether an entry is there, in the log or in the snapshot."""
        entry = self.entries.get(index)
        return self.stored.snapshot.index >= index or (entry is not None and entry.term == term)

    def load(self) -> Stored:
        """Start once more."""
        self.stored = replace(self.stored, incarnation=self.stored.incarnation + 1)
        return replace(self.stored, entries=tuple(self.entries[i] for i in sorted(self.entries)))

    def copy(self) -> Disk:
        """Return a copy as a backup makes it."""
        copy = Disk()
        copy.stored, copy.entries = self.stored, dict(self.entries)
        copy.votes, copy.old = dict(self.votes), True
        return copy
