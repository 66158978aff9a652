"""A cluster's credentials, and gRPC ends behind the tunnels, on both event loops."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from swarm.identity.certs import Credentials, Role, RootCA, new_key_and_csr, new_root
from swarm.identity.dialer import TlsDialer
from swarm.identity.front import FrontLimits, TlsFront

CLUSTER = "c" * 25
MANAGER = "m" * 25
WORKER = "w" * 25


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every asynchronous test on the standard loop and on the one the daemons use."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """One cluster's root, and members of it."""

    root: RootCA
    cluster_id: str = CLUSTER

    def member(
        self,
        role: Role,
        node_id: str,
        *,
        now: datetime | None = None,
        validity: timedelta = timedelta(days=90),
    ) -> Credentials:
        """Issue credentials as a manager would."""
        key, csr = new_key_and_csr()
        cert = self.root.issue(
            csr,
            node_id=node_id,
            cluster_id=self.cluster_id,
            role=role,
            validity=validity,
            now=now or datetime.now(UTC),
        )
        return Credentials(root_pem=self.root.cert_pem, cert_pem=cert, key_pem=key)

    def rotating(self, *, by: RootCA | None = None) -> Cluster:
        """The same cluster under a new root that the present one (or ``by``) has signed, as an engine does it.

        The new root's signed form has the same name and no authority key id.
        """
        now = datetime.now(UTC)
        fresh, signer = new_root(now), by or self.root
        assert signer.key_pem is not None
        subject = x509.load_pem_x509_certificate(fresh.cert_pem)
        key, subject_key = load_pem_private_key(signer.key_pem, None), subject.public_key()
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(subject_key, ec.EllipticCurvePublicKey)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject.subject)
            .issuer_name(subject.subject)
            .public_key(subject_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )
        for item in subject.extensions:
            builder = builder.add_extension(item.value, item.critical)
        between = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        return replace(self, root=replace(fresh, intermediates_pem=between))

    @property
    def stranger(self) -> Credentials:
        """The roots, and no certificate."""
        return Credentials(root_pem=self.root.cert_pem)


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """Our cluster."""
    return Cluster(root=new_root(datetime.now(UTC)))


@pytest.fixture(scope="session")
def foreign() -> Cluster:
    """Another cluster, with the same ids under another root."""
    return Cluster(root=new_root(datetime.now(UTC)))


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A short directory: socket paths have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ovs-") as path:
        yield Path(path)


@dataclass(slots=True, kw_only=True)
class Served:
    """A gRPC server behind a front."""

    front: TlsFront
    callers: list[Any] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    server: Any = None

    @property
    def port(self) -> int:
        """The front's port."""
        return self.front.addresses[0][1]

    @property
    def target(self) -> str:
        """The front, as a client names it."""
        return f"127.0.0.1:{self.port}"


class Handlers(grpc.GenericRpcHandler):
    """``/t/Who`` names the caller, ``/t/Echo`` sends each message back, ``/t/Hang`` waits for ever."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def service(self, handler_call_details: Any) -> Any:
        """Find the handler of a method."""
        method = handler_call_details.method
        if method == "/t/Who":
            return grpc.unary_unary_rpc_method_handler(self.who)
        if method == "/t/Echo":
            return grpc.stream_stream_rpc_method_handler(self.echo)
        if method == "/t/Hang":
            return grpc.unary_stream_rpc_method_handler(self.hang)
        return None

    async def who(self, request: bytes, context: Any) -> bytes:
        """Answer with the caller's node id."""
        peer = self.served.front.peer(context.peer())
        self.served.callers.append(peer)
        return b"nobody" if peer.identity is None else peer.identity.node_id.encode()

    async def echo(self, requests: Any, context: Any) -> AsyncIterator[bytes]:
        """Send every message back."""
        async for request in requests:
            yield request

    async def hang(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """Say one word, then nothing more."""
        try:
            yield b"started"
            await asyncio.Event().wait()
        finally:
            self.served.cancelled.set()


Serve = Callable[..., AbstractAsyncContextManager[Served]]
Dial = Callable[..., AbstractAsyncContextManager[TlsDialer]]


async def stop(task: asyncio.Task[None]) -> None:
    """Cancel a run() and wait until it has cleaned up."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()) is not None:
        raise error


@pytest.fixture
def serve(run_dir: Path) -> Serve:
    """Return a context manager that runs a front with a gRPC server behind it on 127.0.0.1."""

    @asynccontextmanager
    async def start(
        credentials: Credentials,
        *,
        limits: FrontLimits | None = None,
        host: str = "127.0.0.1",
        backend: bool = True,
    ) -> AsyncIterator[Served]:
        front = TlsFront(
            upstream=run_dir / "front" / "grpc.sock",
            credentials=credentials,
            listen=[(host, 0)],
            limits=limits,
        )
        front.bind()
        served = Served(front=front)
        unlimited = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        if backend:
            served.server = grpc.aio.server(options=unlimited)
            served.server.add_generic_rpc_handlers((Handlers(served),))
            served.server.add_insecure_port(front.upstream_target)
            await served.server.start()
        served.task = asyncio.create_task(front.run())
        try:
            yield served
        finally:
            await stop(served.task)
            front.close()  # run() may have been cancelled before its first step
            if served.server is not None:
                await served.server.stop(0)

    return start


@pytest.fixture
def dial(run_dir: Path) -> Dial:
    """Return a context manager that runs a dialer."""

    @asynccontextmanager
    async def start(credentials: Credentials | None) -> AsyncIterator[TlsDialer]:
        dialer = TlsDialer(directory=run_dir / "dial", credentials=credentials)
        task = asyncio.create_task(dialer.run())
        try:
            yield dialer
        finally:
            await stop(task)
            dialer.close()  # run() may have been cancelled before its first step
            assert list((run_dir / "dial").glob("*")) == []

    return start


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until a condition holds, ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110  # the state of real sockets has no event
            await asyncio.sleep(0.005)


async def who(channel: Any, timeout: float = 10) -> str:  # noqa: ASYNC109  # gRPC's own deadline
    """Ask the server who is calling."""
    reply: Awaitable[bytes] = channel.unary_unary("/t/Who")(b"", timeout=timeout)
    return (await reply).decode()
