"""Control's services: make, show, list, change, remove.

A service is stored as asked for, with its endpoint (virtual addresses, published ports) allocated
in the same transaction. Its tasks are made by schedulers (:mod:`manager.api.scheduler`).

Source: SwarmKit ``manager/controlapi/service.go``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from manager.allocator import allocate_endpoint
from manager.api.access import Caller
from manager.api.backend import Backend, created, nothing
from manager.api.checks import present, required, same_version
from manager.api.filters import bounded, by_name, has_labels, one_of
from manager.api.server import Context
from manager.api.servicespecs import (
    MAX_SPEC,
    check_service_spec,
    mode_of,
    runtime_networks,
)
from manager.api.wire import encoded
from manager.store import Transaction
from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2
from swarm.errors import (
    ConflictError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    UnimplementedError,
)
from swarm.model import (
    Network,
    NodeState,
    Service,
    ServiceSpec,
    Task,
    TaskState,
    Version,
)

CHUNK: Final = 1000
"""Tasks of a removed service that are asked to end at once; the reaper asks the others."""

PREVIOUS: Final = control_pb2.UpdateServiceRequest.PREVIOUS


class Services:
    """The service RPCs of Control."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store

    async def GetService(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return one service by id."""
        await self._backend.barrier()
        service = self._store.view.services.require(required(request.service_id, "service ID"))
        return control_pb2.GetServiceResponse(service=encoded(service))

    async def ListServices(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the services that match."""
        await self._backend.barrier()
        wanted = request.filters
        found = by_name(self._store.view.services.all(), wanted, _name)
        return control_pb2.ListServicesResponse(
            services=[
                encoded(service)
                for service in found
                if has_labels(service.spec.annotations.labels, wanted.labels)
                and one_of(_runtime(service), wanted.runtimes)
            ]
        )

    async def ListServiceStatuses(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Count each asked service's tasks; unknown services count zero."""
        await self._backend.barrier()
        view = self._store.view
        statuses = []
        for service_id in bounded(request.services):
            service, tasks = view.services.get(service_id), view.tasks.by_service(service_id)
            statuses.append(
                control_pb2.ListServiceStatusesResponse.ServiceStatus(
                    service_id=service_id,
                    desired_tasks=_desired(service, tasks),
                    running_tasks=sum(map(self._runs, tasks)),
                    completed_tasks=sum(t.status.state is TaskState.COMPLETE for t in tasks),
                )
            )
        return control_pb2.ListServiceStatusesResponse(statuses=statuses)

    async def CreateService(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Store a service with everything allocated when the call returns."""
        spec = _spec_untrusted(request)
        fresh_id = self._backend.make_id()

        def build(tx: Transaction) -> str:
            create_service(tx, spec, service_id=fresh_id)
            return fresh_id

        service_id = await self._backend.once(caller, build, repeated=created)
        service = self._store.view.services.require(service_id)
        return control_pb2.CreateServiceResponse(service=encoded(service))

    async def UpdateService(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Replace a service's spec, or go back to the one before."""
        service_id = required(request.service_id, "service ID")
        version = present(request, "service_version").index
        rollback = request.rollback == PREVIOUS
        spec = None if rollback else _spec_untrusted(request)

        def build(tx: Transaction) -> None:
            service = tx.services.require(service_id)
            same_version(service.meta, version)
            update_service(tx, service, spec)

        await self._backend.once(caller, build, repeated=nothing)
        service = self._store.view.services.require(service_id)
        return control_pb2.UpdateServiceResponse(service=encoded(service))

    async def RemoveService(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Remove a service; its tasks end and go once they have."""
        service_id = required(request.service_id, "service ID")

        def build(tx: Transaction) -> None:
            remove_service(tx, tx.services.require(service_id))

        await self._backend.once(caller, build, repeated=nothing)
        return control_pb2.RemoveServiceResponse()

    def _runs(self, task: Task) -> bool:
        """Say whether a task runs, as far as anybody hears from its node."""
        if task.status.state is not TaskState.RUNNING or task.desired_state > TaskState.RUNNING:
            return False
        node = self._store.view.nodes.get(task.node_id)
        return node is not None and node.status.state is not NodeState.DOWN


def create_service(tx: Transaction, spec: ServiceSpec, *, service_id: str) -> Service:
    """Allocate and create a service.

    Raises:
        ConflictError: its name is taken, upper and lower case alike.
        InvalidArgumentError: a published port is taken, or it names the ingress network.
        NotFoundError: it names a network that does not exist.
        PreconditionError: it needs the ingress network, and there is none.
        ExhaustedError: no address or port is left.
    """
    name = spec.annotations.name
    if tx.services.named(name):
        raise ConflictError(f"service {name} already exists")
    service = Service(id=service_id, spec=spec, spec_version=Version())
    return tx.create(_with_endpoint(tx, service))


def update_service(tx: Transaction, service: Service, spec: ServiceSpec | None) -> Service:
    """Give a service another spec; its old one is kept for going back.

    Args:
        tx: the transaction it is part of.
        service: as stored.
        spec: the new spec; None for the one before.

    Raises:
        UnimplementedError: its name, its mode, or networks of the old form would change.
        PreconditionError: there is no spec before; or it needs the ingress network, and there is none.
        InvalidArgumentError, NotFoundError, ExhaustedError: as for :func:`create_service`.
    """
    if spec is None:
        spec = service.previous_spec
        if spec is None:
            raise PreconditionError(f"service {service.id} does not have a previous spec")
    before = service.spec
    if spec.annotations.name != before.annotations.name:
        raise UnimplementedError("renaming services is not supported")
    if mode_of(spec) != mode_of(before):
        raise UnimplementedError("service mode change is not allowed")
    if before.networks and spec.networks and spec.networks != before.networks:
        raise UnimplementedError("networks must be migrated to TaskSpec before being changed")
    if spec == before:
        return service
    changed = replace(
        service,
        spec=spec,
        previous_spec=before,
        spec_version=service.meta.version,
        previous_spec_version=service.spec_version,
    )
    return tx.update(_with_endpoint(tx, changed))


def remove_service(tx: Transaction, service: Service) -> None:
    """Delete a service and ask its tasks to end; they are deleted once they have."""
    tx.delete(service)
    for task in tx.tasks.by_service(service.id)[:CHUNK]:
        tx.update(replace(task, desired_state=TaskState.REMOVE))


def _with_endpoint(tx: Transaction, service: Service) -> Service:
    try:
        endpoint = allocate_endpoint(tx, service, service_networks(tx, service.spec))
    except ConflictError as error:  # engines know a taken port as a bad request
        raise InvalidArgumentError(str(error)) from error
    return replace(service, endpoint=endpoint)


def service_networks(tx: Transaction, spec: ServiceSpec) -> tuple[Network, ...]:
    """Find the networks a service names.

    Raises:
        NotFoundError: one does not exist.
        InvalidArgumentError: one is named ambiguously, is the ingress network, or is named twice.
    """
    found: dict[str, Network] = {}
    for config in runtime_networks(spec):
        try:
            network = tx.networks.resolve(config.target)
        except NotFoundError:
            raise NotFoundError(f"network {config.target} not found") from None
        if network.spec.ingress:
            raise InvalidArgumentError(
                "Service cannot be explicitly attached to the ingress network"
                f' "{network.spec.annotations.name}"'
            )
        if network.id in found:
            raise InvalidArgumentError(f"network {config.target} is given twice")
        found[network.id] = network
    return tuple(found.values())


def _spec_untrusted(request: Any) -> ServiceSpec:
    message = present(request, "spec")
    if message.ByteSize() > MAX_SPEC:
        raise InvalidArgumentError(f"the service spec is larger than {MAX_SPEC} bytes")
    spec = codec.decode(ServiceSpec, message)
    check_service_spec(spec)
    return spec


def _name(service: Service) -> str:
    return service.spec.annotations.name


def _runtime(service: Service) -> str:
    generic = service.spec.task.generic
    return "container" if generic is None else generic.kind


def _desired(service: Service | None, tasks: tuple[Task, ...]) -> int:
    if service is not None and service.spec.replicated is not None:
        return service.spec.replicated.replicas
    return sum(task.desired_state <= TaskState.RUNNING for task in tasks)
