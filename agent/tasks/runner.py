"""One coroutine per task, from its assignment to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import structlog

from agent.balancer.hostports import parse
from agent.node import host
from agent.node.request import AttachRequest
from agent.node.state import Attachment, Stage
from agent.tasks import naming
from agent.tasks.listening import is_listening
from agent.tasks.process import Process, process_of
from agent.workload.runtime import Runtime
from agent.workload.spec import CommandError, State, Workload, WorkloadSpec
from swarm.errors import (
    HostError,
    InvariantError,
    NotFoundError,
    PreconditionError,
    SwarmError,
)
from swarm.model import (
    ContainerStatus,
    NetworkAttachment,
    PortConfig,
    PortProtocol,
    PortStatus,
    PublishMode,
    Task,
    TaskState,
    TaskStatus,
)

MAX_NETWORKS: Final = 64

log = structlog.get_logger(component="tasks")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds a task may take for its steps.

    Attributes:
        listen: from its start until it is announced although it listens on nothing. More delays
            tasks that never listen; less announces slow starters too early.
        poll: between two looks.
        spread: from announcing that a backend drains until it may be stopped, at least: others have
            to hear of it. Engines wait 2.
        grace: for flows to end after that, and once more for the command after SIGTERM.
    """

    listen: float = 3.0
    poll: float = 0.05
    spread: float = 2.0
    grace: float = 10.0


class SessionPort(Protocol):
    """Of :class:`agent.session.service.Session`."""

    def tasks(self) -> tuple[Task, ...]:
        """Return all assigned tasks."""

    def report(self, task_id: str, status: TaskStatus) -> None:
        """Report a task's state."""

    def forget(self, task_id: str) -> None:
        """Stop reporting a task."""


class NetworksPort(Protocol):
    """Of :class:`agent.node.coordinator.Coordinator`."""

    async def attach_assigned(
        self, request: AttachRequest, task_id: str, assigned: NetworkAttachment
    ) -> Attachment:
        """Plug a task's namespace."""

    async def container_gone(self, container_id: str) -> None:
        """Unplug everything of a container."""

    def set_stage(self, container_id: str, stage: Stage) -> None:
        """Announce a backend's stage."""

    def attachments(self, container_id: str | None = None) -> list[Attachment]:
        """Return endpoints."""

    async def flows(self, container_id: str) -> int:
        """Count the connections that lead to a container's endpoints."""


@dataclass(slots=True)
class _Held:
    """One task here."""

    task: Task
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    removed: bool = False
    again: bool = False
    """Assigned once more after it was removed."""
    running: asyncio.Task[None] | None = None

    @property
    def unwanted(self) -> bool:
        return self.removed or self.task.desired_state > TaskState.RUNNING


class TaskRunner:
    """Runs the tasks of services that this node was given.

    Args:
        session: hears of states.
        coordinator: plugs networks.
        runtime: runs commands; :meth:`Runtime.recover` is done, and its ``on_exit`` takes ended
            workloads off their networks.
        timing: of the steps.
        name_servers: for names that are not the swarm's.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        session: SessionPort,
        coordinator: NetworksPort,
        runtime: Runtime,
        timing: Timing | None = None,
        name_servers: Callable[[], tuple[str, ...]] = host.name_servers,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._session = session
        self._networks = coordinator
        self._runtime = runtime
        self._timing = timing or Timing()
        self._name_servers = name_servers
        self._clock = clock
        self._held: dict[str, _Held] = {}
        self._group: asyncio.TaskGroup | None = None
        self._open = asyncio.Event()

    # -- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run tasks until cancelled; their commands go on.

        Raises:
            InvariantError: a bug was found.
        """
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._recover()
                for task in self._session.tasks():
                    self.assigned(task)
                self._open.set()
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None

    async def ready(self) -> None:
        """Wait until assignments are heard."""
        await self._open.wait()

    def _recover(self) -> None:
        """Tell how the tasks of an earlier agent are, also while no manager repeats them."""
        for workload in self._workloads().values():
            self._report_workload(workload)

    async def leave(self) -> None:
        """End and remove every task, for leaving the cluster."""
        for task_id, workload in self._workloads().items():
            held = self._held.get(task_id)
            if held is not None and held.running is not None:
                held.running.cancel()
            await self._discard(task_id, workload.spec.id)

    # -- what managers say -----------------------------------------------------------------

    def assigned(self, task: Task) -> None:
        """Hear of a task that is new or changed; attachments are not for this."""
        if task.spec.attachment is not None or self._group is None:
            return  # not running yet: run() asks for all tasks
        held = self._held.get(task.id)
        if held is None:
            held = self._held[task.id] = _Held(task)
            held.running = self._group.create_task(self._live(held))
            return
        held.task = task
        held.again = held.again or held.removed
        held.removed = False
        held.changed.set()

    def removed(self, task_id: str) -> None:
        """Hear that a manager dropped a task."""
        held = self._held.get(task_id)
        if held is not None:
            held.removed, held.again = True, False
            held.changed.set()

    def complete(self) -> None:
        """Hear that a whole list has been applied: workloads of tasks not in it have to go."""
        if self._group is None:
            return
        listed = {task.id for task in self._session.tasks()}
        for task_id in [each for each in self._held if each not in listed]:
            self.removed(task_id)
        for task_id, workload in self._workloads().items():
            if task_id not in listed and task_id not in self._held:
                log.info("task.orphaned", task=task_id)
                self._group.create_task(self._discard(task_id, workload.spec.id))

    # -- one task --------------------------------------------------------------------------

    async def _live(self, held: _Held) -> None:
        task_id = held.task.id
        try:
            await self._serve(held)
        except InvariantError:
            raise
        except SwarmError as error:
            # Whatever was possible has been tried; the manager has to know that it is over.
            log.warning("task.failed", task=task_id, reason=str(error))
            self._report(held.task, TaskState.FAILED, err=str(error))
        while not held.removed:
            await self._next_change(held)
        await self._discard(task_id, naming.workload_id(task_id))
        del self._held[task_id]
        if held.again:
            self.assigned(held.task)

    async def _serve(self, held: _Held) -> None:
        workload = await self._taken_up(held)
        if workload is None:
            return
        if workload.state is State.CREATED and (workload := await self._started(held)) is None:
            return
        if not workload.state.over and (workload := await self._ready(held)) is None:
            return
        await self._follow(held)

    async def _taken_up(self, held: _Held) -> Workload | None:
        """Return the task's workload, made anew if there is none; None when there is to be none."""
        task = held.task
        workload = self._workloads().get(task.id)
        if workload is not None and workload.state is State.CREATED:
            # The last agent did not come to its start, and nobody knows how far it came.
            await self._drop(workload.spec.id)
            workload = None
        if workload is not None:
            return workload
        if task.status.state >= TaskState.COMPLETE:
            return None  # over, and known to be
        if task.status.state >= TaskState.STARTING:
            self._report(task, TaskState.FAILED, err="its command is gone: the host was restarted")
            return None
        if held.unwanted:
            self._report(task, TaskState.SHUTDOWN)
            return None
        return await self._prepared(held)

    async def _prepared(self, held: _Held) -> Workload | None:
        """Make namespaces and networks; None (and REJECTED) when that cannot be."""
        task = held.task
        identity = naming.workload_id(task.id)
        self._report(task, TaskState.ACCEPTED)
        try:
            process = process_of(task)
            self._report(task, TaskState.PREPARING)
            workload = await self._runtime.create(self._spec(task, process))
            await self._plug(task, workload)
        except SwarmError as error:
            log.warning("task.rejected", task=task.id, reason=str(error))
            await self._drop(identity)
            self._report(task, TaskState.REJECTED, err=str(error))
            return None
        self._report(task, TaskState.READY)
        while held.task.desired_state < TaskState.RUNNING and not held.removed:
            await self._next_change(held)
        if held.unwanted:
            await self._drop(identity)
            self._report(task, TaskState.SHUTDOWN)
            return None
        return workload

    def _spec(self, task: Task, process: Process) -> WorkloadSpec:
        identity = naming.workload_id(task.id)
        return WorkloadSpec(
            id=identity,
            name=naming.task_name(task),
            argv=process.argv,
            env=process.env,
            cwd=process.cwd or "/",
            hostname=process.hostname or task.id,
            labels=naming.labels(task),
            created_at=self._clock(),
        )

    async def _plug(self, task: Task, workload: Workload) -> None:
        if len(task.networks) > MAX_NETWORKS:
            raise HostError(f"a task can be on at most {MAX_NETWORKS} networks")
        publish = naming.host_ports(task)
        for assigned in task.networks:
            await self._networks.attach_assigned(
                AttachRequest(
                    target=assigned.network.id,
                    container_id=workload.spec.id,
                    container_name=workload.spec.name,
                    netns=workload.netns_path,
                    upstreams=self._name_servers(),
                    publish=publish,
                    service=naming.service_part(task, assigned),
                ),
                task.id,
                assigned,
            )
        attachments = self._networks.attachments(workload.spec.id)
        if publish and not any(each.published for each in attachments):
            raise PreconditionError(
                "ports can be published on the host only for a task on a network with a way out"
            )
        addresses = [
            address.partition("/")[0]
            for attachment in attachments
            for address in attachment.addresses
        ]
        try:
            await self._runtime.set_addresses(workload.spec.id, addresses)
        except OSError as error:
            raise HostError(f"cannot write the task's hosts file: {error}") from error

    async def _started(self, held: _Held) -> Workload | None:
        """Run the command; None (and FAILED) when it cannot be executed."""
        task = held.task
        self._report(task, TaskState.STARTING)
        try:
            return await self._runtime.start(naming.workload_id(task.id))
        except CommandError as error:
            self._report(task, TaskState.FAILED, err=str(error), code=error.exit_code)
            return None

    async def _ready(self, held: _Held) -> Workload | None:
        """Announce the backend once it listens; None when its end came first."""
        identity = naming.workload_id(held.task.id)
        attachments = self._networks.attachments(identity)
        workload = self._runtime.get(identity)
        if any(_stage(each) is Stage.STARTING for each in attachments):
            deadline = self._now() + self._timing.listen
            while self._now() < deadline and not held.unwanted:
                workload = self._runtime.get(identity)
                if workload.state.over or await asyncio.to_thread(is_listening, workload.pid):
                    break
                await asyncio.sleep(self._timing.poll)
            if not workload.state.over and not held.unwanted:
                self._networks.set_stage(identity, Stage.SERVING)
        if not workload.state.over:
            self._report_workload(workload)
        return workload

    async def _follow(self, held: _Held) -> None:
        """Wait for the command's end, and bring it about when it is wanted."""
        identity = naming.workload_id(held.task.id)
        ending = asyncio.ensure_future(self._runtime.wait(identity))
        try:
            while not ending.done() and not held.unwanted:
                await self._until(held, ending)
            if not ending.done():
                await self._drain(held, identity, ending)
                await self._runtime.stop(identity, grace=self._grace(held.task))
                await self._networks.container_gone(identity)
                self._report(held.task, TaskState.SHUTDOWN, workload=self._runtime.get(identity))
                return
        finally:
            ending.cancel()
        await self._networks.container_gone(identity)
        self._report_workload(self._runtime.get(identity))

    async def _drain(self, held: _Held, identity: str, ending: asyncio.Future[int]) -> None:
        """Lead new flows elsewhere, and wait for the old ones as long as the grace is."""
        attachments = self._networks.attachments(identity)
        if not any(each.service is not None and each.service.service_id for each in attachments):
            return
        self._networks.set_stage(identity, Stage.DRAINING)
        began = self._now()
        await asyncio.wait((ending,), timeout=self._timing.spread)
        deadline = began + self._timing.spread + self._grace(held.task)
        while not ending.done() and self._now() < deadline:
            flows = await self._networks.flows(identity)
            if not flows:
                break
            await asyncio.wait((ending,), timeout=self._timing.spread / 8)
        log.info("task.drained", task=held.task.id, seconds=round(self._now() - began, 1))

    # -- small parts -----------------------------------------------------------------------

    def _grace(self, task: Task) -> float:
        grace = naming.balancing_of(task).grace
        return self._timing.grace if grace is None else float(grace)

    async def _until(self, held: _Held, ending: asyncio.Future[int]) -> None:
        change = asyncio.ensure_future(self._next_change(held))
        try:
            await asyncio.wait((change, ending), return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()

    @staticmethod
    async def _next_change(held: _Held) -> None:
        await held.changed.wait()
        held.changed.clear()

    async def _discard(self, task_id: str, identity: str) -> None:
        """Take everything of a task away."""
        try:
            await self._drop(identity)
        except SwarmError as error:
            log.warning("task.removal.failed", task=task_id, reason=str(error))
        self._session.forget(task_id)

    async def _drop(self, identity: str) -> None:
        await self._networks.container_gone(identity)
        try:
            await self._runtime.remove(identity, force=True)
        except NotFoundError:
            return

    def _workloads(self) -> dict[str, Workload]:
        return {
            workload.spec.labels[naming.TASK_LABEL]: workload
            for workload in self._runtime.list()
            if naming.TASK_LABEL in workload.spec.labels
            and workload.spec.id == naming.workload_id(workload.spec.labels[naming.TASK_LABEL])
        }

    def _report_workload(self, workload: Workload) -> None:
        task_id = workload.spec.labels[naming.TASK_LABEL]
        if workload.state is State.RUNNING:
            self._tell(task_id, TaskState.RUNNING, workload=workload)
        elif workload.state.over:
            code = 125 if workload.exit_code is None else workload.exit_code
            err = "" if code == 0 else workload.message or f"task: non-zero exit ({code})"
            state = TaskState.FAILED if code else TaskState.COMPLETE
            self._tell(task_id, state, workload=workload, err=err)

    def _report(
        self,
        task: Task,
        state: TaskState,
        *,
        err: str = "",
        code: int = 0,
        workload: Workload | None = None,
    ) -> None:
        self._tell(task.id, state, err=err, code=code, workload=workload)

    def _tell(
        self,
        task_id: str,
        state: TaskState,
        *,
        err: str = "",
        code: int = 0,
        workload: Workload | None = None,
    ) -> None:
        container = None
        if workload is not None or state >= TaskState.STARTING:
            container = ContainerStatus(
                container_id=naming.workload_id(task_id),
                pid=0 if workload is None else workload.pid,
                exit_code=code if workload is None else workload.exit_code or 0,
            )
        self._session.report(
            task_id,
            TaskStatus(
                timestamp=int(self._clock() * 1e9),
                state=state,
                message=state.name.lower(),
                err=err,
                container=container,
                port_status=self._port_status(task_id),
            ),
        )

    def _port_status(self, task_id: str) -> PortStatus | None:
        """Return the ports of this host that a task has, with the numbers they got."""
        attachments = self._networks.attachments(naming.workload_id(task_id))
        ports = [parse(text) for attachment in attachments for text in attachment.published]
        if not ports:
            return None
        return PortStatus(
            ports=tuple(
                PortConfig(
                    protocol=PortProtocol[port.protocol.upper()],
                    target_port=port.target,
                    published_port=port.published,
                    publish_mode=PublishMode.HOST,
                )
                for port in ports
            )
        )

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _stage(attachment: Attachment) -> Stage | None:
    return None if attachment.service is None else attachment.service.stage
