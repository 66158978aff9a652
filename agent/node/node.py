"""The node's life in and out of clusters: init, join, leave, and what is known at any time.

Each change is all or nothing: an init or join that fails leaves no file, no process and no kernel object.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from agent.discovery.service import Discovery
from agent.node import host
from agent.node.address import Addresses, resolve
from agent.node.coordinator import Coordinator
from agent.node.join import join, targets
from agent.node.member import Member
from agent.node.membership import START_TIMEOUT, Lifecycle, Membership
from agent.node.options import (
    InitOptions,
    JoinOptions,
    NodeSettings,
    check_init,
    founding_config,
    joining_config,
)
from agent.node.state import NodeState, RunDirectory, StateDirectory
from agent.workload.runtime import Runtime
from swarm.errors import InvariantError, PreconditionError, SwarmError
from swarm.identity.certs import Role
from swarm.identity.keystore import KeyStore
from swarm.identity.sockets import join_address, split_target
from swarm.identity.unlock import format_unlock_key
from swarm.model import Peer

_SETTLE: Final = 0.2

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
        self._membership: Membership | None = None
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
        membership = self._begin(state)
        if state.manager:
            membership.launch_manager()
        membership.start_member(first=False)
        log.info("node.resumed", node=state.node_id, cluster=state.cluster_id)

    def _begin(self, state: NodeState) -> Membership:
        """Make the membership that ``state`` says; nothing of it runs yet."""
        assert self._group is not None  # noqa: S101  # run() is running
        self._membership = Membership(
            state,
            settings=self.settings,
            directory=self._state,
            run_dir=self._run_dir,
            discovery=self._discovery,
            runtime=self._runtime,
            group=self._group,
            changing=self._changing,
        )
        return self._membership

    # -- questions -------------------------------------------------------------------------

    @property
    def lifecycle(self) -> Lifecycle:
        """Where the node stands."""
        if self._membership is None:
            return Lifecycle.PENDING if self._joining else Lifecycle.INACTIVE
        return self._membership.lifecycle

    @property
    def error(self) -> str:
        """What is wrong now, for a person; empty when all is well."""
        return "" if self._membership is None else self._membership.error

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
            check_init(options)
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
        self._state.save_manager_config(founding_config(options, addresses))
        membership = self._begin(
            NodeState(node_id="", cluster_id="", manager=True, addresses=addresses)
        )
        await membership.start_manager()
        credentials = await membership.load_credentials()
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
        membership.start_member(first=True)
        await membership.until_serving()
        unlock_key = ""
        if options.autolock and (key := await membership.local.unlock_key(START_TIMEOUT)):
            unlock_key = format_unlock_key(key)
        log.info("node.initialized", node=identity.node_id, cluster=identity.cluster_id)
        return identity.node_id, unlock_key

    async def _force_new_cluster(self) -> str:
        """Restart the manager on its own state, as the only one."""
        membership = self._membership
        if membership is None or not membership.state.manager:
            raise PreconditionError(NOT_MANAGER)
        config = self._state.load_manager_config()
        key = b""
        with contextlib.suppress(SwarmError):  # a manager that does not run may still need none
            key = await membership.local.unlock_key(START_TIMEOUT)
        self._state.save_manager_config({**config, "force_new_cluster": True})
        await membership.stop()
        try:
            await membership.start_manager(key=key)
        finally:
            self._state.save_manager_config({**config, "force_new_cluster": False})
        membership.start_member(first=False)
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
            self._state.save_manager_config(joining_config(addresses, others))
        self._state.save(state)
        self._state.save_managers((Peer(addr=joined.manager),))
        membership = self._begin(state)
        if state.manager:
            await membership.start_manager()
        membership.start_member(first=True)
        await membership.until_serving()
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
            if manager and not force:
                await membership.local.check_departure(membership.state.node_id)
            if membership.member is not None:
                try:
                    await membership.member.leave()
                except SwarmError as error:
                    log.warning("node.leave.incomplete", reason=str(error))
            if manager:
                try:
                    await membership.local.leave(FORCED_LEAVE if force else LEAVE)
                except SwarmError as error:
                    if not force:
                        raise
                    log.warning("node.leave.forced", reason=str(error))
            await self._undo()
            log.info("node.left", node=membership.state.node_id)

    async def unlock(self, key: str) -> None:
        """Start a locked manager with its unlock key.

        Raises:
            UnlockKeyError: the text is no unlock key.
            PreconditionError: this manager is not locked, or the key is not its own.
            DeadlineError: the manager does not get ready.
        """
        if self._membership is None:
            raise PreconditionError(NOT_MEMBER)
        await self._membership.unlock(key)

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

    async def _undo(self) -> None:
        """Stop and forget a membership, however far it came."""
        membership, self._membership = self._membership, None
        if membership is not None:
            await membership.destroy()
        await asyncio.to_thread(self._state.wipe)
        await asyncio.to_thread(self._run_dir.wipe)
