"""What runs for one membership: the member, and beside it the manager process where there is one."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from enum import Enum
from pathlib import Path
from typing import Final

import structlog

from agent.discovery.service import Discovery
from agent.node.local import LocalManager
from agent.node.member import Member, MemberSettings
from agent.node.options import NodeSettings, joining_config
from agent.node.state import NodeState, RunDirectory, StateDirectory
from agent.supervisor import Supervisor
from agent.workload.runtime import Runtime
from swarm.errors import (
    DeadlineError,
    HostError,
    InvariantError,
    PreconditionError,
    SwarmError,
)
from swarm.identity.certs import Credentials, Role
from swarm.identity.keystore import KeyStore, LockedError
from swarm.identity.unlock import format_unlock_key, parse_unlock_key

START_TIMEOUT: Final = 75.0
"""Seconds a new manager has to get ready: for slow machines, since one that cannot start ends by itself and
says why. Less than a person's ``swarm init`` waits."""

JOIN_TIMEOUT: Final = 20.0
"""Seconds from the certificate to the session; engines wait as long."""

RETRY_BASE: Final = 1.0
RETRY_MAX: Final = 30.0

CONTROL_SOCKET: Final = Path("manager") / "control.sock"

log = structlog.get_logger(component="node")


class Lifecycle(Enum):
    """Where the node stands."""

    INACTIVE = "inactive"
    PENDING = "pending"
    ACTIVE = "active"
    ERROR = "error"
    LOCKED = "locked"


class Membership:
    """The tasks of one membership, in the task group of the node.

    Args:
        state: identity and addresses; replaced when the role changes.
        settings: of the daemon.
        directory: of the state.
        run_dir: of what a reboot may take.
        discovery: the daemon's name service.
        runtime: the daemon's workloads.
        group: where the tasks live; its owner sets ``ending`` before it cancels it.
        changing: held while the node's place in the cluster changes.
    """

    def __init__(
        self,
        state: NodeState,
        *,
        settings: NodeSettings,
        directory: StateDirectory,
        run_dir: RunDirectory,
        discovery: Discovery,
        runtime: Runtime,
        group: asyncio.TaskGroup,
        changing: asyncio.Lock,
    ) -> None:
        self.state = state
        self.member: Member | None = None
        self.supervisor: Supervisor | None = None
        self.ending = False
        """Its tasks are being cancelled. (A failure at that moment hides a cancellation from whoever is
        in a task group of Python 3.11.)"""
        self._settings = settings
        self._directory = directory
        self._run_dir = run_dir
        self._discovery = discovery
        self._runtime = runtime
        self._group = group
        self._changing = changing
        self._tasks: list[asyncio.Task[None]] = []
        self._manager_task: asyncio.Task[None] | None = None
        self._error = ""
        self._failure: SwarmError | None = None
        self._failed = asyncio.Event()
        self._retry = asyncio.Event()
        """Set when a failed member should start again without waiting."""

    # -- questions -------------------------------------------------------------------------

    @property
    def lifecycle(self) -> Lifecycle:
        """Where the node stands."""
        if self.supervisor is not None and self.supervisor.locked:
            return Lifecycle.LOCKED
        if self.member is None:
            return Lifecycle.ERROR if self._error else Lifecycle.PENDING
        return Lifecycle.ACTIVE if self.member.active else Lifecycle.PENDING

    @property
    def error(self) -> str:
        """What is wrong now, for a person; empty when all is well."""
        found = [self._error]
        if self.member is not None:
            found += [self.member.error, self.member.session.last_error]
            if self.member.coordinator is not None:
                found.append(self.member.coordinator.error)
        if self.supervisor is not None and self.supervisor.pid is None:
            found.append(self.supervisor.status)
        return "; ".join(text for text in found if text)

    @property
    def local(self) -> LocalManager:
        """The way to this node's own manager process."""
        return LocalManager(self._settings.run_dir / CONTROL_SOCKET)

    async def load_credentials(self) -> Credentials | None:
        """Load the certificate; a locked key is opened with what the running manager knows."""
        store = KeyStore(self._directory.certificates)
        try:
            return await asyncio.to_thread(store.load)
        except LockedError:
            key = await self.local.unlock_key(START_TIMEOUT)
            return await asyncio.to_thread(store.load, key)

    # -- the manager process ---------------------------------------------------------------

    async def start_manager(self, *, key: bytes = b"") -> None:
        """Start the manager process and wait until it serves; ``key`` unlocks it.

        Raises:
            HostError: it did not start; the text is its own.
            DeadlineError: it did not get ready in time.
        """
        await self.launch_manager(key=key).ready(START_TIMEOUT)

    def launch_manager(self, *, key: bytes = b"") -> Supervisor:
        """Start the manager process, which then is kept running."""
        supervisor = self.supervisor = Supervisor(
            state_dir=self._settings.state_dir,
            run_dir=self._settings.run_dir,
            log_level=self._settings.log_level,
        )
        if key:
            supervisor.unlock(format_unlock_key(key))
        self._manager_task = self._group.create_task(supervisor.run())
        self._tasks.append(self._manager_task)
        return supervisor

    async def unlock(self, key: str) -> None:
        """Start a locked manager with its unlock key.

        Raises:
            UnlockKeyError: the text is no unlock key.
            PreconditionError: this manager is not locked, or the key is not its own.
            DeadlineError: the manager does not get ready.
        """
        supervisor = self.supervisor
        if supervisor is None or not supervisor.locked:
            raise PreconditionError("swarm is not locked")
        parse_unlock_key(key)
        supervisor.unlock(key.strip())
        try:
            await supervisor.ready(START_TIMEOUT)
        except HostError as error:
            if supervisor.locked:
                raise PreconditionError(
                    "swarm could not be unlocked: invalid key provided"
                ) from error
            raise
        self._retry.set()
        log.info("node.unlocked", node=self.state.node_id)

    async def _end_manager(self) -> None:
        task, self._manager_task = self._manager_task, None
        self.supervisor = None
        if task is not None:
            self._tasks.remove(task)
            task.cancel()
            await asyncio.wait({task})

    async def _change_role(self, credentials: Credentials) -> NodeState:
        """Begin or end to be a manager, as a new certificate says.

        Whatever step a crash comes after, the session demands the certificate anew, and the rest is made
        up for.
        """
        async with self._changing:
            identity = credentials.identity
            manager = identity is not None and identity.role is Role.MANAGER
            store = KeyStore(self._directory.certificates)
            state = dataclasses.replace(self.state, manager=manager)
            if manager:
                others = [peer.addr for peer in self._directory.load_managers()]
                await asyncio.to_thread(store.save, credentials)
                self._directory.save_manager_config(joining_config(state.addresses, others))
                self._directory.save(state)
                self.state = state
                self.launch_manager()
            else:
                await self._end_manager()
                # Only now: the manager process looks after these files while it runs.
                await asyncio.to_thread(store.save, credentials)
                self._directory.save(state)
                self.state = state
                await asyncio.to_thread(self._directory.wipe_manager)
            log.info("node.role.changed", manager=manager)
            return state

    # -- the member ------------------------------------------------------------------------

    def start_member(self, *, first: bool) -> None:
        """Take part in the cluster; ``first`` as a node that is new in it."""
        self._tasks.append(self._group.create_task(self._keep_member(first=first)))

    async def until_serving(self) -> None:
        """Wait until a new membership works.

        Raises:
            SwarmError: why it does not.
        """
        async with asyncio.TaskGroup() as group:
            failed = group.create_task(self._failed.wait())
            serving = group.create_task(self._serving())
            done, _ = await asyncio.wait(
                {failed, serving}, timeout=JOIN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
            failed.cancel()
            serving.cancel()
        if self._failure is not None:
            raise self._failure
        if not done:
            detail = self.error
            raise DeadlineError(
                f"the manager did not accept this node within {JOIN_TIMEOUT:.0f} s"
                + (f": {detail}" if detail else "")
            )

    async def _serving(self) -> None:
        """Wait for the member object, which appears once its certificate is read, to serve."""
        while self.member is None:  # noqa: ASYNC110  # one or two turns of the loop
            await asyncio.sleep(0.01)
        await self.member.serving.wait()

    async def _keep_member(self, *, first: bool) -> None:
        """Run the member; when it fails as a whole, say why and start anew after a pause."""
        pause = RETRY_BASE
        while True:
            try:
                await self._run_member(first=first)
            except* InvariantError:
                raise
            except* SwarmError as failed:
                self._failure = _first(failed)
                self._error = str(self._failure)
                self._failed.set()
                log.warning("member.failed", reason=self._error, retry_in=pause)
            finally:
                self.member = None
                first = False
            if self.ending:
                return
            self._retry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._retry.wait()
            pause = min(2 * pause, RETRY_MAX)

    async def _run_member(self, *, first: bool) -> None:
        credentials = await self.load_credentials()
        if credentials is None:
            raise PreconditionError(
                f"the certificates of this node are gone from {self._directory.certificates}: "
                "leave the swarm with --force and join again"
            )
        self.member = Member(
            MemberSettings(
                hostname=self._settings.hostname,
                state=self._directory,
                run=self._run_dir,
                timing=self._settings.timing,
            ),
            state=self.state,
            credentials=credentials,
            managers=self._directory.load_managers(),
            discovery=self._discovery,
            runtime=self._runtime,
            load=self.load_credentials,
            change_role=self._change_role,
            first=first,
        )
        self._error = ""
        await self.member.run()

    # -- the end ---------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop what runs, the member first; its files and kernel objects stay."""
        self.ending = True
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.wait({task})
        self._tasks.clear()
        self.member = self.supervisor = self._manager_task = None
        self.ending = False

    async def destroy(self) -> None:
        """Stop what runs, and take its objects out of the kernel."""
        if self.member is not None and self.member.dataplane is not None:
            try:
                await self.member.dataplane.destroy()
            except SwarmError as error:
                log.warning("dataplane.destroy.failed", reason=str(error))
        await self.stop()


def _first(failed: BaseExceptionGroup[SwarmError]) -> SwarmError:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SwarmError)  # noqa: S101  # the group was split by that class
    return error
