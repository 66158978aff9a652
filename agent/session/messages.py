"""What goes into the session core and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from swarm.model import EncryptionKey, Node, NodeRole, Peer, Task, TaskStatus, WeightedPeer


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionConfig:
    """Timings of a session, seconds."""

    register_timeout: float = 5.0
    """How long the first message of a session may take; engines allow the same."""
    backoff_base: float = 0.1
    """Each failure makes the backoff ``base + factor * backoff``; the pause is random below that."""
    backoff_factor: float = 2.0
    backoff_max: float = 8.0
    min_heartbeat: float = 0.1
    """A manager that names no period, or a shorter one, is not asked more often than this."""
    max_heartbeat: float = 3600.0
    status_batch: int = 64
    """Task statuses per call; one call is under way at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionUpdate:
    """One message of the Session stream; absent parts mean "as before"."""

    session_id: str
    node: Node | None = None
    managers: tuple[WeightedPeer, ...] = ()
    keys: tuple[EncryptionKey, ...] = ()
    root_ca: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """One line of an assignment list: a task to have, or the id of one to forget."""

    task_id: str
    task: Task | None = None
    """None means: remove."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentsUpdate:
    """One message of the Assignments stream."""

    complete: bool
    applies_to: str
    results_in: str
    changes: tuple[TaskChange, ...] = ()


class Phase(StrEnum):
    """Where a session stands."""

    IDLE = "idle"
    WAITING = "waiting"
    REGISTERING = "registering"
    ACTIVE = "active"
    CLOSED = "closed"


# Outputs: calls for the shell to make.


@dataclass(frozen=True, slots=True, kw_only=True)
class Register:
    """Open a connection to ``peer`` and the Session stream on it; ``epoch`` names the attempt."""

    epoch: int
    peer: Peer
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hangup:
    """End every call of ``epoch`` and its connection."""

    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAssignments:
    """Open the Assignments stream."""

    epoch: int
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """Send one heartbeat."""

    epoch: int
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Send task statuses; answer with ``on_reported``."""

    epoch: int
    session_id: str
    statuses: tuple[tuple[str, TaskStatus], ...]


# Outputs: news for the rest of the node.


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOpened:
    """The manager accepted the session."""

    peer: Peer
    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionLost:
    """The session ended; the next try comes within ``retry_within`` seconds."""

    peer: Peer | None
    reason: str
    retry_within: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeChanged:
    """The manager's view of this node changed (other than status and bookkeeping)."""

    node: Node


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagersChanged:
    """The managers of the cluster."""

    peers: tuple[Peer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeysChanged:
    """The network keys, all subsystems."""

    keys: tuple[EncryptionKey, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RootOffered:
    """The manager trusts other roots than this session saw before; the receiver verifies them."""

    root_pem: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewalDemanded:
    """The manager wants a new certificate now, of that role."""

    role: NodeRole


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskAssigned:
    """A task came or changed in more than its status."""

    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRemoved:
    """A task is no longer this node's."""

    task_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignmentsComplete:
    """A whole list was applied: tasks not announced before this do not exist for the manager."""


class Drop(StrEnum):
    """Why an input was refused."""

    STALE_EPOCH = "stale_epoch"
    NO_MANAGERS = "no_managers"
    STATE_GOES_DOWN = "state_goes_down"
    BAD_KEYS = "bad_keys"
    OTHER_NODE = "other_node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """An input, or part of one, was refused."""

    reason: Drop
    detail: str = ""


Call = Register | Hangup | OpenAssignments | Beat | Report
News = (
    SessionOpened
    | SessionLost
    | NodeChanged
    | ManagersChanged
    | KeysChanged
    | RootOffered
    | RenewalDemanded
    | TaskAssigned
    | TaskRemoved
    | AssignmentsComplete
    | Dropped
)
Output = Call | News
