"""What a commit changed."""

from __future__ import annotations

from dataclasses import dataclass

from manager.store.entry import Action
from manager.store.tables import Object, TableId


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object created (``old`` is None), updated, or deleted (``new`` is None)."""

    kind: Action
    table: TableId
    old: Object | None
    new: Object | None

    @property
    def item(self) -> Object:
        """The object after the change, or the last one before its deletion."""
        found = self.new if self.new is not None else self.old
        assert found is not None  # noqa: S101  # one of the two is always there
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What one Raft entry changed, in order; ``index`` is the new objects' version."""

    index: int
    changes: tuple[Change, ...]
