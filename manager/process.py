"""The manager process: raft and store below, the servers on top, the leader's duties beside them.

Start, in order: raft state is opened (or founded), the log replayed, the certificate made usable, the
port bound, ``READY=1`` said. Stop, in reverse: first the servers, so that nobody is promised
anything, then raft.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc.aio
import structlog

from manager.api.attachments import Attachments
from manager.api.backend import Backend
from manager.api.clusters import Clusters
from manager.api.forward import Forwarder
from manager.api.gates import LocalGate, TlsGate
from manager.api.health import Health
from manager.api.keys import Keys
from manager.api.leader import LeaderView
from manager.api.membership import Membership
from manager.api.networks import Networks
from manager.api.nodes import Nodes
from manager.api.raft import RaftMessages
from manager.api.scheduling import scheduler_services
from manager.api.server import (
    Edge,
    Gate,
    Router,
    Service,
    Unimplemented,
    make_server,
    run_server,
)
from manager.api.services import Services
from manager.api.standard import standard_services
from manager.api.tasks import Tasks
from manager.ca.clients import newly_refused
from manager.ca.issuer import OwnIssuer
from manager.ca.renewal import OwnCertificate
from manager.ca.service import CertificateAuthority, NodeCertificates
from manager.clock import Clock
from manager.config import SECOND, ManagerConfig, Mode
from manager.dispatcher.hub import Hub
from manager.dispatcher.service import Dispatcher
from manager.duties import Duty, Leadership, forget_removed, rotate_keys
from manager.founding import founding
from manager.joining import announce_move, answering_health, join_group, probe
from manager.keyage import FILE as KEY_AGE_FILE
from manager.keyage import KeyAge
from manager.lock import Lock
from manager.notify import Notifier
from manager.raft.config import RaftConfig
from manager.raft.errors import StateLostError
from manager.raft.events import Role as RaftRole
from manager.raft.node import RaftNode
from manager.raft.status import RaftStatus
from manager.raft.storage import Identity as RaftIdentity
from manager.raft.storage import SqliteStorage
from manager.raft.transport import GrpcTransport
from manager.reaper import Reaper
from manager.refusal import check_not_refused, refuse_for_good
from manager.roles import demote_absent, follow_roles, promote_learners
from manager.store import Store
from swarm.api.docker.swarmkit import (
    ca_pb2,
    control_pb2,
    dispatcher_pb2,
    health_pb2,
    logbroker_pb2,
    membership_pb2,
    resource_pb2,
)
from swarm.api.overswarm.v1 import keys_pb2, raft_pb2
from swarm.errors import InvariantError, PreconditionError, StaleError, SwarmError
from swarm.identity.certs import Credentials, Identity, Peer, Role
from swarm.identity.dialer import TlsDialer
from swarm.identity.front import TlsFront
from swarm.identity.ids import new_id
from swarm.identity.keystore import KeyStore
from swarm.identity.sockets import listen_tcp, private_directory, split_target, unix_path
from swarm.model import Cluster, ManagerStatus, Node, Reachability

CERTIFICATES: Final = "certificates"
RAFT: Final = "raft"
RUN: Final = "manager"
"""Directory of this process's sockets, below the run directory."""

CONTROL_SOCKET: Final = "control.sock"
FRONT_SOCKET: Final = "front.sock"
DIAL: Final = "dial"
LOOK_AGAIN: Final = 0.2
MOVE_RETRY: Final = 1.0
"""Seconds between two tries to tell the others of a new address."""

UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """Where a manager keeps what."""

    state_dir: Path
    run_dir: Path

    @property
    def certificates(self) -> Path:
        """Certificate, key and root, shared with this node's agent."""
        return self.state_dir / CERTIFICATES

    @property
    def raft(self) -> Path:
        """The replicated log."""
        return self.state_dir / RAFT

    @property
    def dial(self) -> Path:
        """For the sockets that lead to other managers."""
        return self.run_dir / RUN / DIAL

    @property
    def control(self) -> Path:
        """The socket on which this host's root is a manager."""
        return self.run_dir / RUN / CONTROL_SOCKET

    @property
    def front(self) -> Path:
        """The socket behind the TLS front."""
        return self.run_dir / RUN / FRONT_SOCKET


class Manager:
    """One manager process; :meth:`run` owns everything.

    Args:
        state_dir: holds ``manager.json`` and everything that survives.
        run_dir: holds sockets.
        unlock_key: 32 bytes when the manager is locked.
        notifier: told when the manager serves.
        clock: wall and monotonic time.
    """

    def __init__(
        self,
        state_dir: Path,
        run_dir: Path,
        *,
        unlock_key: bytes | None = None,
        notifier: Notifier | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.paths = Paths(state_dir=state_dir, run_dir=run_dir)
        self.config = ManagerConfig.load(state_dir)
        self.clock = clock or Clock()
        self.store = Store(clock_ns=self.clock.wall)
        self.started = asyncio.Event()
        self._notifier = notifier or Notifier(None)
        self._unlock_key = unlock_key
        self._rng = random.Random(secrets.token_bytes(32))  # noqa: S311  # spreads timers, makes no keys
        self._keystore = KeyStore(self.paths.certificates)
        self._dialer = TlsDialer(directory=self.paths.dial)
        self._hints: Mapping[int, str] = {}
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leader = LeaderView()
        self._raft: RaftNode | None = None
        self._front: TlsFront | None = None

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The bound addresses of the TLS port, once started."""
        return () if self._front is None else self._front.addresses

    async def run(self) -> None:
        """Run until cancelled.

        Raises:
            SwarmError: something needed is missing or broken; the text says what to do.
        """
        for directory in (self.paths.raft, self.paths.control.parent):
            private_directory(directory)
        try:
            async with asyncio.TaskGroup() as group:
                dialing = group.create_task(self._dialer.run())
                await self._run(group)
                dialing.cancel()
        except BaseExceptionGroup as failures:
            cause = first_cause(failures)
            if isinstance(cause, StateLostError):
                refuse_for_good(self.paths.raft, str(cause))
            raise cause from failures

    async def _run(self, group: asyncio.TaskGroup) -> None:
        storage, hints = await self._open_storage(), self._hints
        transport = GrpcTransport(
            raft_id=storage.identity.raft_id,
            addr=self.config.advertise_addr,
            channel=self._dial,
            hints=hints,
        )
        raft = self._raft = RaftNode(
            config=self._raft_config(storage.identity),
            storage=storage,
            machine=self.store,
            transport=transport,
            rng=self._rng,
        )
        lock = Lock(
            self.store,
            storage,
            self._keystore,
            key=self._unlock_key,
            between_writes=raft.between_writes,
        )
        leadership = Leadership(raft.read_barrier)
        raft.on_status(leadership.note)
        raft.on_status(self._leader.note)
        raft_task = group.create_task(raft.run())
        store_task = group.create_task(
            self.store.run(raft.propose, raft.read_barrier, raft.settled)
        )
        await raft.ready()
        try:
            await self._serve(_identity(storage.identity), leadership, lock, transport)
        finally:
            store_task.cancel()
            raft_task.cancel()

    async def _dial(self, addr: str) -> grpc.aio.Channel:
        return self._dialer.channel(addr)

    async def _serve(
        self, identity: Identity, leadership: Leadership, lock: Lock, transport: GrpcTransport
    ) -> None:
        raft = self._require_raft()
        backend = Backend(
            store=self.store,
            barrier=raft.read_barrier,
            managers=self.managers,
            clock=self.clock,
        )
        here = Peer(address=self.config.advertise_addr, identity=identity)
        forwarder = Forwarder(self._leader, self._dialer)
        certificates = NodeCertificates(backend)
        own = OwnCertificate(
            store=self.store,
            clock=self.clock,
            keystore=self._keystore,
            identity=identity,
            rng=self._rng,
            unlock_key=lambda: lock.key,
            issue=OwnIssuer(certificates, forwarder, here),
        )
        await self._found(identity)
        credentials = await own.ensure()
        self._dialer.reload(credentials)
        await lock.follow()
        front = self._front = TlsFront(
            upstream=self.paths.front, credentials=credentials, listen=[self._listen()]
        )
        hub = Hub(backend, self._rng)
        services = self._services(
            backend,
            hub,
            ca=CertificateAuthority(backend, lambda: credentials.root_pem),
            certificates=certificates,
            clusters=Clusters(backend, lock.follow),
            transport=transport,
        )
        services += standard_services(services, lambda: self._leader.current is not None)
        tls_gate = TlsGate(self.store, front.peer, identity.cluster_id)
        tls = make_server(services, self._edge(tls_gate, forwarder))
        local = make_server(services, self._edge(LocalGate(here), forwarder))
        front.bind()
        unix_path(self.paths.control).unlink(missing_ok=True)
        unix_path(self.paths.front).unlink(missing_ok=True)
        tls.add_insecure_port(front.upstream_target)
        local.add_insecure_port(f"unix:{self.paths.control}")
        age = KeyAge(self.paths.state_dir / KEY_AGE_FILE, self.clock.wall)

        def renewed(credentials: Credentials) -> None:
            front.reload(credentials)
            self._dialer.reload(credentials)

        duties: tuple[Duty, ...] = (
            hub.run,
            lambda: rotate_keys(backend, self.config.key_rotation_ns / SECOND, age),
            lambda: forget_removed(backend),
            lambda: promote_learners(raft),
            lambda: follow_roles(backend, raft),
            Reaper(backend).run,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fail_on_broken())
            group.create_task(self._watch(front, hub, lock, age))
            group.create_task(leadership.run(duties))
            group.create_task(forwarder.run())
            for server in (tls, local):
                up = asyncio.Event()
                group.create_task(run_server(server, up))
                await up.wait()
            self.paths.control.chmod(0o600)
            group.create_task(front.run())
            group.create_task(self._follow_address(raft))
            group.create_task(own.run(credentials, renewed))
            try:
                await self._settle(raft, hub, backend)
                self.started.set()
                log.info("manager.started", node=identity.node_id, cluster=identity.cluster_id)
                self._notifier.ready(f"serving on {self.config.listen_addr}")
                await asyncio.get_running_loop().create_future()
            finally:
                # While the port still takes the others' votes.
                await raft.stop_gracefully()

    async def _settle(self, raft: RaftNode, hub: Hub, backend: Backend) -> None:
        """Wait until this manager has its place: alone, as the leader; just joined, as a voter."""
        status = raft.status
        if status.members.keys() == {status.id}:
            await hub.settled.wait()
            if self.config.force_new_cluster:
                await demote_absent(backend)
        elif self._hints:
            await _until(raft, lambda: _votes(raft.status) and bool(len(self.store.view.clusters)))

    def managers(self) -> Mapping[str, ManagerStatus]:
        """Return the raft members by node id, as they are now."""
        status = self._require_raft().status
        lone = len(status.members) == 1
        return {
            member.node_id: ManagerStatus(
                raft_id=raft_id,
                addr=member.addr,
                leader=raft_id == status.leader_id,
                reachability=(
                    Reachability.REACHABLE
                    if lone or raft_id in status.active
                    else Reachability.UNREACHABLE
                ),
            )
            for raft_id, member in status.members.items()
        }

    def _services(
        self,
        backend: Backend,
        hub: Hub,
        *,
        ca: CertificateAuthority,
        certificates: NodeCertificates,
        clusters: Clusters,
        transport: GrpcTransport,
    ) -> tuple[Service, ...]:
        def service(descriptor: Any, *servicers: object) -> Service:
            return Service(descriptor=descriptor, servicers=servicers)

        logs = logbroker_pb2.DESCRIPTOR.services_by_name["LogBroker"]
        return (
            service(ca_pb2.DESCRIPTOR.services_by_name["CA"], ca),
            service(ca_pb2.DESCRIPTOR.services_by_name["NodeCA"], certificates),
            service(dispatcher_pb2.DESCRIPTOR.services_by_name["Dispatcher"], Dispatcher(hub)),
            service(
                resource_pb2.DESCRIPTOR.services_by_name["ResourceAllocator"],
                Attachments(backend),
            ),
            service(
                control_pb2.DESCRIPTOR.services_by_name["Control"],
                Nodes(backend),
                Networks(backend),
                clusters,
                Tasks(backend),
                Services(backend),
            ),
            service(keys_pb2.DESCRIPTOR.services_by_name["Keys"], Keys(backend)),
            service(
                health_pb2.DESCRIPTOR.services_by_name["Health"],
                Health(lambda: self._leader.current is not None),
            ),
            service(
                membership_pb2.DESCRIPTOR.services_by_name["RaftMembership"],
                Membership(backend, self._require_raft, partial(probe, self._dialer)),
            ),
            service(raft_pb2.DESCRIPTOR.services_by_name["Raft"], RaftMessages(lambda: transport)),
            service(logs, Unimplemented(logs)),
            *scheduler_services(backend),
        )

    def _edge(self, gate: Gate, router: Router) -> Edge:
        return Edge(gate=gate, broken=self._note_broken, router=router)

    def _note_broken(self, error: InvariantError) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)

    async def _fail_on_broken(self) -> None:
        await self._broken

    async def _open_storage(self) -> SqliteStorage:
        """Open the raft state, or get one at the first start."""
        raft = self.paths.raft
        if SqliteStorage.exists(raft):
            check_not_refused(raft)
            return await asyncio.to_thread(SqliteStorage.open, raft, unlock_key=self._unlock_key)
        if self.config.mode is Mode.JOIN:
            return await self._join()
        # Better an early word than a half-founded swarm.
        host, port = self._listen()
        for listener in listen_tcp(host, port):
            listener.close()
        identity = RaftIdentity(
            cluster_id=new_id(), raft_id=secrets.randbelow(2**63 - 1) + 1, node_id=new_id()
        )
        return await asyncio.to_thread(SqliteStorage.create, raft, identity)

    async def _join(self) -> SqliteStorage:
        """Have the other managers take this one in."""
        credentials = await asyncio.to_thread(self._keystore.load, self._unlock_key)
        identity = None if credentials is None else credentials.identity
        if credentials is None or identity is None or identity.role is not Role.MANAGER:
            raise PreconditionError(
                f"there is no manager's certificate in {self._keystore.directory}"
            )
        self._dialer.reload(credentials)
        async with answering_health(
            self.store, self.paths.front, self._listen(), credentials, self._note_broken
        ):
            joined = await join_group(
                self.config.join_addrs,
                addr=self.config.advertise_addr,
                identity=identity,
                dialer=self._dialer,
            )
        self._unlock_key, self._hints = joined.unlock_key, joined.addresses
        if joined.unlock_key is not None:
            await asyncio.to_thread(self._keystore.save, credentials, joined.unlock_key)
        return await asyncio.to_thread(
            SqliteStorage.create, self.paths.raft, joined.identity, unlock_key=joined.unlock_key
        )

    def _raft_config(self, identity: RaftIdentity) -> RaftConfig:
        return RaftConfig(
            cluster_id=identity.cluster_id,
            raft_id=identity.raft_id,
            node_id=identity.node_id,
            addr=self.config.advertise_addr,
            bootstrap=self.config.mode is Mode.INIT,
            force_new_group=self.config.force_new_cluster,
            snapshot_entries=self.config.snapshot_interval,
        )

    async def _found(self, identity: Identity) -> None:
        """Make the swarm, unless it is there or will come from the other managers."""
        if len(self.store.view.clusters) or self.config.mode is not Mode.INIT:
            return
        build, credentials = founding(self.config, identity, now=self.clock.now(), make_id=new_id)
        await self.store.transact(build)
        await asyncio.to_thread(self._keystore.save, credentials, self._unlock_key)
        log.info("swarm.founded", cluster=identity.cluster_id, node=identity.node_id)

    async def _follow_address(self, raft: RaftNode) -> None:
        """Tell the others where this manager is reached now; nodes learn it with their session."""
        addr = self.config.advertise_addr
        while True:
            status = raft.status
            if not self._moved(raft):
                await _until(raft, partial(self._moved, raft))
                continue
            try:
                if status.role is RaftRole.LEADER:
                    await raft.update_member(raft_id=status.id, addr=addr)
                else:
                    others = [m.addr for m in status.members.values() if m.raft_id != status.id]
                    await announce_move(others, raft_id=status.id, addr=addr, dialer=self._dialer)
            except InvariantError:
                raise
            except SwarmError as error:
                log.info("move.waiting", detail=str(error))
            await asyncio.sleep(MOVE_RETRY)

    def _moved(self, raft: RaftNode) -> bool:
        mine = raft.status.members.get(raft.status.id)
        return mine is not None and mine.addr != self.config.advertise_addr

    async def _watch(self, front: TlsFront, hub: Hub, lock: Lock, age: KeyAge) -> None:
        """React to what the store says: removed nodes are cut off, the lock follows its key."""
        raft = self._require_raft()
        raft.on_status(lambda _: hub.wake_all())
        while True:
            watch = self.store.watch()
            for cluster in self.store.view.clusters.all():
                age.note(cluster.encryption_key_lamport_clock, cluster.meta.updated_at)
            await self._look(lock, age)
            try:
                async for commit in watch:
                    for change in commit.changes:
                        if isinstance(change.old, Node) and change.new is None:
                            front.disconnect(change.old.id)
                        for refused in newly_refused(change.old, change.new):
                            front.disconnect(refused)
                    if any(isinstance(change.new, Cluster) for change in commit.changes):
                        await self._look(lock, age)
            except StaleError:
                log.info("manager.watch.behind")

    async def _look(self, lock: Lock, age: KeyAge) -> None:
        for cluster in self.store.view.clusters.all():
            age.note(cluster.encryption_key_lamport_clock)
            await lock.follow()

    def _listen(self) -> tuple[str, int]:
        host, port = split_target(self.config.listen_addr)
        return ("" if host in UNSPECIFIED else host), port

    def _require_raft(self) -> RaftNode:
        if self._raft is None:
            raise InvariantError("the manager was used before it ran")
        return self._raft


async def serve(
    state_dir: Path,
    run_dir: Path,
    *,
    unlock_key: bytes | None = None,
    notifier: Notifier | None = None,
) -> None:
    """Run a manager until cancelled.

    Args:
        state_dir: holds ``manager.json``.
        run_dir: for sockets.
        unlock_key: 32 bytes when the manager is locked.
        notifier: told when the manager serves.

    Raises:
        SwarmError: it cannot start or go on; the text says what to do.
    """
    await Manager(state_dir, run_dir, unlock_key=unlock_key, notifier=notifier).run()


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the most telling of several failures.

    One of our own errors before anything else, and a cause (a full disk) before what others made of
    it ("raft does not run", which could pass).
    """
    found: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseExceptionGroup):
            pending.extend(each.exceptions)
        else:
            found.append(each)
    ours = [each for each in found if isinstance(each, SwarmError)]
    return next((each for each in ours if not each.retryable), ours[0] if ours else found[0])


def _votes(status: RaftStatus) -> bool:
    member = status.members.get(status.id)
    return member is not None and not member.learner


async def _until(raft: RaftNode, condition: Callable[[], bool]) -> None:
    """Wait until something is true that changes with raft's status, or soon after."""
    changed = asyncio.Event()
    end = raft.on_status(lambda _: changed.set())
    try:
        while not condition():
            changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_AGAIN):
                    await changed.wait()
    finally:
        end()


def _identity(stored: RaftIdentity) -> Identity:
    return Identity(node_id=stored.node_id, cluster_id=stored.cluster_id, role=Role.MANAGER)
