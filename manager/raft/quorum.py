"""Majorities: the highest value a quorum has reached, and the outcome of a vote."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping


class Tally(enum.Enum):
    """Where an election stands."""

    PENDING = "pending"
    WON = "won"
    LOST = "lost"


def size(voters: int) -> int:
    """Return how many of ``voters`` make a majority."""
    return voters // 2 + 1


def reached(voters: Collection[int], values: Mapping[int, int]) -> int:
    """Return the highest value that a majority of the voters has reached; absent ones count as 0.

    The same rule gives the commit index (from match indexes) and the confirmed read round.
    An empty group has reached nothing: 0.
    """
    if not voters:
        return 0
    ascending = sorted(values.get(voter, 0) for voter in voters)
    return ascending[len(ascending) - size(len(ascending))]


def tally(voters: Collection[int], votes: Mapping[int, bool]) -> Tally:
    """Return the outcome of a vote, counting only voters; an empty group elects nobody."""
    granted = sum(1 for voter in voters if votes.get(voter) is True)
    refused = sum(1 for voter in voters if votes.get(voter) is False)
    if not voters:
        return Tally.LOST
    if granted >= size(len(voters)):
        return Tally.WON
    if len(voters) - refused < size(len(voters)):
        return Tally.LOST
    return Tally.PENDING
