"""Messages of NetworkDB: protobuf at the edge, dataclasses inside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from swarm.api.networkdb import networkdb_pb2 as pb
from swarm.errors import WireError

MAX_DEPTH: Final = 4  # compounds within compounds
MAX_EVENTS: Final = 1 << 20  # events in one message, all compounds together
MAX_TEXT: Final = 255  # characters of a name, table or network id
MAX_KEY: Final = 1024
MAX_VALUE: Final = 256 << 10  # bytes of an entry
MAX_TIME: Final = 1 << 63  # Lamport times from here on would overflow somebody's clock
MAX_NETWORKS: Final = 1 << 16  # named in one message
MAX_ATTACHMENTS: Final = 1 << 18  # in one push/pull
GOSSIP_HEADER: Final = 5  # bytes around a compound below 16 KiB
PART_HEADER: Final = 6  # bytes around one event in it

_COMPOUND_START = b"\x08\x05"  # the type field, which every writer puts first
_M = TypeVar("_M", bound=Message)


class Action(IntEnum):
    """What a table event says it does; receivers judge by what they hold."""

    CREATE = 1
    UPDATE = 2
    DELETE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEvent:
    """A node is here (``joining``) or goes on purpose; ``time`` is of the network clock."""

    joining: bool
    time: int
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEvent:
    """A node takes part in a network (``joining``) or stops to."""

    joining: bool
    time: int
    node: str
    network: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TableEvent:
    """An entry's newest state as its owner wrote it.

    Attributes:
        time: of the table clock.
        residual: whole seconds a tombstone has left; 0 for a live entry.
    """

    action: Action
    time: int
    owner: str
    network: str
    table: str
    key: str
    value: bytes
    residual: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkSync:
    """All entries of some networks; ``unsolicited`` asks for the same in return."""

    time: int
    unsolicited: bool
    node: str
    networks: tuple[str, ...]
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PushPullState:
    """All attachments one node knows; ``time`` is of its network clock."""

    time: int
    node: str
    attachments: tuple[NetworkEvent, ...]


Event = NodeEvent | NetworkEvent | TableEvent
Body = Event | BulkSync | PushPullState


def encode(message: Body) -> bytes:
    """Return one message in its outer layer."""
    match message:
        case NodeEvent():
            kind = pb.MESSAGE_TYPE_NODE_EVENT
            data = pb.NodeEvent(
                type=_presence(message.joining), l_time=message.time, node_name=message.node
            ).SerializeToString()
        case NetworkEvent():
            kind = pb.MESSAGE_TYPE_NETWORK_EVENT
            data = pb.NetworkEvent(
                type=_presence(message.joining),
                l_time=message.time,
                node_name=message.node,
                network_id=message.network,
            ).SerializeToString()
        case TableEvent():
            kind = pb.MESSAGE_TYPE_TABLE_EVENT
            data = pb.TableEvent(
                type=pb.TableAction.Name(message.action),  # type: ignore[arg-type]
                l_time=message.time,
                node_name=message.owner,
                network_id=message.network,
                table_name=message.table,
                key=message.key,
                value=message.value,
                residual_reap_time=message.residual,
            ).SerializeToString()
        case BulkSync():
            kind = pb.MESSAGE_TYPE_BULK_SYNC
            data = pb.BulkSyncMessage(
                l_time=message.time,
                unsolicited=message.unsolicited,
                node_name=message.node,
                networks=message.networks,
                payload=message.payload,
            ).SerializeToString()
        case PushPullState():
            kind = pb.MESSAGE_TYPE_PUSH_PULL
            data = _encode_push_pull(message)
    return pb.GossipMessage(type=kind, data=data).SerializeToString()


def _encode_push_pull(message: PushPullState) -> bytes:
    networks = [
        pb.NetworkEntry(
            network_id=entry.network,
            l_time=entry.time,
            node_name=entry.node,
            leaving=not entry.joining,
        )
        for entry in message.attachments
    ]
    return pb.NetworkPushPull(
        l_time=message.time, networks=networks, node_name=message.node
    ).SerializeToString()


def compound(parts: Iterable[bytes]) -> bytes:
    """Return encoded messages as one; none is legal, too."""
    simple = pb.CompoundMessage.SimpleMessage
    body = pb.CompoundMessage(messages=[simple(payload=part) for part in parts])
    return pb.GossipMessage(
        type=pb.MESSAGE_TYPE_COMPOUND, data=body.SerializeToString()
    ).SerializeToString()


def _presence(joining: bool) -> pb.Presence.ValueType:
    return pb.PRESENCE_JOIN if joining else pb.PRESENCE_LEAVE


def _parse(kind: type[_M], data: bytes) -> _M:
    message = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"{kind.DESCRIPTOR.name} is malformed") from error
    return message


def unfold_untrusted(data: bytes) -> list[bytes]:
    """Return the encoded messages ``data`` holds, compounds taken apart, the rest untouched.

    Raises:
        WireError: a compound is malformed, nested too deep, or holds too many messages.
    """
    leaves: list[bytes] = []
    _unfold(data, 0, leaves)
    return leaves


def _unfold(data: bytes, depth: int, leaves: list[bytes]) -> None:
    if not data.startswith(_COMPOUND_START):
        if len(leaves) >= MAX_EVENTS:
            raise WireError(f"message holds more than {MAX_EVENTS} events")
        leaves.append(data)
        return
    if depth >= MAX_DEPTH:
        raise WireError(f"compounds nest deeper than {MAX_DEPTH}")
    outer = _parse(pb.GossipMessage, data)
    for part in _parse(pb.CompoundMessage, outer.data).messages:
        _unfold(part.payload, depth + 1, leaves)


def decode_untrusted(data: bytes) -> Body:
    """Return the one message ``data`` holds.

    Raises:
        WireError: unknown type, malformed, or beyond a bound.
    """
    outer = _parse(pb.GossipMessage, data)
    match outer.type:
        case pb.MESSAGE_TYPE_TABLE_EVENT:
            return _table_event(_parse(pb.TableEvent, outer.data))
        case pb.MESSAGE_TYPE_NETWORK_EVENT:
            event = _parse(pb.NetworkEvent, outer.data)
            return NetworkEvent(
                joining=_joining(event.type),
                time=_time(event.l_time),
                node=_text(event.node_name),
                network=_text(event.network_id),
            )
        case pb.MESSAGE_TYPE_NODE_EVENT:
            presence = _parse(pb.NodeEvent, outer.data)
            return NodeEvent(
                joining=_joining(presence.type),
                time=_time(presence.l_time),
                node=_text(presence.node_name),
            )
        case pb.MESSAGE_TYPE_BULK_SYNC:
            return _bulk_sync(_parse(pb.BulkSyncMessage, outer.data))
        case pb.MESSAGE_TYPE_PUSH_PULL:
            return _push_pull(_parse(pb.NetworkPushPull, outer.data))
        case kind:
            raise WireError(f"message type {kind} is unknown")


def _table_event(event: pb.TableEvent) -> TableEvent:
    if not 1 <= event.type <= 3:
        raise WireError(f"table action {event.type} is unknown")
    if len(event.value) > MAX_VALUE:
        raise WireError(f"entry has more than {MAX_VALUE} bytes")
    return TableEvent(
        action=Action(event.type),
        time=_time(event.l_time),
        owner=_text(event.node_name),
        network=_text(event.network_id),
        table=_text(event.table_name),
        key=_text(event.key, MAX_KEY),
        value=event.value,
        # An engine that found a tombstone a moment overdue says so with a negative number.
        residual=max(1, event.residual_reap_time) if event.residual_reap_time else 0,
    )


def _bulk_sync(message: pb.BulkSyncMessage) -> BulkSync:
    if len(message.networks) > MAX_NETWORKS:
        raise WireError(f"bulk sync names more than {MAX_NETWORKS} networks")
    return BulkSync(
        time=_time(message.l_time),
        unsolicited=message.unsolicited,
        node=_text(message.node_name),
        networks=tuple(_text(network) for network in message.networks),
        payload=message.payload,
    )


def _push_pull(message: pb.NetworkPushPull) -> PushPullState:
    if len(message.networks) > MAX_ATTACHMENTS:
        raise WireError(f"push/pull holds more than {MAX_ATTACHMENTS} attachments")
    attachments = tuple(
        NetworkEvent(
            joining=not entry.leaving,
            time=_time(entry.l_time),
            node=_text(entry.node_name),
            network=_text(entry.network_id),
        )
        for entry in message.networks
    )
    return PushPullState(
        time=_time(message.l_time), node=_text(message.node_name), attachments=attachments
    )


def _joining(presence: int) -> bool:
    if presence not in {pb.PRESENCE_JOIN, pb.PRESENCE_LEAVE}:
        raise WireError(f"presence {presence} is unknown")
    return presence == pb.PRESENCE_JOIN


def _time(value: int) -> int:
    if value >= MAX_TIME:
        raise WireError("Lamport time is beyond its limit")
    return value


def _text(value: str, limit: int = MAX_TEXT) -> str:
    if not value or len(value) > limit or "/" in value:
        raise WireError("name is empty, too long, or holds a slash")
    return value
