"""Splices: bytes whole and in order, bounded memory; and TLS ends at their seams."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest

from swarm.identity.certs import Role
from swarm.identity.secure import SecureEnd
from swarm.identity.splice import WRITE_HIGH, End, splice
from swarm.identity.tls import classify, client_context, server_context
from tests.unit.identity.conftest import MANAGER, WORKER, Cluster, until

MIB = 1 << 20


@pytest.fixture
def pairs() -> Iterator[tuple[socket.socket, socket.socket, socket.socket, socket.socket]]:
    """Two connected pairs: (outer left, inner left, inner right, outer right)."""
    left, inner_left = socket.socketpair()
    inner_right, right = socket.socketpair()
    for sock in (left, inner_left, inner_right, right):
        sock.setblocking(False)
    yield left, inner_left, inner_right, right
    left.close()
    right.close()


async def adopt(sock: socket.socket, end: End) -> End:
    """Give a socket to an end."""
    await end.adopt(sock)
    return end


async def test_an_adoption_that_is_cancelled(pairs: Any) -> None:
    """The socket has an owner that closes it, whenever the cancellation comes."""
    left, inner_left, inner_right, _ = pairs
    inner_right.close()
    end = End()
    task = asyncio.create_task(end.adopt(inner_left))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    end.abort()
    assert await asyncio.get_running_loop().sock_recv(left, 1) == b""


async def test_a_slow_reader_stops_the_sender(pairs: Any) -> None:
    """Of 32 MiB only what buffers hold is read while nobody takes it; then everything arrives."""
    left, inner_left, inner_right, right = pairs
    loop = asyncio.get_running_loop()
    data = random.Random(3).randbytes(32 * MIB)
    ends = [await adopt(inner_left, End()), await adopt(inner_right, End())]
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        carrying = group.create_task(splice(*ends))
        sending = group.create_task(loop.sock_sendall(left, data))
        await until(lambda: ends[1].transport.get_write_buffer_size() > WRITE_HIGH)
        for _ in range(100):
            await asyncio.sleep(0)
        assert ends[0].received < 4 * MIB
        assert ends[1].transport.get_write_buffer_size() < WRITE_HIGH + MIB
        received = bytearray()
        while len(received) < len(data):
            received += await loop.sock_recv(right, MIB)
        await sending
        assert received == data
        left.close()
        assert await carrying is False


@pytest.mark.parametrize("side", ["left", "right"])
async def test_what_was_read_is_delivered_before_the_end(pairs: Any, side: str) -> None:
    """A side that sends and closes at once is heard out."""
    left, inner_left, inner_right, right = pairs
    loop = asyncio.get_running_loop()
    speaker, listener = (left, right) if side == "left" else (right, left)
    await loop.sock_sendall(speaker, b"last words")
    speaker.close()
    task = asyncio.create_task(
        splice(await adopt(inner_left, End()), await adopt(inner_right, End()))
    )
    heard = b""
    while chunk := await loop.sock_recv(listener, 100):
        heard += chunk
    assert heard == b"last words"
    assert await task is False


async def test_silence_is_named(pairs: Any) -> None:
    """No first byte in time; and later no byte for too long."""
    left, inner_left, inner_right, _ = pairs
    ends = [await adopt(inner_left, End()), await adopt(inner_right, End())]
    await asyncio.get_running_loop().sock_sendall(left, b"x")
    assert await splice(*ends, first=10, idle=0.05) is True
    assert all(end.transport.is_closing() for end in ends)


async def test_no_first_byte(pairs: Any) -> None:
    """An end that never speaks is dropped although the other one does."""
    _, inner_left, inner_right, right = pairs
    ends = [await adopt(inner_left, End()), await adopt(inner_right, End())]
    await asyncio.get_running_loop().sock_sendall(right, b"hello?")
    assert await splice(*ends, first=0.05) is True


async def test_an_end_lost_before_it_is_joined(pairs: Any) -> None:
    """The other is closed, and the splice ends."""
    left, inner_left, inner_right, right = pairs
    ends = [await adopt(inner_left, End()), await adopt(inner_right, End())]
    ends[0].abort()
    await ends[0].lost
    async with asyncio.timeout(5):
        assert await splice(*ends) is False
    assert await asyncio.get_running_loop().sock_recv(right, 1) == b""
    left.close()


class Wire(asyncio.Transport):
    """A transport that keeps what is written, for a test to deliver as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closing = False
        self.paused = False

    def write(self, data: Any) -> None:
        """Keep bytes."""
        self.sent += data

    def take(self) -> bytes:
        """Take what was kept."""
        data = bytes(self.sent)
        self.sent.clear()
        return data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Ignore."""

    def get_write_buffer_size(self) -> int:
        """Nothing is ever waiting."""
        return 0

    def pause_reading(self) -> None:
        """Note it."""
        self.paused = True

    def resume_reading(self) -> None:
        """Note it."""
        self.paused = False

    def is_closing(self) -> bool:
        """Say whether it was closed."""
        return self.closing

    def close(self) -> None:
        """Note it."""
        self.closing = True

    def abort(self) -> None:
        """Note it."""
        self.closing = True


class Sink(End):
    """A plain end on a wire of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wire = Wire()
        self.connection_made(self.wire)


def deliver(source: Wire, target: SecureEnd, size: int) -> bool:
    """Hand over what was written, in pieces; say whether there was anything."""
    data = source.take()
    for start in range(0, len(data), size):
        target.data_received(data[start : start + size])
    return bool(data)


def exchange(client: SecureEnd, server: SecureEnd, wires: tuple[Wire, Wire], size: int) -> None:
    """Deliver both ways until nothing is under way."""
    while deliver(wires[0], server, size) | deliver(wires[1], client, size):
        pass


def secure_pair(cluster: Cluster, version: ssl.TLSVersion) -> tuple[SecureEnd, SecureEnd]:
    """Make a client with a certificate and a server."""
    context = client_context(cluster.member(Role.WORKER, WORKER))
    context.minimum_version = context.maximum_version = version
    client = SecureEnd(context, server_side=False, server_name="swarm-manager")
    server = SecureEnd(server_context(cluster.member(Role.MANAGER, MANAGER)), server_side=True)
    return client, server


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("size", [1, 7, 1500, 1 << 20])
async def test_tls_in_pieces_of_any_size(
    cluster: Cluster, version: ssl.TLSVersion, size: int
) -> None:
    """Handshake, bytes both ways and the goodbye work one byte at a time as well as whole."""
    client, server = secure_pair(cluster, version)
    wires = (Wire(), Wire())
    server.connection_made(wires[1])
    client.connection_made(wires[0])
    exchange(client, server, wires, size)
    await asyncio.gather(client.secured(1), server.secured(1))
    assert wires[0].paused
    assert wires[1].paused
    client_sink, server_sink = Sink(), Sink()
    client.write(b"before the join")
    exchange(client, server, wires, size)
    client.join(client_sink)
    server.join(server_sink)
    assert wires[1].paused is False
    assert server_sink.wire.take() == b"before the join"
    data = random.Random(size).randbytes(50_000 if size < 10 else 5 * MIB)
    client.write(data)
    server.write(data[::-1])
    exchange(client, server, wires, size)
    assert server_sink.wire.take() == data
    assert client_sink.wire.take() == data[::-1]
    assert server.session.getpeercert(binary_form=True)
    client.close()
    exchange(client, server, wires, size)
    assert wires[0].closing
    assert wires[1].closing
    assert server.error is None


async def test_the_alert_of_a_failed_handshake_is_sent(cluster: Cluster, foreign: Cluster) -> None:
    """The refused side reads why, after its own handshake (TLS 1.3) was done."""
    other = foreign.member(Role.WORKER, WORKER)
    context = client_context(cluster.stranger)
    context.load_verify_locations(cadata=cluster.root.cert_pem.decode())
    with_other = client_context(other)
    with_other.load_verify_locations(cadata=cluster.root.cert_pem.decode())
    client = SecureEnd(with_other, server_side=False, server_name="swarm-manager")
    server = SecureEnd(server_context(cluster.member(Role.MANAGER, MANAGER)), server_side=True)
    wires = (Wire(), Wire())
    server.connection_made(wires[1])
    client.connection_made(wires[0])
    exchange(client, server, wires, 10_000)
    await client.secured(1)
    with pytest.raises(ssl.SSLCertVerificationError):
        await server.secured(1)
    assert isinstance(client.error, ssl.SSLError)
    assert classify(client.error) == "rejected_by_peer"
    assert wires[0].closing
    server.write(b"nothing after an alert")
    assert wires[1].take() == b""


@pytest.mark.parametrize("seed", range(20))
async def test_damaged_records_end_the_connection(cluster: Cluster, seed: int) -> None:
    """A flipped bit anywhere is an error of the connection, and no altered byte is handed over."""
    rng = random.Random(seed)
    client, server = secure_pair(cluster, ssl.TLSVersion.TLSv1_3)
    wires = (Wire(), Wire())
    server.connection_made(wires[1])
    client.connection_made(wires[0])
    exchange(client, server, wires, 10_000)
    sink = Sink()
    server.join(sink)
    data = rng.randbytes(40_000)
    client.write(data)
    sealed = bytearray(wires[0].take())
    sealed[rng.randrange(5, len(sealed))] ^= 1 << rng.randrange(8)
    with contextlib.suppress(OSError):
        server.data_received(bytes(sealed))
    assert data.startswith(sink.wire.take())
    assert server.received < len(data)


async def test_a_handshake_that_takes_too_long(cluster: Cluster) -> None:
    """Its time-out is a TimeoutError."""
    _, server = secure_pair(cluster, ssl.TLSVersion.TLSv1_3)
    server.connection_made(Wire())
    with pytest.raises(TimeoutError):
        await server.secured(0.01)


async def test_a_peer_that_leaves_during_the_handshake(cluster: Cluster) -> None:
    """Both a clean end and an error fail the handshake."""
    for error in (None, BrokenPipeError("gone")):
        _, server = secure_pair(cluster, ssl.TLSVersion.TLSv1_3)
        server.connection_made(Wire())
        server.connection_lost(error)
        with pytest.raises(ConnectionError):
            await server.secured(1)
