"""Messages and wrappers of the membership protocol."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.gossip.swim import lzw, wire, wrappers
from swarm.errors import WireError

ALIVE = "0486a441646472a40a000001ab496e6361726e6174696f6e01a44d657461a0a44e6f6465a26e31a4506f7274cd1f0aa356736ea6010502000000"
NODE = "87a441646472a40a000001ab496e6361726e6174696f6e01a44d657461a0a44e616d65a26e31a4506f7274cd1f0aa5537461746503a356736ea6010502000000"
VSN = bytes((1, 5, 2, 0, 0, 0))

text = st.text(st.characters(codec="utf-8"), max_size=40)
u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
addr = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
source: dict[str, Any] = {"source_addr": addr, "source_port": u16, "source_node": text}
packets = st.one_of(
    st.builds(wire.Ping, seq=u32, node=text, **source),
    st.builds(
        wire.IndirectPing, seq=u32, target=addr, port=u16, node=text, nack=st.booleans(), **source
    ),
    st.builds(wire.Ack, seq=u32),
    st.builds(wire.Nack, seq=u32),
    st.builds(wire.Suspect, incarnation=u32, node=text, origin=text),
    st.builds(wire.Dead, incarnation=u32, node=text, origin=text),
    st.builds(
        wire.Alive,
        incarnation=u32,
        node=text,
        addr=addr,
        port=u16,
        meta=st.binary(max_size=512),
        versions=st.binary(max_size=6),
    ),
    st.builds(wire.User, body=st.binary(max_size=300)),
)
nodes = st.builds(
    wire.NodeState,
    name=text,
    addr=addr,
    port=u16,
    meta=st.binary(max_size=40),
    incarnation=u32,
    state=st.sampled_from(wire.State),
    versions=st.binary(max_size=6),
)
streams = st.one_of(
    st.builds(wire.Ping, seq=u32, node=text, **source),
    st.builds(wire.Ack, seq=u32),
    st.builds(wire.User, body=st.binary(max_size=300)),
    st.builds(wire.ErrorReply, error=text),
    st.builds(
        wire.PushPull,
        join=st.booleans(),
        nodes=st.lists(nodes, max_size=5).map(tuple),
        user_state=st.binary(max_size=100),
    ),
)


def unwrap(data: bytes) -> list[bytes]:
    """Return the messages inside wrappers."""
    return wrappers.unfold_untrusted(data)[0]


def test_ack_vector() -> None:
    """Without and with a checksum."""
    ack = wire.encode_packet(wire.Ack(seq=200))
    assert ack.hex() == "0282a75061796c6f6164c0a55365714e6fccc8"
    assert wrappers.with_crc(ack).hex() == "0c5fae9f4e0282a75061796c6f6164c0a55365714e6fccc8"
    assert unwrap(wrappers.with_crc(ack)) == [ack]


def test_alive_vector() -> None:
    """Keys in byte order, raw strings, smallest integers."""
    message = wire.Alive(
        incarnation=1, node="n1", addr=b"\x0a\x00\x00\x01", port=7946, meta=b"", versions=VSN
    )
    assert wire.encode_packet(message).hex() == ALIVE
    assert wire.decode_packet_untrusted(bytes.fromhex(ALIVE)) == message


def test_push_pull_node_vector() -> None:
    """A node that left, as push/pull carries it."""
    node = wire.NodeState(
        name="n1",
        addr=b"\x0a\x00\x00\x01",
        port=7946,
        meta=b"",
        incarnation=1,
        state=wire.State.LEFT,
        versions=VSN,
    )
    assert wire.encode_node(node).hex() == NODE


@pytest.mark.parametrize(
    "header",
    [
        "0683a44a6f696ec3a54e6f646573ccc8ac5573657253746174654c656ece00011170",
        "0683a44a6f696ec3a54e6f646573d100c8ac5573657253746174654c656ed200011170",
    ],
)
def test_push_pull_header_of_either_library(header: str) -> None:
    """200 nodes and 70000 bytes of user state, however the integers are spelled."""
    data = bytes.fromhex(header) + bytes.fromhex(NODE) * 200 + bytes(70_000)
    message = wire.decode_stream_untrusted(data)
    assert isinstance(message, wire.PushPull)
    assert message.join
    assert (len(message.nodes), len(message.user_state)) == (200, 70_000)
    ours = wire.encode_stream(message)
    assert ours.hex().startswith(header) == (header[28:30] == "cc")


def test_compound_vector() -> None:
    """Count, lengths, bodies."""
    data = wrappers.compound([b"\x01\x02", b"\x03"])
    assert data.hex() == "070200020001010203"
    assert unwrap(data) == [b"\x01\x02", b"\x03"]


def test_no_new_string_forms_are_sent() -> None:
    """A name of 40 bytes is raw16: engines before 0.5 know neither str8 nor bin."""
    data = wire.encode_packet(wire.Dead(incarnation=1, node="n" * 40, origin=""))
    assert b"\xda\x00\x28" + b"n" * 40 in data


@pytest.mark.parametrize(
    "number",
    ["7f", "cc7f", "cd007f", "ce0000007f", "cf000000000000007f", "d07f", "d1007f", "d20000007f"],
)
def test_every_integer_form_is_read(number: str) -> None:
    """Peers differ in how they spell the same number."""
    data = b"\x0b\x81\xa5SeqNo" + bytes.fromhex(number)
    assert wire.decode_packet_untrusted(data) == wire.Nack(seq=127)


@pytest.mark.parametrize("name", [b"\xa2n1", b"\xd9\x02n1", b"\xc4\x02n1", b"\xda\x00\x02n1"])
def test_every_string_form_is_read(name: bytes) -> None:
    """Raw, str8 and bin8 alike."""
    data = b"\x05\x83\xabIncarnation\x01\xa4Node" + name + b"\xa4From\xc0"
    assert wire.decode_packet_untrusted(data) == wire.Dead(incarnation=1, node="n1", origin="")


def test_unknown_and_missing_fields_are_no_error() -> None:
    """Fields of newer protocols are skipped, absent ones are zero."""
    data = b"\x00" + msgpack.packb({"Future": [1, {"a": 2}], "SeqNo": 5}, use_bin_type=False)
    assert wire.decode_packet_untrusted(data) == wire.Ping(seq=5, node="")


@pytest.mark.parametrize(
    "fields",
    [
        {"SeqNo": -1},
        {"SeqNo": 1 << 32},
        {"SeqNo": True},
        {"SeqNo": "1"},
        {"SeqNo": 1.0},
        {"Node": 5},
        {"Node": "n" * 256},
        {"Node": b"\xff\xfe"},
        {"SourcePort": 65536},
        {"SourceAddr": bytes(17)},
        [1, 2],
        "text",
        None,
    ],
)
def test_wrong_types_and_ranges_are_refused(fields: object) -> None:
    """A field is of its type and within its range, or the message is refused."""
    with pytest.raises(WireError):
        wire.decode_packet_untrusted(b"\x00" + msgpack.packb(fields, use_bin_type=False))


@given(packets)
def test_packets_round_trip(message: wire.PacketMessage) -> None:
    """What is written is read."""
    assert wire.decode_packet_untrusted(wire.encode_packet(message)) == message


@given(streams, st.booleans())
def test_streams_round_trip(message: wire.StreamMessage, packed: bool) -> None:
    """What is written is read, compressed or not."""
    data = wire.encode_stream(message)
    assert wire.decode_stream_untrusted(wrappers.compressed(data) if packed else data) == message


@given(st.binary(max_size=300))
@settings(max_examples=300)
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    """Nothing but WireError leaves the parsers."""
    for parse in (
        wire.decode_packet_untrusted,
        wire.decode_stream_untrusted,
        wrappers.unfold_untrusted,
    ):
        with contextlib.suppress(WireError):
            parse(data)


@given(packets | streams, st.data())
def test_damaged_messages_parse_or_are_refused(message: Any, data: st.DataObject) -> None:
    """The same for messages that are nearly right: cut, or with one byte changed."""
    stream = isinstance(message, wire.PushPull | wire.ErrorReply)
    whole = wire.encode_stream(message) if stream else wire.encode_packet(message)
    parse = wire.decode_stream_untrusted if stream else wire.decode_packet_untrusted
    for length in range(min(len(whole), 120)):
        with contextlib.suppress(WireError):
            parse(whole[:length])
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        parse(bytes(broken))


@pytest.mark.parametrize("order", ["crc", "lzw", "both", "inside"])
def test_wrappers_come_off_in_any_order(order: str) -> None:
    """Checksum, compression and compound nest as peers please."""
    ack = wire.encode_packet(wire.Ack(seq=1))
    data = {
        "crc": wrappers.with_crc(wrappers.compound([ack, ack])),
        "lzw": wrappers.compressed(wrappers.compound([ack, ack])),
        "both": wrappers.with_crc(wrappers.compressed(wrappers.compound([ack, ack]))),
        "inside": wrappers.compound(
            [wrappers.compressed(ack), wrappers.with_crc(wrappers.compressed(ack))]
        ),
    }[order]
    assert unwrap(data) == [ack, ack]


def test_wrong_checksum_drops_the_datagram() -> None:
    """A damaged datagram is not half believed."""
    data = bytearray(wrappers.with_crc(wire.encode_packet(wire.Ack(seq=1))))
    data[-1] ^= 1
    with pytest.raises(WireError, match="checksum"):
        unwrap(bytes(data))


def test_nesting_is_bounded() -> None:
    """Eight wrappers are read, more are refused."""
    data = wire.encode_packet(wire.Ack(seq=1))
    for _ in range(wrappers.MAX_DEPTH):
        data = wrappers.with_crc(data)
    assert len(unwrap(data)) == 1
    with pytest.raises(WireError, match="deeper"):
        unwrap(wrappers.with_crc(data))


def test_parts_are_bounded() -> None:
    """Compounds of compounds cannot multiply without end."""
    inner = wrappers.compound([b"\x02"] * 255)
    assert len(unwrap(wrappers.compound([inner] * 4))) == 1020
    with pytest.raises(WireError, match="more than"):
        unwrap(wrappers.compound([inner] * 5))


def test_unfolded_size_is_bounded_over_all_parts() -> None:
    """Many small bombs count together."""
    bomb = wrappers.compressed(wire.encode_packet(wire.User(body=bytes(100_000))))
    assert len(unwrap(wrappers.compound([bomb] * 2))) == 2
    with pytest.raises(WireError, match="unfolds"):
        unwrap(wrappers.compound([bomb] * 3))


def test_deeply_nested_msgpack_is_refused() -> None:
    """A thousand arrays within arrays are no body."""
    with pytest.raises(WireError):
        wire.decode_packet_untrusted(b"\x00\x81\xa1x" + b"\x91" * 5000 + b"\x01")


@pytest.mark.parametrize(
    "body",
    [
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdb\xff\xff\xff\xff",
    ],
)
def test_announced_sizes_allocate_nothing(body: bytes) -> None:
    """A header that promises four billion elements is refused at once."""
    with pytest.raises(WireError):
        wire.decode_packet_untrusted(b"\x00" + body)


def test_truncated_parts_are_dropped_and_counted() -> None:
    """What is whole in a cut compound still counts."""
    data = wrappers.compound([b"\x02abc", b"\x02defgh"])
    leaves, truncated = wrappers.unfold_untrusted(data[:-1])
    assert (leaves, truncated) == ([b"\x02abc"], 1)
    for broken in (b"\x07", b"\x07\x00", b"\x07\x02\x00", struct.pack(">BBH", 7, 2, 1)):
        with pytest.raises(WireError):
            unwrap(broken)


@pytest.mark.parametrize(
    "body",
    [
        {"Algo": 1, "Buf": lzw.compress(b"\x02")},
        {"Algo": 0, "Buf": b""},
        {"Algo": 0, "Buf": lzw.compress(b"")},
        {"Algo": 0},
    ],
)
def test_useless_compression_is_refused(body: dict[str, object]) -> None:
    """Unknown algorithm, nothing inside: refused, where engines once crashed."""
    data = b"\x09" + msgpack.packb(body, use_bin_type=False)
    for parse in (wire.decode_stream_untrusted, wrappers.unfold_untrusted):
        with pytest.raises(WireError):
            parse(data)


@pytest.mark.parametrize("data", [b"", b"\x0a\x00", b"\x0d\x80", b"\x63\x80", b"\x06\x80"])
def test_what_has_no_place_in_a_datagram_is_refused(data: bytes) -> None:
    """Empty, encrypted twice, error, unknown, push/pull."""
    with pytest.raises(WireError):
        wire.decode_packet_untrusted(data)


def test_stream_counts_are_bounded() -> None:
    """More nodes than any cluster, or more user state than any frame, are refused up front."""
    for head in (
        {"Nodes": wire.MAX_NODES + 1},
        {"UserStateLen": wire.MAX_USER_STATE + 1},
        {"Nodes": 1},
        {"UserStateLen": 1},
    ):
        with pytest.raises(WireError):
            wire.decode_stream_untrusted(b"\x06" + msgpack.packb(head))
    with pytest.raises(WireError, match="cut short"):
        wire.decode_stream_untrusted(b"\x08" + msgpack.packb({"UserMsgLen": 2}) + b"x")
