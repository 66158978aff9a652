"""What becomes of a client's address on its way to a service: it depends on who runs the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from swarm.cli.node import hostname
from swarm.model import Node, PublishMode, Service, Task, TaskState

OWN_AGENT: Final = "overswarm.version"
"""Label by which a node's own agent is told from a Docker engine."""

KEPT, PARTLY = "kept", "partly"


def source_address(
    item: Service, tasks: Iterable[Task], nodes: Mapping[str, Node]
) -> dict[str, Any]:
    """Return what a service's tasks see of clients of its ports that are published on every node.

    Args:
        item: the service.
        tasks: its tasks.
        nodes: all of the cluster, by id.

    Returns:
        ``Client``: ``kept`` when every way in and every task is a node's of ours; ``partly`` when
        engines have a part, with their host names: a task on one sees the address of the node the
        client asked, and a client that asks one is seen under that engine's address. Empty when
        nothing is published on every node.
    """
    ports = item.endpoint.ports if item.endpoint else ()
    if not any(port.publish_mode is PublishMode.INGRESS for port in ports):
        return {}
    engines = {each.id: hostname(each) or each.id for each in nodes.values() if _is_engine(each)}
    running = {each.node_id for each in tasks if each.desired_state <= TaskState.RUNNING}
    if not engines:
        return {"Client": KEPT}
    return {
        "Client": PARTLY,
        "TasksOnEngines": sorted(engines[each] for each in running & engines.keys()),
        "EntriesByEngines": sorted(engines.values()),
    }


def shown(found: Mapping[str, Any]) -> str:
    """Return the same as one line."""
    if not found or found["Client"] == KEPT:
        return str(found.get("Client", ""))
    behind = ", ".join(found["TasksOnEngines"]) or "none"
    return f"kept between nodes of ours; translated to tasks on {behind}, and by {', '.join(found['EntriesByEngines'])}"


def _is_engine(node: Node) -> bool:
    engine = node.description.engine if node.description else None
    return engine is not None and OWN_AGENT not in engine.labels
