"""The Scheduler service over a real manager, with engines that are handed the tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from swarm.api.docker.swarmkit import (
    control_pb2,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    specs_pb2,
    types_pb2,
)
from swarm.api.overswarm.v1 import scheduler_pb2, scheduler_pb2_grpc
from swarm.scheduler.model import Placed, Placement, Placing, Reason, Refusal
from swarm.scheduler.wire import placement_to, placing_from, refusal_from, result_from

pytestmark = pytest.mark.slow

Code = Callable[..., Any]
DEADLINE = 10.0
RUNNING, SHUTDOWN = types_pb2.TASK_STATE_RUNNING, types_pb2.TASK_STATE_SHUTDOWN
READY = types_pb2.TASK_STATE_READY
REMOVE = types_pb2.TASK_STATE_REMOVE
HOST = types_pb2.PUBLISH_MODE_HOST


def stub(swarm: Any) -> Any:
    return scheduler_pb2_grpc.SchedulerStub(swarm.local)


async def service(swarm: Any, name: str, *networks: str, **ports: int) -> Any:
    """Create a service; ``p80=8080`` publishes target 80 on every node, ``h80=8080`` on its host."""
    made = specs_pb2.ServiceSpec(annotations=types_pb2.Annotations(name=name, labels={"a": "b"}))
    made.task.container.image = "nginx:1"
    made.task.networks.extend(types_pb2.NetworkAttachmentConfig(target=each) for each in networks)
    made.replicated.replicas = 1
    for key, published in ports.items():
        mode = HOST if key[0] == "h" else types_pb2.PUBLISH_MODE_INGRESS
        made.endpoint.ports.add(
            target_port=int(key[1:]), published_port=published, publish_mode=mode
        )
    answer = await swarm.control.CreateService(control_pb2.CreateServiceRequest(spec=made))
    return answer.service


async def place(
    swarm: Any, *placements: Placement, atomic: bool = False, request_id: str = ""
) -> Placing:
    request = scheduler_pb2.CreateTasksRequest(
        request_id=request_id, placements=map(placement_to, placements), atomic=atomic
    )
    return placing_from(await stub(swarm).CreateTasks(request, timeout=DEADLINE))


async def one(swarm: Any, placement: Placement) -> Any:
    """Place one task; its object."""
    answer = await place(swarm, placement)
    (placed,) = answer.results
    assert isinstance(placed, Placed), placed
    return swarm.view.tasks.require(placed.task_id)


async def refused(swarm: Any, placement: Placement) -> Refusal:
    """Place one task that must be refused, alike by Explain, by batch and atomically."""
    before = swarm.view.tasks.all(), swarm.view.nodes.all()
    request = scheduler_pb2.ExplainRequest(placements=[placement_to(placement)])
    explained = await stub(swarm).Explain(request, timeout=DEADLINE)
    (explanation,) = map(result_from, explained.results)
    for atomic in (True, False):
        answer = await place(swarm, placement, atomic=atomic)
        assert not answer.committed
        assert answer.results == (explanation,)
    assert (swarm.view.tasks.all(), swarm.view.nodes.all()) == before
    assert isinstance(explanation, Refusal)
    assert explanation.message
    assert explanation.help
    return explanation


async def report(
    swarm: Any, engine: Any, session: Any, task_id: str, state: int, err: str = ""
) -> None:
    """Report a task's state as its node does."""
    request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=session.id)
    update = request.updates.add(task_id=task_id)
    update.status.state = state
    update.status.err = err
    await dispatcher_pb2_grpc.DispatcherStub(engine.conn).UpdateTaskStatus(request)


async def until(swarm: Any, wanted: Callable[[], Any]) -> Any:
    """Wait until something is true of the store; return it."""
    watch = swarm.manager.store.watch()
    async with asyncio.timeout(DEADLINE):
        while not (found := wanted()):
            await anext(watch)
    return found


class TestCreation:
    """A placed task is complete, and its node has it at once."""

    async def test_a_task_of_a_service_is_handed_to_its_node(self, swarm: Any) -> None:
        blue = await swarm.network("blue")
        web = await service(swarm, "web", "blue", p80=8080)
        engine = await swarm.worker("w1")
        session = await engine.register()
        task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=3))
        handed = await session.assignments.until(lambda _: session.known().get(task.id))
        assert handed.annotations.name == f"web.3.{task.id}"
        assert handed.service_annotations == web.spec.annotations
        assert handed.spec == web.spec.task
        assert handed.endpoint == web.endpoint
        assert handed.spec_version == web.spec_version
        assert handed.desired_state == RUNNING
        names = [each.network.spec.annotations.name for each in handed.networks]
        assert names == ["ingress", "blue"]
        assert [list(each.addresses) for each in handed.networks] == [
            ["10.0.0.5/24"],  # .2 and .4 are the nodes', .3 is the service's
            ["10.0.1.3/24"],
        ]
        node = await session.session.until(
            lambda j: [m.node for m in j.messages if len(m.node.attachments) == 2]
        )
        assert node[0].attachments[1].network.id == blue.id
        assert list(node[0].attachments[1].addresses) == ["10.0.1.4/24"]
        await session.close()

    async def test_a_global_services_task_is_named_after_its_node(self, swarm: Any) -> None:
        web = await service(swarm, "web")
        engine = await swarm.worker()
        await engine.register()
        task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id))
        assert task.annotations.name == f"web.{engine.node_id}.{task.id}"

    async def test_only_our_own_agent_is_told_ipv6_virtual_addresses(self, swarm: Any) -> None:
        await swarm.network("six", ipv6_enabled=True)
        web = await service(swarm, "web", "six")
        assert len(web.endpoint.virtual_ips) == 2
        for ours, count in ((True, 2), (False, 1)):
            engine = await swarm.worker(f"w{count}", ours=ours)
            await engine.register()
            task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=1))
            assert len(task.endpoint.virtual_ips) == count
            assert len(task.networks[0].addresses) == 2

    async def test_a_task_of_no_service_runs_what_it_carries(self, swarm: Any) -> None:
        await swarm.network("blue")
        engine = await swarm.worker()
        session = await engine.register()
        message = scheduler_pb2.Placement(node_id=engine.node_id)
        message.spec.generic.kind = "process"
        message.spec.generic.payload.Pack(scheduler_pb2.Process(argv=["sleep", "9"]))
        message.networks.add(target="blue", aliases=["db"], addresses=["10.0.1.77"])
        message.annotations.name = "lone"
        message.desired_state = READY
        answer = placing_from(
            await stub(swarm).CreateTasks(
                scheduler_pb2.CreateTasksRequest(placements=[message], atomic=True)
            )
        )
        (placed,) = answer.placed
        handed = await session.assignments.until(lambda _: session.known().get(placed.task_id))
        assert handed.spec.generic == message.spec.generic
        assert handed.annotations.name == "lone"
        assert handed.desired_state == READY
        assert list(handed.networks[0].aliases) == ["db"]
        assert list(handed.networks[0].addresses) == ["10.0.1.77/24"]
        assert placed.networks == {handed.networks[0].network.id: ("10.0.1.77/24",)}
        await session.close()

    async def test_a_thousand_tasks_in_one_batch_have_a_thousand_addresses(
        self, swarm: Any
    ) -> None:
        request = control_pb2.CreateNetworkRequest()
        request.spec.annotations.name = "wide"
        request.spec.ipam.configs.add(subnet="10.64.0.0/16")
        wide = (await swarm.control.CreateNetwork(request)).network
        web = await service(swarm, "web", "wide")
        engine = await swarm.worker()
        await engine.register()
        placements = [
            Placement(node_id=engine.node_id, service_id=web.id, slot=slot + 1)
            for slot in range(1000)
        ]
        answer = await place(swarm, *placements, atomic=True, request_id="big")
        addresses = {each.networks[wide.id] for each in answer.placed}
        assert len(addresses) == 1000
        again = await place(swarm, *placements, atomic=True, request_id="big")
        assert again.repeated
        assert again.results == answer.results
        assert len(swarm.view.tasks) == 1000


class TestRefusals:
    """What cannot be served is refused with its reason, what stands in the way, and what helps."""

    async def test_nodes_that_take_nothing(self, swarm: Any) -> None:
        web = await service(swarm, "web")

        async def reason(node_id: str) -> Reason:
            found = await refused(swarm, Placement(node_id=node_id, service_id=web.id))
            assert found.node_id == node_id
            return found.reason

        assert await reason("nobody") is Reason.NODE_NOT_FOUND
        engine = await swarm.worker()
        assert await reason(engine.node_id) is Reason.NODE_NOT_READY  # joined, no session yet
        await engine.register()
        node = swarm.view.nodes.require(engine.node_id)
        spec = types_pb2.NODE_AVAILABILITY_DRAIN
        request = control_pb2.UpdateNodeRequest(
            node_id=node.id,
            node_version=types_pb2.Version(index=node.meta.version.index),
            spec=specs_pb2.NodeSpec(
                availability=spec, membership=types_pb2.NODE_MEMBERSHIP_ACCEPTED
            ),
        )
        await swarm.control.UpdateNode(request)
        assert await reason(engine.node_id) is Reason.NODE_NOT_ACTIVE

    async def test_a_node_without_the_driver(self, swarm: Any) -> None:
        web = await service(swarm, "web")
        engine = await swarm.worker()
        whole = engine.description

        def without() -> Any:
            made = whole()
            del made.engine.plugins[:]
            return made

        engine.description = without
        await engine.register()
        found = await refused(swarm, Placement(node_id=engine.node_id, service_id=web.id))
        assert found.reason is Reason.NODE_LACKS_DRIVER

    async def test_windows_and_an_encrypted_network(self, swarm: Any) -> None:
        await swarm.network("secret", options={"encrypted": ""})
        web = await service(swarm, "web", "secret")
        engine = await swarm.worker()
        whole = engine.description

        def windows() -> Any:
            made = whole()
            made.platform.os = "windows"
            return made

        engine.description = windows
        await engine.register()
        found = await refused(swarm, Placement(node_id=engine.node_id, service_id=web.id))
        assert found.reason is Reason.NODE_LACKS_DRIVER
        assert "runs Windows, which cannot carry the encrypted network secret" in found.message

    async def test_what_a_placement_names_must_exist_and_fit(self, swarm: Any) -> None:
        blue = await swarm.network("blue")
        web = await service(swarm, "web", "blue", h80=8080)
        engine = await swarm.worker("w1")
        await engine.register()
        node = engine.node_id
        found = await refused(swarm, Placement(node_id=node, service_id="gone"))
        assert (found.reason, found.service_id) == (Reason.SERVICE_NOT_FOUND, "gone")

        def on(network: str, *addresses: str) -> Placement:
            wish = _wish(network, *addresses)
            return Placement(node_id=node, service_id=web.id, slot=1, networks=(wish,))

        found = await refused(swarm, on("nowhere"))
        assert (found.reason, found.network_id) == (Reason.NETWORK_NOT_FOUND, "nowhere")
        found = await refused(swarm, on("blue", "10.9.9.9"))
        assert (found.reason, found.network_id) == (Reason.ADDRESS_INVALID, blue.id)
        found = await refused(swarm, on("ingress"))
        assert found.reason is Reason.INVALID
        first = await one(swarm, on("blue", "10.0.1.50"))
        other = await swarm.worker("w2")
        await other.register()
        elsewhere = Placement(
            node_id=other.node_id,
            service_id=web.id,
            slot=2,
            networks=(_wish("blue", "10.0.1.50/24"),),
        )
        found = await refused(swarm, elsewhere)
        assert (found.reason, found.pool) == (Reason.ADDRESS_TAKEN, "10.0.1.50")
        assert found.holder == f"task {first.id}"
        found = await refused(swarm, on("blue"))
        assert (found.reason, found.port, found.task_id) == (Reason.PORT_TAKEN, 8080, first.id)
        assert found.node_id == node

    async def test_a_full_pool_is_named(self, swarm: Any) -> None:
        request = control_pb2.CreateNetworkRequest()
        request.spec.annotations.name = "tiny"
        request.spec.ipam.configs.add(subnet="10.99.0.0/29")
        tiny = (await swarm.control.CreateNetwork(request)).network
        web = await service(swarm, "web", "tiny")  # gateway and virtual address: four are left
        engine = await swarm.worker()
        await engine.register()
        placements = [
            Placement(node_id=engine.node_id, service_id=web.id, slot=slot) for slot in range(1, 6)
        ]
        whole = await place(swarm, *placements, atomic=True)
        assert not whole.committed
        assert [type(each) for each in whole.results] == [type(None)] * 3 + [Refusal] * 2
        assert not swarm.view.tasks.all()
        part = await place(swarm, *placements)
        assert part.committed
        assert [type(each) for each in part.results] == [Placed] * 3 + [Refusal] * 2
        found = part.refused[0]
        assert (found.reason, found.network_id) == (Reason.POOL_EXHAUSTED, tiny.id)
        assert found.pool == "10.99.0.0/29"
        assert len(swarm.view.nodes.require(engine.node_id).attachments) == 2

    async def test_a_service_that_needs_the_mesh(self, swarm: Any) -> None:
        web = await service(swarm, "web", p80=0)
        engine = await swarm.worker()
        await engine.register()

        def vanish(tx: Any) -> None:  # no call can do this while the service is there
            for node in tx.nodes.all():
                tx.update(_replaced(node, attachments=()))
            made = tx.services.require(web.id)
            tx.update(_replaced(made, endpoint=None))
            tx.delete(tx.networks.ingress())

        await swarm.manager.store.transact(vanish)
        found = await refused(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=1))
        assert found.reason is Reason.NO_INGRESS

    async def test_requests_out_of_bounds_are_refused_whole(
        self, swarm: Any, code_of: Code
    ) -> None:
        scheduler = stub(swarm)
        many = [scheduler_pb2.Placement(node_id="n", service_id="s")] * 1001
        for call, words in (
            (scheduler.CreateTasks(scheduler_pb2.CreateTasksRequest()), "names no placement"),
            (scheduler.CreateTasks(scheduler_pb2.CreateTasksRequest(placements=many)), "1000"),
            (
                scheduler.CreateTasks(
                    scheduler_pb2.CreateTasksRequest(placements=[scheduler_pb2.Placement()])
                ),
                "placement 0: it names no node",
            ),
            (
                scheduler.CreateTasks(
                    scheduler_pb2.CreateTasksRequest(placements=many[:1], request_id="x" * 200)
                ),
                "128 characters",
            ),
            (scheduler.Release(scheduler_pb2.ReleaseRequest()), "names no task"),
            (
                scheduler.SetDesiredState(
                    scheduler_pb2.SetDesiredStateRequest(task_ids=["t"], desired_state=0)
                ),
                "nothing to want",
            ),
        ):
            code, text = await code_of(call)
            assert (code, words in text) == ("INVALID_ARGUMENT", True), text

    async def test_a_task_without_anything_to_run(self, swarm: Any) -> None:
        engine = await swarm.worker()
        await engine.register()
        found = await refused(swarm, Placement(node_id=engine.node_id))
        assert (found.reason, "service or a task spec" in found.message) == (Reason.INVALID, True)


class TestRepetition:
    """A request id makes a request take effect once, whatever happens in between."""

    async def test_retries_find_what_the_first_call_made(self, swarm: Any) -> None:
        await swarm.network("blue")
        web = await service(swarm, "web", "blue")
        engine = await swarm.worker()
        await engine.register()
        good = Placement(node_id=engine.node_id, service_id=web.id, slot=1)
        bad = Placement(node_id="nobody", service_id=web.id, slot=2)
        first = await place(swarm, good, bad, request_id="r1")
        assert not first.repeated
        for _ in range(2):
            again = await place(swarm, good, bad, request_id="r1")
            assert again.repeated
            assert again.results[0] == first.results[0]
            assert again.refused[0].reason is Reason.REPEATED
            await swarm.stop()
            await swarm.start()
        assert len(swarm.view.tasks) == 1
        other = await place(swarm, good, request_id="r2")
        assert other.results[0] != first.results[0]

    async def test_a_refused_request_may_be_sent_again(self, swarm: Any) -> None:
        engine = await swarm.worker()
        await engine.register()
        web = await service(swarm, "web")
        wrong = Placement(node_id="nobody", service_id=web.id, slot=1)
        right = Placement(node_id=engine.node_id, service_id=web.id, slot=1)
        assert not (await place(swarm, wrong, atomic=True, request_id="r")).committed
        assert (await place(swarm, right, atomic=True, request_id="r")).committed

    async def test_retries_at_the_same_time_are_one(self, swarm: Any) -> None:
        engine = await swarm.worker()
        await engine.register()
        web = await service(swarm, "web")
        good = Placement(node_id=engine.node_id, service_id=web.id, slot=1)
        answers = await asyncio.gather(*(place(swarm, good, request_id="r") for _ in range(8)))
        assert len({answer.placed[0].task_id for answer in answers}) == 1
        assert len(swarm.view.tasks) == 1


class TestLife:
    """Desired states rise; what is given back ends first and is deleted then."""

    async def test_what_is_wanted_reaches_the_node_and_only_rises(self, swarm: Any) -> None:
        web = await service(swarm, "web")
        engine = await swarm.worker()
        session = await engine.register()
        task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=1))

        async def want(state: Any, *ids: str) -> list[Refusal]:
            request = scheduler_pb2.SetDesiredStateRequest(task_ids=ids, desired_state=state)
            answer = await stub(swarm).SetDesiredState(request)
            return [refusal_from(each) for each in answer.refused]

        assert await want(SHUTDOWN, task.id) == []
        await session.assignments.until(
            lambda _: (known := session.known().get(task.id)) and known.desired_state == SHUTDOWN
        )
        assert await want(SHUTDOWN, task.id) == []
        (backwards,) = await want(RUNNING, task.id)
        assert backwards.reason is Reason.STATE_BACKWARDS
        (unknown,) = await want(RUNNING, "nothing")
        assert unknown.reason is Reason.TASK_NOT_FOUND
        await session.close()

    async def test_a_released_task_goes_when_it_has_ended(self, swarm: Any) -> None:
        blue = await swarm.network("blue")
        web = await service(swarm, "web", "blue")
        engine = await swarm.worker()
        session = await engine.register()
        task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=1))
        await session.assignments.until(lambda _: task.id in session.known())
        await report(swarm, engine, session, task.id, RUNNING)
        release = scheduler_pb2.ReleaseRequest(task_ids=[task.id, "nothing"], request_id="r")
        await stub(swarm).Release(release)
        await session.assignments.until(lambda _: session.known()[task.id].desired_state == REMOVE)
        assert task.id in swarm.view.tasks
        await report(swarm, engine, session, task.id, SHUTDOWN)
        await until(swarm, lambda: task.id not in swarm.view.tasks)
        attachments = swarm.view.nodes.require(engine.node_id).attachments
        assert blue.id not in [each.network.id for each in attachments]
        await stub(swarm).Release(release)
        await session.close()

    async def test_force_deletes_at_once(self, swarm: Any) -> None:
        web = await service(swarm, "web")
        engine = await swarm.worker()
        session = await engine.register()
        task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=1))
        await session.assignments.until(lambda _: task.id in session.known())
        request = scheduler_pb2.ReleaseRequest(task_ids=[task.id], force=True)
        await stub(swarm).Release(request)
        assert task.id not in swarm.view.tasks
        await session.assignments.until(lambda _: task.id not in session.known())
        await session.close()

    async def test_the_tasks_of_a_removed_service_end(self, swarm: Any) -> None:
        web = await service(swarm, "web")
        engine = await swarm.worker()
        session = await engine.register()
        first = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=1))
        await session.assignments.until(lambda _: first.id in session.known())
        await report(swarm, engine, session, first.id, RUNNING)
        await swarm.control.RemoveService(control_pb2.RemoveServiceRequest(service_id=web.id))
        await session.assignments.until(lambda _: session.known()[first.id].desired_state == REMOVE)
        await report(swarm, engine, session, first.id, SHUTDOWN)
        await until(swarm, lambda: not swarm.view.tasks.all())
        await session.close()

    async def test_the_history_of_a_slot_is_bounded(self, swarm: Any) -> None:
        web = await service(swarm, "web")
        engine = await swarm.worker()
        session = await engine.register()
        made = []
        for _ in range(8):
            task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=1))
            made.append(task.id)
            await report(swarm, engine, session, task.id, types_pb2.TASK_STATE_FAILED, "died")
        await until(swarm, lambda: len(swarm.view.tasks) == 5)
        assert {task.id for task in swarm.view.tasks.all()} == set(made[3:])
        await session.close()

    async def test_statuses_count_what_is_wanted_and_what_runs(self, swarm: Any) -> None:
        web = await service(swarm, "web")
        engine = await swarm.worker()
        session = await engine.register()
        states = (RUNNING, types_pb2.TASK_STATE_COMPLETE, types_pb2.TASK_STATE_FAILED)
        for slot, state in enumerate(states, 1):
            task = await one(swarm, Placement(node_id=engine.node_id, service_id=web.id, slot=slot))
            await report(swarm, engine, session, task.id, state)
        request = control_pb2.ListServiceStatusesRequest(services=[web.id])
        (status,) = (await swarm.control.ListServiceStatuses(request)).statuses
        assert (status.desired_tasks, status.running_tasks, status.completed_tasks) == (1, 1, 1)
        await session.close()


def _wish(network: str, *addresses: str) -> Any:
    from swarm.model import NetworkAttachmentConfig

    return NetworkAttachmentConfig(target=network, addresses=addresses)


def _replaced(item: Any, **fields: Any) -> Any:
    from dataclasses import replace

    return replace(item, **fields)
