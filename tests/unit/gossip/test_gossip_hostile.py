"""Whoever has no key, has an old recording, or has a key and goes mad: the node goes on as before."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.gossip.networkdb import wire as tables
from agent.gossip.networkdb.exchange import MAX_REPLIES
from agent.gossip.networkdb.wire import Action, BulkSync, NetworkEvent, NodeEvent, TableEvent
from agent.gossip.refusal import Refusal
from agent.gossip.swim import seal, wire, wrappers
from agent.gossip.swim.membership import VERSIONS
from agent.gossip.swim.replay import Replays
from swarm.errors import WireError

NET, TABLE = "net-a", "endpoint_table"
EVENTS: tuple[tables.Body, ...] = (
    NodeEvent(joining=True, time=9, node="n1"),
    NetworkEvent(joining=True, time=9, node="n1", network=NET),
    TableEvent(
        action=Action.CREATE, time=9, owner="n1", network=NET, table=TABLE, key="k", value=b"value"
    ),
    TableEvent(
        action=Action.DELETE, time=10, owner="n1", network=NET, table=TABLE, key="k", value=b"value",
        residual=1800,
    ),
    BulkSync(time=11, unsolicited=True, node="n1", networks=(NET,), payload=tables.compound([])),
)  # fmt: skip
PACKETS: tuple[wire.PacketMessage, ...] = (
    wire.Ping(seq=200, node="me", source_addr=b"\x0a\x00\x00\x01", source_port=7946, source_node="n1"),
    wire.IndirectPing(seq=1, target=b"\x0a\x00\x00\x02", port=7946, node="n2", nack=True),
    wire.Ack(seq=70000),
    wire.Nack(seq=3),
    wire.Suspect(incarnation=1, node="n1", origin="n2"),
    wire.Dead(incarnation=1, node="n2", origin="n1"),
    wire.Alive(
        incarnation=2, node="n1", addr=b"\x0a\x00\x00\x01", port=7946, meta=b"m", versions=VERSIONS
    ),
    *(wire.User(body=tables.compound([tables.encode(event)])) for event in EVENTS),
)  # fmt: skip
STATE = tables.PushPullState(
    time=5,
    node="n1",
    attachments=(NetworkEvent(joining=False, time=4, node="n1", network=NET),),
)
NODE = wire.NodeState(
    name="n3",
    addr=b"\x0a\x00\x00\x03",
    port=7946,
    meta=b"",
    incarnation=1,
    state=wire.State.SUSPECT,
    versions=VERSIONS,
)
STREAMS: tuple[wire.StreamMessage, ...] = (
    wire.Ping(seq=7, node="me"),
    wire.PushPull(join=True, nodes=(NODE,), user_state=tables.encode(STATE)),
    wire.User(body=tables.encode(EVENTS[-1])),
    wire.ErrorReply(error="no"),
)


@pytest.fixture
def db(bench: Any) -> Any:
    """Return a node on one network with the peers n1 and n2."""
    bench.node.db.join_network(NET)
    bench.meet("n1", "n2")
    bench.event(
        *(NetworkEvent(joining=True, time=1, node=name, network=NET) for name in ("n1", "n2"))
    )
    bench.node.take_changes()
    bench.syncs()
    return bench


def refused(bench: Any, cause: Refusal) -> int:
    """Return how much was refused for a cause, by either layer."""
    swim, db = bench.node.swim.refusals.counts, bench.node.db.refusals.counts
    return int(swim.get(cause, 0)) + int(db.get(cause, 0))


def answers(bench: Any) -> bool:
    """Tell whether the node answers a ping."""
    bench.sent.clear()
    bench.give(wire.Ping(seq=9, node="me"))
    return bool(bench.take_sent(wire.Ack))


def variants(whole: bytes) -> list[bytes]:
    """Return every beginning of a message, and the message with each byte changed in several ways."""
    found = [whole[:length] for length in range(len(whole))]
    for place in range(len(whole)):
        found += [
            whole[:place] + bytes((value,)) + whole[place + 1 :]
            for value in {0, 0xFF, whole[place] ^ 1, whole[place] ^ 0x80}
        ]
    return found


# -- byte by byte ------------------------------------------------------------------------------


@pytest.mark.parametrize("message", PACKETS, ids=lambda each: type(each).__name__)
def test_a_datagram_damaged_anywhere_is_taken_or_refused(db: Any, message: Any) -> None:
    """Every truncation and every changed byte of every message, plain and within each wrapper."""
    plain = wire.encode_packet(message)
    whole = [
        plain,
        wrappers.with_crc(plain),
        wrappers.compressed(plain),
        wrappers.compound([plain, plain]),
    ]
    for data in (each for start in whole for each in variants(start)):
        db.give_raw(data)
    assert answers(db)


@pytest.mark.parametrize("message", STREAMS, ids=lambda each: type(each).__name__)
def test_a_stream_damaged_anywhere_is_taken_or_refused(db: Any, message: Any) -> None:
    """The same for requests over streams, which are refused with the one error."""
    plain = wire.encode_stream(message)
    taken = refused_ = 0
    for data in [*variants(plain), *variants(wrappers.compressed(plain))]:
        frame = seal.seal_frame(data, db.keyring, db.nonce())
        try:
            opened = db.node.decode_stream(frame[:5], frame[5:])
        except WireError:
            refused_ += 1
            continue
        taken += 1
        db.node.serve_stream(opened, frame, db.now)
        db.collect()
    assert taken
    assert refused_
    assert answers(db)


@given(data=st.binary(max_size=400))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_node_takes_or_refuses_any_bytes(db: Any, data: bytes) -> None:
    """Sealed or not, whatever the first byte says it is."""
    db.node.receive_datagram(data, "10.0.0.9", 7946, db.now)
    for kind in range(16):
        db.give_raw(bytes((kind,)) + data)
    assert answers(db)


def test_a_frame_damaged_anywhere_is_not_opened(db: Any) -> None:
    """Each byte of a frame matters: header, nonce, text, tag."""

    def take(frame: bytes) -> None:
        seal.frame_size_untrusted(frame[:5])
        db.node.decode_stream(frame[:5], frame[5:])

    frame = seal.seal_frame(wire.encode_stream(STREAMS[0]), db.keyring, db.nonce())
    for place in range(len(frame)):
        broken = bytearray(frame)
        broken[place] ^= 1
        with pytest.raises(seal.SealError):
            take(bytes(broken))


def test_a_stream_that_unfolds_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work and memory end at the bound, whatever the compressed bytes promise."""
    monkeypatch.setattr(wire, "MAX_STREAM_UNFOLDED", 100_000)
    fits = wire.encode_stream(wire.User(body=bytes(99_900)))
    assert wire.decode_stream_untrusted(wrappers.compressed(fits)) == wire.User(body=bytes(99_900))
    bomb = wrappers.compressed(wire.encode_stream(wire.User(body=bytes(100_000))))
    assert len(bomb) < 1000
    with pytest.raises(WireError, match="unfolds"):
        wire.decode_stream_untrusted(bomb)


# -- without a key -----------------------------------------------------------------------------


def test_a_flood_without_a_key_leaves_nothing_but_a_count(
    db: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each datagram costs at most one attempt per key; no answer, no timer, no memory."""
    tried = 0
    ring = db.node.keyring
    ciphers = ring.accepting

    class Counting:
        def __init__(self, cipher: Any) -> None:
            self._cipher = cipher

        def decrypt(self, *args: Any) -> bytes:
            nonlocal tried
            tried += 1
            return bytes(self._cipher.decrypt(*args))

    monkeypatch.setattr(ring, "_ciphers", tuple(Counting(cipher) for cipher in ciphers))
    known = len(db.node.swim._replays._recent)
    deadline, timers = db.node.next_deadline(), len(db.node.timers._heap)
    for index in range(500):
        db.node.receive_datagram(b"\x01" + index.to_bytes(4, "big") * 20, "10.9.9.9", 7946, db.now)
    assert tried == 500 * len(ciphers)
    assert refused(db, Refusal.UNDECRYPTABLE) == 500
    assert len(db.node.swim._replays._recent) == known
    assert not db.node.work(db.now)
    assert db.node.take_outputs() == []
    assert (db.node.next_deadline(), len(db.node.timers._heap)) == (deadline, timers)


# -- with a recording --------------------------------------------------------------------------


def test_a_recorded_datagram_is_heard_once(db: Any) -> None:
    """The second time nobody is answered and nothing is relayed, and the reason is counted."""
    ping = wire.encode_packet(wire.Ping(seq=9, node="me"))
    sealed = seal.seal_datagram(ping, db.keyring, db.nonce())
    for _ in range(3):
        db.node.receive_datagram(sealed, "10.9.9.9", 7946, db.now)
    db.collect()
    assert len(db.take_sent(wire.Ack)) == 1
    assert refused(db, Refusal.REPLAYED) == 2


def test_a_recorded_request_makes_no_node_send_its_tables_again(db: Any) -> None:
    """A bulk sync heard before, from whatever address and carrier, is not answered."""
    request = tables.encode(
        BulkSync(time=900, unsolicited=True, node="n1", networks=(NET,), payload=b"")
    )
    frame = seal.seal_frame(wire.encode_stream(wire.User(body=request)), db.keyring, db.nonce())
    for _ in range(5):
        opened = db.node.decode_stream(frame[:5], frame[5:])
        db.node.serve_stream(opened, frame, db.now)
    db.collect()
    assert len(db.syncs()) == 1
    assert refused(db, Refusal.REPLAYED) == 4


def test_a_recorded_reply_settles_nothing(db: Any) -> None:
    """What was an answer once is none to another question."""
    settled: list[str] = []
    reply = wire.Ack(seq=1)
    frame = seal.seal_frame(wire.encode_stream(reply), db.keyring, db.nonce())
    for _ in range(2):
        db.node.swim.dial(
            "10.0.0.1", 7946, b"", reply=True, timeout=1.0,
            settle=lambda message, reason: settled.append(reason or str(message)),
        )  # fmt: skip
        token = db.node.swim._token
        db.node.stream_reply(token, reply, frame, db.now)
    assert settled == [str(reply), "replayed"]


def test_old_recordings_are_stale_by_their_content(db: Any) -> None:
    """Beyond what is remembered: an old life, an old entry and an old attachment change nothing."""
    old = [
        wire.Alive(
            incarnation=1, node="n1", addr=b"\x0a\x00\x00\x01", port=7946, meta=b"", versions=VERSIONS
        ),
        wire.Suspect(incarnation=1, node="n1", origin="n2"),
        *(wire.User(body=tables.compound([tables.encode(event)])) for event in EVENTS[1:3]),
    ]  # fmt: skip
    recorded = [
        seal.seal_datagram(wire.encode_packet(each), db.keyring, db.nonce()) for each in old
    ]
    db.event(EVENTS[2], EVENTS[3])
    db.event(NetworkEvent(joining=False, time=10, node="n1", network=NET))
    db.give(
        wire.Alive(
            incarnation=2, node="n1", addr=b"\x0a\x00\x00\x01", port=7946, meta=b"", versions=VERSIONS
        )
    )  # fmt: skip
    db.node.take_changes()
    for data in recorded:
        db.node.receive_datagram(data, "10.9.9.9", 7946, db.now)
        while db.node.work(db.now):
            pass
    assert refused(db, Refusal.REPLAYED) == 0
    assert db.node.take_changes() == []
    assert db.node.swim.members.get("n1").state is wire.State.ALIVE
    assert not db.node.db.state.peers.attached(db.node.db.state.peers.get("n1"), NET)


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 10))
def test_the_last_identities_are_always_known_and_few_are_kept(
    numbers: list[int], limit: int
) -> None:
    """Each of the last ``limit`` different ones is recognised; memory ends at two generations."""
    replays, history = Replays(limit=limit), list[bytes]()
    for number in numbers:
        identity = bytes((number,)) * 16
        lately = list(dict.fromkeys(reversed(history)))[:limit]
        seen = replays.seen(identity)
        assert seen or identity not in lately
        assert not seen or identity in history
        if not seen:
            history.append(identity)
        assert len(replays._recent) + len(replays._former) <= 2 * limit


# -- with a key --------------------------------------------------------------------------------


def test_answers_under_way_to_one_peer_are_bounded(db: Any) -> None:
    """Whoever asks without listening gets no more than it could ever need; the next peer gets its own."""
    for number in range(MAX_REPLIES + 8):
        db.event(
            BulkSync(time=900 + number, unsolicited=True, node="n1", networks=(NET,), payload=b"")
        )
    db.event(BulkSync(time=990, unsolicited=True, node="n2", networks=(NET,), payload=b""))
    sent = [(dial, message) for dial, message in db.dials if isinstance(message, wire.User)]
    by_host = [dial.host for dial, _ in sent]
    assert (by_host.count("10.0.0.1"), by_host.count("10.0.0.2")) == (MAX_REPLIES, 1)
    assert refused(db, Refusal.OVERFLOW) == 8
    for dial, _ in sent[:2]:
        db.node.stream_sent(dial.token, db.now)
    db.node.stream_failed(sent[2][0].token, "gone", db.now)
    db.syncs()
    for number in range(5):
        db.event(
            BulkSync(time=1000 + number, unsolicited=True, node="n1", networks=(NET,), payload=b"")
        )
    assert len(db.syncs()) == 3
