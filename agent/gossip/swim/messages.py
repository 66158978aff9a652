"""What nodes say to each other about membership. Source: ``memberlist`` protocol 2."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


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
