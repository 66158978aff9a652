"""Control's services: shown as stored; making and changing them is not offered yet."""

from __future__ import annotations

from typing import Any

from manager.api.access import Caller
from manager.api.backend import Backend
from manager.api.checks import required
from manager.api.filters import bounded, by_name, has_labels, one_of
from manager.api.server import Context
from manager.api.wire import encoded
from swarm.api.docker.swarmkit import control_pb2
from swarm.errors import UnimplementedError
from swarm.model import Service, Task, TaskState


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
        statuses = []
        for service_id in bounded(request.services):
            tasks = self._store.view.tasks.by_service(service_id)
            statuses.append(
                control_pb2.ListServiceStatusesResponse.ServiceStatus(
                    service_id=service_id,
                    desired_tasks=sum(map(_desired, tasks)),
                    running_tasks=sum(t.status.state is TaskState.RUNNING for t in tasks),
                    completed_tasks=sum(t.status.state is TaskState.COMPLETE for t in tasks),
                )
            )
        return control_pb2.ListServiceStatusesResponse(statuses=statuses)

    async def CreateService(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Refuse truthfully."""
        raise UnimplementedError("this manager does not run services yet")

    UpdateService = CreateService

    async def RemoveService(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Refuse what does not exist; what exists cannot be removed yet."""
        self._store.view.services.require(required(request.service_id, "service ID"))
        raise UnimplementedError("this manager does not run services yet")


def _name(service: Service) -> str:
    return service.spec.annotations.name


def _runtime(service: Service) -> str:
    generic = service.spec.task.generic
    return "container" if generic is None else generic.kind


def _desired(task: Task) -> bool:
    return task.desired_state <= TaskState.RUNNING
