"""The cluster as a watch tells it. No I/O."""

from __future__ import annotations

from typing import Any

from swarm.model import Network, Node, NodeAvailability, NodeState, Service, Task
from swarm.scheduler.model import Allocation, Update


class Mirror:
    """Objects by id, kept up to date by :meth:`apply`.

    Attributes:
        version: everything up to it is here; 0 before the first whole picture, and while a new one comes.
        allocations: by network id and subnet.
    """

    __slots__ = (
        "_tables",
        "_tasks",
        "allocations",
        "networks",
        "nodes",
        "services",
        "tasks",
        "version",
    )

    def __init__(self) -> None:
        self.version = 0
        self.nodes: dict[str, Node] = {}
        self.services: dict[str, Service] = {}
        self.tasks: dict[str, Task] = {}
        self.networks: dict[str, Network] = {}
        self.allocations: dict[tuple[str, str], Allocation] = {}
        self._tasks: dict[str, dict[str, Task]] = {}  # by service
        self._tables: dict[type[Any], dict[str, Any]] = {
            Node: self.nodes,
            Service: self.services,
            Task: self.tasks,
            Network: self.networks,
        }

    def apply(self, update: Update) -> None:
        """Take in one update of a watch; in order, none left out."""
        if update.reset:
            self.version = 0
            self.allocations.clear()
            self._tasks.clear()
            for table in self._tables.values():
                table.clear()
        for change in update.changes:
            item, table = change.item, self._tables[type(change.item)]
            if isinstance(item, Task):
                self._note(item, removed=change.removed)
            if change.removed:
                table.pop(item.id, None)
            else:
                table[item.id] = item
        for each in update.allocations:
            key = each.network_id, each.subnet
            if each.removed:
                self.allocations.pop(key, None)
            else:
                self.allocations[key] = each
        self.version = update.version or self.version

    def tasks_of(self, service_id: str) -> tuple[Task, ...]:
        """Return a service's tasks, oldest first."""
        found = self._tasks.get(service_id, {}).values()
        return tuple(sorted(found, key=lambda task: (task.meta.created_at or 0, task.id)))

    def service(self, name: str) -> Service | None:
        """Return the service with a name, or None."""
        return next(
            (each for each in self.services.values() if each.spec.annotations.name == name), None
        )

    def live_nodes(self) -> tuple[Node, ...]:
        """Return the nodes that take tasks now, by id."""
        return tuple(
            node
            for _, node in sorted(self.nodes.items())
            if node.status.state is NodeState.READY
            and node.spec.availability is NodeAvailability.ACTIVE
        )

    def _note(self, task: Task, *, removed: bool) -> None:
        of_service = self._tasks.setdefault(task.service_id, {})
        if removed:
            of_service.pop(task.id, None)
            if not of_service:
                del self._tasks[task.service_id]
        else:
            of_service[task.id] = task
