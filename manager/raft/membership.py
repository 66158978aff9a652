"""Who belongs to the group: an immutable configuration and the single steps that change it.

Every change adds, promotes, updates or removes **one** member, so that any two majorities of
neighbouring configurations overlap. Source: Ongaro's dissertation, sections 4.1 and 4.2.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from manager.raft.config import MAX_MEMBERS, MAX_REMOVED, MAX_VOTERS
from manager.raft.errors import ChangeRefusal, ChangeRefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One manager in the group."""

    raft_id: int
    node_id: str
    addr: str
    learner: bool = False
    """A learner receives the log and does not count in any majority."""


class ChangeKind(enum.Enum):
    """The single steps."""

    ADD_LEARNER = "add-learner"
    PROMOTE = "promote"
    UPDATE = "update"
    REMOVE = "remove"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One wanted step. ``node_id`` and ``addr`` matter to ADD_LEARNER, ``addr`` to UPDATE."""

    kind: ChangeKind
    raft_id: int
    node_id: str = ""
    addr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """A configuration. Log entries of kind MEMBERSHIP carry one whole, so the last one counts."""

    members: Mapping[int, Member] = field(default_factory=dict)
    removed: frozenset[int] = frozenset()
    """Raft ids that must never speak in the group again."""
    voters: frozenset[int] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        voters = frozenset(i for i, member in self.members.items() if not member.learner)
        object.__setattr__(self, "members", MappingProxyType(dict(sorted(self.members.items()))))
        object.__setattr__(self, "voters", voters)

    def apply(self, change: Change) -> Membership:
        """Return the configuration after one step.

        Raises:
            ChangeRefusedError: KNOWN, REMOVED, FULL, UNKNOWN, NOT_LEARNER or LAST_VOTER.
        """
        member = self.members.get(change.raft_id)
        if change.kind is ChangeKind.ADD_LEARNER:
            return self._with(self._newcomer(change, member))
        if member is None:
            raise ChangeRefusedError(ChangeRefusal.UNKNOWN, change.raft_id)
        if change.kind is ChangeKind.UPDATE:
            return self._with(replace(member, addr=change.addr))
        if change.kind is ChangeKind.PROMOTE:
            if not member.learner:
                raise ChangeRefusedError(ChangeRefusal.NOT_LEARNER, change.raft_id)
            if len(self.voters) >= MAX_VOTERS:
                raise ChangeRefusedError(ChangeRefusal.FULL, change.raft_id)
            return self._with(replace(member, learner=False))
        if self.voters == {change.raft_id}:
            raise ChangeRefusedError(ChangeRefusal.LAST_VOTER, change.raft_id)
        rest = {i: other for i, other in self.members.items() if i != change.raft_id}
        return Membership(members=rest, removed=self.removed | {change.raft_id})

    def alone(self, member: Member) -> Membership:
        """Return the group of one that disaster recovery goes on with."""
        others = frozenset(self.members) - {member.raft_id}
        return Membership(members={member.raft_id: member}, removed=self.removed | others)

    def _newcomer(self, change: Change, member: Member | None) -> Member:
        if member is not None:
            raise ChangeRefusedError(ChangeRefusal.KNOWN, change.raft_id)
        if change.raft_id in self.removed:
            raise ChangeRefusedError(ChangeRefusal.REMOVED, change.raft_id)
        if len(self.members) >= MAX_MEMBERS or len(self.removed) >= MAX_REMOVED:
            raise ChangeRefusedError(ChangeRefusal.FULL, change.raft_id)
        return Member(
            raft_id=change.raft_id, node_id=change.node_id, addr=change.addr, learner=True
        )

    def _with(self, member: Member) -> Membership:
        return Membership(members={**self.members, member.raft_id: member}, removed=self.removed)
