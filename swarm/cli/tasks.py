"""Tasks of services as ``service ps`` and ``node ps`` show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from google.protobuf import any_pb2

from swarm.api.docker.swarmkit import specs_pb2
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.cli import ports
from swarm.cli.listing import Listing
from swarm.cli.output import natural, since
from swarm.cli.parse import label_match
from swarm.model import PublishMode, Task, TaskSpec, TaskState

PROCESS: Final = "process"
_COLUMNS: Final = {
    "ID": "ID",
    "Name": "NAME",
    "Image": "IMAGE",
    "Node": "NODE",
    "DesiredState": "DESIRED STATE",
    "CurrentState": "CURRENT STATE",
    "Error": "ERROR",
    "Ports": "PORTS",
}
_ID_CHARS = 12
_ERROR_CHARS = 30


def what(spec: TaskSpec) -> str:
    """Return what a task runs, for the column that docker calls IMAGE."""
    if spec.container is not None:
        return specs_pb2.ContainerSpec.FromString(spec.container).image
    process = process_of(spec)
    if process is not None:
        return process.argv[0] if process.argv else ""
    return spec.generic.kind if spec.generic is not None else ""


def process_of(spec: TaskSpec) -> scheduler_pb2.Process | None:
    """Return the process that a task runs; None for one of another kind."""
    if spec.generic is None or spec.generic.kind != PROCESS or spec.generic.payload is None:
        return None
    payload, process = any_pb2.Any.FromString(spec.generic.payload), scheduler_pb2.Process()
    return process if payload.Unpack(process) else None


def show(found: Iterable[Task], nodes: Mapping[str, str], asked: Listing) -> None:
    """Print the tasks of services as a list; ``nodes`` is what to call nodes, by id."""
    tree = asked.form == "table"
    asked.show(rows(found, nodes, asked.chosen, whole=asked.whole, tree=tree), _COLUMNS)


def rows(
    found: Iterable[Task],
    nodes: Mapping[str, str],
    chosen: Mapping[str, list[str]],
    *,
    whole: bool,
    tree: bool,
) -> list[dict[str, Any]]:
    """Return the rows of tasks, the newest of a slot first, those before it below.

    Args:
        found: tasks of services.
        nodes: what to call nodes, by id.
        chosen: filters by name: id, name, node, label, desired-state.
        whole: ids and errors are not cut.
        tree: mark those below.
    """
    result, seen = [], set()
    for task in sorted(found, key=_order):
        name = f"{task.service_annotations.name}.{task.slot or task.node_id}"
        row = _row(task, name, nodes.get(task.node_id, task.node_id), whole=whole)
        if name in seen and tree:
            row["Name"] = f" \\_ {name}"
        seen.add(name)
        if _matches(task, row, name, chosen):
            result.append(row)
    return result


def _order(task: Task) -> tuple[Any, ...]:
    """Order by service and slot, the newest of a slot first."""
    return (
        natural(task.service_annotations.name),
        task.slot,
        task.node_id if not task.slot else "",
        task.desired_state > TaskState.RUNNING,
        -(task.meta.created_at or 0),
    )


def _row(task: Task, name: str, node: str, *, whole: bool) -> dict[str, Any]:
    state = task.status.state.name.capitalize()
    when = task.status.timestamp
    error = task.status.err
    if not whole and len(error) > _ERROR_CHARS:
        error = f"{error[: _ERROR_CHARS - 1]}…"
    return {
        "ID": task.id if whole else task.id[:_ID_CHARS],
        "Name": name,
        "Image": what(task.spec),
        "Node": node,
        "DesiredState": task.desired_state.name.capitalize(),
        "CurrentState": f"{state} {since(when).lower()} ago" if when else state,
        "Error": f'"{error}"' if error else "",
        "Ports": ports.shown(task.endpoint.ports if task.endpoint else (), PublishMode.HOST),
    }


def _matches(
    task: Task, row: Mapping[str, Any], name: str, chosen: Mapping[str, list[str]]
) -> bool:
    return (
        ("id" not in chosen or any(task.id.startswith(text) for text in chosen["id"]))
        and ("name" not in chosen or any(name.startswith(text) for text in chosen["name"]))
        and ("node" not in chosen or bool({row["Node"], task.node_id} & set(chosen["node"])))
        and label_match(dict(task.service_annotations.labels), chosen.get("label", []))
        and (
            "desired-state" not in chosen
            or task.desired_state.name.lower() in chosen["desired-state"]
        )
    )
