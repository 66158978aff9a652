"""Messages to the wire and back; anything else is refused."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from manager.raft import messages as m
from manager.raft.codec import from_wire_untrusted, to_wire
from manager.raft.membership import Member, Membership
from swarm.api.overswarm.v1 import raft_pb2
from swarm.errors import WireError

NUMBER = st.integers(0, 2**64 - 1)
ENTRY = st.builds(
    m.Entry, index=NUMBER, term=NUMBER, kind=st.sampled_from(m.EntryKind), data=st.binary()
)
GROUP = Membership(members={5: Member(raft_id=5, node_id="n5", addr="a5")}, removed=frozenset({6}))
BODIES = st.one_of(
    st.builds(m.PreVote, last_index=NUMBER, last_term=NUMBER),
    st.builds(m.PreVoteReply, granted=st.booleans()),
    st.builds(m.Vote, last_index=NUMBER, last_term=NUMBER, transfer=st.booleans()),
    st.builds(m.VoteReply, granted=st.booleans()),
    st.builds(
        m.Append,
        prev_index=NUMBER,
        prev_term=NUMBER,
        entries=st.lists(ENTRY, max_size=3).map(tuple),
        commit=NUMBER,
    ),
    st.builds(
        m.AppendReply,
        index=NUMBER,
        rejected=st.booleans(),
        hint_index=NUMBER,
        hint_term=NUMBER,
    ),
    st.builds(m.Heartbeat, commit=NUMBER, round=NUMBER),
    st.builds(m.HeartbeatReply, round=NUMBER),
    st.builds(
        m.SnapshotChunk,
        index=NUMBER,
        snapshot_term=NUMBER,
        membership=st.just(GROUP),
        digest=st.binary(min_size=32, max_size=32),
        total=NUMBER,
        offset=NUMBER,
        data=st.binary(),
    ),
    st.builds(m.SnapshotReply, index=NUMBER, offset=NUMBER),
    st.builds(m.ReadRequest, context=NUMBER),
    st.builds(m.ReadReply, context=NUMBER, index=NUMBER),
    st.just(m.TimeoutNow()),
    st.just(m.Removed()),
    st.builds(m.Outdated, incarnation=NUMBER, seen=NUMBER),
)
MESSAGES = st.builds(
    m.Message,
    cluster=st.text(max_size=30),
    sender=NUMBER,
    to=NUMBER,
    term=NUMBER,
    incarnation=NUMBER,
    body=BODIES,
)


@given(message=MESSAGES)
def test_every_message_survives_the_wire(message: m.Message[m.Body]) -> None:
    """Through real bytes."""
    data = to_wire(message, reply_to="192.0.2.1:2377").SerializeToString()
    wire = raft_pb2.RaftMessage.FromString(data)
    assert from_wire_untrusted(wire) == message
    assert wire.reply_to == "192.0.2.1:2377"


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    """Nothing but WireError comes out of what protobuf can read."""
    try:
        wire = raft_pb2.RaftMessage.FromString(data)
    except DecodeError:
        return
    try:
        from_wire_untrusted(wire)
    except WireError:
        return


@pytest.mark.parametrize(
    "wire",
    [
        raft_pb2.RaftMessage(),
        raft_pb2.RaftMessage(cluster="x" * 600, removed=raft_pb2.RaftRemoved()),
        raft_pb2.RaftMessage(reply_to="x" * 600, removed=raft_pb2.RaftRemoved()),
        raft_pb2.RaftMessage(append=raft_pb2.RaftAppend(entries=[raft_pb2.RaftEntry()])),
        raft_pb2.RaftMessage(snapshot_chunk=raft_pb2.RaftSnapshotChunk(membership=b"no")),
    ],
    ids=["no-body", "long-cluster", "long-address", "entry-kind", "membership"],
)
def test_unreadable_messages_are_refused(wire: raft_pb2.RaftMessage) -> None:
    """Each reason by itself."""
    with pytest.raises(WireError):
        from_wire_untrusted(wire)
