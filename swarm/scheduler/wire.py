"""Messages of ``overswarm.v1.Scheduler`` to and from :mod:`swarm.scheduler.model`; the only place that knows both."""

from __future__ import annotations

from typing import Any, Final

from swarm.api import codec
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import WireError
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
from swarm.scheduler.model import (
    Allocation,
    Change,
    Event,
    EventKind,
    Object,
    Placed,
    Placement,
    Placing,
    Reason,
    Refusal,
    Result,
    Update,
)

_OBJECTS: Final[dict[str, type[Object]]] = {
    "node": Node,
    "service": Service,
    "task": Task,
    "network": Network,
}
_FIELDS: Final = {kind: name for name, kind in _OBJECTS.items()}
_REASONS: Final[frozenset[int]] = frozenset(Reason)
_EVENTS: Final[frozenset[int]] = frozenset(EventKind)
_SET: Final = scheduler_pb2.WATCH_ACTION_SET
_REMOVE: Final = scheduler_pb2.WATCH_ACTION_REMOVE


def placement_to(placement: Placement) -> scheduler_pb2.Placement:
    """Write a placement."""
    message = scheduler_pb2.Placement(
        node_id=placement.node_id,
        service_id=placement.service_id,
        slot=placement.slot,
        desired_state=int(placement.desired_state),  # type: ignore[arg-type]  # same numbers
    )
    if placement.spec is not None:
        message.spec.CopyFrom(_encoded(placement.spec))
    if placement.annotations is not None:
        message.annotations.CopyFrom(_encoded(placement.annotations))
    message.networks.extend(map(_encoded, placement.networks))
    return message


def placement_from_untrusted(message: scheduler_pb2.Placement) -> Placement:
    """Read a placement.

    Raises:
        WireError: an enumeration holds an unknown value.
    """
    state = message.desired_state
    return Placement(
        node_id=message.node_id,
        service_id=message.service_id,
        spec=codec.decode(TaskSpec, message.spec) if message.HasField("spec") else None,
        slot=message.slot,
        networks=tuple(codec.decode(NetworkAttachmentConfig, each) for each in message.networks),
        annotations=(
            codec.decode(Annotations, message.annotations)
            if message.HasField("annotations")
            else None
        ),
        desired_state=task_state_untrusted(state) if state else TaskState.RUNNING,
    )


def task_state_untrusted(value: int) -> TaskState:
    """Read a task state.

    Raises:
        WireError: it is none.
    """
    try:
        return TaskState(value)
    except ValueError as error:
        raise WireError(f"{value} is no task state") from error


def result_to(result: Result) -> scheduler_pb2.PlacementResult:
    """Write the result of one placement."""
    message = scheduler_pb2.PlacementResult()
    if isinstance(result, Placed):
        placed = message.placed
        placed.task_id, placed.node_id = result.task_id, result.node_id
        for network_id, addresses in result.networks.items():
            placed.networks.add(network_id=network_id, addresses=addresses)
    elif result is not None:
        message.refused.CopyFrom(refusal_to(result))
    return message


def result_from(message: scheduler_pb2.PlacementResult) -> Result:
    """Read the result of one placement."""
    match message.WhichOneof("result"):
        case "placed":
            placed = message.placed
            return Placed(
                task_id=placed.task_id,
                node_id=placed.node_id,
                networks={each.network_id: tuple(each.addresses) for each in placed.networks},
            )
        case "refused":
            return refusal_from(message.refused)
        case _:
            return None


def placing_from(message: scheduler_pb2.CreateTasksResponse) -> Placing:
    """Read the answer to a request for tasks."""
    return Placing(
        results=tuple(map(result_from, message.results)),
        committed=message.committed,
        repeated=message.repeated,
        version=message.version,
    )


def refusal_to(refusal: Refusal) -> scheduler_pb2.Refusal:
    """Write a refusal."""
    return scheduler_pb2.Refusal(
        reason=int(refusal.reason),  # type: ignore[arg-type]  # same numbers
        message=refusal.message,
        help=refusal.help,
        node_id=refusal.node_id,
        service_id=refusal.service_id,
        network_id=refusal.network_id,
        task_id=refusal.task_id,
        pool=refusal.pool,
        port=refusal.port,
        protocol=int(refusal.protocol),  # type: ignore[arg-type]  # same numbers
        holder=refusal.holder,
    )


def refusal_from(message: scheduler_pb2.Refusal) -> Refusal:
    """Read a refusal; a reason of a newer manager becomes UNKNOWN."""
    reason = int(message.reason)
    return Refusal(
        reason=Reason(reason) if reason in _REASONS else Reason.UNKNOWN,
        message=message.message,
        help=message.help,
        node_id=message.node_id,
        service_id=message.service_id,
        network_id=message.network_id,
        task_id=message.task_id,
        pool=message.pool,
        port=message.port,
        protocol=PortProtocol(int(message.protocol)),
        holder=message.holder,
    )


def update_to(update: Update) -> scheduler_pb2.WatchResponse:
    """Write one message of a watch."""
    message = scheduler_pb2.WatchResponse(version=update.version, reset=update.reset)
    for change in update.changes:
        entry = message.changes.add(action=_REMOVE if change.removed else _SET)
        getattr(entry, _FIELDS[type(change.item)]).CopyFrom(_encoded(change.item))
    for each in update.allocations:
        message.allocations.add(
            network_id=each.network_id,
            subnet=each.subnet,
            size=str(each.size),
            used=each.used,
            removed=each.removed,
        )
    for event in update.events:
        _event_to(event, message.events.add())
    return message


def update_from(message: scheduler_pb2.WatchResponse) -> Update:
    """Read one message of a watch; kinds of objects and events of a newer manager are left out."""
    changes = []
    for entry in message.changes:
        name = entry.WhichOneof("object")
        if name is not None:
            item: Object = codec.decode(_OBJECTS[name], getattr(entry, name))
            changes.append(Change(item=item, removed=entry.action == _REMOVE))
    return Update(
        version=message.version,
        reset=message.reset,
        changes=tuple(changes),
        allocations=tuple(
            Allocation(
                network_id=each.network_id,
                subnet=each.subnet,
                size=int(each.size),
                used=each.used,
                removed=each.removed,
            )
            for each in message.allocations
        ),
        events=tuple(_event_from(each) for each in message.events),
    )


def _event_to(event: Event, message: scheduler_pb2.Event) -> None:
    message.kind = int(event.kind)  # type: ignore[assignment]  # same numbers
    message.time.FromNanoseconds(event.time)
    message.node_id = event.node_id
    message.service_id = event.service_id
    message.task_id = event.task_id
    message.state = event.state
    message.reason = event.reason
    if event.refusal is not None:
        message.refusal.CopyFrom(refusal_to(event.refusal))


def _event_from(message: scheduler_pb2.Event) -> Event:
    kind = int(message.kind)
    return Event(
        kind=EventKind(kind) if kind in _EVENTS else EventKind.UNKNOWN,
        time=message.time.ToNanoseconds(),
        node_id=message.node_id,
        service_id=message.service_id,
        task_id=message.task_id,
        state=message.state,
        reason=message.reason,
        refusal=refusal_from(message.refusal) if message.HasField("refusal") else None,
    )


def _encoded(value: object) -> Any:
    """Return a model object's message, typed loosely: which one follows from the object's class."""
    return codec.encode(value)
