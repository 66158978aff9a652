"""Attachments as managers hold them: asked for, assigned, reported on, given back.

An attachment is a task without a service. A manager makes it for AttachNetwork and keeps its address until
DetachNetwork; in between it comes and goes on the Assignments stream like any other task.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

import structlog

from agent.node.releases import Releases
from agent.node.seams import SessionPort
from agent.node.state import Attachment
from swarm.errors import (
    DeadlineError,
    HostError,
    PreconditionError,
    UnavailableError,
)
from swarm.model import ContainerStatus, NetworkAttachment, Task, TaskState, TaskStatus

ATTACH_TIMEOUT: Final = 20.0
"""Seconds for the manager's part of an attach, all in all; engines wait as long."""

SESSION_TIMEOUT: Final = 5.0
"""Seconds an attach waits for a session when there is none at that moment."""

log = structlog.get_logger(component="leases")


class Leases:
    """What managers gave this node, and what becomes of it.

    A task is *reserved* while something is under way with it here: it is being plugged, detached or asked
    for anew, and neither a sweep nor a manager's word starts a second operation on it.

    Args:
        session: with a manager.
        plugged: finds the endpoint that belongs to a task.
        ready: set when all endpoints of an earlier agent are known; nothing is swept before.
    """

    def __init__(
        self,
        session: SessionPort,
        *,
        plugged: Callable[[str], Attachment | None],
        ready: asyncio.Event,
    ) -> None:
        self._session = session
        self._plugged = plugged
        self._ready = ready
        self._waiting: dict[str, asyncio.Future[Task]] = {}
        self._asking: Counter[str] = Counter()
        self._failed: set[str] = set()  # containers that were refused something while they ask
        self._reserved: set[str] = set()
        self._releases = Releases(session)

    async def run(self) -> None:
        """Give back what is over until cancelled."""
        await self._releases.run()

    # -- asking ----------------------------------------------------------------------------

    async def obtain(self, target: str, container_id: str, addresses: tuple[str, ...]) -> Task:
        """Ask a manager for an attachment and wait for its task, which is reserved then.

        Raises:
            UnavailableError: no manager can be reached.
            DeadlineError: the manager did not assign the attachment in time.
            PreconditionError: the manager ended it again.
            SwarmError: the manager refused it.
        """
        try:
            async with asyncio.timeout(SESSION_TIMEOUT):
                await self._session.active()
        except TimeoutError as error:
            detail = self._session.last_error or "not connected yet"
            raise UnavailableError(f"no manager of the swarm can be reached: {detail}") from error
        self._asking[container_id] += 1
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT):
                attachment_id = await self._session.attach_network(target, container_id, addresses)
                return await self._assigned(attachment_id)
        except TimeoutError as error:
            self._failed.add(container_id)
            raise DeadlineError(
                f"attaching to network {target} failed: the manager did not assign an address "
                f"within {ATTACH_TIMEOUT:.0f} s"
            ) from error
        except BaseException:
            self._failed.add(container_id)
            raise
        finally:
            self._asking[container_id] -= 1
            if not self._asking[container_id]:
                del self._asking[container_id]
                if container_id in self._failed:
                    self._failed.remove(container_id)
                    # Whatever the manager made for a request that failed is given back.
                    asyncio.get_running_loop().call_soon(self.sweep)

    async def _assigned(self, attachment_id: str) -> Task:
        task = self._session.task(attachment_id)
        if task is None or not _is_allocated(task):
            future: asyncio.Future[Task] = asyncio.get_running_loop().create_future()
            self._waiting[attachment_id] = future
            try:
                task = await future
            finally:
                self._waiting.pop(attachment_id, None)
        if task.status.state >= TaskState.COMPLETE:
            raise PreconditionError(
                task.status.err or f"the attachment was {task.status.state.name.lower()}"
            )
        self._reserved.add(task.id)  # until it is plugged or given back
        return task

    # -- what managers say -----------------------------------------------------------------

    def offer(self, task: Task) -> bool:
        """Hear of a task that is new or changed; tell whether somebody waits for it."""
        waiting = self._waiting.get(task.id)
        if waiting is None:
            return False
        if not waiting.done() and _is_allocated(task):
            waiting.set_result(task)
        return True

    def withdrawn(self, task_id: str) -> None:
        """Hear that a manager dropped a task: whoever waits for it is told."""
        waiting = self._waiting.get(task_id)
        if waiting is not None and not waiting.done():
            waiting.set_exception(PreconditionError("the manager withdrew the attachment"))

    def lost(self, task_id: str) -> bool:
        """Tell whether a whole list that a manager sent lacks a task that is to be there."""
        return self._session.task(task_id) is None and task_id not in self._reserved

    def sweep(self, tasks: Iterable[Task] | None = None) -> None:
        """Give back attachments that nothing here belongs to; of all tasks unless some are named."""
        if not self._ready.is_set():
            return
        for task in self._session.tasks() if tasks is None else tasks:
            about = task.spec.attachment
            if about is None or about.container_id in self._asking or self.busy(task.id):
                continue
            if self._plugged(task.id) is None:
                log.info("attachment.orphaned", task=task.id)
                self._releases.add(task.id)

    # -- one task --------------------------------------------------------------------------

    def busy(self, task_id: str) -> bool:
        """Tell whether a task is reserved, or on its way back to the managers."""
        return task_id in self._reserved or task_id in self._releases

    def reserve(self, task_id: str) -> bool:
        """Reserve a task; tell whether it was free."""
        if task_id in self._reserved:
            return False
        self._reserved.add(task_id)
        return True

    def settle(self, task_id: str) -> None:
        """Let a reserved task go: it has an endpoint, or waits for a manager."""
        self._reserved.discard(task_id)

    def release(self, task_id: str) -> None:
        """Give a task back, as soon as a manager can hear of it."""
        self._reserved.discard(task_id)
        self._releases.add(task_id)

    def give_back(self, task: Task, error: BaseException) -> None:
        """Report a failed attach and give the task back."""
        about = task.spec.attachment
        container_id = "" if about is None else about.container_id
        self.report(task.id, TaskState.FAILED, container_id, err=str(error))
        self.release(task.id)

    def forget(self, task_id: str) -> None:
        """Report no more on a task that another one took the place of."""
        self._session.forget(task_id)

    def report(self, task_id: str, state: TaskState, container_id: str, *, err: str = "") -> None:
        """Tell the managers how far a task is."""
        self._session.report(
            task_id,
            TaskStatus(
                timestamp=time.time_ns(),
                state=state,
                message=state.name.lower(),
                err=err,
                container=ContainerStatus(container_id=container_id) if container_id else None,
            ),
        )

    async def drained(self, within: float) -> None:
        """Wait until managers have heard of everything given back, ``within`` seconds at most."""
        try:
            async with asyncio.timeout(within):
                await self._releases.drained()
        except TimeoutError:
            log.warning("attachments.unreleased", count=len(self._releases))


def _is_allocated(task: Task) -> bool:
    return task.status.state >= TaskState.ASSIGNED and bool(
        task.status.state >= TaskState.COMPLETE or (task.networks and task.networks[0].addresses)
    )


def addresses_of(networks: Iterable[NetworkAttachment]) -> tuple[str, ...]:
    """Return the addresses assigned: the last IPv4 one (as engines choose), then IPv6 ones.

    Raises:
        HostError: the manager gave no usable address.
    """
    try:
        found = [ipaddress.ip_interface(address) for each in networks for address in each.addresses]
    except ValueError as error:
        raise HostError(f"the manager gave a malformed address: {error}") from error
    v4 = [interface for interface in found if interface.version == 4][-1:]
    v6 = [interface for interface in found if interface.version == 6]
    if not found:
        raise HostError("the manager gave no address")
    return tuple(str(interface) for interface in (*v4, *v6))
