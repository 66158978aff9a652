"""The tasks a manager gave this node.

A list starts whole (COMPLETE) and goes on in increments, each naming the one before it. A gap cannot be
mended within the stream (a reopened stream would not fit either), so it ends the session.
"""

from __future__ import annotations

from dataclasses import replace

from agent.session.messages import (
    AssignmentsComplete,
    AssignmentsUpdate,
    Drop,
    Dropped,
    TaskAssigned,
    TaskRemoved,
)
from swarm.errors import WireError
from swarm.model import Meta, Task, TaskStatus

_News = TaskAssigned | TaskRemoved | AssignmentsComplete | Dropped


class GapError(WireError):
    """An increment does not follow what was applied last."""


class Assignments:
    """Applies assignment messages and tells what changed."""

    __slots__ = ("_at", "_node_id", "tasks")

    def __init__(self, node_id: str) -> None:
        self.tasks: dict[str, Task] = {}
        self._node_id = node_id
        self._at: str | None = None  # results_in of the last message of this stream

    def reopened(self) -> None:
        """Forget the position (a new stream begins), keep the tasks."""
        self._at = None

    def apply(self, update: AssignmentsUpdate) -> list[_News]:
        """Apply one message; the changes come in its order, removals by omission last.

        Raises:
            GapError: an increment came first, or does not apply to the last message.
        """
        if update.complete:
            if self._at is not None and update.applies_to:
                raise GapError("a complete assignment list claims to follow another")
        elif self._at is None or update.applies_to != self._at:
            raise GapError(
                f"assignments follow {update.applies_to!r:.40}, this node is at {self._at!r:.40}"
            )
        self._at = update.results_in
        news = [
            each for change in update.changes for each in self._one(change.task_id, change.task)
        ]
        if update.complete:
            listed = {change.task_id for change in update.changes if change.task is not None}
            for task_id in [known for known in self.tasks if known not in listed]:
                news += self._one(task_id, None)
            news.append(AssignmentsComplete())
        return news

    def _one(self, task_id: str, task: Task | None) -> list[_News]:
        old = self.tasks.get(task_id)
        if task is None:
            if self.tasks.pop(task_id, None) is None:
                return []
            return [TaskRemoved(task_id=task_id)]
        if task.node_id not in {"", self._node_id}:
            return [Dropped(reason=Drop.OTHER_NODE, detail=task_id)]
        if old is not None:
            if task.desired_state < old.desired_state:
                return [Dropped(reason=Drop.STATE_GOES_DOWN, detail=task_id)]
            if _essence(task) == _essence(old):
                return []
        self.tasks[task_id] = task
        return [TaskAssigned(task=task)]


def _essence(task: Task) -> Task:
    """A task without what managers write while this node reports."""
    return replace(task, status=TaskStatus(), meta=Meta())
