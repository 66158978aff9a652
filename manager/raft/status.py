"""What one member knows of itself and the group, as others in its process see it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from manager.raft.core import RaftCore
from manager.raft.events import Role
from manager.raft.membership import Member


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftStatus:
    """A look at one member."""

    id: int
    term: int
    role: Role
    leader_id: int | None
    commit_index: int
    applied_index: int
    members: Mapping[int, Member]
    """The configuration in force, by raft id."""
    active: frozenset[int]
    """Leader: members heard within an election time, itself included. Elsewhere empty."""

    @classmethod
    def of(cls, core: RaftCore) -> RaftStatus:
        """Look at a core now."""
        oldest = core.ticks - core.config.election_ticks
        active = {
            i for i, peer in core.peers.items() if peer.heard is not None and peer.heard >= oldest
        }
        if core.role is Role.LEADER:
            active.add(core.id)
        return cls(
            id=core.id,
            term=core.term,
            role=core.role,
            leader_id=core.leader,
            commit_index=core.log.commit,
            applied_index=core.log.applied,
            members=core.membership.members,
            active=frozenset(active),
        )
