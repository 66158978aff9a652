"""The manager process: raft and store below, the servers on top, the leader's duties beside them.

Start, in order: raft state is opened (or founded), the log replayed, the certificate made usable, the
port bound, ``READY=1`` said. Stop, in reverse: first the servers, so that nobody is promised
anything, then raft.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from manager.api.attachments import Attachments
from manager.api.backend import Backend
from manager.api.clusters import Clusters
from manager.api.gates import LocalGate, TlsGate
from manager.api.health import Health, Membership
from manager.api.networks import Networks
from manager.api.nodes import Nodes
from manager.api.server import Edge, Gate, Service, Unimplemented, make_server, run_server
from manager.api.services import Services
from manager.api.tasks import Tasks
from manager.ca.renewal import OwnCertificate
from manager.ca.service import CertificateAuthority, NodeCertificates
from manager.clock import Clock
from manager.cluster import unlock_key as unlock_key_of
from manager.config import ManagerConfig, Mode
from manager.dispatcher.hub import Hub
from manager.dispatcher.service import Dispatcher
from manager.duties import Leadership, forget_removed, rotate_keys
from manager.founding import founding
from manager.notify import Notifier
from manager.raft.config import RaftConfig
from manager.raft.events import Role as RaftRole
from manager.raft.keys import is_locked, rewrap
from manager.raft.membership import Member
from manager.raft.messages import Body, Message
from manager.raft.node import RaftNode
from manager.raft.storage import KEY_FILE, SqliteStorage
from manager.raft.storage import Identity as RaftIdentity
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
from swarm.errors import InvariantError, PreconditionError, StaleError, SwarmError
from swarm.identity.certs import Identity, Peer, Role
from swarm.identity.front import TlsFront
from swarm.identity.ids import new_id
from swarm.identity.keystore import KeyStore, LockedError
from swarm.identity.sockets import listen_tcp, private_directory, split_target, unix_path
from swarm.model import Cluster, ManagerStatus, Node, Reachability

CERTIFICATES: Final = "certificates"
RAFT: Final = "raft"
RUN: Final = "manager"
"""Directory of this process's sockets, below the run directory."""

CONTROL_SOCKET: Final = "control.sock"
FRONT_SOCKET: Final = "front.sock"
UNSPECIFIED: Final = frozenset({"0.0.0.0", "::"})

log = structlog.get_logger(__name__)


class LoneTransport:
    """The transport of a group of one: there is nobody to send to."""

    def send(self, messages: Sequence[Message[Body]]) -> None:
        """Drop."""

    def update_members(self, members: Mapping[int, Member]) -> None:
        """Ignore."""

    async def run(
        self,
        deliver: Callable[[Message[Body]], None],  # noqa: ARG002
        unreachable: Callable[[int], None],  # noqa: ARG002
    ) -> None:
        """Do nothing until cancelled."""
        await asyncio.Event().wait()


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
        self._locking = asyncio.Lock()
        self._keystore = KeyStore(self.paths.certificates)
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
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
        storage = await asyncio.to_thread(self._open_storage)
        raft = self._raft = RaftNode(
            config=self._raft_config(storage.identity),
            storage=storage,
            machine=self.store,
            transport=LoneTransport(),
            rng=self._rng,
        )
        leadership = Leadership(raft.read_barrier)
        raft.on_status(leadership.note)
        try:
            async with asyncio.TaskGroup() as group:
                raft_task = group.create_task(raft.run())
                store_task = group.create_task(self.store.run(raft.propose))
                await raft.ready()
                try:
                    await self._serve(_identity(storage.identity), leadership)
                finally:
                    await raft.stop_gracefully()
                    store_task.cancel()
                    raft_task.cancel()
        except BaseExceptionGroup as failures:
            raise first_cause(failures) from failures

    async def _serve(self, identity: Identity, leadership: Leadership) -> None:
        backend = Backend(
            store=self.store,
            barrier=self._require_raft().read_barrier,
            managers=self.managers,
            clock=self.clock,
        )
        own = OwnCertificate(backend, self._keystore, identity, self._rng, lambda: self._unlock_key)
        await self._found(identity)
        credentials = await own.ensure()
        await self._follow_lock()
        await self._follow_address()
        front = self._front = TlsFront(
            upstream=self.paths.front, credentials=credentials, listen=[self._listen()]
        )
        here = Peer(address=self.config.advertise_addr, identity=identity)
        hub = Hub(backend, self._rng)
        services = self._services(backend, hub, leadership)
        tls = make_server(services, self._edge(TlsGate(self.store, front.peer, leadership.refusal)))
        local = make_server(services, self._edge(LocalGate(here, leadership.refusal)))
        front.bind()
        unix_path(self.paths.control).unlink(missing_ok=True)
        unix_path(self.paths.front).unlink(missing_ok=True)
        tls.add_insecure_port(front.upstream_target)
        local.add_insecure_port(f"unix:{self.paths.control}")

        async def renew() -> None:
            await own.run(credentials, front.reload)

        duties = (
            hub.run,
            renew,
            lambda: rotate_keys(backend),
            lambda: forget_removed(backend),
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._fail_on_broken())
            group.create_task(self._watch(front, hub))
            group.create_task(leadership.run(duties))
            for server in (tls, local):
                up = asyncio.Event()
                group.create_task(run_server(server, up))
                await up.wait()
            self.paths.control.chmod(0o600)
            group.create_task(front.run())
            await hub.settled.wait()
            self.started.set()
            log.info("manager.started", node=identity.node_id, cluster=identity.cluster_id)
            self._notifier.ready(f"serving on {self.config.listen_addr}")

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

    def _services(self, backend: Backend, hub: Hub, leadership: Leadership) -> tuple[Service, ...]:
        def service(descriptor: Any, *servicers: object) -> Service:
            return Service(descriptor=descriptor, servicers=servicers)

        logs = logbroker_pb2.DESCRIPTOR.services_by_name["LogBroker"]
        return (
            service(ca_pb2.DESCRIPTOR.services_by_name["CA"], CertificateAuthority(backend)),
            service(ca_pb2.DESCRIPTOR.services_by_name["NodeCA"], NodeCertificates(backend)),
            service(dispatcher_pb2.DESCRIPTOR.services_by_name["Dispatcher"], Dispatcher(hub)),
            service(
                resource_pb2.DESCRIPTOR.services_by_name["ResourceAllocator"],
                Attachments(backend),
            ),
            service(
                control_pb2.DESCRIPTOR.services_by_name["Control"],
                Nodes(backend),
                Networks(backend),
                Clusters(backend, self._follow_lock),
                Tasks(backend),
                Services(backend),
            ),
            service(
                health_pb2.DESCRIPTOR.services_by_name["Health"], Health(lambda: leadership.led)
            ),
            service(membership_pb2.DESCRIPTOR.services_by_name["RaftMembership"], Membership()),
            service(logs, Unimplemented(logs)),
        )

    def _edge(self, gate: Gate) -> Edge:
        return Edge(gate=gate, broken=self._note_broken)

    def _note_broken(self, error: InvariantError) -> None:
        if not self._broken.done():
            self._broken.set_exception(error)

    async def _fail_on_broken(self) -> None:
        await self._broken

    def _open_storage(self) -> SqliteStorage:
        """Open the raft state, or make it at the first start."""
        if SqliteStorage.exists(self.paths.raft):
            return SqliteStorage.open(self.paths.raft, unlock_key=self._unlock_key)
        if self.config.mode is not Mode.INIT:
            raise PreconditionError(
                "this version runs one manager in a cluster: it cannot join one"
            )
        # Better an early word than a half-founded swarm.
        host, port = self._listen()
        for listener in listen_tcp(host, port):
            listener.close()
        identity = RaftIdentity(
            cluster_id=new_id(), raft_id=secrets.randbelow(2**63 - 1) + 1, node_id=new_id()
        )
        return SqliteStorage.create(self.paths.raft, identity)

    def _raft_config(self, identity: RaftIdentity) -> RaftConfig:
        return RaftConfig(
            cluster_id=identity.cluster_id,
            raft_id=identity.raft_id,
            node_id=identity.node_id,
            addr=self.config.advertise_addr,
            bootstrap=True,
            force_new_group=self.config.force_new_cluster,
            snapshot_entries=self.config.snapshot_interval,
        )

    async def _found(self, identity: Identity) -> None:
        """Make the swarm, unless it is there."""
        if len(self.store.view.clusters):
            return
        build, credentials = founding(self.config, identity, now=self.clock.now(), make_id=new_id)
        await self.store.transact(build)
        await asyncio.to_thread(self._keystore.save, credentials, self._unlock_key)
        log.info("swarm.founded", cluster=identity.cluster_id, node=identity.node_id)

    async def _follow_lock(self) -> None:
        """Lock or unlock what is on disk as the cluster object says."""
        async with self._locking:
            wanted = unlock_key_of(self.store.view.clusters.only())
            await asyncio.to_thread(self._lock, wanted)
            self._unlock_key = wanted

    def _lock(self, wanted: bytes | None) -> None:
        key_file = self.paths.raft / KEY_FILE
        current = self._unlock_key if is_locked(key_file) else None
        if wanted != current:
            rewrap(key_file, current, wanted)
        credentials = self._keystore.load(self._unlock_key)
        if credentials is not None and self._lock_of_key() != wanted:
            self._keystore.save(credentials, wanted)

    def _lock_of_key(self) -> bytes | None:
        """Return what opens the private key: nothing, or the unlock key used until now."""
        try:
            self._keystore.load(None)
        except LockedError:
            return self._unlock_key
        return None

    async def _follow_address(self) -> None:
        """Tell raft the address this manager is reached at now; nodes learn it with their session."""
        raft = self._require_raft()
        status = raft.status
        mine = status.members.get(status.id)
        if (
            mine is not None
            and mine.addr != self.config.advertise_addr
            and status.role is RaftRole.LEADER
        ):
            await raft.update_member(raft_id=status.id, addr=self.config.advertise_addr)

    async def _watch(self, front: TlsFront, hub: Hub) -> None:
        """React to what the store says: removed nodes are cut off, the lock follows its key."""
        raft = self._require_raft()
        raft.on_status(lambda _: hub.wake_all())
        while True:
            try:
                async for commit in self.store.watch():
                    for change in commit.changes:
                        if isinstance(change.old, Node) and change.new is None:
                            front.disconnect(change.old.id)
                    if any(isinstance(change.new, Cluster) for change in commit.changes):
                        await self._follow_lock()
            except StaleError:
                log.warning("manager.watch.behind")

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
    """Return the most telling of several failures: one of our own errors before anything else."""
    found: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseExceptionGroup):
            pending.extend(each.exceptions)
        else:
            found.append(each)
    return next((each for each in found if isinstance(each, SwarmError)), found[0])


def _identity(stored: RaftIdentity) -> Identity:
    return Identity(node_id=stored.node_id, cluster_id=stored.cluster_id, role=Role.MANAGER)
