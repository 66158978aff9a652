"""Majorities against rules that are slow and obvious."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from manager.raft import quorum

VOTERS = st.sets(st.integers(1, 9), max_size=7)
VALUES = st.dictionaries(st.integers(1, 9), st.integers(0, 12))


def _reached_slowly(voters: set[int], values: dict[int, int]) -> int:
    """Try every value from the top: is there a majority that has it?"""
    for value in range(12, 0, -1):
        having = [voter for voter in voters if values.get(voter, 0) >= value]
        if voters and 2 * len(having) > len(voters):
            return value
    return 0


@given(voters=VOTERS, values=VALUES)
def test_reached_is_the_highest_value_of_a_majority(
    voters: set[int], values: dict[int, int]
) -> None:
    """The sorted pick equals trying every value."""
    assert quorum.reached(voters, values) == _reached_slowly(voters, values)


@given(voters=VOTERS, votes=st.dictionaries(st.integers(1, 9), st.booleans()))
def test_tally_foresees_every_way_an_election_can_end(
    voters: set[int], votes: dict[int, bool]
) -> None:
    """Won or lost only if no vote still to come can change it."""
    open_votes = [voter for voter in voters if voter not in votes]
    granted = sum(votes.get(voter, False) for voter in voters)
    endings = {2 * (granted + more) > len(voters) for more in range(len(open_votes) + 1)}
    outcome = quorum.tally(voters, votes)
    expected = {
        frozenset({True}): quorum.Tally.WON,
        frozenset({False}): quorum.Tally.LOST,
        frozenset({True, False}): quorum.Tally.PENDING,
    }[frozenset(endings)]
    assert outcome is expected


@given(count=st.integers(1, 7))
def test_two_majorities_overlap(count: int) -> None:
    """Also when one of them is of a configuration with one member more."""
    for larger in (count, count + 1):
        members = range(larger)
        for first in combinations(range(count), quorum.size(count)):
            for second in combinations(members, quorum.size(larger)):
                assert set(first) & set(second)
