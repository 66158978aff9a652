"""The gRPC edge: registration from descriptors, errors as statuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from manager.api.access import Access, Caller, Metadata
from manager.api.server import (
    MAX_REQUEST_BYTES,
    Edge,
    Service,
    Unimplemented,
    handlers,
    make_server,
)
from swarm import errors
from swarm.api.docker.swarmkit import health_pb2, health_pb2_grpc
from swarm.errors import InvariantError, PermissionDeniedError, SwarmError
from swarm.identity.certs import Peer

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]


def gate(access: Access, peer: str, metadata: Metadata) -> Caller:
    return Caller(peer=Peer(address="192.0.2.1:1"), local=True)


class Servicer:
    """Answers, or raises what it is told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.callers: list[Caller] = []

    async def Check(self, request: Any, caller: Caller, context: Any) -> Any:  # noqa: N802
        self.callers.append(caller)
        if self.error is not None:
            raise self.error
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def serving(
    directory: Path, servicer: object, broken: Callable[[InvariantError], None], gate: Any = gate
) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    """Serve Health on a unix socket; yield a stub."""
    service = Service(descriptor=HEALTH, servicers=(servicer,))
    server = make_server([service], Edge(gate=gate, broken=broken))
    server.add_insecure_port(f"unix:{directory}/s")
    await server.start()
    channel = grpc.aio.insecure_channel(f"unix:{directory}/s")
    try:
        yield health_pb2_grpc.HealthStub(channel)
    finally:
        await channel.close()
        await server.stop(None)


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path."""
    return tmp_path_factory.mktemp("e")


async def outcome(stub: health_pb2_grpc.HealthStub) -> tuple[str, str]:
    try:
        await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


OWN_ERRORS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SwarmError) and kind is not InvariantError
]


@pytest.mark.parametrize("kind", OWN_ERRORS)
async def test_our_errors_keep_status_and_text(directory: Path, kind: type[SwarmError]) -> None:
    async with serving(directory, Servicer(kind("what to do, in words: é")), _never) as stub:
        assert await outcome(stub) == (kind.status, "what to do, in words: é")


async def test_an_unknown_error_tells_no_details(directory: Path) -> None:
    async with serving(directory, Servicer(KeyError("secret")), _never) as stub:
        assert await outcome(stub) == ("INTERNAL", "internal error: KeyError")


async def test_a_broken_invariant_is_reported_to_the_process(directory: Path) -> None:
    seen: list[InvariantError] = []
    async with serving(directory, Servicer(InvariantError("x is 3")), seen.append) as stub:
        assert (await outcome(stub))[0] == "INTERNAL"
    assert str(seen[0]) == "x is 3"


async def test_a_refused_call_never_reaches_its_servicer(directory: Path) -> None:
    def closed(access: Access, peer: str, metadata: Metadata) -> Caller:
        raise PermissionDeniedError("no")

    servicer = Servicer()
    async with serving(directory, servicer, _never, closed) as stub:
        assert await outcome(stub) == ("PERMISSION_DENIED", "no")
    assert servicer.callers == []


async def test_requests_are_bounded(directory: Path) -> None:
    async with serving(directory, Servicer(), _never) as stub:
        request = health_pb2.HealthCheckRequest(service="x" * MAX_REQUEST_BYTES)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.Check(request)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await outcome(stub) == ("OK", "")


async def test_unimplemented_says_so(directory: Path) -> None:
    async with serving(directory, Unimplemented(HEALTH), _never) as stub:
        assert (await outcome(stub))[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize("servicers", [(), (Servicer(), Servicer())])
def test_every_rpc_has_exactly_one_servicer(servicers: tuple[object, ...]) -> None:
    service = Service(descriptor=HEALTH, servicers=servicers)
    with pytest.raises(InvariantError):
        handlers([service], Edge(gate=gate, broken=_never))


def _never(error: InvariantError) -> None:
    raise AssertionError(error)
