"""Messages of the membership protocol as bytes: a type, then a body (:mod:`~agent.gossip.swim.fields`).

What goes around them is :mod:`~agent.gossip.swim.wrappers` and :mod:`~agent.gossip.swim.seal`.

Source: ``memberlist`` protocol 2, as spoken by Docker 19.03 to 29.7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agent.gossip.swim.fields import Fields, Reader, pack
from agent.gossip.swim.messages import (
    Ack,
    Alive,
    Dead,
    ErrorReply,
    IndirectPing,
    Kind,
    Nack,
    NodeState,
    PacketMessage,
    Ping,
    PushPull,
    State,
    StreamMessage,
    Suspect,
    User,
)
from agent.gossip.swim.wrappers import decompress_untrusted
from swarm.errors import WireError

__all__ = [
    "Ack",
    "Alive",
    "Dead",
    "ErrorReply",
    "IndirectPing",
    "Kind",
    "Nack",
    "NodeState",
    "PacketMessage",
    "Ping",
    "PushPull",
    "State",
    "StreamMessage",
    "Suspect",
    "User",
    "decode_packet_untrusted",
    "decode_stream_untrusted",
    "encode_node",
    "encode_packet",
    "encode_stream",
]

MAX_META: Final = 512
MAX_STREAM_UNFOLDED: Final = 40 << 20  # bytes of one stream message after decompression
MAX_USER_STATE: Final = 20 << 20
MAX_NODES: Final = 1 << 16  # nodes in one push/pull

# -- writing ------------------------------------------------------------------------------------


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
    return bytes((kind,)) + pack(fields)


def encode_stream(message: StreamMessage) -> bytes:
    """Return one message as a stream carries it."""
    match message:
        case Ping() | Ack():
            return encode_packet(message)
        case ErrorReply():
            return bytes((Kind.ERROR,)) + pack({"Error": message.error})
        case User():
            head = pack({"UserMsgLen": len(message.body)})
            return bytes((Kind.USER,)) + head + message.body
        case PushPull():
            head = pack(
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
    return pack(
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


# -- reading ------------------------------------------------------------------------------------


def _ping(fields: Fields) -> Ping:
    return Ping(
        seq=fields.number(b"SeqNo"),
        node=fields.text(b"Node"),
        source_addr=fields.raw(b"SourceAddr", 16),
        source_port=fields.number(b"SourcePort", 0xFFFF),
        source_node=fields.text(b"SourceNode"),
    )


def _indirect_ping(fields: Fields) -> IndirectPing:
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


def _ack(fields: Fields) -> Ack:
    return Ack(seq=fields.number(b"SeqNo"), payload=fields.raw(b"Payload", 1024) or None)


def _nack(fields: Fields) -> Nack:
    return Nack(seq=fields.number(b"SeqNo"))


def _suspect(fields: Fields) -> Suspect:
    return Suspect(
        incarnation=fields.number(b"Incarnation"),
        node=fields.text(b"Node"),
        origin=fields.text(b"From"),
    )


def _dead(fields: Fields) -> Dead:
    return Dead(
        incarnation=fields.number(b"Incarnation"),
        node=fields.text(b"Node"),
        origin=fields.text(b"From"),
    )


def _alive(fields: Fields) -> Alive:
    return Alive(
        incarnation=fields.number(b"Incarnation"),
        node=fields.text(b"Node"),
        addr=fields.raw(b"Addr", 16),
        port=fields.number(b"Port", 0xFFFF),
        meta=fields.raw(b"Meta", MAX_META),
        versions=fields.raw(b"Vsn", 64),
    )


_PACKET_READERS: Final[dict[int, Callable[[Fields], PacketMessage]]] = {
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
    return reader(Reader(data[1:]).fields())


def decode_stream_untrusted(data: bytes) -> StreamMessage:
    """Return the message of an opened stream frame.

    Raises:
        WireError: unknown type, malformed body, or a bound exceeded.
    """
    if data[:1] == bytes((Kind.COMPRESS,)):
        data = decompress_untrusted(data[1:], MAX_STREAM_UNFOLDED)
    if not data:
        raise WireError("message is empty")
    reader = Reader(data[1:])
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


def _push_pull(reader: Reader) -> PushPull:
    head = reader.fields()
    count = head.number(b"Nodes", MAX_NODES)
    size = head.number(b"UserStateLen", MAX_USER_STATE)
    nodes = tuple(_node(reader.fields()) for _ in range(count))
    state = reader.rest()
    if len(state) < size:
        raise WireError("push/pull is cut short")
    return PushPull(join=head.flag(b"Join"), nodes=nodes, user_state=state[:size])


def _node(fields: Fields) -> NodeState:
    return NodeState(
        name=fields.text(b"Name"),
        addr=fields.raw(b"Addr", 16),
        port=fields.number(b"Port", 0xFFFF),
        meta=fields.raw(b"Meta", MAX_META),
        incarnation=fields.number(b"Incarnation"),
        state=State(fields.number(b"State", State.LEFT)),
        versions=fields.raw(b"Vsn", 64),
    )
