"""What no message, however odd, may do to a core; and its limits."""

from __future__ import annotations

import hashlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.raft import config as limits
from manager.raft import messages as m
from manager.raft.config import RaftConfig
from manager.raft.core import IDLE, RaftCore
from manager.raft.errors import DroppedError
from manager.raft.events import Event, Reason, Refused, Role
from manager.raft.membership import Member, Membership
from swarm.errors import InvalidArgumentError, InvariantError

GROUP = Membership(
    members={
        i: Member(raft_id=i, node_id=f"n{i}", addr=f"a{i}", learner=i == 4) for i in range(1, 5)
    }
)
CONFIG = RaftConfig(cluster_id="c", raft_id=1, node_id="n1", addr="a1")


def _core(terms: tuple[int, ...] = (), commit: int = 0) -> RaftCore:
    entries = tuple(m.Entry(index=i, term=t) for i, t in enumerate(terms, 1))
    state = m.DurableState(term=max(terms, default=0), commit=commit)
    stored = m.Stored(state=state, entries=entries, snapshot=m.Snapshot(membership=GROUP))
    return RaftCore(CONFIG, stored, random.Random(1))


def _settle(core: RaftCore) -> tuple[list[m.Message[m.Body]], list[Event]]:
    messages: list[m.Message[m.Body]] = []
    events: list[Event] = []
    while (ready := core.ready()) is not IDLE:
        messages += ready.messages
        events += ready.events
        if ready.batch is not None:
            core.advance()
    return messages, events


def _message(body: Any, *, sender: int = 2, term: int = 1) -> m.Message[Any]:
    return m.Message(cluster="c", sender=sender, to=1, term=term, incarnation=1, body=body)


def _leader() -> RaftCore:
    core = _core()
    core.campaign()
    _settle(core)
    core.step(_message(m.PreVoteReply(granted=True)))
    _settle(core)
    core.step(_message(m.VoteReply(granted=True)))
    _settle(core)
    assert core.role is Role.LEADER
    return core


def _reasons(core: RaftCore, *messages: m.Message[Any]) -> list[Reason]:
    _settle(core)
    for message in messages:
        core.step(message)
    return [event.reason for event in _settle(core)[1] if isinstance(event, Refused)]


SMALL = st.integers(0, 6)
TERM = st.integers(0, 4)
ENTRY_TERMS = st.lists(TERM, max_size=3)


@st.composite
def _appends(draw: st.DrawFn) -> m.Append:
    prev = draw(SMALL)
    terms = draw(ENTRY_TERMS)
    kinds = st.sampled_from(m.EntryKind)
    entries = tuple(
        m.Entry(index=i, term=t, kind=draw(kinds)) for i, t in enumerate(terms, prev + 1)
    )
    return m.Append(prev_index=prev, prev_term=draw(TERM), entries=entries, commit=draw(SMALL))


@st.composite
def _chunks(draw: st.DrawFn) -> m.SnapshotChunk:
    whole = b"ab"
    offset = draw(st.integers(0, 2))
    return m.SnapshotChunk(
        index=draw(SMALL),
        snapshot_term=draw(TERM),
        membership=GROUP,
        digest=hashlib.sha256(whole).digest(),
        total=len(whole),
        offset=offset,
        data=whole[offset : offset + draw(st.integers(0, 2))],
    )


BODIES = st.one_of(
    _appends(),
    _appends(),
    _chunks(),
    st.builds(m.PreVote, last_index=SMALL, last_term=TERM),
    st.builds(m.PreVoteReply, granted=st.booleans()),
    st.builds(m.Vote, last_index=SMALL, last_term=TERM, transfer=st.booleans()),
    st.builds(m.VoteReply, granted=st.booleans()),
    st.builds(
        m.AppendReply,
        index=SMALL,
        rejected=st.booleans(),
        hint_index=SMALL,
        hint_term=TERM,
    ),
    st.builds(m.Heartbeat, commit=SMALL, round=SMALL),
    st.builds(m.HeartbeatReply, round=SMALL),
    st.builds(m.SnapshotReply, index=SMALL, offset=SMALL),
    st.builds(m.ReadRequest, context=SMALL),
    st.builds(m.ReadReply, context=SMALL, index=SMALL),
    st.just(m.TimeoutNow()),
    st.just(m.Removed()),
    st.builds(m.Outdated, incarnation=SMALL, seen=SMALL),
)
STEPS = st.one_of(
    st.integers(1, 20),
    st.sampled_from(["propose", "read", "compact", "transfer"]),
    st.builds(
        m.Message,
        cluster=st.just("c"),
        sender=st.integers(1, 6),
        to=st.just(1),
        term=st.integers(0, 5),
        incarnation=st.integers(0, 2),
        body=BODIES,
    ),
)


@settings(max_examples=400, deadline=None)
@given(
    terms=st.lists(st.integers(1, 3), max_size=4).map(sorted),
    commit=st.integers(0, 4),
    steps=st.lists(STEPS, max_size=30),
)
def test_no_sequence_of_messages_breaks_a_core(
    terms: list[int], commit: int, steps: list[Any]
) -> None:
    """Peers may lie: nothing raises, nothing committed changes, nothing falls back."""
    core = _core(tuple(terms), commit)
    committed: dict[int, int] = {}
    term = commit_before = 0
    for step in steps:
        if isinstance(step, int):
            for _ in range(step):
                core.tick()
        elif step == "propose" and core.role is Role.LEADER and core.transfer is None:
            core.propose(b"x")
        elif step == "read":
            core.request_read()
        elif step == "compact" and core.log.applied > core.log.snapshot.index:
            core.compact(core.log.applied, b"ab")
        elif step == "transfer" and core.role is Role.LEADER and core.transfer is None:
            core.transfer_leadership(2)
        elif isinstance(step, m.Message):
            core.step(step)
        _settle(core)
        assert core.term >= term
        assert core.log.commit >= commit_before
        assert core.log.applied <= core.log.commit <= core.log.last_index
        assert core.log.saved <= core.log.saving <= core.log.last_index
        for index in range(max(core.log.first_index, commit_before + 1), core.log.commit + 1):
            committed[index] = core.log.term_of(index) or 0
        for index, known in committed.items():
            assert core.log.term_of(index) in {known, None}
        term, commit_before = core.term, core.log.commit


def _append(*entries: m.Entry, prev: tuple[int, int] = (0, 0)) -> m.Append:
    return m.Append(prev_index=prev[0], prev_term=prev[1], entries=entries)


def _chunk(**changes: Any) -> m.SnapshotChunk:
    values: dict[str, Any] = {
        "index": 5,
        "snapshot_term": 1,
        "membership": GROUP,
        "digest": bytes(32),
        "total": 2,
        "offset": 0,
        "data": b"ab",
    }
    return m.SnapshotChunk(**{**values, **changes})


ODD: dict[str, tuple[Any, Reason]] = {
    "too many entries": (
        _append(*(m.Entry(index=i, term=1) for i in range(1, limits.MAX_APPEND_ENTRIES + 2))),
        Reason.OVERSIZED,
    ),
    "too large an entry": (
        _append(m.Entry(index=1, term=1, data=bytes(limits.MAX_ENTRY_BYTES + 1))),
        Reason.OVERSIZED,
    ),
    "gap": (_append(m.Entry(index=2, term=1)), Reason.IMPOSSIBLE_INDEX),
    "beyond all": (
        _append(m.Entry(index=limits.MAX_INDEX + 1, term=1), prev=(limits.MAX_INDEX, 1)),
        Reason.IMPOSSIBLE_INDEX,
    ),
    "falling terms": (
        _append(m.Entry(index=3, term=0), prev=(2, 1)),
        Reason.IMPOSSIBLE_TERM,
    ),
    "term of the future": (_append(m.Entry(index=1, term=2)), Reason.IMPOSSIBLE_TERM),
    "bad membership": (
        _append(m.Entry(index=1, term=1, kind=m.EntryKind.MEMBERSHIP, data=b"?")),
        Reason.MALFORMED,
    ),
    "zero with a term": (_append(prev=(0, 1)), Reason.IMPOSSIBLE_INDEX),
    "huge snapshot": (_chunk(total=limits.MAX_SNAPSHOT_BYTES + 1), Reason.OVERSIZED),
    "huge chunk": (
        _chunk(total=10**8, data=bytes(limits.SNAPSHOT_CHUNK_BYTES + 1)),
        Reason.OVERSIZED,
    ),
    "chunk beyond the end": (_chunk(offset=1), Reason.IMPOSSIBLE_INDEX),
    "chunk without bytes": (_chunk(data=b""), Reason.MALFORMED),
    "snapshot of the future": (_chunk(snapshot_term=2), Reason.IMPOSSIBLE_TERM),
    "snapshot of nothing": (_chunk(index=0), Reason.IMPOSSIBLE_INDEX),
    "wrong digest": (_chunk(), Reason.BAD_DIGEST),
    "vote for the past": (m.Vote(last_index=1, last_term=1), Reason.IMPOSSIBLE_TERM),
    "commit beyond the log": (m.Heartbeat(commit=3), Reason.IMPOSSIBLE_INDEX),
    "negative round": (m.Heartbeat(commit=0, round=-1), Reason.IMPOSSIBLE_INDEX),
    "negative hint": (m.AppendReply(index=0, hint_index=-1), Reason.IMPOSSIBLE_INDEX),
    "negative offset": (m.SnapshotReply(index=0, offset=-1), Reason.IMPOSSIBLE_INDEX),
    "negative read point": (m.ReadReply(context=0, index=-1), Reason.IMPOSSIBLE_INDEX),
    "negative confirmation": (m.HeartbeatReply(round=-1), Reason.IMPOSSIBLE_INDEX),
}


@pytest.mark.parametrize(("body", "reason"), ODD.values(), ids=ODD)
def test_what_no_peer_can_mean_is_refused(body: Any, reason: Reason) -> None:
    """With its reason, and without a trace in the log."""
    core = _core()
    assert reason in _reasons(core, _message(body))
    assert core.log.last_index == 0


def test_a_conflict_below_the_commit_index_changes_nothing() -> None:
    """Whoever claims it lies; the answer says what is committed."""
    core = _core((1, 1, 1), commit=2)
    _settle(core)
    core.step(_message(_append(m.Entry(index=2, term=2), prev=(1, 1)), term=2))
    messages, _ = _settle(core)
    assert core.log.term_of(2) == 1
    assert messages[-1].body == m.AppendReply(index=2)


def test_a_leader_takes_in_only_so_much() -> None:
    """Uncommitted bytes are bounded; committing frees them."""
    core = _leader()
    size = limits.MAX_ENTRY_BYTES
    room = limits.MAX_UNCOMMITTED_BYTES // (size + m.ENTRY_OVERHEAD_BYTES)
    for _ in range(room):
        core.propose(bytes(size))
    with pytest.raises(DroppedError):
        core.propose(bytes(size))
    _settle(core)
    core.step(_message(m.AppendReply(index=core.log.last_index)))
    _settle(core)
    assert core.log.commit == core.log.last_index
    assert core.uncommitted == 0
    core.propose(b"x")


def test_reads_are_bounded_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member refuses its own, a leader its followers'."""
    monkeypatch.setattr("manager.raft.asking.MAX_PENDING_READS", 2)
    monkeypatch.setattr("manager.raft.leader.MAX_PENDING_READS", 1)
    core = _core()
    core.request_read()
    core.request_read()
    with pytest.raises(DroppedError):
        core.request_read()
    core = _leader()
    requests = [_message(m.ReadRequest(context=i)) for i in range(2)]
    assert _reasons(core, *requests) == [Reason.OVERLOADED]


def test_misuse_by_the_driver_is_an_invariant_error() -> None:
    """Nothing outstanding, nothing to acknowledge; no role out of the blue; no snapshot ahead."""
    core = _core((1,), commit=1)
    with pytest.raises(InvariantError):
        core.advance()
    with pytest.raises(InvariantError):
        core.become_leader()
    with pytest.raises(InvariantError):
        core.commit_to(9)
    with pytest.raises(InvariantError):
        core.compact(1, b"")


def test_oversized_proposals_are_the_callers_mistake() -> None:
    """No retry can help."""
    with pytest.raises(InvalidArgumentError):
        _leader().propose(bytes(limits.MAX_ENTRY_BYTES + 1))


def test_equal_inputs_give_equal_outputs() -> None:
    """The core is deterministic."""

    def play() -> list[m.Message[m.Body]]:
        core = _leader()
        core.propose(b"x")
        for _ in range(30):
            core.tick()
        return _settle(core)[0]

    assert play() == play()


@pytest.mark.parametrize(
    "change",
    [{"raft_id": 0}, {"raft_id": 2**63}, {"heartbeat_ticks": 0}, {"heartbeat_ticks": 10}],
)
def test_impossible_configurations_are_refused(change: dict[str, int]) -> None:
    """Before anything runs."""
    values: dict[str, Any] = {"cluster_id": "c", "raft_id": 1, "node_id": "n", "addr": "a"}
    with pytest.raises(ValueError, match=r"must be|is not in"):
        RaftConfig(**{**values, **change})
