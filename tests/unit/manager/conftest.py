"""A real manager in this process, and a fake engine that speaks to it over real TLS.

The engine does what a stock one does, in its order: root without verification, certificate by token
under the name ``swarm-ca``, then everything else under ``swarm-manager`` with its certificate.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from manager.clock import Clock
from manager.process import Manager
from swarm.api.docker.swarmkit import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dispatcher_pb2,
    dispatcher_pb2_grpc,
    resource_pb2,
    resource_pb2_grpc,
    types_pb2,
)
from swarm.identity.certs import ROOT_NAME, Credentials, new_key_and_csr
from swarm.identity.dialer import TlsDialer
from swarm.identity.token import JoinToken, matches_root

DEADLINE = 10.0
RUNNING = types_pb2.TASK_STATE_RUNNING


def free_port() -> int:
    """Return a port that nobody has, out of the range from which connections are given theirs."""
    dice = random.SystemRandom()
    while True:
        port = dice.randrange(10_000, 32_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@dataclass(slots=True, eq=False)
class Journal:
    """What a stream brought, with the time of arrival, and how it ended."""

    messages: list[Any] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    end: grpc.aio.AioRpcError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def read(self, call: Any) -> None:
        """Collect until the stream ends."""
        try:
            async for message in call:
                self.messages.append(message)
                self.times.append(time.monotonic())
                self.changed.set()
        except grpc.aio.AioRpcError as error:
            self.end = error
        finally:
            self.changed.set()

    async def until(self, wanted: Callable[[Journal], Any]) -> Any:
        """Wait until something is true of what came; return it."""
        async with asyncio.timeout(DEADLINE):
            while not (found := wanted(self)):
                self.changed.clear()
                await self.changed.wait()
        return found


@dataclass(slots=True, eq=False)
class Session:
    """The streams of one session."""

    id: str
    session: Journal
    assignments: Journal
    tasks: list[asyncio.Task[None]]
    calls: list[Any]

    async def close(self) -> None:
        """End the streams as a disconnecting engine does."""
        for call in self.calls:
            call.cancel()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def known(self) -> dict[str, Any]:
        """Apply every assignments message in order; a gap is a failure."""
        known: dict[str, Any] = {}
        reference = ""
        for message in self.assignments.messages:
            assert message.applies_to == reference, "a gap in the assignments"
            if message.type == dispatcher_pb2.AssignmentsMessage.COMPLETE:
                known = {}
            for change in message.changes:
                task = change.assignment.task
                if change.action == dispatcher_pb2.AssignmentChange.REMOVE:
                    del known[task.id]
                else:
                    known[task.id] = task
            reference = message.results_in
        return known


class Engine:
    """One node."""

    def __init__(self, directory: Path, target: str, hostname: str, *, ours: bool = False) -> None:
        self.target = target
        self.hostname = hostname
        self.ours = ours
        self.directory = directory
        self.credentials: Credentials | None = None
        self.node_id = ""
        self.key = b""
        self.csr = b""
        self._dialers: list[tuple[TlsDialer, asyncio.Task[None]]] = []
        self._channels: list[grpc.aio.Channel] = []

    def dialer(self, credentials: Credentials | None) -> TlsDialer:
        """Start a dialer of its own directory."""
        made = TlsDialer(
            directory=self.directory / str(len(self._dialers)), credentials=credentials
        )
        self._dialers.append((made, asyncio.create_task(made.run())))
        return made

    def channel(self, credentials: Credentials | None, **more: Any) -> grpc.aio.Channel:
        """Open a channel; without credentials, an unverified one."""
        dialer = self.dialer(credentials)
        made = (
            dialer.fetch_unverified(self.target)
            if credentials is None
            else dialer.channel(self.target, **more)
        )
        self._channels.append(made)
        return made

    def description(self) -> types_pb2.NodeDescription:
        """Describe this node as an engine does."""
        labels = {"overswarm.version": "1"} if self.ours else {}
        return types_pb2.NodeDescription(
            hostname=self.hostname,
            platform=types_pb2.Platform(architecture="x86_64", os="linux"),
            resources=types_pb2.Resources(nano_cpus=2 * 10**9, memory_bytes=1 << 30),
            engine=types_pb2.EngineDescription(
                engine_version="20.10.24",
                labels=labels,
                plugins=[types_pb2.PluginDescription(type="Network", name="overlay")],
            ),
        )

    async def fetch_root(self, token: str) -> bytes:
        """Step 1: the root, checked against the token."""
        stub = ca_pb2_grpc.CAStub(self.channel(None))
        answer = await stub.GetRootCACertificate(
            ca_pb2.GetRootCACertificateRequest(), timeout=DEADLINE, wait_for_ready=True
        )
        root: bytes = answer.certificate
        assert matches_root(JoinToken.parse(token), root)
        return root

    async def join(self, token: str, availability: int = 0) -> Engine:
        """Steps 1 to 3: root, certificate, status."""
        root = await self.fetch_root(token)
        self.key, self.csr = new_key_and_csr()
        channel = self.channel(Credentials(root_pem=root), server_name=ROOT_NAME)
        stub = ca_pb2_grpc.NodeCAStub(channel)
        issued = await stub.IssueNodeCertificate(
            ca_pb2.IssueNodeCertificateRequest(
                csr=self.csr, token=token, availability=availability
            ),
            timeout=DEADLINE,
        )
        self.node_id = issued.node_id
        await self._take(stub, root)
        return self

    async def renew(self) -> None:
        """Get a new certificate with the old one, over a new connection, without a token."""
        assert self.credentials is not None
        self.key, self.csr = new_key_and_csr()
        stub = ca_pb2_grpc.NodeCAStub(self.channel(self.credentials))
        issued = await stub.IssueNodeCertificate(
            ca_pb2.IssueNodeCertificateRequest(csr=self.csr), timeout=DEADLINE
        )
        assert issued.node_id == self.node_id
        await self._take(stub, self.credentials.root_pem)

    async def _take(self, stub: Any, root: bytes) -> None:
        status = await stub.NodeCertificateStatus(
            ca_pb2.NodeCertificateStatusRequest(node_id=self.node_id), timeout=DEADLINE
        )
        assert status.status.state == types_pb2.ISSUANCE_STATE_ISSUED
        assert status.certificate.csr == self.csr
        self.credentials = Credentials(
            root_pem=root, cert_pem=status.certificate.certificate, key_pem=self.key
        )

    def connect(self) -> grpc.aio.Channel:
        """Open a channel with this node's certificate."""
        assert self.credentials is not None
        return self.channel(self.credentials)

    async def register(self, session_id: str = "") -> Session:
        """Steps 4 and 5: session, first heartbeat, assignments."""
        self.conn = self.connect()
        stub = dispatcher_pb2_grpc.DispatcherStub(self.conn)
        call = stub.Session(
            dispatcher_pb2.SessionRequest(description=self.description(), session_id=session_id),
            wait_for_ready=True,
        )
        journal, assignments = Journal(), Journal()
        session = Session(
            id="",
            session=journal,
            assignments=assignments,
            tasks=[asyncio.create_task(journal.read(call))],
            calls=[call],
        )
        try:
            await journal.until(lambda j: j.messages or j.end)
            if journal.end is not None:
                raise journal.end  # noqa: TRY301  # what register() is called for
            session.id = journal.messages[0].session_id
            beat = await stub.Heartbeat(
                dispatcher_pb2.HeartbeatRequest(session_id=session.id), timeout=DEADLINE
            )
            assert beat.period.ToNanoseconds() > 0
            stream = stub.Assignments(dispatcher_pb2.AssignmentsRequest(session_id=session.id))
            session.calls.append(stream)
            session.tasks.append(asyncio.create_task(assignments.read(stream)))
            await assignments.until(lambda j: j.messages or j.end)
        except BaseException:
            await session.close()
            raise
        return session

    async def attach(self, target: str, *addresses: str, container: str = "c" * 64) -> str:
        """Ask for an attachment; return its id."""
        stub = resource_pb2_grpc.ResourceAllocatorStub(self.conn)
        answer = await stub.AttachNetwork(
            resource_pb2.AttachNetworkRequest(
                config=types_pb2.NetworkAttachmentConfig(target=target, addresses=addresses),
                container_id=container,
            ),
            timeout=DEADLINE,
        )
        return str(answer.attachment_id)

    async def detach(self, attachment: str) -> None:
        """Give an attachment back."""
        stub = resource_pb2_grpc.ResourceAllocatorStub(self.conn)
        await stub.DetachNetwork(
            resource_pb2.DetachNetworkRequest(attachment_id=attachment), timeout=DEADLINE
        )

    async def report(self, session: str, task: str, state: int, **more: Any) -> None:
        """Send one task status."""
        stub = dispatcher_pb2_grpc.DispatcherStub(self.conn)
        update = dispatcher_pb2.UpdateTaskStatusRequest.TaskStatusUpdate(
            task_id=task, status=types_pb2.TaskStatus(state=state, **more)
        )
        await stub.UpdateTaskStatus(
            dispatcher_pb2.UpdateTaskStatusRequest(session_id=session, updates=[update]),
            timeout=DEADLINE,
        )

    async def close(self) -> None:
        """Close every connection."""
        for channel in self._channels:
            await channel.close()
        for _, task in self._dialers:
            task.cancel()
        await asyncio.gather(*(task for _, task in self._dialers), return_exceptions=True)


class Swarm:
    """A manager, its directories, and the engines of a test."""

    def __init__(self, directory: Path) -> None:
        self.state_dir = directory / "state"
        self.run_dir = directory / "run"
        self.state_dir.mkdir(parents=True)
        self.port = free_port()
        self.settings: dict[str, Any] = {}
        self.clock = Clock()
        self.manager: Manager
        self.control: Any = None
        self.engines: list[Engine] = []
        self._directory = directory
        self._task: asyncio.Task[None] | None = None
        self._channel: grpc.aio.Channel | None = None

    @property
    def target(self) -> str:
        """The manager's host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def view(self) -> Any:
        """The manager's store."""
        return self.manager.store.view

    @property
    def cluster(self) -> Any:
        """The cluster object."""
        return self.view.clusters.only()

    @property
    def worker_token(self) -> str:
        """The token workers join with."""
        return str(self.cluster.root_ca.join_tokens.worker)

    async def start(self, *, unlock_key: bytes | None = None) -> None:
        """Start the manager and wait until it serves."""
        config = {"listen_addr": self.target, "advertise_addr": self.target, **self.settings}
        (self.state_dir / "manager.json").write_text(json.dumps(config))
        self.manager = Manager(
            self.state_dir, self.run_dir, unlock_key=unlock_key, clock=self.clock
        )
        self._task = asyncio.create_task(self.manager.run())
        started = asyncio.create_task(self.manager.started.wait())
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait({self._task, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._task.done():
            self._task.result()
        self._channel = grpc.aio.insecure_channel(f"unix:{self.run_dir}/manager/control.sock")
        self.control = control_pb2_grpc.ControlStub(self._channel)

    @property
    def local(self) -> grpc.aio.Channel:
        """A channel to the manager's local socket."""
        assert self._channel is not None
        return self._channel

    async def stop(self) -> None:
        """Stop the manager as SIGTERM does."""
        if self._channel is not None:
            await self._channel.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def failure(self) -> BaseException:
        """Wait until the manager ends by itself; return why."""
        assert self._task is not None
        async with asyncio.timeout(DEADLINE):
            await asyncio.wait({self._task})
        error = self._task.exception()
        assert error is not None
        self._task = None
        return error

    def engine(self, hostname: str = "w1", *, ours: bool = False) -> Engine:
        """Make a node that has not joined."""
        path = self._directory / f"e{len(self.engines)}"
        made = Engine(path, self.target, hostname, ours=ours)
        self.engines.append(made)
        return made

    async def worker(self, hostname: str = "w1", *, ours: bool = False) -> Engine:
        """Make a node that has joined."""
        return await self.engine(hostname, ours=ours).join(self.worker_token)

    async def network(self, name: str, **spec: Any) -> Any:
        """Create a network over the local socket."""
        annotations = types_pb2.Annotations(name=name, labels=spec.pop("labels", {}))
        request = control_pb2.CreateNetworkRequest()
        request.spec.annotations.CopyFrom(annotations)
        if options := spec.pop("options", None):
            request.spec.driver_config.name = "overlay"
            request.spec.driver_config.options.update(options)
        for key, value in {"attachable": True, **spec}.items():
            setattr(request.spec, key, value)
        answer = await self.control.CreateNetwork(request, timeout=DEADLINE)
        return answer.network

    async def close(self) -> None:
        """Take everything down."""
        for engine in self.engines:
            await engine.close()
        await self.stop()


@pytest.fixture
async def stopped_swarm(short_dir: Path) -> AsyncIterator[Swarm]:
    """A swarm whose manager was not started yet."""
    swarm = Swarm(short_dir)
    try:
        yield swarm
    finally:
        await swarm.close()


@pytest.fixture
async def swarm(stopped_swarm: Swarm) -> Swarm:
    """A running manager."""
    await stopped_swarm.start()
    return stopped_swarm


@pytest.fixture
def make_swarm() -> Callable[[Path], Swarm]:
    """Make further managers; whoever makes them closes them."""
    return Swarm


@pytest.fixture
def other_port() -> Callable[[], int]:
    """Find a port for a manager that moves."""
    return free_port


@pytest.fixture
async def make_engine(short_dir: Path) -> AsyncIterator[Callable[[str], Engine]]:
    """Make nodes for a manager that runs elsewhere, by its host:port."""
    made: list[Engine] = []

    def make(target: str) -> Engine:
        made.append(Engine(short_dir / f"x{len(made)}", target, f"w{len(made)}"))
        return made[-1]

    yield make
    for engine in made:
        await engine.close()


@pytest.fixture
def code_of() -> Callable[[Awaitable[Any]], Awaitable[tuple[str, str]]]:
    """Await a call that must fail; return its status name and text."""

    async def code(call: Awaitable[Any]) -> tuple[str, str]:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        raise AssertionError("the call was not refused")

    return code


@pytest.fixture
def lb() -> Callable[[Any], dict[str, Sequence[str]]]:
    """Return a node message's load balancer addresses by network name."""

    def addresses(node: Any) -> dict[str, Sequence[str]]:
        return {
            each.network.spec.annotations.name: list(each.addresses) for each in node.attachments
        }

    return addresses


@pytest.fixture
def short_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose path leaves room for a unix socket's 107 bytes."""
    return tmp_path_factory.mktemp("m")
