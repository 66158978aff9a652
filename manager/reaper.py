"""Tasks nobody needs any more: a duty of the leader, driven by one watch of the store.

- a task given back (wanted REMOVE) goes once it has ended, or its node is no member any more;
- a task whose service was removed is given back;
- of the ended tasks of one slot the newest few stay (the cluster's history limit), so that a scheduler
  that never gives anything back does not fill the store.

Attachments are the dispatcher's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from manager.api.attachments import release
from manager.api.backend import Backend
from manager.store import Commit, Transaction
from swarm.errors import InvariantError, StaleError, SwarmError
from swarm.model import Node, Service, Task, TaskState

CHUNK: Final = 200
"""Tasks changed in one transaction, so that none outgrows its bounds."""

RETRY: Final = 1.0
"""Seconds to wait when a write fails, as while leadership changes hands."""

GATHER: Final = 0.05
"""Seconds to wait for more of the same: tasks end in droves, and go together."""

log = structlog.get_logger(__name__)

Slot = tuple[str, int, str]


class Reaper:
    """Deletes tasks; :meth:`run` is the duty."""

    def __init__(self, backend: Backend) -> None:
        self._store = backend.store
        self._suspects: dict[str, None] = {}  # task ids to look at, in order
        self._slots: dict[Slot, None] = {}  # slots in which a task ended

    async def run(self) -> None:
        """Reap until cancelled."""
        watch = self._store.watch()
        self._look_at_everything()
        while True:
            try:
                await self._reap()
                self._note(await anext(watch))
                await asyncio.sleep(GATHER)
                while (commit := watch.next_nowait()) is not None:
                    self._note(commit)
            except StaleError:
                watch = self._store.watch()
                self._look_at_everything()
            except InvariantError:
                raise
            except SwarmError as error:
                log.warning("reaping.failed", detail=str(error))
                await asyncio.sleep(RETRY)

    def _look_at_everything(self) -> None:
        for task in self._store.view.tasks.all():
            self._suspect(task)

    def _note(self, commit: Commit) -> None:
        for change in commit.changes:
            if isinstance(change.new, Task):
                self._suspect(change.new)
            elif change.new is None and isinstance(change.old, Service):
                self._suspects.update(
                    (task.id, None) for task in self._store.view.tasks.by_service(change.old.id)
                )
            elif change.new is None and isinstance(change.old, Node):
                self._suspects.update(
                    (task.id, None) for task in self._store.view.tasks.by_node(change.old.id)
                )

    def _suspect(self, task: Task) -> None:
        if task.spec.attachment is not None and not task.service_id:
            return
        ended = task.status.state > TaskState.RUNNING
        if task.desired_state >= TaskState.REMOVE or self._is_orphan(task):
            self._suspects[task.id] = None
        elif ended and task.service_id:
            self._slots[slot_of(task)] = None

    def _is_orphan(self, task: Task) -> bool:
        return bool(task.service_id) and task.service_id not in self._store.view.services

    async def _reap(self) -> None:
        self._trim()
        while self._suspects:
            part = list(self._suspects)[:CHUNK]

            def build(tx: Transaction, part: Sequence[str] = part) -> None:
                for task in filter(None, map(tx.tasks.get, part)):
                    reap(tx, task)

            await self._store.transact(build)
            for task_id in part:
                del self._suspects[task_id]

    def _trim(self) -> None:
        """Suspect what exceeds the history of its slot."""
        slots, self._slots = self._slots, {}
        if not slots:
            return
        view = self._store.view
        limit = view.clusters.only().spec.orchestration.task_history_retention_limit
        if limit < 0:
            return
        by_slot: dict[Slot, list[Task]] = {slot: [] for slot in slots}
        for service_id in {slot[0] for slot in slots}:
            for task in view.tasks.by_service(service_id):
                if task.status.state > TaskState.RUNNING and (slot := slot_of(task)) in by_slot:
                    by_slot[slot].append(task)
        for ended in by_slot.values():
            ended.sort(key=lambda task: task.meta.created_at or 0)
            for task in ended[: max(len(ended) - limit, 0)]:
                self._suspects[task.id] = None


def slot_of(task: Task) -> Slot:
    """Return what tasks that follow each other have in common."""
    return task.service_id, task.slot, "" if task.slot else task.node_id


def reap(tx: Transaction, task: Task) -> None:
    """Delete a task that is over, or ask one that nobody needs to end."""
    if task.status.state > TaskState.RUNNING or task.node_id not in tx.nodes:
        release(tx, task)
    elif task.desired_state < TaskState.REMOVE:
        tx.update(replace(task, desired_state=TaskState.REMOVE))
