"""Certificates of schedulers over real TLS: what they open, what they do not, and how they end."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from swarm.api.overswarm.v1 import scheduler_pb2, scheduler_pb2_grpc
from swarm.errors import PermissionDeniedError, SwarmError
from swarm.identity.certs import Credentials, new_key_and_csr
from swarm.model import Annotations, GenericRuntimeSpec, ReplicatedService, ServiceSpec, TaskSpec
from swarm.scheduler import Placement, connect, load_credentials, load_managers
from swarm.scheduler.client import SchedulerClient

pytestmark = pytest.mark.slow

Code = Callable[..., Any]


async def issue(swarm: Any, name: str, **fields: Any) -> Credentials:
    key, csr = new_key_and_csr()
    stub = scheduler_pb2_grpc.ClientCertificatesStub(swarm.local)
    answer = await stub.CreateClientCertificate(
        scheduler_pb2.CreateClientCertificateRequest(name=name, csr=csr, **fields)
    )
    assert list(answer.managers) == [swarm.target]
    return Credentials(root_pem=answer.root, cert_pem=answer.certificate, key_pem=key)


async def names(swarm: Any) -> list[str]:
    stub = scheduler_pb2_grpc.ClientCertificatesStub(swarm.local)
    answer = await stub.ListClientCertificates(scheduler_pb2.ListClientCertificatesRequest())
    return [each.name for each in answer.clients]


async def revoke(swarm: Any, name: str) -> None:
    stub = scheduler_pb2_grpc.ClientCertificatesStub(swarm.local)
    await stub.RevokeClientCertificate(scheduler_pb2.RevokeClientCertificateRequest(name=name))


def spec(name: str) -> ServiceSpec:
    from google.protobuf import any_pb2

    payload = any_pb2.Any()
    payload.Pack(scheduler_pb2.Process(argv=["sleep", "1"]))
    generic = GenericRuntimeSpec(kind="process", payload=payload.SerializeToString())
    return ServiceSpec(
        annotations=Annotations(name=name),
        task=TaskSpec(generic=generic),
        replicated=ReplicatedService(replicas=1),
    )


@pytest.fixture
async def client(swarm: Any, short_dir: Path) -> AsyncIterator[SchedulerClient]:
    credentials = await issue(swarm, "robot")
    async with connect([swarm.target], credentials, directory=short_dir / "d", patience=2) as made:
        yield made


async def test_a_certificate_opens_what_schedulers_need(
    swarm: Any, client: SchedulerClient
) -> None:
    engine = await swarm.worker()
    await engine.register()
    web = await client.create_service(spec("web"))
    answer = await client.create_tasks(
        [Placement(node_id=engine.node_id, service_id=web.id, slot=1)], atomic=True
    )
    assert answer.committed
    assert {node.id for node in await client.nodes()} == {n.id for n in swarm.view.nodes.all()}
    assert [network.spec.annotations.name for network in await client.networks()] == ["ingress"]
    await client.remove_service(web.id)


async def test_revocation_cuts_running_connections_and_later_ones(
    swarm: Any, client: SchedulerClient
) -> None:
    stream = client.watch()
    await anext(stream)
    await revoke(swarm, "robot")
    with pytest.raises(PermissionDeniedError):  # noqa: PT012  # any later message may be the one
        async with asyncio.timeout(10):
            while True:
                await anext(stream)
    with pytest.raises(PermissionDeniedError):
        await client.nodes()
    assert await names(swarm) == []


async def test_names_are_unique_and_free_again_after_revocation(swarm: Any, code_of: Code) -> None:
    await issue(swarm, "a")
    await issue(swarm, "b", validity_ns=2 * 3600 * 10**9)
    assert await names(swarm) == ["a", "b"]
    assert (await code_of(issue(swarm, "a")))[0] == "ALREADY_EXISTS"
    assert (await code_of(revoke(swarm, "c")))[0] == "NOT_FOUND"
    await revoke(swarm, "a")
    await issue(swarm, "a")
    for name, fields in (("", {}), ("a b", {}), ("x", {"validity_ns": 1})):
        assert (await code_of(issue(swarm, name, **fields)))[0] == "INVALID_ARGUMENT"
    stub = scheduler_pb2_grpc.ClientCertificatesStub(swarm.local)
    for csr in (b"", b"nonsense"):
        request = scheduler_pb2.CreateClientCertificateRequest(name="y", csr=csr)
        assert (await code_of(stub.CreateClientCertificate(request)))[0] == "INVALID_ARGUMENT"
    cluster = swarm.cluster
    assert len(cluster.client_certificates) == 2
    assert len(cluster.blacklisted_certificates) == 1


async def test_the_command_line_writes_what_the_library_reads(swarm: Any, short_dir: Path) -> None:
    socket = f"unix://{swarm.run_dir}/manager/control.sock"

    async def run(*words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "swarm.cli.main", "--host", socket, *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    out = short_dir / "robot"
    assert await run("client-cert", "create", "robot", "--out", str(out)) == (0, f"{out}\n", "")
    assert (out / "key.pem").stat().st_mode & 0o777 == 0o600
    assert out.stat().st_mode & 0o777 == 0o700
    async with connect(
        load_managers(out), load_credentials(out), directory=short_dir / "d"
    ) as client:
        assert len(await client.nodes()) == 1
    status, listed, _ = await run("client-cert", "ls")
    assert (status, listed.split()[:4]) == (0, ["NAME", "ID", "CREATED", "EXPIRES"])
    assert "robot" in listed
    status, _, error = await run("client-cert", "create", "robot", "--out", str(out))
    assert (status, "not empty" in error) == (1, True)
    assert (await run("client-cert", "revoke", "robot"))[:2] == (0, "robot\n")
    status, _, error = await run("client-cert", "revoke", "robot")
    assert (status, error) == (1, "Error: client certificate robot not found\n")
    with pytest.raises(SwarmError):
        load_credentials(short_dir / "nowhere")


async def test_health_and_reflection_tell_what_is_there(swarm: Any, code_of: Code) -> None:
    health = health_pb2_grpc.HealthStub(swarm.local)
    for name in ("", "overswarm.v1.Scheduler", "docker.swarmkit.v1.Control"):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    code, _ = await code_of(health.Check(health_pb2.HealthCheckRequest(service="nothing")))
    assert code == "NOT_FOUND"
    watching = health.Watch(health_pb2.HealthCheckRequest(service="overswarm.v1.Scheduler"))
    assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
    watching.cancel()

    asked = (
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="overswarm.v1.Scheduler"),
    )

    async def questions() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
        for each in asked:
            yield each

    stub = reflection_pb2_grpc.ServerReflectionStub(swarm.local)
    listed, described = [answer async for answer in stub.ServerReflectionInfo(questions())]
    found = {each.name for each in listed.list_services_response.service}
    assert {
        "overswarm.v1.Scheduler",
        "docker.swarmkit.v1.Control",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    } <= found
    files = described.file_descriptor_response.file_descriptor_proto
    assert any(b"CreateTasksRequest" in each for each in files)
