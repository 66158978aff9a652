"""The log view, step by step beside a plain list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.raft.log import Log
from manager.raft.membership import Member, Membership
from manager.raft.messages import DurableState, Entry, EntryKind, Snapshot, Stored
from manager.raft.wire import encode_membership
from swarm.errors import InvariantError


def _entries(terms: list[int], first: int = 1) -> tuple[Entry, ...]:
    return tuple(Entry(index=i, term=term, data=b"%d" % i) for i, term in enumerate(terms, first))


def _log(terms: list[int], commit: int = 0) -> Log:
    return Log(Stored(state=DurableState(commit=commit), entries=_entries(terms)))


def _membership(*ids: int) -> Membership:
    return Membership(members={i: Member(raft_id=i, node_id=f"n{i}", addr=f"a{i}") for i in ids})


def _change(index: int, term: int, *ids: int) -> Entry:
    data = encode_membership(_membership(*ids))
    return Entry(index=index, term=term, kind=EntryKind.MEMBERSHIP, data=data)


ASCENDING = st.lists(st.integers(1, 5), max_size=8).map(sorted)


@given(mine=ASCENDING, theirs=ASCENDING)
def test_hints_of_both_sides_never_skip_the_place_of_agreement(
    mine: list[int], theirs: list[int]
) -> None:
    """Source: the paper's section 5.3; skipping terms must not skip a common entry."""
    follower, leader = _log(mine), _log(theirs)
    prev = len(theirs)
    common = 0
    while common < min(len(mine), len(theirs)) and mine[common] == theirs[common]:
        common += 1
    index, term = follower.agreement(prev, leader.term_of(prev) or 0)
    assert common <= index <= prev
    place, _ = leader.agreement(index, term)
    assert common <= place <= index


@given(mine=ASCENDING, theirs=ASCENDING, commit=st.integers(0, 8))
def test_splice_makes_the_logs_equal(mine: list[int], theirs: list[int], commit: int) -> None:
    """What the leader sends replaces what differs and keeps what agrees, and no more."""
    common = 0
    while common < min(len(mine), len(theirs)) and mine[common] == theirs[common]:
        common += 1
    log = _log(mine, commit=min(commit, common))
    sent = _entries(theirs)
    position = log.conflict(sent)
    if position is None:
        assert mine[: len(theirs)] == theirs
        return
    assert position == common
    cut = log.splice(sent[position:])
    assert cut == (common + 1 if common < len(mine) else None)
    assert [log.term_of(i) for i in range(1, len(theirs) + 1)] == theirs
    assert log.last_index == len(theirs)
    assert log.unsaved() == sent[common:]
    assert log.saved == common


def test_a_committed_entry_is_never_cut() -> None:
    """Whoever asks for it, it is a bug here."""
    log = _log([1, 1, 1], commit=2)
    with pytest.raises(InvariantError):
        log.splice(_entries([2], first=2))


def test_slices_respect_bytes_but_carry_one_entry_at_least() -> None:
    """An entry larger than the bound still travels, alone."""
    log = _log([1, 1, 1])
    one = log.slice(1, max_bytes=1, max_entries=10)
    assert [entry.index for entry in one] == [1]
    two = log.slice(1, max_bytes=2 * one[0].size, max_entries=10)
    assert [entry.index for entry in two] == [1, 2]
    assert [e.index for e in log.slice(2, max_bytes=10**6, max_entries=1)] == [2]
    assert log.slice(4, max_bytes=10**6, max_entries=10) == ()


def test_the_latest_configuration_counts_and_goes_with_its_entry() -> None:
    """Committed or not it is in force; cut off, the one before it is again."""
    log = Log(Stored(snapshot=Snapshot(membership=_membership(1))))
    log.append(_change(1, 1, 1, 2))
    log.append(_change(2, 1, 1, 2, 3))
    assert log.membership.voters == {1, 2, 3}
    assert log.committed_membership.voters == {1}
    log.commit = 1
    assert log.committed_membership.voters == {1, 2}
    log.splice(_entries([2], first=2))
    assert log.membership.voters == {1, 2}
    assert log.membership_index == 1


def test_compaction_keeps_a_tail_and_the_configurations_behind_the_snapshot() -> None:
    """Entries stay readable for slow followers; configurations before the snapshot are folded."""
    log = Log(Stored(snapshot=Snapshot(membership=_membership(1))))
    log.append(_change(1, 1, 1, 2))
    for entry in _entries([1, 1, 2, 2], first=2):
        log.append(entry)
    log.append(_change(6, 2, 1, 2, 3))
    log.saving = log.saved = log.last_index
    log.commit = 6
    assert [entry.index for entry in log.take_committed(5)] == [1, 2, 3, 4, 5]
    snapshot = log.compact(4, b"state", trailing=2)
    assert (snapshot.index, snapshot.term) == (4, 2)
    assert snapshot.membership.voters == {1, 2}
    assert (log.first_index, log.prev_term, log.term_of(2), log.term_of(1)) == (3, 1, 1, None)
    assert log.membership.voters == {1, 2, 3}
    assert log.committed_membership.voters == {1, 2, 3}
    assert log.membership_at(5).voters == {1, 2}


def test_only_durable_entries_are_handed_out() -> None:
    """Committed by others is not enough: a crash here would replay less than was applied."""
    log = _log([])
    log.append(Entry(index=1, term=1))
    log.commit = 1
    assert log.take_committed(10) == ()
    log.saving = log.saved = 1
    assert [entry.index for entry in log.take_committed(10)] == [1]
    assert log.take_committed(10) == ()


def test_a_snapshot_takes_the_whole_logs_place() -> None:
    """Nothing before or behind it remains."""
    log = _log([1, 1, 1], commit=1)
    log.restore(Snapshot(index=9, term=3, membership=_membership(4), data=b""))
    assert (log.first_index, log.last_index, log.last_term, log.commit) == (10, 9, 3, 9)
    assert log.term_of(9) == 3
    assert log.term_of(3) is None
    assert log.membership.voters == {4}
