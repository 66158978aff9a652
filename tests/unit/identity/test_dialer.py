"""The client side: what is verified, what a failure is called, and that bytes arrive whole."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing

from swarm.errors import ExhaustedError, HostError, InvalidArgumentError, PreconditionError
from swarm.identity import dialer as dialer_module
from swarm.identity.certs import Credentials, Role
from swarm.identity.dialer import MANAGER_NAME, ROOT_NAME, DialError, TlsDialer
from swarm.identity.sockets import listen_tcp
from swarm.identity.tls import TlsFault, server_context
from tests.unit.identity.conftest import MANAGER, WORKER, Cluster, Dial, Serve, Served, who

MIB = 1 << 20


@pytest.fixture
def manager(cluster: Cluster) -> Credentials:
    """The serving manager's credentials."""
    return cluster.member(Role.MANAGER, MANAGER)


@pytest.fixture
def worker(cluster: Cluster) -> Credentials:
    """The calling worker's credentials."""
    return cluster.member(Role.WORKER, WORKER)


async def refused(dialer: TlsDialer, target: str, server_name: str = MANAGER_NAME) -> DialError:
    """Make a call that must fail, and return why."""
    channel: Any = dialer.channel(target, server_name=server_name)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await who(channel)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await channel.close()
    error = dialer.last_error(target)
    assert error is not None
    assert target in str(error)
    return error


@pytest.mark.parametrize("name", [MANAGER_NAME, ROOT_NAME])
async def test_both_server_names(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials, name: str
) -> None:
    """Managers answer to swarm-manager and to swarm-ca."""
    async with serve(manager) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target, server_name=name)
        assert await who(channel) == WORKER
        assert dialer.last_error(served.target) is None
        await channel.close()


async def test_a_worker_cannot_pose_as_a_manager(
    serve: Serve, dial: Dial, cluster: Cluster, worker: Credentials
) -> None:
    """A worker's certificate is of this cluster but not for the name swarm-manager (or swarm-ca)."""
    async with serve(cluster.member(Role.WORKER, "x" * 25)) as served, dial(worker) as dialer:
        for name in (MANAGER_NAME, ROOT_NAME):
            error = await refused(dialer, served.target, name)
            assert error.fault is TlsFault.WRONG_NAME
            assert "is not a manager" in str(error)
        assert served.callers == []


async def test_another_clusters_manager(
    serve: Serve, dial: Dial, foreign: Cluster, worker: Credentials
) -> None:
    """The sentence says so."""
    async with serve(foreign.member(Role.MANAGER, MANAGER)) as served, dial(worker) as dialer:
        error = await refused(dialer, served.target)
        assert error.fault is TlsFault.FOREIGN
        assert "certificate of another cluster" in str(error)


async def test_a_manager_under_a_root_that_is_being_replaced(
    serve: Serve, dial: Dial, cluster: Cluster, worker: Credentials
) -> None:
    """A new root signed by ours is ours, even in the form in which OpenSSL takes it for self-signed."""
    renewed = cluster.rotating().member(Role.MANAGER, MANAGER)
    serving = replace(
        renewed, root_pem=cluster.root.cert_pem
    )  # the old root is everybody's until the end
    async with serve(serving) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target)
        assert await who(channel) == WORKER
        assert dialer.last_error(served.target) is None
        await channel.close()


async def test_who_only_looks_like_a_manager_under_a_new_root(
    serve: Serve, dial: Dial, cluster: Cluster, foreign: Cluster, worker: Credentials
) -> None:
    """Signed by another cluster's root, or a worker, or expired: told as ever, and not one byte goes there."""
    old = datetime.now(UTC) - timedelta(hours=9)
    rotating = cluster.rotating()
    for credentials, fault in (
        (cluster.rotating(by=foreign.root).member(Role.MANAGER, MANAGER), TlsFault.FOREIGN),
        (rotating.member(Role.WORKER, "x" * 25), TlsFault.WRONG_NAME),
        (
            rotating.member(Role.MANAGER, MANAGER, now=old, validity=timedelta(hours=2)),
            TlsFault.EXPIRED,
        ),
    ):
        async with serve(credentials) as served, dial(worker) as dialer:
            error = await refused(dialer, served.target)
            assert error.fault is fault
            assert served.callers == []


async def test_an_expired_manager(
    serve: Serve, dial: Dial, cluster: Cluster, worker: Credentials
) -> None:
    """Expired, or the clock is wrong."""
    old = cluster.member(
        Role.MANAGER,
        MANAGER,
        now=datetime.now(UTC) - timedelta(hours=9),
        validity=timedelta(hours=2),
    )
    async with serve(old) as served, dial(worker) as dialer:
        error = await refused(dialer, served.target)
        assert error.fault is TlsFault.EXPIRED
        assert "expired" in str(error)


async def test_a_manager_that_does_not_like_our_certificate(
    serve: Serve, dial: Dial, cluster: Cluster, foreign: Cluster, manager: Credentials
) -> None:
    """Under TLS 1.3 this shows only after the handshake, and is told all the same."""
    other = foreign.member(Role.WORKER, WORKER)
    posing = Credentials(
        root_pem=cluster.root.cert_pem, cert_pem=other.cert_pem, key_pem=other.key_pem
    )
    async with serve(manager) as served, dial(posing) as dialer:
        error = await refused(dialer, served.target)
        assert error.fault is TlsFault.REJECTED
        assert "does not accept this node's certificate" in str(error)


async def test_nobody_listens(dial: Dial, worker: Credentials) -> None:
    """Connection refused, and no manager there."""
    (taken,) = listen_tcp("127.0.0.1", 0)
    port = taken.getsockname()[1]
    taken.close()
    async with dial(worker) as dialer:
        error = await refused(dialer, f"127.0.0.1:{port}")
        assert error.fault is TlsFault.REFUSED
        assert str(error).startswith("connection refused by")
        assert isinstance(error.__cause__, ConnectionRefusedError)


@asynccontextmanager
async def plain_server(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], **options: Any
) -> AsyncIterator[str]:
    """Run a bare server; yield its target."""

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await handle(reader, writer)
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(run, "127.0.0.1", 0, **options)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def test_something_that_is_not_a_manager(dial: Dial, worker: Credentials) -> None:
    """An HTTP server is told from a manager."""

    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        await reader.read()

    async with plain_server(http) as target, dial(worker) as dialer:
        error = await refused(dialer, target)
        assert error.fault is TlsFault.NOT_TLS
        assert "not a swarm manager" in str(error)


async def test_a_server_that_hangs_up(dial: Dial, worker: Credentials) -> None:
    """Closed before the handshake."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)

    async with plain_server(hang_up) as target, dial(worker) as dialer:
        assert (await refused(dialer, target)).fault is TlsFault.RESET


async def test_a_server_that_says_nothing(
    dial: Dial, worker: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handshake's time-out is told as no answer."""

    async def silence(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    monkeypatch.setattr(dialer_module, "HANDSHAKE_TIMEOUT", 0.2)
    async with plain_server(silence) as target, dial(worker) as dialer:
        error = await refused(dialer, target)
        assert error.fault is TlsFault.TIMEOUT
        assert "no answer" in str(error)


async def test_a_name_that_does_not_resolve(
    dial: Dial, worker: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label longer than DNS allows fails without asking anybody."""
    async with dial(worker) as dialer:
        error = await refused(dialer, f"{'x' * 70}.invalid:2377")
        assert error.fault in {TlsFault.UNRESOLVED, TlsFault.PROTOCOL}


async def test_the_same_failure_is_logged_once(dial: Dial, worker: Credentials) -> None:
    """A manager that stays away does not fill the log."""
    (taken,) = listen_tcp("127.0.0.1", 0)
    target = f"127.0.0.1:{taken.getsockname()[1]}"
    taken.close()
    with structlog.testing.capture_logs() as logs:
        async with dial(worker) as dialer:
            for _ in range(3):
                await refused(dialer, target)
    refusals = [line for line in logs if line["event"] == "dialer.connection.refused"]
    assert len(refusals) == 1


async def test_a_manager_without_alpn(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """Engines before 28 stop selecting ALPN after a renewal; our calls work all the same."""
    context = server_context(manager)
    context.set_alpn_protocols(["nothing-we-know"])
    async with serve(manager) as served, dial(worker) as dialer:
        monkeypatch_context(served, context)
        channel: Any = dialer.channel(served.target)
        assert await who(channel) == WORKER
        await channel.close()


def monkeypatch_context(served: Served, context: ssl.SSLContext) -> None:
    """Make a front serve with another context."""
    served.front._context = context


async def test_fetching_a_root_from_anybody(serve: Serve, dial: Dial, foreign: Cluster) -> None:
    """Before anything is trusted, an unverified channel reaches any manager and shows no certificate."""
    async with serve(foreign.member(Role.MANAGER, MANAGER)) as served, dial(None) as dialer:
        channel = dialer.fetch_unverified(served.target)
        assert await who(channel) == "nobody"
        await channel.close()
        with pytest.raises(PreconditionError, match="no root CA"):
            dialer.channel(served.target)


async def test_an_unverified_channel_shows_no_certificate(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """Not even when there is one; and it is kept apart from verified channels to the same manager."""
    async with serve(manager) as served, dial(worker) as dialer:
        open_channel, channel = (
            dialer.fetch_unverified(served.target),
            dialer.channel(served.target),
        )
        assert await who(open_channel) == "nobody"
        assert await who(channel) == WORKER
        await open_channel.close()
        await channel.close()


async def test_reload_is_for_new_channels(
    serve: Serve, dial: Dial, cluster: Cluster, manager: Credentials
) -> None:
    """A joiner gets its certificate: the old channel stays nobody's, a new one is the node's."""
    async with serve(manager) as served, dial(cluster.stranger) as dialer:
        before: Any = dialer.channel(served.target)
        call: Any = before.stream_stream("/t/Echo")()
        await call.write(b"1")
        assert await call.read() == b"1"
        dialer.reload(cluster.member(Role.WORKER, WORKER))
        after: Any = dialer.channel(served.target)
        assert await who(after) == WORKER
        assert await who(before) == "nobody"
        await call.write(b"2")
        assert await call.read() == b"2"
        await call.done_writing()
        await before.close()
        await after.close()


async def test_a_channel_survives_its_manager(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials, run_dir: Path
) -> None:
    """A manager that comes back is reached again on the same channel, and the error is forgotten."""
    async with dial(worker) as dialer:
        async with serve(manager) as served:
            target, port = served.target, served.port
            channel: Any = dialer.channel(target)
            assert await who(channel) == WORKER
        async with asyncio.timeout(20):
            while dialer.last_error(target) is None:  # the first may die with the old connection
                with pytest.raises(grpc.aio.AioRpcError):
                    await who(channel)
        async with again(run_dir, manager, port):
            reply: Any = channel.unary_unary("/t/Who")(b"", timeout=20, wait_for_ready=True)
            assert await reply == WORKER.encode()
            assert dialer.last_error(target) is None
        await channel.close()


@asynccontextmanager
async def again(run_dir: Path, manager: Credentials, port: int) -> AsyncIterator[Served]:
    """Serve on a port that was in use before."""
    from swarm.identity.front import TlsFront
    from tests.unit.identity.conftest import Handlers, stop

    front = TlsFront(
        upstream=run_dir / "front" / "grpc.sock", credentials=manager, listen=[("127.0.0.1", port)]
    )
    front.bind()
    served = Served(front=front)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Handlers(served),))
    server.add_insecure_port(front.upstream_target)
    await server.start()
    task = asyncio.create_task(front.run())
    try:
        yield served
    finally:
        await stop(task)
        await server.stop(0)


@pytest.mark.slow
async def test_fifty_parallel_streams_of_8_mib(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """400 MiB there and 400 MiB back over one connection arrive byte for byte."""
    block = random.Random(8).randbytes(MIB)
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with serve(manager) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target, options=unlimited)

        async def stream(number: int) -> None:
            call: Any = channel.stream_stream("/t/Echo")()
            sent, received = hashlib.sha256(), hashlib.sha256()
            for part in range(8):
                data = bytes([number, part]) + block[2:]
                sent.update(data)
                await call.write(data)
                received.update(await call.read())
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert received.digest() == sent.digest()

        async with asyncio.timeout(55), asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(stream(number))
        await channel.close()
        assert len(served.callers) == 0
        assert served.front.connections <= 1


async def test_one_message_of_8_mib(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """A message far above every buffer passes whole."""
    data = random.Random(9).randbytes(8 * MIB)
    unlimited = [("grpc.max_send_message_length", -1)]
    async with serve(manager) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target, options=unlimited)
        call: Any = channel.stream_stream("/t/Echo")()
        await call.write(data)
        assert await call.read() == data
        await call.done_writing()
        await channel.close()


async def test_routes_opened_before_run_work_after(
    serve: Serve, run_dir: Path, manager: Credentials, worker: Credentials
) -> None:
    """Start order does not matter: the connection waits for run()."""
    from tests.unit.identity.conftest import stop

    async with serve(manager) as served:
        dialer = TlsDialer(directory=run_dir / "early", credentials=worker)
        channel: Any = dialer.channel(served.target)
        call: Any = channel.unary_unary("/t/Who")(b"", timeout=10)
        task = asyncio.create_task(dialer.run())
        assert await call == WORKER.encode()
        await channel.close()
        await stop(task)


async def test_forget_ends_a_targets_connections(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """Calls to it fail; opening it anew works."""
    async with serve(manager) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target)
        call: Any = channel.unary_stream("/t/Hang")(b"")
        assert await call.read() == b"started"
        dialer.forget(served.target)
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(call.read(), 10)
        await channel.close()
        anew: Any = dialer.channel(served.target)
        assert await who(anew) == WORKER
        await anew.close()


async def test_routes_are_bounded(
    serve: Serve,
    dial: Dial,
    manager: Credentials,
    worker: Credentials,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The longest unused route makes room; routes in use never do."""
    monkeypatch.setattr(dialer_module, "MAX_ROUTES", 2)
    async with serve(manager) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target)
        assert await who(channel) == WORKER
        first = dialer.route("192.0.2.1:1")
        second = dialer.route("192.0.2.2:1")
        assert first != second
        assert await who(channel) == WORKER
        monkeypatch.setattr(dialer_module, "MAX_ROUTES", 1)
        dialer.forget("192.0.2.2:1")
        with pytest.raises(ExhaustedError):
            dialer.route("192.0.2.3:1")
        await channel.close()


async def test_one_route_per_remote(dial: Dial, worker: Credentials) -> None:
    """Asking again gives the same socket, in a private directory."""
    async with dial(worker) as dialer:
        path = dialer.route("192.0.2.1:2377")
        assert dialer.route("192.0.2.1:2377") == path
        assert dialer.route("192.0.2.1:2377", server_name=ROOT_NAME) != path
        assert dialer.directory.stat().st_mode & 0o777 == 0o700


async def test_bad_targets_and_credentials(
    dial: Dial, run_dir: Path, manager: Credentials, worker: Credentials
) -> None:
    """Each is refused with its own kind of error, before anything is opened."""
    async with dial(worker) as dialer:
        with pytest.raises(InvalidArgumentError):
            dialer.channel("no-port")
        with pytest.raises(HostError, match="cannot be loaded"):
            dialer.reload(Credentials(root_pem=b"rubbish"))
        assert dialer.last_error("192.0.2.1:1") is None
    with pytest.raises(HostError, match="cannot be loaded"):
        TlsDialer(
            directory=run_dir,
            credentials=Credentials(
                root_pem=worker.root_pem, cert_pem=worker.cert_pem, key_pem=manager.key_pem
            ),
        )
