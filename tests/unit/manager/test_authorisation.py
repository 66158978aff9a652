"""Every RPC against every kind of caller, over real TLS; the RPCs come from the contracts."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2 as grpc_health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from manager.api.access import matrix
from manager.cluster import signing_ca
from swarm.api.docker.swarmkit import (
    ca_pb2,
    control_pb2,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    health_pb2,
    logbroker_pb2,
    membership_pb2,
    resource_pb2,
)
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.identity.certs import ROOT_NAME, Credentials, Role, new_key_and_csr, new_root
from swarm.identity.dialer import TlsDialer
from swarm.identity.keystore import KeyStore

pytestmark = pytest.mark.slow

SERVICES = [
    service
    for file in (
        ca_pb2,
        control_pb2,
        dispatcher_pb2,
        health_pb2,
        logbroker_pb2,
        membership_pb2,
        resource_pb2,
        scheduler_pb2,
        grpc_health_pb2,
        reflection_pb2,
    )
    for service in file.DESCRIPTOR.services_by_name.values()
]

# The protocol's own table, independent of what the contracts declare.
ANYONE = {
    "none",
    "foreign organisation",
    "removed",
    "worker",
    "manager",
    "scheduler",
    "revoked scheduler",
}
SCHEDULERS = {"scheduler", "manager"}
TABLE = {
    "CA/GetRootCACertificate": ANYONE,
    "CA/GetUnlockKey": {"manager"},
    "NodeCA/*": ANYONE,
    "Dispatcher/*": {"worker", "manager"},
    "ResourceAllocator/*": {"worker", "manager"},
    "LogBroker/*": {"worker", "manager"},
    "RaftMembership/*": {"manager"},
    "Health/*": {"manager"},
    "Control/GetNode": SCHEDULERS,
    "Control/ListNodes": SCHEDULERS,
    "Control/GetTask": SCHEDULERS,
    "Control/ListTasks": SCHEDULERS,
    "Control/GetNetwork": SCHEDULERS,
    "Control/ListNetworks": SCHEDULERS,
    "Control/GetService": SCHEDULERS,
    "Control/ListServices": SCHEDULERS,
    "Control/ListServiceStatuses": SCHEDULERS,
    "Control/CreateService": SCHEDULERS,
    "Control/UpdateService": SCHEDULERS,
    "Control/RemoveService": SCHEDULERS,
    "Control/*": {"manager"},
    "Scheduler/*": SCHEDULERS,
    "ClientCertificates/*": {"manager"},
    "grpc.health.v1.Health/*": {"worker", "scheduler", "manager"},
    "grpc.reflection.v1alpha.ServerReflection/*": {"worker", "scheduler", "manager"},
}


def allowed(path: str) -> set[str]:
    name = path.removeprefix("/")
    for package in ("docker.swarmkit.v1.", "overswarm.v1."):
        name = name.removeprefix(package)
    return TABLE.get(name) or TABLE[f"{name.partition('/')[0]}/*"]


def certificate(
    swarm: Any, *, cluster: str, node: str, root: Any = None, role: Role = Role.WORKER
) -> Credentials:
    """Issue a certificate, by the cluster's root unless told another."""
    own = signing_ca(swarm.cluster)
    key, csr = new_key_and_csr()
    cert = (root or own).issue(
        csr, node_id=node, cluster_id=cluster, role=role, now=datetime.now(UTC)
    )
    return Credentials(root_pem=own.cert_pem, cert_pem=cert, key_pem=key)


async def call(channel: grpc.aio.Channel, method: Any, metadata: Any = ()) -> str:
    """Make one call with an empty request; return its status name."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        if method.server_streaming:
            stream = channel.unary_stream(path)(b"", metadata=metadata, timeout=10)
            await stream.read()
            stream.cancel()
        elif method.client_streaming:
            await channel.stream_unary(path)(iter([b""]), metadata=metadata, timeout=10)
        else:
            await channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def test_every_rpc_admits_exactly_whom_the_protocol_says(swarm: Any) -> None:
    engine = await swarm.worker()
    removed = await swarm.worker("gone")
    await swarm.control.RemoveNode(
        control_pb2.RemoveNodeRequest(node_id=removed.node_id, force=True)
    )
    manager = KeyStore(swarm.state_dir / "certificates").load()
    assert manager is not None
    root = Credentials(root_pem=manager.root_pem)
    callers = {
        "none": root,
        "worker": engine.credentials,
        "manager": manager,
        "foreign organisation": certificate(swarm, cluster="other", node="n"),
        "removed": removed.credentials,
        "scheduler": certificate(
            swarm, cluster=swarm.cluster.id, node="robot", role=Role.SCHEDULER
        ),
        "revoked scheduler": certificate(
            swarm, cluster=swarm.cluster.id, node=removed.node_id, role=Role.SCHEDULER
        ),
    }
    wrong = []
    for name, credentials in callers.items():
        server_name = ROOT_NAME if name == "none" else "swarm-manager"
        channel = engine.channel(credentials, server_name=server_name)
        for service in SERVICES:
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                code = await call(channel, method)
                denied = code == "PERMISSION_DENIED"
                broken = code in {"UNAVAILABLE", "INTERNAL", "DEADLINE_EXCEEDED", "UNKNOWN"}
                if broken or denied is (name in allowed(path)):
                    wrong.append((name, path, code))
    assert wrong == []


async def test_a_foreign_ca_does_not_get_past_the_handshake(swarm: Any) -> None:
    engine = swarm.engine()
    foreign = certificate(
        swarm, cluster=swarm.cluster.id, node="n", root=new_root(datetime.now(UTC))
    )
    channel = engine.channel(foreign)
    for service in SERVICES:
        assert await call(channel, service.methods[0]) == "UNAVAILABLE"
    dialer: TlsDialer = engine._dialers[-1][0]
    assert "does not accept this node's certificate" in str(dialer.last_error(swarm.target))


async def test_a_removed_node_is_cut_off_at_once(swarm: Any) -> None:
    engine = await swarm.worker()
    session = await engine.register()
    await swarm.control.RemoveNode(
        control_pb2.RemoveNodeRequest(node_id=engine.node_id, force=True)
    )
    await session.session.until(lambda j: j.end)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await engine.register(session.id)
    assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_removed_node_may_come_back_with_a_token_as_another(swarm: Any) -> None:
    engine = await swarm.worker()
    old = engine.node_id
    await swarm.control.RemoveNode(control_pb2.RemoveNodeRequest(node_id=old, force=True))
    await engine.join(swarm.worker_token)
    assert engine.node_id != old


class TestForwarding:
    """What a follower adds is honoured from managers, and from nobody else."""

    async def test_a_worker_cannot_pretend_to_forward(self, swarm: Any) -> None:
        engine = await swarm.worker()
        metadata = (
            ("forwarded_cert", "true"),
            ("forwarded_cert_cn", "somebody"),
            ("forwarded_cert_org", swarm.cluster.id),
            ("forwarded_cert_ou", "swarm-manager"),
        )
        channel = engine.connect()
        for service in SERVICES:
            for method in service.methods:
                assert await call(channel, method, metadata) == "PERMISSION_DENIED"

    async def test_a_manager_forwards_with_the_callers_rights(self, swarm: Any) -> None:
        engine = await swarm.worker()
        manager = KeyStore(Path(swarm.state_dir) / "certificates").load()
        channel = engine.channel(manager)
        list_nodes = control_pb2.DESCRIPTOR.services_by_name["Control"].methods_by_name["ListNodes"]
        heartbeat = dispatcher_pb2.DESCRIPTOR.services_by_name["Dispatcher"].methods_by_name[
            "Heartbeat"
        ]
        issue = ca_pb2.DESCRIPTOR.services_by_name["NodeCA"].methods_by_name["IssueNodeCertificate"]

        def forwarded(role: str, org: str, node: str) -> Any:
            return (
                ("forwarded_cert", "true"),
                ("forwarded_cert_cn", node),
                ("forwarded_cert_org", org),
                ("forwarded_cert_ou", role),
                ("remote_addr", "192.0.2.9:1234"),
            )

        org = swarm.cluster.id
        assert await call(channel, list_nodes) == "OK"
        worker = forwarded("swarm-worker", org, engine.node_id)
        assert await call(channel, list_nodes, worker) == "PERMISSION_DENIED"
        assert await call(channel, heartbeat, worker) == "NOT_FOUND"
        stranger = forwarded("", "", "")
        assert await call(channel, heartbeat, stranger) == "PERMISSION_DENIED"
        assert await call(channel, issue, stranger) == "INVALID_ARGUMENT"
        foreign = forwarded("swarm-manager", "other", "n")
        assert await call(channel, list_nodes, foreign) == "PERMISSION_DENIED"

    async def test_the_forwarded_address_is_the_nodes(self, swarm: Any) -> None:
        engine = await swarm.worker()
        manager = KeyStore(Path(swarm.state_dir) / "certificates").load()
        stub = dispatcher_pb2_grpc.DispatcherStub(engine.channel(manager))
        metadata = (
            ("forwarded_cert", "true"),
            ("forwarded_cert_cn", engine.node_id),
            ("forwarded_cert_org", swarm.cluster.id),
            ("forwarded_cert_ou", "swarm-worker"),
            ("remote_addr", "192.0.2.9:1234"),
        )
        stream = stub.Session(
            dispatcher_pb2.SessionRequest(description=engine.description()), metadata=metadata
        )
        assert (await stream.read()).node.id == engine.node_id
        assert swarm.view.nodes.require(engine.node_id).status.addr == "192.0.2.9"
        stream.cancel()


def test_the_contracts_declare_what_the_protocol_says() -> None:
    ours = [each for each in SERVICES if not each.full_name.startswith("grpc.")]
    for path, access in matrix(ours).items():
        wanted = allowed(path)
        if "none" in wanted:
            assert access.open
        else:
            assert {role.value.removeprefix("swarm-") for role in access.roles} == wanted
