"""gRPC's own services: health and reflection, for probes and for tools such as grpcurl."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Final

from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from manager.api.access import Access, Caller
from manager.api.server import Context, Service
from swarm.errors import NotFoundError
from swarm.identity.certs import Role

MEMBERS: Final = Access(roles=frozenset(Role), open=False, leader=False)
"""These contracts are not ours and declare nothing; whoever has a certificate of the cluster may call."""

LOOK: Final = 1.0
"""Seconds between two looks of a health watch."""

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class GrpcHealth:
    """``grpc.health.v1.Health``: the process by the empty name, its services by theirs.

    Args:
        names: full names of the services.
        led: whether some manager leads; without one, services cannot answer.
    """

    def __init__(self, names: Iterable[str], led: Callable[[], bool]) -> None:
        self._names = frozenset(names)
        self._led = led

    async def Check(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Say whether a service serves."""
        status = self._status(request.service)
        if status == SERVICE_UNKNOWN:
            raise NotFoundError(f"unknown service {request.service[:64]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Say which services serve."""
        statuses = {
            name: health_pb2.HealthCheckResponse(status=self._status(name))
            for name in ("", *self._names)
        }
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]  # newer than its stubs

    async def Watch(self, request: Any, caller: Caller, context: Context) -> None:  # noqa: ARG002, N802
        """Stream whether a service serves, whenever that changes."""
        told = None
        while True:
            status = self._status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await asyncio.sleep(LOOK)

    def _status(self, name: str) -> Any:
        if not name:
            return SERVING
        if name not in self._names:
            return SERVICE_UNKNOWN
        return SERVING if self._led() else NOT_SERVING


class Reflection:
    """``grpc.reflection.v1alpha.ServerReflection``: the contracts of this server."""

    def __init__(self, names: Iterable[str]) -> None:
        self._servicer: Any = reflection.aio.ReflectionServicer(names)

    async def ServerReflectionInfo(self, requests: Any, caller: Caller, context: Context) -> None:  # noqa: ARG002, N802
        """Answer questions about contracts, one by one."""
        async for answer in self._servicer.ServerReflectionInfo(requests, context):
            await context.write(answer)


def standard_services(services: Iterable[Service], led: Callable[[], bool]) -> tuple[Service, ...]:
    """Return health and reflection for a server of these services.

    Args:
        services: all others.
        led: whether some manager leads.
    """
    health: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
    mirror: Any = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
    names = [each.descriptor.full_name for each in services]
    names += [health.full_name, mirror.full_name]
    return (
        Service(descriptor=health, servicers=(GrpcHealth(names, led),), access=MEMBERS),
        Service(descriptor=mirror, servicers=(Reflection(names),), access=MEMBERS),
    )
