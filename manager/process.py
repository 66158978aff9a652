"""The manager process: raft and store below, the servers on top, the leader's duties beside them.

Start, in order: raft state is opened (or founded), the log replayed, the certificate made usable, the
port bound, ``READY=1`` said. Stop, in reverse: first the servers, so that nobody is promised
anything, then raft.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping
from pathlib import Path

import grpc.aio
import structlog

from manager.api.backend import Backend
from manager.api.clusters import Clusters
from manager.api.forward import Forwarder
from manager.api.gates import LocalGate, TlsGate
from manager.api.leader import LeaderView
from manager.api.server import (
    Edge,
    Gate,
    Router,
    make_server,
    run_server,
)
from manager.ca.clients import newly_refused
from manager.ca.issuer import OwnIssuer
from manager.ca.reconciler import rotate_root
from manager.ca.renewal import OwnCertificate
from manager.ca.service import CertificateAuthority, NodeCertificates
from manager.causes import first_cause
from manager.clock import Clock
from manager.config import SECOND, ManagerConfig, Mode
from manager.dispatcher.hub import Hub
from manager.duties import Duty, Leadership, forget_removed, rotate_keys
from manager.founding import founding
from manager.keyage import FILE as KEY_AGE_FILE
from manager.keyage import KeyAge
from manager.lock import Lock
from manager.moving import follow_address, until
from manager.notify import Notifier
from manager.opening import Opening
from manager.paths import Paths
from manager.raft.config import RaftConfig
from manager.raft.errors import StateLostError
from manager.raft.node import RaftNode
from manager.raft.status import RaftStatus
from manager.raft.storage import Identity as RaftIdentity
from manager.raft.transport import GrpcTransport
from manager.reaper import Reaper
from manager.refusal import refuse_for_good
from manager.roles import demote_absent, follow_roles, promote_learners
from manager.services import Parts, offered
from manager.store import Store
from swarm.errors import InvariantError, StaleError
from swarm.identity.certs import Credentials, Identity, Peer, Role
from swarm.identity.dialer import TlsDialer
from swarm.identity.front import TlsFront
from swarm.identity.ids import new_id
from swarm.identity.keystore import KeyStore
from swarm.identity.sockets import private_directory, unix_path
from swarm.model import Cluster, ManagerStatus, Node, Reachability

log = structlog.get_logger(__name__)


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
        self._joined = False
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
        state = await Opening(
            config=self.config,
            paths=self.paths,
            store=self.store,
            keystore=self._keystore,
            dialer=self._dialer,
            broken=self._note_broken,
        ).state(self._unlock_key)
        storage, self._joined = state.storage, state.joined
        self._unlock_key = state.unlock_key
        transport = GrpcTransport(
            raft_id=storage.identity.raft_id,
            addr=self.config.advertise_addr,
            channel=self._dial,
            hints=state.addresses,
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
        believing = own.trusting(credentials)
        self._dialer.reload(believing)
        await lock.follow()
        front = self._front = TlsFront(
            upstream=self.paths.front, credentials=believing, listen=[self.config.listen]
        )
        hub = Hub(backend, self._rng)
        services = offered(
            Parts(
                backend=backend,
                hub=hub,
                ca=CertificateAuthority(backend, lambda: credentials.root_pem),
                certificates=certificates,
                clusters=Clusters(backend, lock.follow),
                raft=raft,
                transport=transport,
                dialer=self._dialer,
                led=lambda: self._leader.current is not None,
            )
        )
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
            lambda: rotate_root(backend),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fail_on_broken())
            group.create_task(self._watch(front, hub, lock, age, own))
            group.create_task(leadership.run(duties))
            group.create_task(forwarder.run())
            for server in (tls, local):
                up = asyncio.Event()
                group.create_task(run_server(server, up))
                await up.wait()
            self.paths.control.chmod(0o600)
            group.create_task(front.run())
            group.create_task(follow_address(raft, self.config.advertise_addr, self._dialer))
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
        elif self._joined:
            await until(raft, lambda: _votes(raft.status) and bool(len(self.store.view.clusters)))

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

    def _edge(self, gate: Gate, router: Router) -> Edge:
        return Edge(gate=gate, broken=self._note_broken, router=router)

    def _note_broken(self, error: InvariantError) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)

    async def _fail_on_broken(self) -> None:
        await self._broken

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

    async def _watch(
        self, front: TlsFront, hub: Hub, lock: Lock, age: KeyAge, own: OwnCertificate
    ) -> None:
        """React to what the store says: removed nodes are cut off, lock and certificate follow."""
        raft = self._require_raft()
        raft.on_status(lambda _: hub.wake_all())
        while True:
            watch = self.store.watch()
            for cluster in self.store.view.clusters.all():
                age.note(cluster.encryption_key_lamport_clock, cluster.meta.updated_at)
            await self._look(lock, age)
            own.look()
            try:
                async for commit in watch:
                    for change in commit.changes:
                        if isinstance(change.old, Node) and change.new is None:
                            front.disconnect(change.old.id)
                        for refused in newly_refused(change.old, change.new):
                            front.disconnect(refused)
                    if any(isinstance(change.new, Cluster | Node) for change in commit.changes):
                        own.look()
                    if any(isinstance(change.new, Cluster) for change in commit.changes):
                        await self._look(lock, age)
            except StaleError:
                log.info("manager.watch.behind")

    async def _look(self, lock: Lock, age: KeyAge) -> None:
        for cluster in self.store.view.clusters.all():
            age.note(cluster.encryption_key_lamport_clock)
            await lock.follow()

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


def _votes(status: RaftStatus) -> bool:
    member = status.members.get(status.id)
    return member is not None and not member.learner


def _identity(stored: RaftIdentity) -> Identity:
    return Identity(node_id=stored.node_id, cluster_id=stored.cluster_id, role=Role.MANAGER)
