"""Control's tasks: show, list, remove."""

from __future__ import annotations

from typing import Any

from manager.api.access import Caller
from manager.api.attachments import release
from manager.api.backend import Backend, nothing
from manager.api.checks import required
from manager.api.filters import by_name, has_labels, one_of
from manager.api.server import Context
from manager.api.wire import encoded
from manager.store import Transaction
from swarm.api.docker.swarmkit import control_pb2
from swarm.model import Task


class Tasks:
    """The task RPCs of Control."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store

    async def GetTask(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return one task by id."""
        await self._backend.barrier()
        task = self._store.view.tasks.require(required(request.task_id, "task ID"))
        return control_pb2.GetTaskResponse(task=encoded(task))

    async def ListTasks(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the tasks that match; ``up_to_date`` means of the service's newest spec."""
        await self._backend.barrier()
        wanted = request.filters
        found = by_name(self._store.view.tasks.all(), wanted, self._name)
        return control_pb2.ListTasksResponse(
            tasks=[
                encoded(task)
                for task in found
                if has_labels(_labels(task), wanted.labels)
                and one_of(task.service_id, wanted.service_ids)
                and one_of(task.node_id, wanted.node_ids)
                and one_of(int(task.desired_state), wanted.desired_states)
                and one_of(runtime_of(task), wanted.runtimes)
                and (not wanted.up_to_date or self._up_to_date(task))
            ]
        )

    async def RemoveTask(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Remove a task and give its addresses back."""
        task_id = required(request.task_id, "task ID")

        def build(tx: Transaction) -> None:
            release(tx, tx.tasks.require(task_id))

        await self._backend.once(caller, build, repeated=nothing)
        return control_pb2.RemoveTaskResponse()

    def _name(self, task: Task) -> str:
        """Return the name people see: its own, else service.slot, else service.node."""
        if task.annotations.name or not task.service_id:
            return task.annotations.name
        return f"{task.service_annotations.name}.{task.slot or task.node_id}.{task.id}"

    def _up_to_date(self, task: Task) -> bool:
        service = self._store.view.services.get(task.service_id)
        return service is not None and task.spec_version == service.spec_version


def runtime_of(task: Task) -> str:
    """Return what runs a task: ``container``, ``attachment`` or a plugin's kind."""
    if task.spec.attachment is not None:
        return "attachment"
    if task.spec.generic is not None:
        return task.spec.generic.kind
    return "container"


def _labels(task: Task) -> dict[str, str]:
    return {**task.service_annotations.labels, **task.annotations.labels}
