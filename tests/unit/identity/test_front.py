"""Port 2377 from the outside: who gets in, who does not, and what strangers can take up."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from swarm.errors import HostError, UnavailableError
from swarm.identity.certs import Credentials, Identity, Role, RootCA, new_root
from swarm.identity.front import FrontLimits, TlsFront
from swarm.identity.tls import client_context, unverified_context
from tests.unit.identity.conftest import MANAGER, WORKER, Cluster, Dial, Serve, Served, until, who

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")


@pytest.fixture
def manager(cluster: Cluster) -> Credentials:
    """The serving manager's credentials."""
    return cluster.member(Role.MANAGER, MANAGER)


@pytest.fixture
def worker(cluster: Cluster) -> Credentials:
    """A worker's credentials."""
    return cluster.member(Role.WORKER, WORKER)


async def connect(
    served: Served, context: ssl.SSLContext, *, host: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a raw TLS connection to the front."""
    return await asyncio.open_connection(
        host, served.port, ssl=context, server_hostname="swarm-manager"
    )


async def settings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send HTTP/2's preface and expect the server's SETTINGS frame."""
    writer.write(PREFACE)
    header = await asyncio.wait_for(reader.readexactly(9), 10)
    assert header[3] == 4


async def closed(reader: asyncio.StreamReader) -> None:
    """Read until the server ends the connection."""
    with contextlib.suppress(OSError):
        while await asyncio.wait_for(reader.read(65536), 10):
            pass


async def quit_connection(writer: asyncio.StreamWriter) -> None:
    """Close a raw connection and wait for it."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def plain(context: ssl.SSLContext) -> ssl.SSLContext:
    """Stop a context from offering ALPN (what engines do after a renewal)."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    made.minimum_version = context.minimum_version
    return made


async def test_callers_are_named(
    serve: Serve, dial: Dial, cluster: Cluster, manager: Credentials, worker: Credentials
) -> None:
    """No certificate, a worker's and a manager's: each RPC sees who called, and from where."""
    async with serve(manager) as served:
        for credentials, name in (
            (cluster.stranger, "nobody"),
            (worker, WORKER),
            (manager, MANAGER),
        ):
            async with dial(credentials) as dialer:
                channel: Any = dialer.channel(served.target)
                assert await who(channel) == name
                await channel.close()
        stranger, member, _ = served.callers
        assert stranger.identity is None
        assert member.identity == Identity(
            node_id=WORKER, cluster_id=cluster.cluster_id, role=Role.WORKER
        )
        assert member.address.startswith("127.0.0.1:")
        await until(lambda: served.front.connections == 0)


async def test_ipv6(serve: Serve, dial: Dial, manager: Credentials, worker: Credentials) -> None:
    """The same over [::1]; the caller's address is written in brackets."""
    async with serve(manager, host="::1") as served, dial(worker) as dialer:
        channel: Any = dialer.channel(f"[::1]:{served.port}")
        assert await who(channel) == WORKER
        await channel.close()
        assert served.callers[0].address.startswith("[::1]:")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_alpn_is_selected_when_offered(
    serve: Serve, manager: Credentials, worker: Credentials, version: ssl.TLSVersion
) -> None:
    """Stock gRPC clients insist on h2; TLS 1.2 and 1.3 both work."""
    context = client_context(worker)
    context.minimum_version = context.maximum_version = version
    async with serve(manager) as served:
        reader, writer = await connect(served, context)
        session = writer.get_extra_info("ssl_object")
        assert session.selected_alpn_protocol() == "h2"
        assert session.version() == version.name.replace("_", ".")
        await settings(reader, writer)
        await quit_connection(writer)


@pytest.mark.parametrize("offer", [None, ["http/1.1"]])
async def test_alpn_is_not_insisted_on(
    serve: Serve, manager: Credentials, worker: Credentials, offer: list[str] | None
) -> None:
    """A client that offers no ALPN, or another protocol, still gets HTTP/2 SETTINGS back."""
    context = plain(client_context(worker))
    if offer:
        context.set_alpn_protocols(offer)
    async with serve(manager) as served:
        reader, writer = await connect(served, context)
        assert writer.get_extra_info("ssl_object").selected_alpn_protocol() is None
        await settings(reader, writer)
        await quit_connection(writer)


async def test_tls_1_1_is_refused(serve: Serve, manager: Credentials) -> None:
    """The handshake fails and is counted."""
    context = plain(unverified_context())
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with serve(manager) as served:
        with pytest.raises(OSError):  # noqa: PT011  # the loops differ in which
            await connect(served, context)
        await until(lambda: sum(served.front.refusals.values()) == 1)


async def test_a_foreign_certificate_fails_the_handshake(
    serve: Serve, dial: Dial, foreign: Cluster, manager: Credentials, worker: Credentials
) -> None:
    """Refused, counted, logged once, and members are served as before."""
    other = foreign.member(Role.MANAGER, MANAGER)
    context = plain(unverified_context())
    load(context, other)
    with structlog.testing.capture_logs() as logs:
        async with serve(manager) as served, dial(worker) as dialer:
            for _ in range(3):
                with contextlib.suppress(OSError):
                    reader, writer = await connect(served, context)
                    await closed(reader)
                    await quit_connection(writer)
            await until(lambda: served.front.refusals.get("foreign_certificate") == 3)
            channel: Any = dialer.channel(served.target)
            assert await who(channel) == WORKER
            await channel.close()
            assert served.callers[0].identity is not None
    refused = [line for line in logs if line["event"] == "front.connection.refused"]
    assert [(line["reason"], line["count"]) for line in refused] == [("foreign_certificate", 1)]


def load(context: ssl.SSLContext, credentials: Credentials) -> None:
    """Put a certificate into a context by way of a file, as any other program would."""
    import tempfile

    assert credentials.cert_pem is not None
    assert credentials.key_pem is not None
    with tempfile.NamedTemporaryFile() as file:
        file.write(credentials.key_pem + credentials.cert_pem)
        file.flush()
        context.load_cert_chain(file.name)


async def test_an_expired_certificate_fails_the_handshake(
    serve: Serve, cluster: Cluster, manager: Credentials
) -> None:
    """A node that slept through its certificate's life has to join again or renew by token."""
    expired = cluster.member(
        Role.WORKER,
        WORKER,
        now=datetime.now(UTC) - timedelta(hours=5),
        validity=timedelta(hours=2),
    )
    context = plain(unverified_context())
    load(context, expired)
    async with serve(manager) as served:
        with contextlib.suppress(OSError):
            reader, writer = await connect(served, context)
            await closed(reader)
            await quit_connection(writer)
        await until(lambda: served.front.refusals.get("expired_certificate") == 1)


async def test_a_certificate_that_names_nobody_is_refused(
    serve: Serve, cluster: Cluster, manager: Credentials
) -> None:
    """The root's signature alone is not enough: the subject must say who this is."""
    assert cluster.root.key_pem is not None
    signer = serialization.load_pem_private_key(cluster.root.key_pem, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    cert = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n")]))
        .issuer_name(x509.load_pem_x509_certificate(cluster.root.cert_pem).subject)
        .public_key(key.public_key())
        .serial_number(5)
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .sign(signer, hashes.SHA256())
    )
    odd = Credentials(
        root_pem=cluster.root.cert_pem,
        cert_pem=cert.public_bytes(serialization.Encoding.PEM),
        key_pem=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
    context = plain(unverified_context())
    load(context, odd)
    async with serve(manager) as served:
        reader, writer = await connect(served, context)
        await closed(reader)
        await quit_connection(writer)
        await until(lambda: served.front.refusals.get("certificate_subject") == 1)


@pytest.mark.slow
async def test_garbage_harms_nobody(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """Random bytes, HTTP, half a ClientHello, TLS around rubbish: all counted, nobody else disturbed."""
    rng = random.Random(20)
    hello = client_hello()
    payloads = [rng.randbytes(rng.choice([1, 5, 100, 5000])) for _ in range(30)]
    payloads += [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE,
        hello[:40],
        hello[:-1],
        b"\x16\x03\x01\xff\xff",
    ]
    payloads += [mutated(hello, rng) for _ in range(30)]
    limits = FrontLimits(handshake=0.3)
    async with serve(manager, limits=limits) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target)
        call: Any = channel.stream_stream("/t/Echo")()
        await call.write(b"before")
        assert await call.read() == b"before"
        writers = []
        for payload in payloads:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            writer.write(payload)
            writers.append((reader, writer))
        for reader, writer in writers:
            await closed(reader)
            await quit_connection(writer)
        await call.write(b"after")
        assert await call.read() == b"after"
        await call.done_writing()
        await channel.close()
        await until(lambda: sum(served.front.refusals.values()) >= len(payloads))
        assert served.front.refusals["not_tls"] > 0
        assert served.front.refusals["timeout"] > 0
        assert served.task is not None
        assert not served.task.done()


def client_hello() -> bytes:
    """Return what a client sends first."""
    outgoing = ssl.MemoryBIO()
    session = plain(unverified_context()).wrap_bio(ssl.MemoryBIO(), outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Change a few bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


async def test_rubbish_inside_tls(serve: Serve, manager: Credentials) -> None:
    """A client that speaks TLS but not HTTP/2 is ended by gRPC, and the front notices."""
    async with serve(manager) as served:
        reader, writer = await connect(served, plain(unverified_context()))
        writer.write(random.Random(1).randbytes(4000))
        await closed(reader)
        await quit_connection(writer)
        await until(lambda: served.front.connections == 0)


@pytest.mark.slow
async def test_silent_connections_end(serve: Serve, manager: Credentials) -> None:
    """No handshake, no first byte, and a stranger that falls silent: each has its time."""
    limits = FrontLimits(handshake=0.2, first_byte=0.2, stranger_idle=0.3)
    async with serve(manager, limits=limits) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        await closed(reader)
        await quit_connection(writer)
        await until(lambda: served.front.refusals.get("timeout") == 1)

        reader, writer = await connect(served, plain(unverified_context()))
        await closed(reader)
        await quit_connection(writer)
        await until(lambda: served.front.refusals.get("silent") == 1)

        reader, writer = await connect(served, plain(unverified_context()))
        await settings(reader, writer)
        await closed(reader)
        await quit_connection(writer)
        await until(lambda: served.front.refusals.get("silent") == 2)


async def test_a_silent_member_stays(
    serve: Serve, manager: Credentials, worker: Credentials
) -> None:
    """Only strangers are watched for silence; a member's session may be quiet."""
    limits = FrontLimits(stranger_idle=0.1)
    async with serve(manager, limits=limits) as served:
        reader, writer = await connect(served, client_context(worker))
        await settings(reader, writer)
        stranger_reader, stranger = await connect(served, plain(unverified_context()))
        await settings(stranger_reader, stranger)
        await closed(stranger_reader)
        await quit_connection(stranger)
        assert not reader.at_eof()
        assert served.front.connections == 1
        await quit_connection(writer)


async def test_strangers_are_bounded_and_members_still_get_in(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """One stranger too many is turned away; a member is not."""
    async with serve(manager, limits=FrontLimits(strangers=2)) as served, dial(worker) as dialer:
        held = []
        for _ in range(2):
            reader, writer = await connect(served, plain(unverified_context()))
            await settings(reader, writer)
            held.append(writer)
        reader, writer = await connect(served, plain(unverified_context()))
        await closed(reader)
        await quit_connection(writer)
        assert served.front.refusals["full"] == 1
        channel: Any = dialer.channel(served.target)
        assert await who(channel) == WORKER
        await channel.close()
        for writer in held:
            await quit_connection(writer)
        await until(lambda: served.front.connections == 0)
        reader, writer = await connect(served, plain(unverified_context()))
        await settings(reader, writer)
        await quit_connection(writer)


async def test_a_handshake_flood_does_not_keep_members_out(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """With every handshake slot held by silent connections, the oldest makes room."""
    limits = FrontLimits(handshakes=5, handshake=60)
    async with serve(manager, limits=limits) as served, dial(worker) as dialer:
        flood = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(12)]
        await until(lambda: served.front.refusals.get("evicted", 0) >= 7)
        channel: Any = dialer.channel(served.target)
        assert await who(channel) == WORKER
        await channel.close()
        await closed(flood[0][0])
        for _, writer in flood:
            await quit_connection(writer)


async def test_without_a_backend_the_connection_ends(
    serve: Serve, manager: Credentials, worker: Credentials
) -> None:
    """A gRPC server that is not there (yet) is counted, and the client may try again."""
    async with serve(manager, backend=False) as served:
        reader, writer = await connect(served, client_context(worker))
        await closed(reader)
        await quit_connection(writer)
        assert served.front.refusals["upstream"] == 1


async def test_a_dropped_client_cancels_its_calls(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """The server's handler is cancelled when the client's connection goes away."""
    async with serve(manager) as served:
        async with dial(worker) as dialer:
            channel: Any = dialer.channel(served.target)
            call: Any = channel.unary_stream("/t/Hang")(b"")
            assert await call.read() == b"started"
        await asyncio.wait_for(served.cancelled.wait(), 10)
        await until(lambda: served.front.connections == 0)
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()
        await channel.close()


async def test_a_dropped_server_ends_the_clients_calls(
    serve: Serve, dial: Dial, manager: Credentials, worker: Credentials
) -> None:
    """The client's call fails as unavailable when the front goes away."""
    async with dial(worker) as dialer:
        async with serve(manager) as served:
            channel: Any = dialer.channel(served.target)
            call: Any = channel.unary_stream("/t/Hang")(b"")
            assert await call.read() == b"started"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(call.read(), 10)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await channel.close()


async def test_a_removed_node_is_disconnected(
    serve: Serve, dial: Dial, cluster: Cluster, manager: Credentials, worker: Credentials
) -> None:
    """Its connections end; another node's do not."""
    async with (
        serve(manager) as served,
        dial(worker) as dialer,
        other_dialer(served, cluster, dialer) as other,
    ):
        channel: Any = dialer.channel(served.target)
        call: Any = channel.unary_stream("/t/Hang")(b"")
        assert await call.read() == b"started"
        assert await who(other) == "x" * 25
        assert served.front.disconnect(WORKER) == 1
        with pytest.raises(grpc.aio.AioRpcError):
            await asyncio.wait_for(call.read(), 10)
        assert await who(other) == "x" * 25
        await until(lambda: served.front.connections == 1)
        assert served.front.disconnect(WORKER) == 0
        await channel.close()


@contextlib.asynccontextmanager
async def other_dialer(served: Served, cluster: Cluster, dialer: Any) -> Any:
    """Yield a channel of another node (its own dialer beside the first)."""
    from swarm.identity.dialer import TlsDialer
    from tests.unit.identity.conftest import stop

    other = TlsDialer(
        directory=dialer.directory.parent / "other",
        credentials=cluster.member(Role.WORKER, "x" * 25),
    )
    task = asyncio.create_task(other.run())
    channel = other.channel(served.target)
    try:
        yield channel
    finally:
        await channel.close()
        await stop(task)


async def test_reload_keeps_running_streams(
    serve: Serve, dial: Dial, cluster: Cluster, manager: Credentials, worker: Credentials
) -> None:
    """New connections see the new certificate; the stream from before goes on."""
    renewed = cluster.member(Role.MANAGER, MANAGER)
    async with serve(manager) as served, dial(worker) as dialer:
        channel: Any = dialer.channel(served.target)
        call: Any = channel.stream_stream("/t/Echo")()
        await call.write(b"1")
        assert await call.read() == b"1"
        assert await leaf_seen(served) == manager.cert_pem
        served.front.reload(renewed)
        assert await leaf_seen(served) == renewed.cert_pem
        await call.write(b"2")
        assert await call.read() == b"2"
        await call.done_writing()
        assert await who(channel) == WORKER
        await channel.close()


async def leaf_seen(served: Served) -> bytes:
    """Return the certificate the front shows now, PEM."""
    _, writer = await connect(served, plain(unverified_context()))
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    await quit_connection(writer)
    return x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)


async def test_reload_of_the_roots(
    serve: Serve, dial: Dial, cluster: Cluster, manager: Credentials, worker: Credentials
) -> None:
    """With both roots trusted, members of the new root get in; with the new one alone, old ones do not."""
    new = Cluster(root=new_root(datetime.now(UTC)))
    both = RootCA(cert_pem=cluster.root.cert_pem + new.root.cert_pem)
    moved = new.member(Role.WORKER, "y" * 25)
    async with serve(manager) as served:
        served.front.reload(
            Credentials(root_pem=both.cert_pem, cert_pem=manager.cert_pem, key_pem=manager.key_pem)
        )
        trusting = Credentials(
            root_pem=both.cert_pem, cert_pem=moved.cert_pem, key_pem=moved.key_pem
        )
        async with dial(trusting) as dialer:
            channel: Any = dialer.channel(served.target)
            assert await who(channel) == "y" * 25
            served.front.reload(new.member(Role.MANAGER, MANAGER))
            dialer.reload(
                Credentials(
                    root_pem=both.cert_pem, cert_pem=worker.cert_pem, key_pem=worker.key_pem
                )
            )
            assert await who(channel) == "y" * 25
            late: Any = dialer.channel(served.target)
            with pytest.raises(grpc.aio.AioRpcError):
                await who(late)
            error = dialer.last_error(served.target)
            assert error is not None
            assert error.fault == "rejected_by_peer"
            await late.close()
            await channel.close()


async def test_a_bad_reload_changes_nothing(
    serve: Serve, manager: Credentials, worker: Credentials
) -> None:
    """Credentials that cannot be loaded are refused and the old ones stay."""
    mixed = Credentials(
        root_pem=manager.root_pem, cert_pem=manager.cert_pem, key_pem=worker.key_pem
    )
    async with serve(manager) as served:
        for bad in (mixed, Credentials(root_pem=manager.root_pem)):
            with pytest.raises(HostError):
                served.front.reload(bad)
        assert await leaf_seen(served) == manager.cert_pem


async def test_a_peer_that_is_gone_is_not_a_stranger(serve: Serve, manager: Credentials) -> None:
    """Names that stand for no connection raise, rather than look like a caller without certificate."""
    async with serve(manager) as served:
        for name in ("unix:", "unix-abstract:overswarm-0", "ipv4:127.0.0.1:5", ""):
            with pytest.raises(UnavailableError):
                served.front.peer(name)


async def test_a_taken_port_is_told(run_dir: Path, manager: Credentials) -> None:
    """The error names address and port; after a stop the port is free again."""

    def front(port: int) -> TlsFront:
        return TlsFront(
            upstream=run_dir / "f" / "s.sock", credentials=manager, listen=[("127.0.0.1", port)]
        )

    first = front(0)
    first.bind()
    port = first.addresses[0][1]
    with pytest.raises(HostError, match=f"127.0.0.1:{port}: address already in use"):
        await front(port).run()
    first.close()
    again = front(port)
    again.bind()
    again.close()


async def test_everything_is_closed_after_run(
    serve: Serve, manager: Credentials, worker: Credentials
) -> None:
    """Cancelling run() ends established connections and handshakes, and frees the port."""
    async with serve(manager) as served:
        reader, writer = await connect(served, client_context(worker))
        await settings(reader, writer)
        silent_reader, silent = await asyncio.open_connection("127.0.0.1", served.port)
        port = served.port
    await closed(reader)
    await closed(silent_reader)
    await quit_connection(writer)
    await quit_connection(silent)
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_the_upstream_directory_is_private(run_dir: Path, manager: Credentials) -> None:
    """Whoever could connect there would be anybody: 0700."""
    front = TlsFront(
        upstream=run_dir / "f" / "s.sock", credentials=manager, listen=[("127.0.0.1", 0)]
    )
    front.bind()
    front.close()
    assert (run_dir / "f").stat().st_mode & 0o777 == 0o700
    assert front.upstream_target == f"unix:{run_dir}/f/s.sock"
