"""What becomes of a client's address, as ``service inspect`` says it."""

from __future__ import annotations

from swarm.cli import mesh
from swarm.model import (
    Endpoint,
    EngineDescription,
    Node,
    NodeDescription,
    PortConfig,
    PublishMode,
    Service,
    Task,
    TaskState,
)


def node(name: str, *, own: bool) -> Node:
    engine = EngineDescription(labels={mesh.OWN_AGENT: "1"} if own else {})
    return Node(id=name, description=NodeDescription(hostname=name, engine=engine))


def service(mode: PublishMode) -> Service:
    port = PortConfig(target_port=80, published_port=8080, publish_mode=mode)
    return Service(id="s", endpoint=Endpoint(ports=(port,)))


TASKS = [
    Task(id="t1", node_id="d1", desired_state=TaskState.RUNNING),
    Task(id="t2", node_id="w1", desired_state=TaskState.RUNNING),
    Task(id="t3", node_id="d2", desired_state=TaskState.SHUTDOWN),
]


def test_without_engines_the_address_is_kept() -> None:
    nodes = {"w1": node("w1", own=True), "w2": node("w2", own=True)}
    found = mesh.source_address(service(PublishMode.INGRESS), TASKS, nodes)
    assert found == {"Client": "kept"}
    assert mesh.shown(found) == "kept"


def test_engines_are_named_as_ways_in_and_as_places_of_tasks() -> None:
    nodes = {name: node(name, own=name == "w1") for name in ("w1", "d1", "d2")}
    found = mesh.source_address(service(PublishMode.INGRESS), TASKS, nodes)
    assert found == {
        "Client": "partly",
        "TasksOnEngines": ["d1"],
        "EntriesByEngines": ["d1", "d2"],
    }
    assert "tasks on d1, and by d1, d2" in mesh.shown(found)


def test_nothing_is_said_of_a_service_that_publishes_nothing_on_every_node() -> None:
    found = mesh.source_address(service(PublishMode.HOST), TASKS, {"w1": node("w1", own=True)})
    assert (found, mesh.shown(found)) == ({}, "")
