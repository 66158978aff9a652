"""What schedulers and managers say to each other, as frozen dataclasses; no protobuf here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TypeAlias

from swarm.model import (
    Annotations,
    Network,
    NetworkAttachmentConfig,
    Node,
    PortProtocol,
    Service,
    Task,
    TaskSpec,
    TaskState,
)

Object: TypeAlias = Node | Service | Task | Network
"""What a scheduler can watch."""


class Reason(IntEnum):
    """Why a placement or a change of a task was refused; values are those of the wire."""

    UNKNOWN = 0
    INVALID = 1
    NODE_NOT_FOUND = 2
    NODE_NOT_READY = 3
    NODE_NOT_ACTIVE = 4
    NODE_LACKS_DRIVER = 5
    SERVICE_NOT_FOUND = 6
    NETWORK_NOT_FOUND = 7
    NO_INGRESS = 8
    ADDRESS_TAKEN = 9
    ADDRESS_INVALID = 10
    POOL_EXHAUSTED = 11
    PORT_TAKEN = 12
    TASK_NOT_FOUND = 13
    STATE_BACKWARDS = 14
    REPEATED = 15


class Kind(IntEnum):
    """What a watch can tell of; values are those of the wire."""

    NODES = 1
    SERVICES = 2
    TASKS = 3
    NETWORKS = 4
    ALLOCATIONS = 5
    EVENTS = 6


class EventKind(IntEnum):
    """What happened; values are those of the wire."""

    UNKNOWN = 0
    NODE_STATE = 1
    NODE_AVAILABILITY = 2
    TASK_STATE = 3
    TASK_DESIRED_STATE = 4
    PLACEMENT_REFUSED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One task to make.

    Attributes:
        node_id: where.
        service_id: the service it is a task of, or empty.
        spec: what to run; None for what the service says.
        slot: number of the replica from 1; 0 for a task that is the one of its service on its node.
        networks: instead of the spec's, by id or name, with aliases and wished addresses.
        annotations: name and labels; None for ``service.slot.id``.
        desired_state: RUNNING, or READY to only prepare it.
    """

    node_id: str
    service_id: str = ""
    spec: TaskSpec | None = None
    slot: int = 0
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    annotations: Annotations | None = None
    desired_state: TaskState = TaskState.RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A task that was made; ``networks`` holds its addresses (CIDR) by network id."""

    task_id: str
    node_id: str
    networks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why something was not done.

    Attributes:
        reason: for programs.
        message: for people; one sentence.
        help: what would make it possible; one sentence.
        node_id, service_id, network_id, task_id: what stands in the way, as far as there is one.
        pool: a subnet (CIDR) or an address.
        port, protocol: a published port.
        holder: who holds the address or port, such as ``task abc``.
    """

    reason: Reason
    message: str
    help: str = ""
    node_id: str = ""
    service_id: str = ""
    network_id: str = ""
    task_id: str = ""
    pool: str = ""
    port: int = 0
    protocol: PortProtocol = PortProtocol.TCP
    holder: str = ""


Result: TypeAlias = Placed | Refusal | None
"""Of one placement; None when it could be served and the whole request was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placing:
    """The answer to a request for tasks.

    Attributes:
        results: one for each placement, in order.
        committed: something was written, now or by an earlier call with the same request id.
        repeated: it was the earlier call.
        version: at which the tasks appear in a watch, or a later one.
    """

    results: tuple[Result, ...]
    committed: bool
    repeated: bool = False
    version: int = 0

    @property
    def placed(self) -> tuple[Placed, ...]:
        """The tasks made."""
        return tuple(each for each in self.results if isinstance(each, Placed))

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """What was refused."""
        return tuple(each for each in self.results if isinstance(each, Refusal))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One object as it is now; ``removed`` when this is its last form."""

    item: Object
    removed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """How full one subnet of a network is: ``used`` of ``size`` addresses; ``removed`` with its network."""

    network_id: str
    subnet: str
    size: int = 0
    used: int = 0
    removed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened, and why, as told by whoever caused it; ``time`` in nanoseconds."""

    kind: EventKind
    time: int
    node_id: str = ""
    service_id: str = ""
    task_id: str = ""
    state: str = ""
    reason: str = ""
    refusal: Refusal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """One message of a watch.

    Attributes:
        version: may be resumed from; 0 while more of the same version follows.
        reset: forget everything: all there is comes with this and the following updates, up to the
            first with a version.
    """

    version: int = 0
    reset: bool = False
    changes: tuple[Change, ...] = ()
    allocations: tuple[Allocation, ...] = ()
    events: tuple[Event, ...] = ()
