"""The node's life in and out of clusters: init, join, leave, and what is known at any time.

Each change is all or nothing: an init or join that fails leaves no file, no process and no kernel object.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

import structlog

from agent.discovery.service import Discovery
from agent.gossip.config import LAN, Timing
from agent.node import host
from agent.node.address import Addresses, resolve
from agent.node.coordinator import Coordinator
from agent.node.join import join, targets
from agent.node.local import LocalManager
from agent.node.member import Member, MemberSettings
from agent.node.state import NodeState, RunDirectory, StateDirectory
from agent.supervisor import Supervisor
from agent.workload.runtime import Runtime
from swarm.errors import (
    DeadlineError,
    HostError,
    InvalidArgumentError,
    InvariantError,
    PreconditionError,
    SwarmError,
)
from swarm.identity.certs import Credentials, Role
from swarm.identity.keystore import KeyStore, LockedError
from swarm.identity.sockets import join_address, split_target
from swarm.identity.unlock import format_unlock_key, parse_unlock_key
from swarm.model import NodeAvailability, Peer

START_TIMEOUT: Final = 30.0
"""Seconds a new manager has to get ready."""

JOIN_TIMEOUT: Final = 20.0
"""Seconds from the certificate to the session; engines wait as long."""

_SETTLE: Final = 0.2
RETRY_BASE: Final = 1.0
RETRY_MAX: Final = 30.0

CONTROL_SOCKET: Final = Path("manager") / "control.sock"

NOT_MEMBER: Final = (
    'This node is not a swarm manager. Use "swarm init" or "swarm join" to connect this node '
    "to swarm and try again."
)
NOT_MANAGER: Final = (
    "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
    "Please run this command on a manager node or promote the current node to a manager."
)
ALREADY: Final = (
    'This node is already part of a swarm. Use "swarm leave" to leave this swarm '
    "and join another one."
)
NO_SWARM: Final = "This node is not part of a swarm"
LEAVE: Final = 20.0
FORCED_LEAVE: Final = 5.0
"""Seconds the others have to let a manager go; one that leaves by force goes anyway."""

log = structlog.get_logger(component="node")


class Lifecycle(Enum):
    """Where the node stands."""

    INACTIVE = "inactive"
    PENDING = "pending"
    ACTIVE = "active"
    ERROR = "error"
    LOCKED = "locked"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """What the daemon was started with."""

    state_dir: Path
    run_dir: Path
    hostname: str
    log_level: str = "info"
    timing: Timing = LAN


@dataclass(frozen=True, slots=True, kw_only=True)
class InitOptions:
    """How to make a cluster; empty and zero mean the defaults."""

    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    data_path_port: int = 0
    default_addr_pools: tuple[str, ...] = ()
    default_addr_pool_mask_length: int = 0
    availability: NodeAvailability = NodeAvailability.ACTIVE
    cert_expiry_ns: int = 0
    dispatcher_heartbeat_ns: int = 0
    task_history_limit: int = 0
    autolock: bool = False
    force_new_cluster: bool = False
    snapshot_interval: int = 0
    max_snapshots: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinOptions:
    """How to join a cluster."""

    remote_addrs: tuple[str, ...]
    token: str = field(repr=False)
    listen_addr: str = ""
    advertise_addr: str = ""
    data_path_addr: str = ""
    availability: NodeAvailability = NodeAvailability.ACTIVE


@dataclass(slots=True, kw_only=True)
class _Membership:
    """What runs for one membership."""

    state: NodeState
    member: Member | None = None
    supervisor: Supervisor | None = None
    manager_task: asyncio.Task[None] | None = None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    error: str = ""
    failure: SwarmError | None = None
    failed: asyncio.Event = field(default_factory=asyncio.Event)
    ending: bool = False
    """Its tasks are being cancelled. (A failure at that moment hides a cancellation from whoever is in a
    task group of Python 3.11.)"""
    retry: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a failed member should start again without waiting."""


class Node:
    """This host as a node. ``run()`` owns everything.

    Args:
        settings: of the daemon.
        discovery: the daemon's name service, run by the daemon.
        runtime: the daemon's workloads, recovered and run by the daemon.
    """

    def __init__(self, settings: NodeSettings, *, discovery: Discovery, runtime: Runtime) -> None:
        self.settings = settings
        self._runtime = runtime
        self._discovery = discovery
        self._state = StateDirectory(settings.state_dir)
        self._run_dir = RunDirectory(settings.run_dir)
        self._changing = asyncio.Lock()
        self._membership: _Membership | None = None
        self._group: asyncio.TaskGroup | None = None
        self._started = asyncio.Event()
        self._joining = False

    # -- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take up the membership on record and serve until cancelled.

        Raises:
            HostError: the directories are unusable.
        """
        self._run_dir.prepare()
        state = self._state.load()
        async with asyncio.TaskGroup() as group:
            self._group = group
            if state is not None:
                self._take_up(state)
            self._started.set()
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                if self._membership is not None:
                    self._membership.ending = True

    async def started(self) -> None:
        """Wait until calls are served."""
        await self._started.wait()

    def _take_up(self, state: NodeState) -> None:
        """Go on with a membership that was on record."""
        membership = self._membership = _Membership(state=state)
        if state.manager:
            self._start_manager(membership)
        self._start_member(membership, first=False)
        log.info("node.resumed", node=state.node_id, cluster=state.cluster_id)

    # -- questions -------------------------------------------------------------------------

    @property
    def lifecycle(self) -> Lifecycle:
        """Where the node stands."""
        membership = self._membership
        if membership is None:
            return Lifecycle.PENDING if self._joining else Lifecycle.INACTIVE
        if membership.supervisor is not None and membership.supervisor.locked:
            return Lifecycle.LOCKED
        if membership.member is None:
            return Lifecycle.ERROR if membership.error else Lifecycle.PENDING
        return Lifecycle.ACTIVE if membership.member.active else Lifecycle.PENDING

    @property
    def error(self) -> str:
        """What is wrong now, for a person; empty when all is well."""
        membership = self._membership
        if membership is None:
            return ""
        found = [membership.error]
        if membership.member is not None:
            found += [membership.member.error, membership.member.session.last_error]
            if membership.member.coordinator is not None:
                found.append(membership.member.coordinator.error)
        if membership.supervisor is not None and membership.supervisor.pid is None:
            found.append(membership.supervisor.status)
        return "; ".join(text for text in found if text)

    @property
    def state(self) -> NodeState | None:
        """Identity and addresses; None outside of a cluster."""
        return None if self._membership is None else self._membership.state

    @property
    def member(self) -> Member | None:
        """What runs for the membership; None while nothing does."""
        return None if self._membership is None else self._membership.member

    def coordinator(self) -> Coordinator:
        """Return what attaches containers.

        Raises:
            PreconditionError: the node is in no cluster, or its networks are not up (yet).
        """
        membership = self._membership
        if membership is None:
            raise PreconditionError(NOT_MEMBER)
        if membership.member is None or membership.member.coordinator is None:
            detail = self.error or "it is still starting"
            raise PreconditionError(f"this node's networks are not ready: {detail}")
        return membership.member.coordinator

    async def container_gone(self, container_id: str) -> None:
        """Take a container that ended off its networks; waits until they are up, if they are to be."""
        while (membership := self._membership) is not None:
            member = membership.member
            if member is not None and member.coordinator is not None:
                await member.coordinator.container_gone(container_id)
                return
            await asyncio.sleep(_SETTLE)  # starting, or starting anew after a failure

    def require_manager(self) -> None:
        """Refuse what only a manager can do, in the words people know.

        Raises:
            PreconditionError: this node is no manager.
        """
        if self._membership is None:
            raise PreconditionError(NOT_MEMBER)
        if not self._membership.state.manager:
            raise PreconditionError(NOT_MANAGER)

    # -- init ------------------------------------------------------------------------------

    async def init(self, options: InitOptions) -> tuple[str, str]:
        """Make a new cluster with this node as its manager; return (node id, unlock key or "").

        Raises:
            PreconditionError: the node is in a cluster already, or an address must be chosen.
            InvalidArgumentError: an option makes no sense.
            HostError: the manager did not start; the text is its own.
            DeadlineError: it did not get ready in time.
        """
        async with self._changing:
            if options.force_new_cluster and self._membership is not None:
                return await self._force_new_cluster(), ""
            if self._membership is not None:
                raise PreconditionError(ALREADY)
            _check_init(options)
            addresses = await self._resolve(options)
            await asyncio.to_thread(self._state.require_unused)
            self._joining = True
            try:
                return await self._init(options, addresses)
            except BaseException:
                await self._undo()
                raise
            finally:
                self._joining = False

    async def _init(self, options: InitOptions, addresses: Addresses) -> tuple[str, str]:
        self._state.save_manager_config(_manager_config(options, addresses))
        membership = _Membership(
            state=NodeState(node_id="", cluster_id="", manager=True, addresses=addresses)
        )
        self._membership = membership
        supervisor = self._start_manager(membership)
        await supervisor.ready(START_TIMEOUT)
        credentials = await self._load_credentials()
        identity = None if credentials is None else credentials.identity
        if identity is None:
            raise InvariantError("the manager is ready but left no certificate")
        membership.state = NodeState(
            node_id=identity.node_id,
            cluster_id=identity.cluster_id,
            manager=True,
            addresses=addresses,
        )
        manager = join_address(addresses.advertise, addresses.advertise_port)
        self._state.save(membership.state)
        self._state.save_managers((Peer(node_id=identity.node_id, addr=manager),))
        self._start_member(membership, first=True)
        await self._until_serving(membership)
        unlock_key = ""
        if options.autolock and (key := await self._unlock_key()):
            unlock_key = format_unlock_key(key)
        log.info("node.initialized", node=identity.node_id, cluster=identity.cluster_id)
        return identity.node_id, unlock_key

    async def _unlock_key(self) -> bytes:
        """Ask the manager process of this node for its unlock key; empty when autolock is off."""
        return await LocalManager(self.settings.run_dir / CONTROL_SOCKET).unlock_key(START_TIMEOUT)

    async def _load_credentials(self) -> Credentials | None:
        """Load the certificate; a locked key is opened with what the running manager knows."""
        store = KeyStore(self._state.certificates)
        try:
            return await asyncio.to_thread(store.load)
        except LockedError:
            return await asyncio.to_thread(store.load, await self._unlock_key())

    async def _force_new_cluster(self) -> str:
        """Restart the manager on its own state, as the only one."""
        membership = self._membership
        if membership is None or not membership.state.manager:
            raise PreconditionError(NOT_MANAGER)
        config = self._state.load_manager_config()
        key = b""
        with contextlib.suppress(SwarmError):  # a manager that does not run may still need none
            key = await self._unlock_key()
        self._state.save_manager_config({**config, "force_new_cluster": True})
        await self._stop(membership)
        try:
            supervisor = self._start_manager(membership, key=key)
            await supervisor.ready(START_TIMEOUT)
        finally:
            self._state.save_manager_config({**config, "force_new_cluster": False})
        self._start_member(membership, first=False)
        return membership.state.node_id

    # -- join ------------------------------------------------------------------------------

    async def join(self, options: JoinOptions) -> tuple[str, bool]:
        """Join a cluster; return (node id, whether as a manager).

        Raises:
            PreconditionError: the node is in a cluster already, or an address must be chosen.
            TokenError: the token is malformed.
            PermissionDeniedError: the token is another cluster's.
            UnavailableError: no manager could be reached; the text says why for each.
            SwarmError: a manager refused; the text is its own.
        """
        async with self._changing:
            if self._membership is not None:
                raise PreconditionError(ALREADY)
            remotes = targets(options.remote_addrs)
            addresses = await self._resolve(options, remotes[0])
            # From here on everything in the directory is ours to remove again.
            await asyncio.to_thread(self._state.require_unused)
            self._joining = True
            try:
                return await self._join(options, remotes, addresses)
            except BaseException:
                await self._undo()
                raise
            finally:
                self._joining = False

    async def _join(
        self, options: JoinOptions, remotes: list[str], addresses: Addresses
    ) -> tuple[str, bool]:
        joined = await join(
            remotes,
            options.token,
            directory=self.settings.run_dir / "join",
            availability=options.availability,
        )
        await asyncio.to_thread(KeyStore(self._state.certificates).save, joined.credentials)
        state = NodeState(
            node_id=joined.identity.node_id,
            cluster_id=joined.identity.cluster_id,
            manager=joined.identity.role is Role.MANAGER,
            addresses=addresses,
        )
        if state.manager:
            others = [joined.manager, *(each for each in remotes if each != joined.manager)]
            self._state.save_manager_config(_joining_config(addresses, others))
        self._state.save(state)
        self._state.save_managers((Peer(addr=joined.manager),))
        membership = self._membership = _Membership(state=state)
        if state.manager:
            await self._start_manager(membership).ready(START_TIMEOUT)
        self._start_member(membership, first=True)
        await self._until_serving(membership)
        log.info("node.joined", node=state.node_id, cluster=state.cluster_id)
        return state.node_id, state.manager

    # -- leave -----------------------------------------------------------------------------

    async def leave(self, *, force: bool = False) -> None:
        """Leave the cluster and forget everything about it; containers go on without its networks.

        Raises:
            PreconditionError: the node is in no cluster, or is a manager that the others cannot do
                without, and ``force`` is not given.
        """
        async with self._changing:
            membership = self._membership
            if membership is None:
                raise PreconditionError(NO_SWARM)
            manager = membership.state.manager
            local = LocalManager(self.settings.run_dir / CONTROL_SOCKET)
            if manager and not force:
                await local.check_departure(membership.state.node_id)
            if membership.member is not None:
                try:
                    await membership.member.leave()
                except SwarmError as error:
                    log.warning("node.leave.incomplete", reason=str(error))
            if manager:
                try:
                    await local.leave(FORCED_LEAVE if force else LEAVE)
                except SwarmError as error:
                    if not force:
                        raise
                    log.warning("node.leave.forced", reason=str(error))
            await self._undo()
            log.info("node.left", node=membership.state.node_id)

    # -- roles -----------------------------------------------------------------------------

    async def unlock(self, key: str) -> None:
        """Start a locked manager with its unlock key.

        Raises:
            UnlockKeyError: the text is no unlock key.
            PreconditionError: this manager is not locked, or the key is not its own.
            DeadlineError: the manager does not get ready.
        """
        membership = self._membership
        if membership is None:
            raise PreconditionError(NOT_MEMBER)
        supervisor = membership.supervisor
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
        membership.retry.set()
        log.info("node.unlocked", node=membership.state.node_id)

    async def _change_role(self, membership: _Membership, credentials: Credentials) -> NodeState:
        """Begin or end to be a manager, as a new certificate says.

        Whatever step a crash comes after, the session demands the certificate anew, and the rest is made
        up for.
        """
        async with self._changing:
            identity = credentials.identity
            manager = identity is not None and identity.role is Role.MANAGER
            store = KeyStore(self._state.certificates)
            state = dataclasses.replace(membership.state, manager=manager)
            if manager:
                others = [peer.addr for peer in self._state.load_managers()]
                await asyncio.to_thread(store.save, credentials)
                self._state.save_manager_config(_joining_config(state.addresses, others))
                self._state.save(state)
                membership.state = state
                self._start_manager(membership)
            else:
                await self._end_manager(membership)
                # Only now: the manager process looks after these files while it runs.
                await asyncio.to_thread(store.save, credentials)
                self._state.save(state)
                membership.state = state
                await asyncio.to_thread(self._state.wipe_manager)
            log.info("node.role.changed", manager=manager)
            return state

    async def _end_manager(self, membership: _Membership) -> None:
        task, membership.manager_task = membership.manager_task, None
        membership.supervisor = None
        if task is not None:
            membership.tasks.remove(task)
            task.cancel()
            await asyncio.wait({task})

    # -- parts -----------------------------------------------------------------------------

    async def _resolve(
        self, options: InitOptions | JoinOptions, remote: str | None = None
    ) -> Addresses:
        own = await asyncio.to_thread(host.addresses)
        route = None
        if remote is not None:
            name, port = split_target(remote)
            route = await asyncio.to_thread(host.route_to, name, port)
        return resolve(
            listen=options.listen_addr,
            advertise=options.advertise_addr,
            data_path=options.data_path_addr,
            host=own,
            route=route,
        )

    def _start_manager(self, membership: _Membership, *, key: bytes = b"") -> Supervisor:
        assert self._group is not None  # noqa: S101  # run() is running
        supervisor = membership.supervisor = Supervisor(
            state_dir=self.settings.state_dir,
            run_dir=self.settings.run_dir,
            log_level=self.settings.log_level,
        )
        if key:
            supervisor.unlock(format_unlock_key(key))
        membership.manager_task = self._group.create_task(supervisor.run())
        membership.tasks.append(membership.manager_task)
        return supervisor

    def _start_member(self, membership: _Membership, *, first: bool) -> None:
        assert self._group is not None  # noqa: S101  # run() is running
        task = self._group.create_task(self._keep_member(membership, first=first))
        membership.tasks.append(task)

    async def _keep_member(self, membership: _Membership, *, first: bool) -> None:
        """Run the membership; when it fails as a whole, say why and start anew after a pause."""
        pause = RETRY_BASE
        while True:
            try:
                await self._run_member(membership, first=first)
            except* InvariantError:
                raise
            except* SwarmError as failed:
                failure = _first(failed)
                membership.failure = failure
                membership.error = str(failure)
                membership.failed.set()
                log.warning("member.failed", reason=membership.error, retry_in=pause)
            finally:
                membership.member = None
                first = False
            if membership.ending:
                return
            membership.retry.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await membership.retry.wait()
            pause = min(2 * pause, RETRY_MAX)

    async def _run_member(self, membership: _Membership, *, first: bool) -> None:
        credentials = await self._load_credentials()
        if credentials is None:
            raise PreconditionError(
                f"the certificates of this node are gone from {self._state.certificates}: "
                "leave the swarm with --force and join again"
            )
        member = self._new_member(membership, credentials, first=first)
        membership.member = member
        membership.error = ""
        await member.run()

    def _new_member(
        self, membership: _Membership, credentials: Credentials, *, first: bool
    ) -> Member:
        return Member(
            MemberSettings(
                hostname=self.settings.hostname,
                state=self._state,
                run=self._run_dir,
                timing=self.settings.timing,
            ),
            state=membership.state,
            credentials=credentials,
            managers=self._state.load_managers(),
            discovery=self._discovery,
            runtime=self._runtime,
            load=self._load_credentials,
            change_role=lambda credentials: self._change_role(membership, credentials),
            first=first,
        )

    async def _until_serving(self, membership: _Membership) -> None:
        """Wait until a new membership works.

        Raises:
            SwarmError: why it does not.
        """
        async with asyncio.TaskGroup() as group:
            failed = group.create_task(membership.failed.wait())
            serving = group.create_task(_serving(membership))
            done, _ = await asyncio.wait(
                {failed, serving}, timeout=JOIN_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
            failed.cancel()
            serving.cancel()
        if membership.failure is not None:
            raise membership.failure
        if not done:
            detail = self.error
            raise DeadlineError(
                f"the manager did not accept this node within {JOIN_TIMEOUT:.0f} s"
                + (f": {detail}" if detail else "")
            )

    async def _stop(self, membership: _Membership) -> None:
        """Stop what runs for a membership, the member first; its files stay."""
        membership.ending = True
        for task in reversed(membership.tasks):
            task.cancel()
            await asyncio.wait({task})
        membership.tasks.clear()
        membership.member = membership.supervisor = membership.manager_task = None
        membership.ending = False

    async def _undo(self) -> None:
        """Stop and forget a membership, however far it came."""
        membership, self._membership = self._membership, None
        if membership is not None:
            member = membership.member
            if member is not None and member.dataplane is not None:
                try:
                    await member.dataplane.destroy()
                except SwarmError as error:
                    log.warning("dataplane.destroy.failed", reason=str(error))
            await self._stop(membership)
        await asyncio.to_thread(self._state.wipe)
        await asyncio.to_thread(self._run_dir.wipe)


async def _serving(membership: _Membership) -> None:
    """Wait for the member object, which appears once its certificate is read, to serve."""
    while membership.member is None:  # noqa: ASYNC110  # one or two turns of the loop
        await asyncio.sleep(0.01)
    await membership.member.serving.wait()


def _first(failed: BaseExceptionGroup[SwarmError]) -> SwarmError:
    error: BaseException = failed
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, SwarmError)  # noqa: S101  # the group was split by that class
    return error


def _check_init(options: InitOptions) -> None:
    """Refuse early what the manager would refuse, in words a person typed options for."""
    port = options.data_path_port
    if port and not 1024 <= port <= 49151:
        raise InvalidArgumentError(
            f"data path port {port} is not between 1024 and 49151 (or 0 for the default)"
        )
    mask = options.default_addr_pool_mask_length
    if mask and not options.default_addr_pools:
        raise InvalidArgumentError("--default-addr-pool-mask-length needs a --default-addr-pool")
    if mask > 29:
        raise InvalidArgumentError(f"subnets of /{mask} are too small: at most /29")
    for pool in options.default_addr_pools:
        try:
            ipaddress.IPv4Network(pool)
        except ValueError as error:
            raise InvalidArgumentError(
                f"default address pool {pool!r} is not an IPv4 subnet: {error}"
            ) from error
    hour = 3600 * 1_000_000_000
    if 0 < options.cert_expiry_ns < hour:
        raise InvalidArgumentError("node certificates must be valid for at least an hour")


def _joining_config(addresses: Addresses, managers: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a manager that joins others."""
    return {
        "mode": "join",
        "listen_addr": addresses.listen,
        "advertise_addr": join_address(addresses.advertise, addresses.advertise_port),
        "join_addrs": list(managers),
    }


def _manager_config(options: InitOptions, addresses: Addresses) -> dict[str, Any]:
    """Return the manager's settings; what was not asked for is left to its own defaults."""
    asked: dict[str, Any] = {
        "default_address_pools": list(options.default_addr_pools),
        "subnet_size": options.default_addr_pool_mask_length,
        "data_path_port": options.data_path_port,
        "cert_expiry_ns": options.cert_expiry_ns,
        "heartbeat_ns": options.dispatcher_heartbeat_ns,
        "task_history_limit": options.task_history_limit,
        "snapshot_interval": options.snapshot_interval,
        "max_snapshots": options.max_snapshots,
    }
    return {
        "mode": "init",
        "listen_addr": addresses.listen,
        "advertise_addr": join_address(addresses.advertise, addresses.advertise_port),
        "availability": options.availability.name.lower(),
        "autolock": options.autolock,
        **{key: value for key, value in asked.items() if value},
    }
