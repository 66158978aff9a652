"""Control and ResourceAllocator against a running manager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swarm.api.docker.swarmkit import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    health_pb2,
    health_pb2_grpc,
    membership_pb2,
    membership_pb2_grpc,
    types_pb2,
)
from swarm.identity.certs import ROOT_NAME, Credentials, Role, new_key_and_csr
from swarm.model import NodeRole

pytestmark = pytest.mark.slow
Code = Callable[..., Any]


class TestJoin:
    async def test_wrong_tokens_are_refused_in_words(self, swarm: Any, code_of: Code) -> None:
        engine = swarm.engine()
        wrong = swarm.worker_token[:-1] + ("0" if swarm.worker_token[-1] != "0" else "1")
        code, text = await code_of(engine.join(wrong))
        assert code == "INVALID_ARGUMENT"
        assert "a valid join token is necessary to join this cluster" in text
        assert len(swarm.view.nodes) == 1

    async def test_empty_requests_and_unknown_nodes(self, swarm: Any, code_of: Code) -> None:
        engine = swarm.engine()
        root = Credentials(root_pem=swarm.cluster.root_ca.ca_cert)
        stub = ca_pb2_grpc.NodeCAStub(engine.channel(root, server_name=ROOT_NAME))
        issue, status = stub.IssueNodeCertificate, stub.NodeCertificateStatus
        cases = [
            (issue(ca_pb2.IssueNodeCertificateRequest()), "INVALID_ARGUMENT"),
            (
                issue(ca_pb2.IssueNodeCertificateRequest(csr=b"junk", token=swarm.worker_token)),
                "INVALID_ARGUMENT",
            ),
            (status(ca_pb2.NodeCertificateStatusRequest()), "INVALID_ARGUMENT"),
            (status(ca_pb2.NodeCertificateStatusRequest(node_id="x" * 25)), "NOT_FOUND"),
        ]
        for call, expected in cases:
            assert (await code_of(call))[0] == expected
        assert len(swarm.view.nodes) == 1

    async def test_the_manager_token_gives_a_managers_certificate(self, swarm: Any) -> None:
        engine = await swarm.engine().join(swarm.cluster.root_ca.join_tokens.manager)
        assert engine.credentials.identity.role is Role.MANAGER
        assert swarm.view.nodes.require(engine.node_id).role is NodeRole.MANAGER

    async def test_rotation_kills_the_old_token_and_no_node(
        self, swarm: Any, code_of: Code
    ) -> None:
        engine = await swarm.worker()
        old = swarm.worker_token
        shown = (await swarm.control.ListClusters(control_pb2.ListClustersRequest())).clusters[0]
        answer = await swarm.control.UpdateCluster(
            control_pb2.UpdateClusterRequest(
                cluster_id=shown.id,
                cluster_version=shown.meta.version,
                spec=shown.spec,
                rotation=control_pb2.KeyRotation(worker_join_token=True),
            )
        )
        tokens = answer.cluster.root_ca.join_tokens
        assert tokens.worker == swarm.worker_token != old
        assert tokens.manager == shown.root_ca.join_tokens.manager
        assert (await code_of(swarm.engine("w2").join(old)))[0] == "INVALID_ARGUMENT"
        assert await swarm.worker("w3")
        assert await engine.register()

    async def test_availability_comes_from_the_request(self, swarm: Any) -> None:
        engine = await swarm.engine().join(swarm.worker_token, types_pb2.NODE_AVAILABILITY_DRAIN)
        assert swarm.view.nodes.require(engine.node_id).spec.availability == 2

    async def test_availability_out_of_range_is_refused(self, swarm: Any, code_of: Code) -> None:
        _, csr = new_key_and_csr()
        root = Credentials(root_pem=swarm.cluster.root_ca.ca_cert)
        engine = swarm.engine()
        stub = ca_pb2_grpc.NodeCAStub(engine.channel(root, server_name=ROOT_NAME))
        request = ca_pb2.IssueNodeCertificateRequest(
            csr=csr, token=swarm.worker_token, availability=7
        )
        assert (await code_of(stub.IssueNodeCertificate(request)))[0] == "INVALID_ARGUMENT"


class TestAttach:
    async def test_errors_reach_the_caller_at_once(self, swarm: Any, code_of: Code) -> None:
        await swarm.network("closed", attachable=False)
        await swarm.network("open")
        engine = await swarm.worker()
        await engine.register()
        for target, code, text in [
            ("nowhere", "NOT_FOUND", "network nowhere not found"),
            ("closed", "PERMISSION_DENIED", "network closed not manually attachable"),
            ("ingress", "INVALID_ARGUMENT", "ingress"),
            ("", "INVALID_ARGUMENT", "network must be provided"),
            ("x" * 1000, "INVALID_ARGUMENT", "longer than"),
        ]:
            got = await code_of(engine.attach(target))
            assert (got[0], text in got[1]) == (code, True), got
        got = await code_of(engine.attach("open", "192.0.2.1"))
        assert got[0] == "INVALID_ARGUMENT"
        await engine.attach("open", "10.0.2.9")
        got = await code_of(engine.attach("open", "10.0.2.9"))
        assert got[0] == "ALREADY_EXISTS"

    async def test_by_id_name_and_unambiguous_prefix(self, swarm: Any) -> None:
        network = await swarm.network("web")
        engine = await swarm.worker()
        await engine.register()
        for target in (network.id, "web", network.id[:12]):
            task = swarm.view.tasks.require(await engine.attach(target))
            assert task.spec.networks[0].target == network.id

    async def test_a_full_network_says_so_and_leaves_nothing(
        self, swarm: Any, code_of: Code
    ) -> None:
        request = control_pb2.CreateNetworkRequest()
        request.spec.annotations.name = "tiny"
        request.spec.attachable = True
        request.spec.ipam.configs.add(family=4, subnet="192.0.2.0/29")
        await swarm.control.CreateNetwork(request)
        engine = await swarm.worker()
        await engine.register()
        for _ in range(4):
            await engine.attach("tiny")
        code, text = await code_of(engine.attach("tiny"))
        assert code == "RESOURCE_EXHAUSTED", text
        assert len(swarm.view.tasks) == 4

    async def test_paused_and_drained_nodes_take_nothing(self, swarm: Any, code_of: Code) -> None:
        await swarm.network("web")
        engine = await swarm.worker()
        await engine.register()
        kept = await engine.attach("web")
        for availability in (types_pb2.NODE_AVAILABILITY_PAUSE, types_pb2.NODE_AVAILABILITY_DRAIN):
            node = (
                await swarm.control.GetNode(control_pb2.GetNodeRequest(node_id=engine.node_id))
            ).node
            node.spec.availability = availability
            await swarm.control.UpdateNode(
                control_pb2.UpdateNodeRequest(
                    node_id=node.id, node_version=node.meta.version, spec=node.spec
                )
            )
            code, text = await code_of(engine.attach("web"))
            assert code == "FAILED_PRECONDITION"
            assert "availability" in text
        await engine.detach(kept)

    async def test_a_node_without_an_overlay_driver_is_refused(
        self, swarm: Any, code_of: Code
    ) -> None:
        await swarm.network("web")
        engine = await swarm.worker()
        described = engine.description()
        del described.engine.plugins[:]
        engine.description = lambda: described
        await engine.register()
        assert (await code_of(engine.attach("web")))[0] == "FAILED_PRECONDITION"

    async def test_only_its_own_node_may_detach(self, swarm: Any, code_of: Code) -> None:
        await swarm.network("web")
        one, two = await swarm.worker("w1"), await swarm.worker("w2")
        await one.register()
        await two.register()
        task = await one.attach("web")
        assert (await code_of(two.detach(task)))[0] == "PERMISSION_DENIED"
        assert (await code_of(two.detach("")))[0] == "INVALID_ARGUMENT"
        assert (await code_of(two.detach("nothing")))[0] == "NOT_FOUND"
        await one.detach(task)

    async def test_statuses_of_other_nodes_tasks_are_refused(
        self, swarm: Any, code_of: Code
    ) -> None:
        await swarm.network("web")
        one, two = await swarm.worker("w1"), await swarm.worker("w2")
        await one.register()
        session = await two.register()
        task = await one.attach("web")
        assert (await code_of(two.report(session.id, task, 512)))[0] == "PERMISSION_DENIED"
        await two.report(session.id, "unknown", 512)

    async def test_a_repeated_status_writes_nothing(self, swarm: Any) -> None:
        await swarm.network("web")
        engine = await swarm.worker()
        session = await engine.register()
        task = await engine.attach("web")
        await engine.report(session.id, task, 512, message="up")
        index = swarm.manager.store.index
        await engine.report(session.id, task, 512, message="up")
        assert swarm.manager.store.index == index
        stored = swarm.view.tasks.require(task).status
        assert stored.applied_by == next(iter(swarm.manager.managers()))
        assert stored.applied_at


class TestNetworks:
    async def test_names_conflict_whatever_their_case(self, swarm: Any, code_of: Code) -> None:
        await swarm.network("web")
        code, text = await code_of(swarm.network("WEB"))
        assert (code, "already exists" in text) == ("UNKNOWN", True)

    async def test_refusals(self, swarm: Any, code_of: Code) -> None:
        for spec, code in [
            ({"name": ""}, "INVALID_ARGUMENT"),
            ({"name": "-x"}, "INVALID_ARGUMENT"),
            ({"name": "a", "attachable": True, "ingress": True}, "INVALID_ARGUMENT"),
            ({"name": "a", "attachable": False, "ingress": True}, "ALREADY_EXISTS"),
            ({"name": "host"}, "PERMISSION_DENIED"),
            (
                {"name": "a", "labels": {"com.docker.swarm.predefined": "true"}},
                "PERMISSION_DENIED",
            ),
        ]:
            got = await code_of(swarm.network(**spec))
            assert got[0] == code, (spec, got)
        empty = swarm.control.CreateNetwork(control_pb2.CreateNetworkRequest())
        assert (await code_of(empty))[0] == "INVALID_ARGUMENT"

    async def test_a_network_in_use_stays(self, swarm: Any, code_of: Code) -> None:
        network = await swarm.network("web")
        engine = await swarm.worker()
        await engine.register()
        task = await engine.attach("web")
        request = control_pb2.RemoveNetworkRequest(network_id=network.id)
        code, text = await code_of(swarm.control.RemoveNetwork(request))
        assert code == "FAILED_PRECONDITION"
        assert f"network {network.id} is in use" in text
        await engine.detach(task)
        await swarm.control.RemoveNetwork(request)
        assert (await code_of(swarm.control.RemoveNetwork(request)))[0] == "NOT_FOUND"

    async def test_an_ended_attachment_keeps_no_network(self, swarm: Any) -> None:
        network = await swarm.network("web")
        engine = await swarm.worker()
        session = await engine.register()
        task = await engine.attach("web")
        await engine.report(session.id, task, types_pb2.TASK_STATE_FAILED)
        await swarm.control.RemoveNetwork(control_pb2.RemoveNetworkRequest(network_id=network.id))
        assert swarm.view.tasks.get(task) is None
        await session.session.until(lambda j: len(j.messages[-1].node.attachments) == 1)

    async def test_ingress_comes_and_goes_on_every_node(self, swarm: Any, lb: Any) -> None:
        engine = await swarm.worker()
        session = await engine.register()
        old = swarm.view.networks.ingress()
        await swarm.control.RemoveNetwork(control_pb2.RemoveNetworkRequest(network_id=old.id))
        await session.session.until(lambda j: not j.messages[-1].node.attachments)
        await swarm.network("front", attachable=False, ingress=True)
        await session.session.until(lambda j: "front" in lb(j.messages[-1].node))
        assert all(len(node.attachments) == 1 for node in swarm.view.nodes.all())

    async def test_filters(self, swarm: Any) -> None:
        await swarm.network("web", labels={"tier": "front"})
        await swarm.network("weblog", labels={"tier": ""})
        await swarm.network("db")

        async def names(**filters: Any) -> list[str]:
            request = control_pb2.ListNetworksRequest()
            request.filters.CopyFrom(control_pb2.ListNetworksRequest.Filters(**filters))
            found = await swarm.control.ListNetworks(request)
            return sorted(each.spec.annotations.name for each in found.networks)

        assert await names() == ["db", "ingress", "web", "weblog"]
        assert await names(names=["web", "db"]) == ["db", "web"]
        assert await names(name_prefixes=["web"]) == ["web", "weblog"]
        assert await names(labels={"tier": ""}) == ["web", "weblog"]
        assert await names(labels={"tier": "front"}) == ["web"]
        assert await names(name_prefixes=["web"], labels={"tier": "x"}) == []
        identity = swarm.view.networks.find("db").id
        assert await names(id_prefixes=[identity[:10]]) == ["db"]


class TestNodes:
    async def test_filters_and_manager_status(self, swarm: Any) -> None:
        engine = await swarm.worker("w1")
        await engine.register()
        nodes = (await swarm.control.ListNodes(control_pb2.ListNodesRequest())).nodes
        (manager,) = (node for node in nodes if node.role == types_pb2.NODE_ROLE_MANAGER)
        assert manager.manager_status.leader
        assert manager.manager_status.addr == swarm.target
        assert manager.manager_status.reachability == types_pb2.RAFT_MEMBER_REACHABILITY_REACHABLE

        async def ids(**filters: Any) -> list[str]:
            request = control_pb2.ListNodesRequest()
            request.filters.CopyFrom(control_pb2.ListNodesRequest.Filters(**filters))
            return [node.id for node in (await swarm.control.ListNodes(request)).nodes]

        assert await ids(names=["w1"]) == [engine.node_id]
        assert await ids(roles=[types_pb2.NODE_ROLE_WORKER]) == [engine.node_id]
        assert await ids(roles=[types_pb2.NODE_ROLE_MANAGER]) == [manager.id]
        assert await ids(memberships=[types_pb2.NODE_MEMBERSHIP_PENDING]) == []
        assert len(await ids()) == 2

    async def test_updates_need_the_newest_version(self, swarm: Any, code_of: Code) -> None:
        engine = await swarm.worker()
        get = control_pb2.GetNodeRequest(node_id=engine.node_id)
        stale = (await swarm.control.GetNode(get)).node
        await engine.register()
        stale.spec.annotations.labels["a"] = "b"
        request = control_pb2.UpdateNodeRequest(
            node_id=stale.id, node_version=stale.meta.version, spec=stale.spec
        )
        assert await code_of(swarm.control.UpdateNode(request)) == (
            "UNKNOWN",
            "update out of sequence",
        )
        fresh = (await swarm.control.GetNode(get)).node
        request.node_version.CopyFrom(fresh.meta.version)
        answer = await swarm.control.UpdateNode(request)
        assert answer.node.spec.annotations.labels == {"a": "b"}
        for broken in (
            control_pb2.UpdateNodeRequest(),
            control_pb2.UpdateNodeRequest(node_id=stale.id),
            control_pb2.UpdateNodeRequest(node_id=stale.id, node_version=stale.meta.version),
        ):
            assert (await code_of(swarm.control.UpdateNode(broken)))[0] == "INVALID_ARGUMENT"

    async def test_neither_the_last_manager_nor_a_foreign_engine_changes_its_role(
        self, swarm: Any, code_of: Code
    ) -> None:
        await (await swarm.worker()).register()
        for node in (await swarm.control.ListNodes(control_pb2.ListNodesRequest())).nodes:
            node.spec.desired_role = 1 - node.spec.desired_role
            request = control_pb2.UpdateNodeRequest(
                node_id=node.id, node_version=node.meta.version, spec=node.spec
            )
            assert (await code_of(swarm.control.UpdateNode(request)))[0] == "FAILED_PRECONDITION"

    async def test_removal(self, swarm: Any, code_of: Code) -> None:
        await swarm.network("web")
        engine = await swarm.worker()
        await engine.register()
        task = await engine.attach("web")
        request = control_pb2.RemoveNodeRequest(node_id=engine.node_id)
        code, text = await code_of(swarm.control.RemoveNode(request))
        assert (code, "is not down" in text) == ("FAILED_PRECONDITION", True)
        request.force = True
        await swarm.control.RemoveNode(request)
        assert swarm.view.tasks.get(task) is None
        assert swarm.view.nodes.get(engine.node_id) is None
        entry = swarm.cluster.blacklisted_certificates[engine.node_id]
        assert entry.expiry > swarm.clock.wall() + 96 * 86400 * 10**9
        manager = next(iter(swarm.manager.managers()))
        request.node_id = manager
        code, text = await code_of(swarm.control.RemoveNode(request))
        assert (code, "member of the raft cluster" in text) == ("FAILED_PRECONDITION", True)
        request.node_id = "nobody"
        assert (await code_of(swarm.control.RemoveNode(request)))[0] == "NOT_FOUND"


class TestClusters:
    async def test_no_key_leaves_the_manager(self, swarm: Any) -> None:
        cluster = swarm.cluster
        answer = await swarm.control.ListClusters(control_pb2.ListClustersRequest())
        shown = answer.clusters[0]
        raw = shown.SerializeToString()
        assert cluster.root_ca.ca_key not in raw
        assert all(key.key not in raw for key in cluster.network_bootstrap_keys)
        assert shown.root_ca.join_tokens.worker == swarm.worker_token
        assert shown.root_ca.ca_cert == cluster.root_ca.ca_cert
        assert (list(shown.default_address_pool), shown.subnet_size, shown.vxlan_udp_port) == (
            ["10.0.0.0/8"],
            24,
            4789,
        )
        again = await swarm.control.GetCluster(control_pb2.GetClusterRequest(cluster_id=shown.id))
        assert again.cluster == shown

    async def test_refused_changes(self, swarm: Any, code_of: Code) -> None:
        shown = (await swarm.control.ListClusters(control_pb2.ListClustersRequest())).clusters[0]

        def request(change: Callable[[Any], None]) -> Any:
            made = control_pb2.UpdateClusterRequest(
                cluster_id=shown.id, cluster_version=shown.meta.version, spec=shown.spec
            )
            change(made)
            return made

        cases: list[tuple[Callable[[Any], None], str]] = [
            (lambda r: setattr(r.spec.annotations, "name", "mine"), "INVALID_ARGUMENT"),
            (
                lambda r: setattr(r.spec.ca_config.node_cert_expiry, "seconds", 60),
                "INVALID_ARGUMENT",
            ),
            (lambda r: setattr(r.cluster_version, "index", 1), "UNKNOWN"),
            (lambda r: r.spec.ca_config.external_cas.add(url="https://ca"), "UNIMPLEMENTED"),
            (lambda r: r.ClearField("spec"), "INVALID_ARGUMENT"),
            (lambda r: r.ClearField("cluster_version"), "INVALID_ARGUMENT"),
            (lambda r: setattr(r, "cluster_id", "other"), "NOT_FOUND"),
        ]
        for change, code in cases:
            got = await code_of(swarm.control.UpdateCluster(request(change)))
            assert got[0] == code, got

    async def test_the_heartbeat_period_changes_for_everybody(self, swarm: Any) -> None:
        from swarm.api.docker.swarmkit import dispatcher_pb2, dispatcher_pb2_grpc

        engine = await swarm.worker()
        session = await engine.register()
        shown = (await swarm.control.ListClusters(control_pb2.ListClustersRequest())).clusters[0]
        shown.spec.dispatcher.heartbeat_period.FromSeconds(30)
        await swarm.control.UpdateCluster(
            control_pb2.UpdateClusterRequest(
                cluster_id=shown.id, cluster_version=shown.meta.version, spec=shown.spec
            )
        )
        beat = await dispatcher_pb2_grpc.DispatcherStub(engine.conn).Heartbeat(
            dispatcher_pb2.HeartbeatRequest(session_id=session.id)
        )
        assert 29 < beat.period.ToNanoseconds() / 1e9 < 31


async def test_tasks_services_health_and_membership(swarm: Any, code_of: Code) -> None:
    await swarm.network("web")
    engine = await swarm.worker()
    await engine.register()
    task = await engine.attach("web")
    control = swarm.control
    got = await control.GetTask(control_pb2.GetTaskRequest(task_id=task))
    assert got.task.id == task

    async def ids(**filters: Any) -> list[str]:
        request = control_pb2.ListTasksRequest()
        request.filters.CopyFrom(control_pb2.ListTasksRequest.Filters(**filters))
        return [each.id for each in (await control.ListTasks(request)).tasks]

    assert await ids() == [task]
    assert await ids(runtimes=["container", ""]) == []
    assert await ids(runtimes=["attachment"], node_ids=[engine.node_id]) == [task]
    assert await ids(node_ids=["other"]) == []
    assert await ids(desired_states=[types_pb2.TASK_STATE_RUNNING]) == [task]
    assert await ids(up_to_date=True) == []
    await control.RemoveTask(control_pb2.RemoveTaskRequest(task_id=task))
    assert await ids() == []
    assert len(swarm.view.nodes.require(engine.node_id).attachments) == 1

    assert not (await control.ListServices(control_pb2.ListServicesRequest())).services
    for call, code in [
        (control.CreateService(control_pb2.CreateServiceRequest()), "INVALID_ARGUMENT"),
        (control.UpdateService(control_pb2.UpdateServiceRequest()), "INVALID_ARGUMENT"),
        (control.GetService(control_pb2.GetServiceRequest(service_id="x")), "NOT_FOUND"),
        (control.RemoveService(control_pb2.RemoveServiceRequest(service_id="x")), "NOT_FOUND"),
        (control.GetTask(control_pb2.GetTaskRequest(task_id=task)), "NOT_FOUND"),
    ]:
        assert (await code_of(call))[0] == code
    statuses = await control.ListServiceStatuses(
        control_pb2.ListServiceStatusesRequest(services=["x"])
    )
    assert [status.service_id for status in statuses.statuses] == ["x"]

    health = health_pb2_grpc.HealthStub(swarm.local)
    for name in ("", "Raft", "ControlAPI"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    call = health.Check(health_pb2.HealthCheckRequest(service="Toast"))
    assert (await code_of(call))[0] == "NOT_FOUND"
    members = membership_pb2_grpc.RaftMembershipStub(swarm.local)
    for call, wanted in (
        (members.Join(membership_pb2.JoinRequest()), "INVALID_ARGUMENT"),
        (members.Join(membership_pb2.JoinRequest(addr="192.0.2.1:1")), "FAILED_PRECONDITION"),
        (members.Leave(membership_pb2.LeaveRequest()), "FAILED_PRECONDITION"),
    ):
        assert (await code_of(call))[0] == wanted
