"""What schedulers are told, through the client library, over a manager's own socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from manager.api import watches
from manager.store import watch as history
from swarm.api.docker.swarmkit import control_pb2
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import ExhaustedError, InvalidArgumentError
from swarm.model import (
    Annotations,
    EndpointSpec,
    GenericRuntimeSpec,
    NetworkAttachmentConfig,
    NodeState,
    PortConfig,
    ReplicatedService,
    ServiceSpec,
    TaskSpec,
)
from swarm.scheduler import connect_local
from swarm.scheduler.client import SchedulerClient
from swarm.scheduler.mirror import Mirror
from swarm.scheduler.model import EventKind, Kind, Placement, Reason, Update

pytestmark = pytest.mark.slow

DEADLINE = 10.0


def process(*argv: str) -> GenericRuntimeSpec:
    from google.protobuf import any_pb2

    payload = any_pb2.Any()
    payload.Pack(scheduler_pb2.Process(argv=argv))
    return GenericRuntimeSpec(kind="process", payload=payload.SerializeToString())


def spec(name: str, *networks: str, replicas: int = 1, port: int = 0) -> ServiceSpec:
    return ServiceSpec(
        annotations=Annotations(name=name),
        task=TaskSpec(
            generic=process("sleep", "1"),
            networks=tuple(NetworkAttachmentConfig(target=each) for each in networks),
        ),
        replicated=ReplicatedService(replicas=replicas),
        endpoint=EndpointSpec(ports=(PortConfig(target_port=port),)) if port else None,
    )


@pytest.fixture
async def client(swarm: Any) -> AsyncIterator[SchedulerClient]:
    async with connect_local(swarm.run_dir / "manager" / "control.sock") as made:
        yield made


async def until(stream: AsyncIterator[Update], wanted: Callable[[Update], Any]) -> list[Update]:
    """Read updates up to the first that is wanted."""
    found: list[Update] = []
    async with asyncio.timeout(DEADLINE):
        async for update in stream:
            found.append(update)
            if wanted(update):
                return found
    raise AssertionError("the watch ended")


async def whole(stream: AsyncIterator[Update], mirror: Mirror) -> int:
    """Take in the first picture; its version."""
    updates = await until(stream, lambda update: update.version)
    assert updates[0].reset
    assert not any(update.reset for update in updates[1:])
    for update in updates:
        mirror.apply(update)
    return mirror.version


async def test_everything_comes_first_and_then_every_change(
    swarm: Any, client: SchedulerClient
) -> None:
    await swarm.network("blue")
    engine = await swarm.worker()
    await engine.register()
    mirror, stream = Mirror(), client.watch()
    await whole(stream, mirror)
    assert {each.spec.annotations.name for each in mirror.networks.values()} == {"ingress", "blue"}
    assert set(mirror.nodes) == {node.id for node in swarm.view.nodes.all()}
    web = await client.create_service(spec("web", "blue", port=80))
    answer = await client.create_tasks(
        [Placement(node_id=engine.node_id, service_id=web.id, slot=1)]
    )
    while mirror.version < answer.version:
        mirror.apply(await anext(stream))
    view = swarm.view
    assert mirror.services == {each.id: each for each in view.services.all()}
    assert mirror.tasks == {each.id: each for each in view.tasks.all()}
    assert mirror.nodes == {each.id: each for each in view.nodes.all()}
    blue = view.networks.find("blue").id
    used = mirror.allocations[blue, "10.0.1.0/24"]
    assert (used.size, used.used) == (254, 4)  # gateway, virtual address, task, node
    (task,) = answer.placed
    await client.release([task.task_id], force=True)
    await client.remove_service(web.id)
    while mirror.version < swarm.manager.store.index:
        mirror.apply(await anext(stream))
    assert not mirror.services
    assert not mirror.tasks
    assert mirror.allocations[blue, "10.0.1.0/24"].used == 1
    await stream.aclose()


async def test_a_watch_resumes_without_a_gap_and_without_repetition(
    swarm: Any, client: SchedulerClient
) -> None:
    mirror, stream = Mirror(), client.watch(kinds=[Kind.NETWORKS])
    since = await whole(stream, mirror)
    await stream.aclose()
    for name in ("a", "b"):
        await swarm.network(name)
    resumed = client.watch(since=since, kinds=[Kind.NETWORKS])
    updates = await until(
        resumed, lambda update: [c for c in update.changes if c.item.spec.annotations.name == "b"]
    )
    assert not any(update.reset for update in updates)
    names = [c.item.spec.annotations.name for update in updates for c in update.changes]
    assert names == ["a", "b"]
    await resumed.aclose()


async def test_a_version_too_far_back_brings_everything_anew(
    swarm: Any, client: SchedulerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, stream = Mirror(), client.watch(kinds=[Kind.NETWORKS])
    since = await whole(stream, mirror)
    await stream.aclose()
    monkeypatch.setattr(history, "HISTORY_COMMITS", 1)
    for name in ("a", "b"):
        await swarm.network(name)
    again = client.watch(since=since, kinds=[Kind.NETWORKS])
    await whole(again, mirror)
    assert len(mirror.networks) == 3
    await again.aclose()


async def test_a_picture_larger_than_a_message_comes_in_parts(
    swarm: Any, client: SchedulerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "MESSAGE_CHANGES", 2)
    for name in ("a", "b", "c", "d"):
        await swarm.network(name)
    stream = client.watch(kinds=[Kind.NETWORKS])
    updates = await until(stream, lambda update: update.version)
    assert [(update.reset, len(update.changes)) for update in updates] == [
        (True, 2),
        (False, 2),
        (False, 1),
    ]
    await stream.aclose()


async def test_only_the_tasks_asked_for(swarm: Any, client: SchedulerClient) -> None:
    engine = await swarm.worker()
    await engine.register()
    one, other = await client.create_service(spec("one")), await client.create_service(spec("two"))
    stream = client.watch(kinds=[Kind.TASKS, Kind.EVENTS], services=[one.id])
    await whole(stream, Mirror())
    for service in (other, one):
        await client.create_tasks([Placement(node_id=engine.node_id, service_id=service.id)])
    (update,) = await until(stream, lambda update: update.changes)
    assert [change.item.service_id for change in update.changes] == [one.id]
    await stream.aclose()


async def test_events_say_why(swarm: Any, client: SchedulerClient) -> None:
    engine = await swarm.worker()
    await engine.register()
    web = await client.create_service(spec("web"))
    stream = client.watch(kinds=[Kind.EVENTS])
    await whole(stream, Mirror())
    await client.create_tasks([Placement(node_id="nobody", service_id=web.id)])
    updates = await until(stream, lambda update: update.events)
    (event,) = updates[-1].events
    assert event.kind is EventKind.PLACEMENT_REFUSED
    assert event.refusal is not None
    assert event.refusal.reason is Reason.NODE_NOT_FOUND
    await swarm.control.RemoveNode(
        control_pb2.RemoveNodeRequest(node_id=engine.node_id, force=True)
    )
    updates = await until(stream, lambda update: update.events)
    (event,) = updates[-1].events
    assert (event.kind, event.state, event.node_id) == (
        EventKind.NODE_STATE,
        "removed",
        engine.node_id,
    )
    await stream.aclose()


async def test_a_restarted_manager_is_found_again_and_the_watch_goes_on(
    swarm: Any, client: SchedulerClient
) -> None:
    mirror, stream = Mirror(), client.watch(kinds=[Kind.NETWORKS, Kind.NODES])
    await whole(stream, mirror)
    await swarm.stop()
    await swarm.start()
    blue = await swarm.network("blue")
    async with asyncio.timeout(20):
        while blue.id not in mirror.networks:
            mirror.apply(await anext(stream))
    assert all(node.status.state is not NodeState.DOWN for node in mirror.nodes.values())
    await stream.aclose()


async def test_watches_are_bounded_and_kinds_known(
    swarm: Any, client: SchedulerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watches, "MAX_WATCHES", 1)
    first = client.watch()
    await whole(first, Mirror())
    with pytest.raises(ExhaustedError, match="1 watches are open"):
        await anext(client.watch())
    await first.aclose()
    with pytest.raises(InvalidArgumentError):
        await anext(client.watch(kinds=[99]))  # type: ignore[list-item]  # on purpose
