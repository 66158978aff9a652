"""Real sockets in real namespaces: what a container sees at 127.0.0.11:53."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rrset
import pytest
import uvloop

from agent.discovery import redirect, server
from agent.discovery.names import NameRecord, NameTable
from agent.discovery.service import Discovery
from swarm.errors import InvalidArgumentError, NotFoundError, PreconditionError
from swarm.kernel.descriptors import FIRST_HIGH
from swarm.kernel.netns import in_netns
from swarm.kernel.nft import Nft

T = TypeVar("T")


def make_names() -> NameTable:
    names = NameTable()
    names.set_network("n1", "backend")
    names.set_network("n2", "frontend")
    for network, number in (("n1", 1), ("n2", 2)):
        record = NameRecord(name="db", addresses=(ip_address(f"10.0.{number}.9"),))
        names.put(network, "e1", record)
    for number in range(200):
        record = NameRecord(
            name=f"web.{number}",
            addresses=(ip_address((10 << 24) + (9 << 16) + number),),
            service_name="web",
            service_id="s1",
        )
        names.put("n1", f"w{number}", record)
    return names


@asynccontextmanager
async def running(names: NameTable | None = None) -> AsyncIterator[Discovery]:
    discovery = Discovery(names or make_names(), rng=random.Random(3))
    task = asyncio.ensure_future(discovery.run())
    await discovery.ready.wait()
    try:
        yield discovery
    finally:
        task.cancel()
        await asyncio.wait([task])
        await asyncio.sleep(0.01)  # transports close on the loop's next turns


async def inside(netns: str, work: Callable[[], T]) -> T:
    def enter() -> T:
        with in_netns(netns):
            return work()

    return await asyncio.to_thread(enter)


async def ask(netns: str, name: str, kind: str = "A", *, tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    send = dns.query.tcp if tcp else dns.query.udp
    return await inside(netns, lambda: send(query, "127.0.0.11", timeout=5))


def texts(reply: dns.message.Message) -> list[str]:
    return sorted(str(record) for rrset in reply.answer for record in rrset)


def ports(netns: str) -> redirect.Ports | None:
    with in_netns(netns), Nft() as nft:
        return redirect.installed(nft)


@pytest.mark.parametrize("tcp", [False, True])
async def test_container_resolves_names_at_port_53(netns: str, tcp: bool) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1", "n2"))
        assert texts(await ask(netns, "db", tcp=tcp)) == ["10.0.1.9"]
        assert texts(await ask(netns, "DB.Frontend", tcp=tcp)) == ["10.0.2.9"]
        assert texts(await ask(netns, "9.1.0.10.in-addr.arpa", "PTR", tcp=tcp)) == ["db.backend."]
        assert (await ask(netns, "nosuch", tcp=tcp)).rcode() == dns.rcode.NXDOMAIN


async def test_what_every_container_needs_has_high_numbers(new_netns: Callable[[], str]) -> None:
    """Sockets for thousands of containers leave room for what select(2) must be able to wait for."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * FIRST_HIGH:
        pytest.skip("this process may not open 2048 files")
    async with running() as discovery:
        before = _listening()
        for number in range(3):
            await discovery.serve(str(number), new_netns(), networks=("n1",))
        sockets = _listening() - before
        assert len(sockets) == 6
        assert min(sockets) >= FIRST_HIGH


def _listening() -> set[int]:
    numbers = [int(each.name) for each in Path("/proc/self/fd").iterdir()]
    return {number for number in numbers if _listens(number)}


def _listens(number: int) -> bool:
    """Tell whether a descriptor is a socket at the address of name services."""
    try:
        with socket.socket(fileno=os.dup(number)) as copy:
            return copy.family is socket.AF_INET and copy.getsockname()[0] == redirect.ADDRESS
    except OSError:
        return False


async def test_long_answer_is_cut_over_udp_and_whole_over_tcp(netns: str) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        assert (await ask(netns, "tasks.web")).flags & dns.flags.TC
        assert len(texts(await ask(netns, "tasks.web", tcp=True))) == 200


async def test_change_of_networks_takes_effect_at_once(netns: str) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        await discovery.update("c1", ("n2",))
        assert texts(await ask(netns, "db")) == ["10.0.2.9"]
        with pytest.raises(NotFoundError):
            await discovery.update("nosuch", ("n2",))


async def test_two_containers_see_their_own_networks(new_netns: Callable[[], str]) -> None:
    one, two = new_netns(), new_netns()
    async with running() as discovery:
        await discovery.serve("c1", one, networks=("n1",))
        await discovery.serve("c2", two, networks=("n2",))
        assert texts(await ask(one, "db")) == ["10.0.1.9"]
        assert texts(await ask(two, "db")) == ["10.0.2.9"]


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
@pytest.mark.parametrize("address", ["0.0.0.0", "127.0.0.1"])
async def test_container_may_run_its_own_server_on_port_53(
    netns: str, kind: socket.SocketKind, address: str
) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))

        def bind() -> socket.socket:
            own = socket.socket(socket.AF_INET, kind)
            own.bind((address, 53))
            return own

        with await inside(netns, bind) as own:
            own.settimeout(5)
            if kind == socket.SOCK_DGRAM:

                def send() -> None:
                    with socket.socket(socket.AF_INET, kind) as client:
                        client.sendto(b"for the container's own server", ("127.0.0.1", 53))

                await inside(netns, send)
                assert own.recv(100) == b"for the container's own server"
            assert texts(await ask(netns, "db")) == ["10.0.1.9"]
            assert texts(await ask(netns, "db", tcp=True)) == ["10.0.1.9"]


async def test_restart_takes_the_same_ports_and_keeps_old_clients(netns: str) -> None:
    def client() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.settimeout(5)
        made.connect(("127.0.0.11", 53))
        return made

    query = dns.message.make_query("db", "A")
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        before = ports(netns)
        resolver = await inside(netns, client)
        resolver.send(query.to_wire())
        assert texts(dns.message.from_wire(await asyncio.to_thread(resolver.recv, 512)))
    with resolver:
        async with running() as discovery:
            await discovery.serve("c1", netns, networks=("n2",))
            assert ports(netns) == before
            resolver.send(query.to_wire())
            reply = dns.message.from_wire(await asyncio.to_thread(resolver.recv, 512))
            assert texts(reply) == ["10.0.2.9"]


async def test_restart_after_the_ports_were_taken_moves_the_redirect(netns: str) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        before = ports(netns)
    assert before is not None

    def squat() -> socket.socket:
        thief = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        thief.bind(("127.0.0.11", before.udp))
        return thief

    with await inside(netns, squat):
        async with running() as discovery:
            await discovery.serve("c1", netns, networks=("n1",))
            after = ports(netns)
            assert after is not None
            assert after.udp != before.udp
            assert texts(await ask(netns, "db")) == ["10.0.1.9"]


async def test_serving_again_under_the_same_key_replaces(netns: str) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        await discovery.serve("c1", netns, networks=("n2",))
        assert texts(await ask(netns, "db")) == ["10.0.2.9"]


async def test_stop_leaves_no_table_and_no_socket(netns: str) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        await discovery.stop("c1")
        await discovery.stop("c1")
        await asyncio.sleep(0.01)
        assert await inside(netns, lambda: Nft().run([{"list": {"tables": {}}}])) == []

        def sockets() -> int:
            lines = 0
            for name in ("udp", "tcp"):
                lines += Path(f"/proc/thread-self/net/{name}").read_text().count("0B00007F")
            return lines

        assert await inside(netns, sockets) == 0
        assert not discovery._locks


async def test_stop_after_the_namespace_is_gone_is_fine() -> None:
    holder = await asyncio.create_subprocess_exec(
        "unshare", "-n", "sh", "-c", "echo up; exec cat", stdin=-1, stdout=-1
    )
    assert holder.stdout is not None
    await holder.stdout.readline()
    async with running() as discovery:
        await discovery.serve("c1", f"/proc/{holder.pid}/ns/net", networks=("n1",))
        await holder.communicate(b"")
        await discovery.stop("c1")


async def test_unusable_arguments_are_refused(netns: str) -> None:
    async with running() as discovery:
        with pytest.raises(InvalidArgumentError):
            await discovery.serve("c1", netns, networks=(), upstreams=("nonsense",))
        with pytest.raises(NotFoundError):
            await discovery.serve("c1", "/proc/0/ns/net", networks=())
        assert not discovery._served
    with pytest.raises(PreconditionError):
        await discovery.serve("c1", netns, networks=())


class Upstream(asyncio.DatagramProtocol):
    """A server in the daemon's namespace that knows example.org."""

    def __init__(self) -> None:
        self.silent = False
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        self.asked.append(query.question[0].name.to_text())
        if self.silent:
            return
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "A", "192.0.2.80"))
        self.transport.sendto(response.to_wire(), addr)


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[Upstream, str]]:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Upstream, local_addr=("127.0.0.1", 0))
    try:
        yield protocol, f"127.0.0.1:{transport.get_extra_info('sockname')[1]}"
    finally:
        transport.abort()


async def test_other_names_are_forwarded_from_the_daemons_namespace(netns: str) -> None:
    async with upstream() as (peer, address), running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",), upstreams=(address,))
        assert texts(await ask(netns, "example.org")) == ["192.0.2.80"]
        assert (await ask(netns, "secret-name")).rcode() == dns.rcode.NXDOMAIN
        assert texts(await ask(netns, "db")) == ["10.0.1.9"]
        assert peer.asked == ["example.org."]


async def test_without_upstreams_other_names_fail_at_once(netns: str) -> None:
    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        assert (await ask(netns, "example.org")).rcode() == dns.rcode.SERVFAIL


async def test_flood_of_forwarded_questions_is_refused_and_local_names_still_work(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_FORWARDS_EACH", 8)
    async with upstream() as (peer, address), running() as discovery:
        peer.silent = True
        await discovery.serve("c1", netns, networks=("n1",), upstreams=(address,))

        def flood() -> dns.message.Message:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect(("127.0.0.11", 53))
                for number in range(9):
                    client.send(dns.message.make_query(f"x{number}.org", "A").to_wire())
                return dns.message.from_wire(client.recv(512))

        assert (await inside(netns, flood)).rcode() == dns.rcode.REFUSED
        assert texts(await ask(netns, "db")) == ["10.0.1.9"]


async def test_burst_waits_while_the_loop_is_busy(netns: str) -> None:
    count = 1000  # the kernel's ordinary buffer holds about 280

    def burst() -> socket.socket:
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.setsockopt(socket.SOL_SOCKET, 33, 1 << 21)
        client.connect(("127.0.0.11", 53))
        for number in range(count):
            client.send(dns.message.make_query("db", "A", id=number).to_wire())
        return client

    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        with ThreadPoolExecutor(1) as pool:

            def enter() -> socket.socket:
                with in_netns(netns):
                    return burst()

            client = pool.submit(enter).result()  # the loop stands still meanwhile
        client.settimeout(5)
        with client:
            replies = await asyncio.to_thread(lambda: [client.recv(512) for _ in range(count)])
    assert {dns.message.from_wire(reply).id for reply in replies} == set(range(count))


async def test_hostile_packets_do_not_stop_the_server(netns: str) -> None:
    rng = random.Random(11)

    def attack() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.connect(("127.0.0.11", 53))
            for _ in range(300):
                client.send(rng.randbytes(rng.randrange(0, 600)))
            client.send(b"\0" * 60000)
        for payload in (
            b"\xff\xff",
            b"\0\0" * 50,
            b"\0\x05abc",
            struct.pack(">H", 500) + b"x" * 900,
        ):
            with socket.socket() as client:
                client.connect(("127.0.0.11", 53))
                client.sendall(payload)

    async with running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",))
        await inside(netns, attack)
        assert texts(await ask(netns, "db")) == ["10.0.1.9"]
        assert texts(await ask(netns, "db", tcp=True)) == ["10.0.1.9"]


async def test_pipelined_questions_over_one_connection_are_all_answered(netns: str) -> None:
    count = 3 * server.MAX_PIPELINED

    def pipeline() -> set[int]:
        got = set()
        with socket.socket() as client:
            client.settimeout(5)
            client.connect(("127.0.0.11", 53))
            stream = b""
            for number in range(count):
                name = "db" if number % 2 else "example.org"
                data = dns.message.make_query(name, "A", id=number).to_wire()
                stream += struct.pack(">H", len(data)) + data
            client.sendall(stream)
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as replies:
                while head := replies.read(2):
                    data = replies.read(int.from_bytes(head, "big"))
                    got.add(dns.message.from_wire(data).id)
        return got

    def serve_upstream(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Coroutine[None, None, None]:
        async def answer() -> None:
            length = int.from_bytes(await reader.readexactly(2), "big")
            query = dns.message.from_wire(await reader.readexactly(length))
            reply = dns.message.make_response(query).to_wire()
            writer.write(struct.pack(">H", len(reply)) + reply)
            await writer.drain()
            writer.close()

        return answer()

    upstream_server = await asyncio.start_server(serve_upstream, "127.0.0.1", 0)
    port = upstream_server.sockets[0].getsockname()[1]
    async with upstream_server, running() as discovery:
        await discovery.serve("c1", netns, networks=("n1",), upstreams=(f"127.0.0.1:{port}",))
        assert await inside(netns, pipeline) == set(range(count))


async def test_connections_beyond_the_limit_are_dropped_and_idle_ones_make_room(
    netns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(server, "IDLE", 0.2)

    def connect() -> socket.socket:
        return socket.create_connection(("127.0.0.11", 53), timeout=5)

    async with running() as discovery, AsyncExitStack() as stack:
        await discovery.serve("c1", netns, networks=("n1",))
        held = [stack.enter_context(await inside(netns, connect)) for _ in range(3)]

        def end(client: socket.socket) -> bytes:
            try:
                return client.recv(1)
            except ConnectionResetError:
                return b""

        for client in held:
            assert await asyncio.to_thread(end, client) == b""
        assert texts(await ask(netns, "db", tcp=True)) == ["10.0.1.9"]


def test_it_works_under_uvloop(netns: str) -> None:
    async def main() -> None:
        async with running() as discovery:
            await discovery.serve("c1", netns, networks=("n1",))
            assert texts(await ask(netns, "db")) == ["10.0.1.9"]
            assert texts(await ask(netns, "db", tcp=True)) == ["10.0.1.9"]
            await discovery.stop("c1")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
