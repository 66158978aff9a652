"""The whole life of a stock engine's membership, over real TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from manager.dispatcher.feed import SETTLE
from swarm.api.docker.swarmkit import (
    control_pb2,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    logbroker_pb2,
    logbroker_pb2_grpc,
    types_pb2,
)
from swarm.model import NodeState, TaskState

pytestmark = pytest.mark.slow


async def test_first_session_message_holds_all_an_engine_needs(swarm: Any) -> None:
    engine = await swarm.worker()
    session = await engine.register()
    first = session.session.messages[0]
    assert len(first.session_id) == 25
    assert first.root_ca == swarm.cluster.root_ca.ca_cert
    assert [(m.peer.addr, m.weight) for m in first.managers] == [(swarm.target, 10)]
    keys = first.network_bootstrap_keys
    assert (
        sorted(key.subsystem for key in keys)
        == ["networking:gossip"] * 3 + ["networking:ipsec"] * 3
    )
    assert len({key.lamport_time for key in keys}) == 6
    assert {len(key.key) for key in keys} == {16}
    node = first.node
    assert node.id == engine.node_id
    assert node.spec.membership == types_pb2.NODE_MEMBERSHIP_ACCEPTED
    assert node.certificate.status.state == types_pb2.ISSUANCE_STATE_ISSUED
    assert node.vxlan_udp_port == 4789
    (ingress,) = node.attachments
    assert ingress.network.spec.ingress
    assert ingress.network.HasField("driver_state")
    assert ingress.network.ipam.HasField("driver")
    vnis = ingress.network.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"]
    assert (vnis, ingress.network.ipam.configs[0].subnet) == ("4096", "10.0.0.0/24")
    assert ingress.addresses[0].startswith("10.0.0.")
    stored = swarm.view.nodes.require(engine.node_id)
    assert stored.status.state is NodeState.READY
    assert stored.status.addr == "127.0.0.1"
    assert stored.description.hostname == "w1"
    assert session.assignments.messages[0].type == dispatcher_pb2.AssignmentsMessage.COMPLETE
    assert session.assignments.messages[0].results_in == "1"


async def test_log_broker_is_truthfully_unimplemented(
    swarm: Any, code_of: Callable[..., Any]
) -> None:
    engine = await swarm.worker()
    stub = logbroker_pb2_grpc.LogBrokerStub(engine.connect())
    call = stub.ListenSubscriptions(logbroker_pb2.ListenSubscriptionsRequest())
    assert (await code_of(call.read()))[0] == "UNIMPLEMENTED"


async def test_attach_run_detach_with_the_node_before_the_task(
    swarm: Any, lb: Callable[..., Any]
) -> None:
    """The ordering trap: the address is on the session 150 ms before the task is assigned."""
    network = await swarm.network("web")
    assert network.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"] == "4097"
    engine = await swarm.worker()
    session = await engine.register()
    task_id = await engine.attach("web")
    await session.assignments.until(lambda _: task_id in session.known())
    task = session.known()[task_id]
    assert task.node_id == engine.node_id
    assert task.status.state == types_pb2.TASK_STATE_ASSIGNED
    assert task.desired_state == types_pb2.TASK_STATE_RUNNING
    assert task.spec.attachment.container_id == "c" * 64
    assert task.spec.networks[0].target == network.id
    (attachment,) = task.networks
    assert attachment.network.spec.annotations.name == "web"
    assert attachment.network.ipam.HasField("driver")
    assert list(attachment.addresses) == ["10.0.1.2/24"]

    announced = next(
        when
        for message, when in zip(session.session.messages, session.session.times, strict=True)
        if "web" in lb(message.node)
    )
    assigned = session.assignments.times[-1]
    assert assigned - announced >= SETTLE / 1e9 - 0.01
    assert lb(session.session.messages[-1].node)["web"] == ["10.0.1.3/24"]

    for state in (256, 320, 384, 448, 512):
        await engine.report(session.id, task_id, state)
    assert swarm.view.tasks.require(task_id).status.state is TaskState.RUNNING
    await engine.report(session.id, task_id, 448)
    assert swarm.view.tasks.require(task_id).status.state is TaskState.RUNNING

    await engine.detach(task_id)
    await session.session.until(lambda j: "web" not in lb(j.messages[-1].node))
    assert session.known() == {}
    assert session.assignments.times[-1] <= session.session.times[-1], "removal before the node"
    assert swarm.view.tasks.get(task_id) is None
    await engine.report(session.id, task_id, 576)


async def test_our_own_agent_gets_its_task_without_the_pause(swarm: Any) -> None:
    await swarm.network("web")
    engine = await swarm.worker(ours=True)
    session = await engine.register()
    before = asyncio.get_running_loop().time()
    task_id = await engine.attach("web")
    await session.assignments.until(lambda _: task_id in session.known())
    assert session.assignments.times[-1] - before < SETTLE / 1e9


async def test_attach_before_detach_keeps_the_node_address(
    swarm: Any, lb: Callable[..., Any]
) -> None:
    """A restarted engine attaches anew before it detaches what it had."""
    network = await swarm.network("web")
    engine = await swarm.worker()
    session = await engine.register()
    old = await engine.attach("web")
    await session.session.until(lambda j: "web" in lb(j.messages[-1].node))
    new = await engine.attach(network.id)
    await engine.detach(old)
    await session.assignments.until(lambda _: set(session.known()) == {new})
    assert all(
        lb(message.node).get("web", ["10.0.1.3/24"]) == ["10.0.1.3/24"]
        for message in session.session.messages
    )
    assert lb(session.session.messages[-1].node)["web"] == ["10.0.1.3/24"]
    assert session.known()[new].networks[0].addresses[0] == "10.0.1.4/24"


async def test_a_restart_of_the_manager_keeps_everything(
    swarm: Any, lb: Callable[..., Any]
) -> None:
    network = await swarm.network("web")
    engine = await swarm.worker()
    session = await engine.register()
    task_id = await engine.attach("web", "10.0.1.77")
    await session.assignments.until(lambda _: task_id in session.known())
    await engine.report(session.id, task_id, 512)
    before = session.session.messages[-1]
    token = swarm.worker_token

    await swarm.stop()
    await session.assignments.until(lambda j: j.end)
    await session.close()
    await swarm.start()

    assert swarm.worker_token == token
    assert swarm.view.nodes.require(engine.node_id).status.state is NodeState.UNKNOWN
    again = await engine.register(session.id)
    first = again.session.messages[0]
    assert first.session_id != session.id
    assert first.root_ca == before.root_ca
    assert first.network_bootstrap_keys == before.network_bootstrap_keys
    assert lb(first.node) == lb(before.node)
    assert again.known()[task_id].networks[0].addresses[0] == "10.0.1.77/24"
    assert again.assignments.messages[0].type == dispatcher_pb2.AssignmentsMessage.COMPLETE
    stored = await swarm.control.GetNetwork(control_pb2.GetNetworkRequest(network_id=network.id))
    assert stored.network == network
    assert swarm.view.nodes.require(engine.node_id).status.state is NodeState.READY


async def test_assignments_never_have_a_gap_under_many_changes(swarm: Any) -> None:
    for number in range(4):
        await swarm.network(f"net{number}")
    engine = await swarm.worker()
    session = await engine.register()
    held: list[str] = []
    for step in range(24):
        if step % 3 == 2:
            await engine.detach(held.pop(0))
        else:
            held.append(await engine.attach(f"net{step % 4}"))
    await session.assignments.until(lambda _: set(session.known()) == set(held))
    numbers = [int(message.results_in) for message in session.assignments.messages]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_renewal_keeps_the_node_and_its_session(swarm: Any) -> None:
    engine = await swarm.worker()
    session = await engine.register()
    before = engine.credentials
    await engine.renew()
    assert engine.credentials != before
    assert len(swarm.view.nodes) == 2
    assert session.session.end is None
    again = await engine.register(session.id)
    assert again.id == session.id


async def test_network_keys_reach_every_session_one_generation_at_a_time(swarm: Any) -> None:
    from manager.api.backend import Backend
    from manager.duties import rotate_once

    engine = await swarm.worker()
    session = await engine.register()
    before = list(session.session.messages[-1].network_bootstrap_keys)
    backend = Backend(
        store=swarm.manager.store, barrier=asyncio.Event().wait, managers=swarm.manager.managers
    )
    clock = swarm.cluster.encryption_key_lamport_clock
    await rotate_once(backend, clock)
    await rotate_once(backend, clock)  # a retry after an unknown outcome
    await session.session.until(lambda j: len(j.messages) > 1)
    after = list(session.session.messages[-1].network_bootstrap_keys)
    assert len(after) == 6
    assert len([key for key in after if key in before]) == 4
    assert {key.lamport_time for key in after} > {max(k.lamport_time for k in before)}


async def test_heartbeats_without_a_session_are_not_found(
    swarm: Any, code_of: Callable[..., Any]
) -> None:
    engine = await swarm.worker()
    stub = dispatcher_pb2_grpc.DispatcherStub(engine.connect())
    call = stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id="x"))
    assert (await code_of(call))[0] == "NOT_FOUND"
    session = await engine.register()
    assert session.id
    call = stub.Heartbeat(dispatcher_pb2.HeartbeatRequest(session_id="x"))
    assert (await code_of(call))[0] == "INVALID_ARGUMENT"


async def test_the_deprecated_task_list_works(swarm: Any) -> None:
    await swarm.network("web")
    engine = await swarm.worker()
    session = await engine.register()
    stub = dispatcher_pb2_grpc.DispatcherStub(engine.conn)
    call = stub.Tasks(dispatcher_pb2.TasksRequest(session_id=session.id))
    assert list((await call.read()).tasks) == []
    task_id = await engine.attach("web")
    assert [task.id for task in (await call.read()).tasks] == [task_id]
    call.cancel()


async def test_too_many_reopened_assignments_end_the_session(swarm: Any) -> None:
    """An engine that lost count reopens for ever; only a new session helps it."""
    engine = await swarm.worker()
    session = await engine.register()
    stub = dispatcher_pb2_grpc.DispatcherStub(engine.conn)
    for _ in range(20):
        call = stub.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=session.id))
        session.calls.append(call)
        await asyncio.sleep(0)
    await session.session.until(lambda j: j.end)
    assert session.session.end.code().name in {"ABORTED", "NOT_FOUND"}
    again = await engine.register(session.id)
    assert again.session.messages
