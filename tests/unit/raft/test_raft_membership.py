"""Single steps of the configuration, and its bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.raft.config import MAX_MEMBERS, MAX_REMOVED, MAX_VOTERS
from manager.raft.errors import ChangeRefusal, ChangeRefusedError
from manager.raft.membership import Change, ChangeKind, Member, Membership
from manager.raft.wire import (
    MAX_MEMBERSHIP_BYTES,
    decode_membership_untrusted,
    encode_membership,
)
from swarm.errors import WireError

IDS = st.integers(1, 2**63 - 1)
TEXT = st.text(max_size=40)
MEMBERS = st.builds(Member, raft_id=IDS, node_id=TEXT, addr=TEXT, learner=st.booleans())
MEMBERSHIPS = st.builds(
    lambda members, removed: Membership(
        members={m.raft_id: m for m in members},
        removed=removed - {m.raft_id for m in members},
    ),
    st.lists(MEMBERS, max_size=MAX_MEMBERS),
    st.frozensets(IDS, max_size=20),
)


def _group(voters: int, learners: int = 0) -> Membership:
    members = {
        i: Member(raft_id=i, node_id=f"n{i}", addr=f"a{i}", learner=i > voters)
        for i in range(1, voters + learners + 1)
    }
    return Membership(members=members)


def _refusal(membership: Membership, kind: ChangeKind, raft_id: int) -> ChangeRefusal:
    with pytest.raises(ChangeRefusedError) as caught:
        membership.apply(Change(kind=kind, raft_id=raft_id, node_id="n", addr="a"))
    return caught.value.reason


@given(membership=MEMBERSHIPS)
def test_a_membership_survives_the_wire(membership: Membership) -> None:
    """Equal ones have equal bytes, whatever order they were made in."""
    data = encode_membership(membership)
    again = decode_membership_untrusted(data)
    assert again == membership
    assert encode_membership(again) == data


@given(
    data=st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=5),
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_a_membership_or_refused(data: bytes) -> None:
    """Nothing but WireError comes out."""
    try:
        decode_membership_untrusted(data)
    except WireError:
        return


@pytest.mark.parametrize(
    "value",
    [
        [2, [], []],
        [1, [[1, "n", "a", False]] * 2, []],
        [1, [[1, "n", "a", False]], [1]],
        [1, [[0, "n", "a", False]], []],
        [1, [[1, "n" * 600, "a", False]], []],
        [1, [[i, "n", "a", False] for i in range(1, MAX_MEMBERS + 2)], []],
        [1, [], list(range(1, MAX_REMOVED + 2))],
        [1, [[True, "n", "a", False]], []],
    ],
    ids=["version", "twice", "removed", "zero", "long", "many", "graves", "bool-id"],
)
def test_memberships_beyond_the_bounds_are_refused(value: object) -> None:
    """Each bound by itself."""
    with pytest.raises(WireError):
        decode_membership_untrusted(json.dumps(value).encode())


def test_oversized_bytes_are_not_even_parsed() -> None:
    """The bound stands before the parser."""
    with pytest.raises(WireError, match="too large"):
        decode_membership_untrusted(b"[" * (MAX_MEMBERSHIP_BYTES + 1))


def test_each_step_changes_one_member() -> None:
    """Learner, vote, address, end."""
    group = _group(1)
    group = group.apply(Change(kind=ChangeKind.ADD_LEARNER, raft_id=2, node_id="n2", addr="a2"))
    assert group.voters == {1}
    assert group.members[2].learner
    group = group.apply(Change(kind=ChangeKind.PROMOTE, raft_id=2))
    assert group.voters == {1, 2}
    group = group.apply(Change(kind=ChangeKind.UPDATE, raft_id=2, addr="b2"))
    assert group.members[2].addr == "b2"
    group = group.apply(Change(kind=ChangeKind.REMOVE, raft_id=1))
    assert set(group.members) == {2}
    assert group.removed == {1}


def test_impossible_steps_are_refused_with_a_reason() -> None:
    """A removed id stays removed; bounds hold; the last voter stays."""
    group = _group(2, 1).apply(Change(kind=ChangeKind.REMOVE, raft_id=2))
    assert _refusal(group, ChangeKind.ADD_LEARNER, 2) is ChangeRefusal.REMOVED
    assert _refusal(group, ChangeKind.ADD_LEARNER, 3) is ChangeRefusal.KNOWN
    assert _refusal(group, ChangeKind.PROMOTE, 1) is ChangeRefusal.NOT_LEARNER
    assert _refusal(group, ChangeKind.PROMOTE, 9) is ChangeRefusal.UNKNOWN
    assert _refusal(group, ChangeKind.REMOVE, 1) is ChangeRefusal.LAST_VOTER
    assert _refusal(_group(MAX_VOTERS, 1), ChangeKind.PROMOTE, MAX_VOTERS + 1) is ChangeRefusal.FULL
    full = _group(1, MAX_MEMBERS - 1)
    assert _refusal(full, ChangeKind.ADD_LEARNER, 99) is ChangeRefusal.FULL
