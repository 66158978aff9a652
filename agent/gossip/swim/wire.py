"""Messages of the membership protocol, and the wrappers around them.

Bodies are msgpack of the old specification: maps keyed by CamelCase names in byte order, strings
and byte strings both raw (no str8, no bin). Reading accepts every integer form, the newer string
forms, unknown keys and missing fields (their zero), as the engines do. Wrappers (compound,
compression, checksum) nest; depth, number of parts and unfolded size are bounded.

Source: ``memberlist`` protocol 2, as spoken by Docker 19.03 to 29.7.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import msgpack  # type: ignore[import-untyped]

from agent.gossip.swim import lzw
from swarm.errors import WireError

MAX_NAME: Final = 255  # bytes of a node name
MAX_META: Final = 512
MAX_DEPTH: Final = 8  # wrappers within wrappers
MAX_PARTS: Final = 1024  # messages in one datagram, all compounds together
MAX_DATAGRAM_UNFOLDED: Final = 256 << 10  # bytes of one datagram after decompression
MAX_STREAM_UNFOLDED: Final = 40 << 20  # bytes of one stream message after decompression
MAX_USER_STATE: Final = 20 << 20
MAX_NODES: Final = 1 << 16  # nodes in one push/pull
COMPOUND_HEADER: Final = 2
COMPOUND_PART: Final = 2
CRC_SIZE: Final = 5
_U32 = 0xFFFFFFFF


class Kind(IntEnum):
    """First byte of a message."""

    PING = 0
    INDIRECT_PING = 1
    ACK = 2
    SUSPECT = 3
    ALIVE = 4
    DEAD = 5
    PUSH_PULL = 6
    COMPOUND = 7
    USER = 8
    COMPRESS = 9
    NACK = 11
    CRC = 12
    ERROR = 13


class State(IntEnum):
    """State of a node as push/pull carries it."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2
    LEFT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """Asks ``node`` to answer with an ack of the same ``seq``, to the source address if given."""

    seq: int
    node: str
    source_addr: bytes = b""
    source_port: int = 0
    source_node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndirectPing:
    """Asks the receiver to ping ``node`` at ``target``:``port`` for the sender."""

    seq: int
    target: bytes
    port: int
    node: str
    nack: bool
    source_addr: bytes = b""
    source_port: int = 0
    source_node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ack:
    """Answers a ping."""

    seq: int
    payload: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nack:
    """Says that an indirect ping has not been answered in time; the relay itself is well."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """``origin`` got no answer from ``node``."""

    incarnation: int
    node: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """``origin`` says that ``node`` is gone; it left on purpose if both are the same."""

    incarnation: int
    node: str
    origin: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """``node`` lives at ``addr``:``port``.

    Attributes:
        addr: 4 or 16 raw bytes; compared as bytes.
        versions: protocol minimum, maximum, current, then the same of the delegate; empty is legal.
    """

    incarnation: int
    node: str
    addr: bytes
    port: int
    meta: bytes
    versions: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeState:
    """One node in a push/pull."""

    name: str
    addr: bytes
    port: int
    meta: bytes
    incarnation: int
    state: State
    versions: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPull:
    """Everything a node knows; ``user_state`` belongs to the layer above."""

    join: bool
    nodes: tuple[NodeState, ...]
    user_state: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Bytes of the layer above."""

    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorReply:
    """Why a stream request was refused."""

    error: str


PacketMessage = Ping | IndirectPing | Ack | Nack | Suspect | Dead | Alive | User
StreamMessage = Ping | Ack | PushPull | User | ErrorReply


# -- writing ------------------------------------------------------------------------------------


def _pack(fields: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(fields, use_bin_type=False)
    return packed


def _source(message: Ping | IndirectPing) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if message.source_addr:
        fields["SourceAddr"] = message.source_addr
    if message.source_node:
        fields["SourceNode"] = message.source_node
    if message.source_port:
        fields["SourcePort"] = message.source_port
    return fields


def encode_packet(message: PacketMessage) -> bytes:
    """Return one message as a datagram carries it, type byte first."""
    match message:
        case User():
            return bytes((Kind.USER,)) + message.body
        case Ping():
            kind, fields = Kind.PING, {"Node": message.node, "SeqNo": message.seq}
            fields.update(_source(message))
        case IndirectPing():
            kind = Kind.INDIRECT_PING
            fields = {
                "Nack": message.nack,
                "Node": message.node,
                "Port": message.port,
                "SeqNo": message.seq,
                **_source(message),
                "Target": message.target,
            }
        case Ack():
            kind, fields = Kind.ACK, {"Payload": message.payload, "SeqNo": message.seq}
        case Nack():
            kind, fields = Kind.NACK, {"SeqNo": message.seq}
        case Suspect() | Dead():
            kind = Kind.SUSPECT if isinstance(message, Suspect) else Kind.DEAD
            fields = {
                "From": message.origin,
                "Incarnation": message.incarnation,
                "Node": message.node,
            }
        case Alive():
            kind = Kind.ALIVE
            fields = {
                "Addr": message.addr,
                "Incarnation": message.incarnation,
                "Meta": message.meta,
                "Node": message.node,
                "Port": message.port,
                "Vsn": message.versions,
            }
    return bytes((kind,)) + _pack(fields)


def encode_stream(message: StreamMessage) -> bytes:
    """Return one message as a stream carries it."""
    match message:
        case Ping() | Ack():
            return encode_packet(message)
        case ErrorReply():
            return bytes((Kind.ERROR,)) + _pack({"Error": message.error})
        case User():
            head = _pack({"UserMsgLen": len(message.body)})
            return bytes((Kind.USER,)) + head + message.body
        case PushPull():
            head = _pack(
                {
                    "Join": message.join,
                    "Nodes": len(message.nodes),
                    "UserStateLen": len(message.user_state),
                }
            )
            nodes = b"".join(encode_node(node) for node in message.nodes)
            return bytes((Kind.PUSH_PULL,)) + head + nodes + message.user_state


def encode_node(node: NodeState) -> bytes:
    """Return one node of a push/pull."""
    return _pack(
        {
            "Addr": node.addr,
            "Incarnation": node.incarnation,
            "Meta": node.meta,
            "Name": node.name,
            "Port": node.port,
            "State": int(node.state),
            "Vsn": node.versions,
        }
    )


def compound(parts: Sequence[bytes]) -> bytes:
    """Return up to 255 messages as one; a single message stays as it is."""
    if len(parts) == 1:
        return parts[0]
    lengths = struct.pack(f">{len(parts)}H", *map(len, parts))
    return bytes((Kind.COMPOUND, len(parts))) + lengths + b"".join(parts)


def with_crc(message: bytes) -> bytes:
    """Return ``message`` behind its checksum."""
    return struct.pack(">BI", Kind.CRC, zlib.crc32(message)) + message


def compressed(message: bytes) -> bytes:
    """Return ``message`` inside the compression wrapper."""
    return bytes((Kind.COMPRESS,)) + _pack({"Algo": 0, "Buf": lzw.compress(message)})


# -- reading ------------------------------------------------------------------------------------


class _Fields:
    """One decoded map, read field by field with Go's zero values for what is missing."""

    __slots__ = ("_fields",)

    def __init__(self, fields: object) -> None:
        if not isinstance(fields, dict):
            raise WireError("message body is not a map")
        self._fields = fields

    def number(self, name: bytes, limit: int = _U32) -> int:
        value = self._fields.get(name)
        if value is None:
            return 0
        if type(value) is not int or not 0 <= value <= limit:
            raise WireError(f"field {name.decode()} is not an integer from 0 to {limit}")
        return value

    def flag(self, name: bytes) -> bool:
        value = self._fields.get(name)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise WireError(f"field {name.decode()} is not a boolean")
        return value

    def raw(self, name: bytes, limit: int) -> bytes:
        value = self._fields.get(name)
        if value is None:
            return b""
        if not isinstance(value, bytes) or len(value) > limit:
            raise WireError(f"field {name.decode()} is not a string of at most {limit} bytes")
        return value

    def text(self, name: bytes, limit: int = MAX_NAME) -> str:
        try:
            return self.raw(name, limit).decode()
        except UnicodeDecodeError:
            raise WireError(f"field {name.decode()} is not UTF-8") from None


class _Reader:
    """Concatenated msgpack values, then raw bytes."""

    __slots__ = ("_data", "_unpacker")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._unpacker = msgpack.Unpacker(
            raw=True,
            strict_map_key=False,
            max_buffer_size=len(data) + 1,
            max_array_len=64,
            max_map_len=64,
            max_ext_len=64,
        )
        self._unpacker.feed(data)

    def fields(self) -> _Fields:
        try:
            value = self._unpacker.unpack()
        except (msgpack.UnpackException, ValueError, TypeError, OverflowError) as error:
            raise WireError("message body is not msgpack") from error
        return _Fields(value)

    def rest(self) -> bytes:
        return self._data[self._unpacker.tell() :]


def _ping(fields: _Fields) -> Ping:
    return Ping(
        seq=fields.number(b"SeqNo"),
        node=fields.text(b"Node"),
        source_addr=fields.raw(b"SourceAddr", 16),
        source_port=fields.number(b"SourcePort", 0xFFFF),
        source_node=fields.text(b"SourceNode"),
    )


def _indirect_ping(fields: _Fields) -> IndirectPing:
    return IndirectPing(
        seq=fields.number(b"SeqNo"),
        target=fields.raw(b"Target", 16),
        port=fields.number(b"Port", 0xFFFF),
        node=fields.text(b"Node"),
        nack=fields.flag(b"Nack"),
        source_addr=fields.raw(b"SourceAddr", 16),
        source_port=fields.number(b"SourcePort", 0xFFFF),
        source_node=fields.text(b"SourceNode"),
    )


def _ack(fields: _Fields) -> Ack:
    return Ack(seq=fields.number(b"SeqNo"), payload=fields.raw(b"Payload", 1024) or None)


def _nack(fields: _Fields) -> Nack:
    return Nack(seq=fields.number(b"SeqNo"))


def _suspect(fields: _Fields) -> Suspect:
    return Suspect(
        incarnation=fields.number(b"Incarnation"),
        node=fields.text(b"Node"),
        origin=fields.text(b"From"),
    )


def _dead(fields: _Fields) -> Dead:
    return Dead(
        incarnation=fields.number(b"Incarnation"),
        node=fields.text(b"Node"),
        origin=fields.text(b"From"),
    )


def _alive(fields: _Fields) -> Alive:
    return Alive(
        incarnation=fields.number(b"Incarnation"),
        node=fields.text(b"Node"),
        addr=fields.raw(b"Addr", 16),
        port=fields.number(b"Port", 0xFFFF),
        meta=fields.raw(b"Meta", MAX_META),
        versions=fields.raw(b"Vsn", 64),
    )


_PACKET_READERS: Final[dict[int, Callable[[_Fields], PacketMessage]]] = {
    Kind.PING: _ping,
    Kind.INDIRECT_PING: _indirect_ping,
    Kind.ACK: _ack,
    Kind.NACK: _nack,
    Kind.SUSPECT: _suspect,
    Kind.DEAD: _dead,
    Kind.ALIVE: _alive,
}


def decode_packet_untrusted(data: bytes) -> PacketMessage:
    """Return the one message ``data`` holds, its wrappers already taken off.

    Raises:
        WireError: unknown type or malformed body.
    """
    if not data:
        raise WireError("message is empty")
    if data[0] == Kind.USER:
        return User(body=data[1:])
    reader = _PACKET_READERS.get(data[0])
    if reader is None:
        raise WireError(f"message type {data[0]} has no place in a datagram")
    return reader(_Reader(data[1:]).fields())


class _Unfolding:
    """Takes the wrappers off one datagram, within bounds."""

    __slots__ = ("_budget", "leaves", "truncated")

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self.leaves: list[bytes] = []
        self.truncated = 0

    def unfold(self, data: bytes, depth: int) -> None:
        if not data:
            raise WireError("message is empty")
        if depth > MAX_DEPTH:
            raise WireError(f"wrappers nest deeper than {MAX_DEPTH}")
        kind = data[0]
        if kind == Kind.CRC:
            if len(data) < CRC_SIZE or int.from_bytes(data[1:5], "big") != zlib.crc32(data[5:]):
                raise WireError("checksum does not match")
            self.unfold(data[5:], depth + 1)
        elif kind == Kind.COMPRESS:
            inner = _decompress_untrusted(data[1:], self._budget)
            self._budget -= len(inner)
            self.unfold(inner, depth + 1)
        elif kind == Kind.COMPOUND:
            self._parts(data, depth)
        elif len(self.leaves) >= MAX_PARTS:
            raise WireError(f"datagram holds more than {MAX_PARTS} messages")
        else:
            self.leaves.append(data)

    def _parts(self, data: bytes, depth: int) -> None:
        count = data[1] if len(data) > 1 else 0
        start = 2 + 2 * count
        if len(data) < start or not count:
            raise WireError("compound message is cut short")
        for length in struct.unpack_from(f">{count}H", data, 2):
            if start + length > len(data):
                self.truncated += 1
                continue
            part = data[start : start + length]
            start += length
            if part:
                self.unfold(part, depth + 1)
            else:
                self.truncated += 1


def unfold_untrusted(data: bytes) -> tuple[list[bytes], int]:
    """Return the messages of an opened datagram, and how many cut or empty parts were dropped.

    Raises:
        WireError: a wrapper is malformed or a bound exceeded; the datagram counts as a whole.
    """
    unfolding = _Unfolding(MAX_DATAGRAM_UNFOLDED)
    unfolding.unfold(data, 0)
    return unfolding.leaves, unfolding.truncated


def _decompress_untrusted(body: bytes, limit: int) -> bytes:
    fields = _Reader(body).fields()
    if fields.number(b"Algo", 255) != 0:
        raise WireError("compression algorithm is unknown")
    plain = lzw.decompress_untrusted(fields.raw(b"Buf", len(body)), limit=limit)
    if not plain:
        raise WireError("compression wrapper is empty")
    return plain


def decode_stream_untrusted(data: bytes) -> StreamMessage:
    """Return the message of an opened stream frame.

    Raises:
        WireError: unknown type, malformed body, or a bound exceeded.
    """
    if data[:1] == bytes((Kind.COMPRESS,)):
        data = _decompress_untrusted(data[1:], MAX_STREAM_UNFOLDED)
    if not data:
        raise WireError("message is empty")
    reader = _Reader(data[1:])
    match data[0]:
        case Kind.PING:
            return _ping(reader.fields())
        case Kind.ACK:
            return _ack(reader.fields())
        case Kind.ERROR:
            return ErrorReply(error=reader.fields().text(b"Error", 4096))
        case Kind.USER:
            size = reader.fields().number(b"UserMsgLen")
            body = reader.rest()
            if len(body) < size:
                raise WireError("user message is cut short")
            return User(body=body[:size])
        case Kind.PUSH_PULL:
            return _push_pull(reader)
        case kind:
            raise WireError(f"message type {kind} has no place in a stream")


def _push_pull(reader: _Reader) -> PushPull:
    head = reader.fields()
    count = head.number(b"Nodes", MAX_NODES)
    size = head.number(b"UserStateLen", MAX_USER_STATE)
    nodes = tuple(_node(reader.fields()) for _ in range(count))
    state = reader.rest()
    if len(state) < size:
        raise WireError("push/pull is cut short")
    return PushPull(join=head.flag(b"Join"), nodes=nodes, user_state=state[:size])


def _node(fields: _Fields) -> NodeState:
    return NodeState(
        name=fields.text(b"Name"),
        addr=fields.raw(b"Addr", 16),
        port=fields.number(b"Port", 0xFFFF),
        meta=fields.raw(b"Meta", MAX_META),
        incarnation=fields.number(b"Incarnation"),
        state=State(fields.number(b"State", State.LEFT)),
        versions=fields.raw(b"Vsn", 64),
    )
