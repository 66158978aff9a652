"""Everything that runs while the node is in a cluster: one object from start to end of it.

Order of coming up: the session (with what the last agent knew: managers, keys, this node), then, as soon
as the manager's word on this node is known, the data plane and the coordinator, then, as soon as there are
keys, gossip. A restarted agent has all of it on record and waits for no manager.

What a failure does: the data plane, the coordinator or the session failing is a failure of the whole, and
the owner starts a new one. Gossip that cannot open its port is tried again alone, except at the very first
start, where it fails the join.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from agent.balancer import Balancer
from agent.balancer.hostports import HostPorts
from agent.balancer.mesh import Mesh
from agent.dataplane import Dataplane, IpsecKey, Settings
from agent.discovery.service import Discovery
from agent.gossip.changes import TableChange
from agent.gossip.config import LAN, GossipConfig, Timing
from agent.gossip.node import random_name
from agent.gossip.service import Gossip, State
from agent.gossip.swim.keyring import GossipKey
from agent.node.coordinator import Coordinator
from agent.node.describe import describe
from agent.node.renewal import Renewal
from agent.node.state import NodeState, RunDirectory, StateDirectory
from agent.session.core import SessionCore
from agent.session.messages import (
    AssignmentsComplete,
    KeysChanged,
    ManagersChanged,
    News,
    NodeChanged,
    Phase,
    RenewalDemanded,
    RootOffered,
    SessionConfig,
    SessionOpened,
    TaskAssigned,
    TaskRemoved,
)
from agent.session.service import Session
from agent.tasks import TaskRunner
from agent.workload.runtime import Runtime
from swarm.errors import HostError, SwarmError
from swarm.identity.certs import (
    CertificateError,
    Credentials,
    Role,
    roots_untrusted,
    verify_chain,
)
from swarm.identity.dialer import TlsDialer
from swarm.identity.keystore import KeyStore
from swarm.identity.sockets import split_target
from swarm.model import NodeRole, Peer

GOSSIP_PORT: Final = 7946
GOSSIP_SUBSYSTEM: Final = "networking:gossip"
IPSEC_SUBSYSTEM: Final = "networking:ipsec"
DEFAULT_DATA_PORT: Final = 4789
GOSSIP_RETRY: Final = 5.0
GOSSIP_LEAVE: Final = 3.0
DETACH_WAIT: Final = 5.0
CONFIRM_AFTER: Final = 60.0
"""Seconds of gossip with others after which remembered entries that nobody repeated are dropped."""

COMPANY: Final = 4
"""Members noted for the next start."""

COMPANY_LOOK: Final = 5.0
"""Seconds between two looks at who is there to be noted."""

CERTIFICATE_CHECK: Final = 30.0
"""Seconds between two looks at a manager's certificate files, which the manager process renews."""

CERTIFICATE_SOON: Final = 0.5
SOON_CHECKS: Final = 40
"""The same, and how often, once managers have asked for a renewal or told another root."""

log = structlog.get_logger(component="member")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSettings:
    """What a membership needs to know of its host and daemon."""

    hostname: str
    state: StateDirectory
    run: RunDirectory
    timing: Timing = LAN


class Member:
    """One node's membership in a cluster.

    Args:
        settings: of the daemon.
        state: addresses and identity.
        credentials: this node's certificate.
        managers: known so far.
        discovery: the daemon's name service.
        runtime: the daemon's workloads.
        load: reads the certificate files anew.
        change_role: takes a certificate of the other role: starts or ends this node's manager, stores
            the certificate, and returns the new state.
        first: this is the first start after init or join, where any failure is fatal.
    """

    def __init__(
        self,
        settings: MemberSettings,
        *,
        state: NodeState,
        credentials: Credentials,
        managers: tuple[Peer, ...],
        discovery: Discovery,
        runtime: Runtime,
        load: Callable[[], Awaitable[Credentials | None]],
        change_role: Callable[[Credentials], Awaitable[NodeState]],
        first: bool = False,
    ) -> None:
        rng = random.SystemRandom()
        self._settings = settings
        self.state = state
        self._first = first
        self._met: tuple[tuple[str, int], ...] = ()
        self._load = load
        self._change_role = change_role
        self._discovery = discovery
        self._runtime = runtime
        self._credentials = credentials
        known = settings.run.load_session()
        self._known = known
        self._dialer = TlsDialer(directory=settings.run.path / "dial", credentials=credentials)
        role = NodeRole.MANAGER if state.manager else NodeRole.WORKER
        self._core = SessionCore(
            SessionConfig(),
            node_id=state.node_id,
            role=role,
            managers=managers,
            root_pem=credentials.root_pem,
            rng=rng,
            session_id=known.session_id,
            keys=known.keys,
        )
        self.session = Session(
            self._core,
            dialer=self._dialer,
            describe=lambda: describe(settings.hostname, self._credentials),
            on_news=self._hear,
        )
        self._renewal = Renewal(
            credentials,
            dialer=self._dialer,
            managers=lambda: self.session.managers,
            install=self._install,
            rng=rng,
            scheduled=lambda: not self.state.manager,
        )
        self.coordinator: Coordinator | None = None
        self.tasks: TaskRunner | None = None
        self.mesh: Mesh | None = None
        self.gossip: Gossip | None = None
        self.dataplane: Dataplane | None = None
        self.error = ""
        """What is wrong now, for a person; empty when all is well."""
        self.sessions = 0
        """How often a manager has accepted a session."""
        self.serving = asyncio.Event()
        """Set when a manager has accepted this node and networks and gossip are up."""
        self._group: asyncio.TaskGroup | None = None
        self._ending = False
        self._opened = asyncio.Event()
        self._node_known = asyncio.Event()
        self._keys_known = asyncio.Event()
        self._keys_changed = asyncio.Event()
        self._expected = asyncio.Event()
        self._soon = 0
        if known.node is not None:
            self._node_known.set()
        if known.keys:
            self._keys_known.set()
        self._complete = False

    @property
    def active(self) -> bool:
        """Whether a manager holds this node's session now."""
        return self.session.phase is Phase.ACTIVE

    @property
    def data_path_port(self) -> int:
        """UDP port of the cluster's VXLAN."""
        node = self._known.node
        return (node.vxlan_udp_port if node is not None else 0) or DEFAULT_DATA_PORT

    @property
    def managers(self) -> tuple[Peer, ...]:
        """The managers known."""
        return self.session.managers

    async def run(self) -> None:
        """Take part until cancelled; workloads and their traffic stay.

        Raises:
            SwarmError: something without which nothing works failed (in an exception group).
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._dialer.run())
            group.create_task(self.session.run())
            group.create_task(self._follow_certificate())
            group.create_task(self._renewal.run())
            group.create_task(self._networks())
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self._ending = True

    async def leave(self) -> None:
        """Take everything off the networks and say goodbye; cancel ``run`` afterwards."""
        if self.tasks is not None:
            await self.tasks.leave()
        if self.coordinator is not None:
            await self.coordinator.detach_all(DETACH_WAIT)
        if self.gossip is not None:
            await self.gossip.leave(GOSSIP_LEAVE)
        if self.mesh is not None:
            await self.mesh.destroy()
        if self.dataplane is not None:
            await self.dataplane.destroy()

    # -- networks --------------------------------------------------------------------------

    async def _networks(self) -> None:
        await self._node_known.wait()
        vtep = ipaddress.ip_address(self.state.addresses.data_path)
        dataplane = Dataplane(
            Settings(vtep=vtep, port=self.data_path_port, run_dir=self._settings.run.path),
            gone=self._endpoints_gone,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(dataplane.run())
            await dataplane.ready()
            for finding in await dataplane.preflight():
                if finding.level == "warning":
                    log.warning("host.finding", name=finding.name, text=finding.text)
            self.dataplane = dataplane
            # Before anything of an earlier agent is looked at: its associations belong to these keys.
            await self._install_keys(dataplane)
            group.create_task(self._follow_keys(dataplane))
            await self._discovery.ready.wait()
            balancer = Balancer(dataplane)
            group.create_task(balancer.run())
            ports = HostPorts(balancer)
            group.create_task(ports.run())
            mesh = Mesh(
                dataplane,
                balancer,
                routers=self._settings.run.path / "netns",
                vtep=vtep,
                taken=ports.holds,
            )
            group.create_task(mesh.run())
            coordinator = Coordinator(
                vtep=vtep,
                session=self.session,
                dataplane=dataplane,
                balancer=balancer,
                mesh=mesh,
                ports=ports,
                node=self._known.node,
                discovery=self._discovery,
                names=self._discovery.names,
                run_dir=self._settings.run,
            )
            group.create_task(coordinator.run())
            await coordinator.ready()
            self.coordinator, self.mesh = coordinator, mesh
            if self._known.node is not None:
                coordinator.node_changed(self._known.node)
            coordinator.sweep()
            if self._complete:
                coordinator.assignments_complete()
            await self._run_tasks(coordinator, group)
            group.create_task(self._keep_gossip(coordinator))

    async def _run_tasks(self, coordinator: Coordinator, group: asyncio.TaskGroup) -> None:
        tasks = TaskRunner(session=self.session, coordinator=coordinator, runtime=self._runtime)
        group.create_task(tasks.run())
        await tasks.ready()
        self.tasks = tasks
        if self._complete:
            tasks.complete()

    def _endpoints_gone(self, endpoint_ids: tuple[str, ...]) -> None:
        if self.coordinator is not None:
            self.coordinator.endpoints_gone(endpoint_ids)

    # -- keys of encrypted networks ----------------------------------------------------------

    async def _follow_keys(self, dataplane: Dataplane) -> None:
        while True:
            await self._keys_changed.wait()
            self._keys_changed.clear()
            await self._install_keys(dataplane)

    async def _install_keys(self, dataplane: Dataplane) -> None:
        keys = [
            IpsecKey(lamport=key.lamport_time, key=key.key)
            for key in self.session.keys
            if key.subsystem == IPSEC_SUBSYSTEM
        ]
        if not keys:
            return
        try:
            await dataplane.set_keys(keys)
        except HostError as error:
            # The former keys stay in force; encrypted networks only lose peers that rotate away from them.
            log.warning("encryption.keys.refused", reason=str(error))

    # -- gossip ----------------------------------------------------------------------------

    async def _keep_gossip(self, coordinator: Coordinator) -> None:
        await self._keys_known.wait()
        while True:
            try:
                await self._gossip(coordinator)
            except* HostError as failed:
                if self._first:
                    raise
                self.error = f"gossip: {failed.exceptions[0]}"
                log.warning("gossip.failed", reason=self.error)
            if self._ending:  # a failure can hide the cancellation that came with it
                return
            await asyncio.sleep(GOSSIP_RETRY)

    async def _gossip(self, coordinator: Coordinator) -> None:
        addresses = self.state.addresses
        bind_host, _ = split_target(addresses.listen)
        if ":" in addresses.advertise and bind_host == "0.0.0.0":
            bind_host = "::"

        def changed(change: TableChange) -> None:
            coordinator.gossip_changed(change)

        gossip = Gossip(
            GossipConfig(
                advertise_host=addresses.advertise,
                advertise_port=GOSSIP_PORT,
                bind_host=bind_host,
                bind_port=GOSSIP_PORT,
                node_name=self._settings.run.gossip_name(random_name(random.SystemRandom())),
                # Above every one an earlier life used: it refutes far less than once a second.
                incarnation=int(time.time()) & 0xFFFFFFFF,
                timing=self._settings.timing,
            ),
            keys=self._gossip_keys(),
            rng=random.SystemRandom(),
            on_change=changed,
        )
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(gossip.run())
                await gossip.ready()
                self.gossip = gossip
                self.error = ""
                coordinator.set_gossip(gossip)  # first, so that no old entry of ours looks stale
                self._met = self._settings.run.members()
                gossip.set_seeds(self._seeds())
                group.create_task(self._keep_company(gossip))
                group.create_task(self._confirm(gossip, coordinator))
                await self._opened.wait()
                self.serving.set()
                self._first = False
        finally:
            self.gossip = None
            coordinator.set_gossip(None)

    async def _keep_company(self, gossip: Gossip) -> None:
        """Note some members for the next start; among others, let go of those of the last one.

        The only manager has nobody to call: restarted before others miss it, it would wait for one of
        them to exchange everything with it, which may take a minute.
        """
        noted = self._met
        while True:
            await asyncio.sleep(COMPANY_LOOK)
            others = sorted(
                (member.host, member.port)
                for member in gossip.members()
                if member.state is State.ALIVE and member.name != gossip.node_name
            )
            if not others:
                continue
            if self._met:
                self._met = ()
                gossip.set_seeds(self._seeds())
            if not set(noted) & set(others) or len(noted) < min(len(others), COMPANY):
                noted = tuple(others[:COMPANY])
                try:
                    self._settings.run.save_members(noted)
                except HostError as error:  # the next start is slower without it, no more
                    log.warning("members.unnoted", detail=str(error))

    async def _confirm(self, gossip: Gossip, coordinator: Coordinator) -> None:
        """After a minute among others, let go of what nobody says any more."""
        together = 0.0
        told: set[str] = set()
        while together < CONFIRM_AFTER:
            await asyncio.sleep(CONFIRM_AFTER / 12)
            others = {
                member.name
                for member in gossip.members()
                if member.state is State.ALIVE and member.name != gossip.node_name
            }
            together = together + CONFIRM_AFTER / 12 if others else 0.0
            # A peer has shown the whole table a while ago, and these owners are there to ask.
            for network_id in told:
                coordinator.confirm(network_id, others)
            told = {network.id for network in gossip.network_states() if network.syncs}
        coordinator.confirm()

    def _gossip_keys(self) -> list[GossipKey]:
        return [
            GossipKey(lamport=key.lamport_time, key=key.key)
            for key in self.session.keys
            if key.subsystem == GOSSIP_SUBSYSTEM
        ]

    def _seeds(self) -> list[tuple[str, int]]:
        """Every manager but this node, on the port all engines use; without any, who was met before."""
        seeds: list[tuple[str, int]] = []
        for peer in self.managers:
            try:
                host, _ = split_target(peer.addr)
                ipaddress.ip_address(host)
            except (SwarmError, ValueError):
                continue  # names are no addresses
            if peer.node_id != self.state.node_id:
                seeds.append((host, GOSSIP_PORT))
        return seeds or list(self._met)

    # -- what managers say -----------------------------------------------------------------

    def _hear(self, news: News) -> None:
        match news:
            case SessionOpened():
                self.sessions += 1
                self._remember(session_id=news.session_id)
                self._opened.set()
                if self.gossip is not None:
                    # That manager may have been away; an engine's gossip waits to be called.
                    self.gossip.set_seeds(self._seeds())
            case NodeChanged():
                self._remember(node=news.node)
                self._node_known.set()
                if self.coordinator is not None:
                    self.coordinator.node_changed(news.node)
            case KeysChanged():
                self._remember(keys=news.keys)
                self._keys_changed.set()
                if self._gossip_keys():
                    self._keys_known.set()
                    if self.gossip is not None:
                        self.gossip.set_keys(self._gossip_keys())
            case ManagersChanged():
                self._settings.state.save_managers(news.peers)
                if self.gossip is not None:
                    self.gossip.set_seeds(self._seeds())
            case RootOffered():
                if self.state.manager:
                    self._check_soon()  # the manager process keeps the files
                else:
                    self._take_root(news.root_pem)
            case RenewalDemanded():
                role = Role.MANAGER if news.role else Role.WORKER
                if role is Role.WORKER or not self.state.manager:
                    self._renewal.demand(role)
                else:
                    self._check_soon()
            case TaskAssigned() if self.coordinator is not None:
                if news.task.spec.attachment is not None:
                    self.coordinator.task_assigned(news.task)
                elif self.tasks is not None:
                    self.tasks.assigned(news.task)
            case TaskRemoved() if self.coordinator is not None:
                self.coordinator.task_removed(news.task_id)
                if self.tasks is not None:
                    self.tasks.removed(news.task_id)
            case AssignmentsComplete():
                self._complete = True
                if self.coordinator is not None:
                    self.coordinator.assignments_complete()
                if self.tasks is not None:
                    self.tasks.complete()
            case _:
                pass

    def _remember(self, **changes: Any) -> None:
        """Keep what a restarted agent needs while no manager answers."""
        self._known = dataclasses.replace(self._known, **changes)
        try:
            self._settings.run.save_session(self._known)
        except HostError as error:
            log.warning("state.session.unsaved", reason=str(error))

    # -- certificates ----------------------------------------------------------------------

    def _take_root(self, root_pem: bytes) -> None:
        """Trust the roots a manager trusts, if our own certificate belongs to them."""
        now = datetime.now(UTC)
        cert_pem = self._credentials.cert_pem
        try:
            roots_untrusted(root_pem, now)
            if cert_pem is not None:
                verify_chain(cert_pem, root_pem, now)
        except CertificateError as error:
            log.warning("root.refused", reason=str(error))
            return
        self._install(dataclasses.replace(self._credentials, root_pem=root_pem))
        log.info("root.changed")

    def _install(self, credentials: Credentials) -> None:
        """Put new credentials to use, and on disk unless the manager process owns the files."""
        self._dialer.reload(credentials)
        self._credentials = credentials
        self._renewal.credentials = credentials
        identity = credentials.identity
        manager = identity is not None and identity.role is Role.MANAGER
        if manager is not self.state.manager:
            self._spawn(self._take_role(credentials))
        elif not manager:
            self._spawn(
                asyncio.to_thread(KeyStore(self._settings.state.certificates).save, credentials)
            )
        self.session.redescribe()

    async def _take_role(self, credentials: Credentials) -> None:
        self.state = await self._change_role(credentials)

    async def _follow_certificate(self) -> None:
        """On a manager, use what its own process renews."""
        while True:
            await self._until_check()
            if not self.state.manager:
                continue
            try:
                credentials = await self._load()
            except SwarmError as error:
                log.warning("certificate.unreadable", reason=str(error))
                continue
            if credentials is not None and credentials != self._credentials:
                self._install(credentials)

    def _check_soon(self) -> None:
        """Expect the manager process to change the certificate files."""
        self._soon = SOON_CHECKS
        self._expected.set()

    async def _until_check(self) -> None:
        """Wait until it is time to look at the files."""
        self._expected.clear()
        if self._soon:
            self._soon -= 1
            await asyncio.sleep(CERTIFICATE_SOON)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CERTIFICATE_CHECK):
                await self._expected.wait()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        if self._group is None:
            work.close()
        else:
            self._group.create_task(_logged(work))


async def _logged(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except SwarmError as error:
        log.warning("certificate.unsaved", reason=str(error))
