"""Upstream servers that answer, refuse, stay silent or lie; all on loopback."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest

from agent.discovery import forward, wire
from agent.discovery.forward import Forwarder, Upstream, parse_upstream
from swarm.errors import InvalidArgumentError, UnavailableError

QUERY = wire.parse_query_untrusted(dns.message.make_query("example.org", "A", id=99).to_wire())

Behaviour = Callable[[dns.message.Message], list[bytes]]


def good(address: str) -> Behaviour:
    def behave(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.answer.append(dns.rrset.from_text("example.org.", 60, "IN", "A", address))
        return [response.to_wire()]

    return behave


def code(rcode: dns.rcode.Rcode) -> Behaviour:
    def behave(query: dns.message.Message) -> list[bytes]:
        response = dns.message.make_response(query)
        response.set_rcode(rcode)
        return [response.to_wire()]

    return behave


def silent(query: dns.message.Message) -> list[bytes]:
    return []


def lying(query: dns.message.Message) -> list[bytes]:
    """Send a forged reply (wrong id), rubbish, and then the real one."""
    real = good("192.0.2.7")(query)[0]
    forged = good("192.0.2.66")(query)[0]
    return [bytes([forged[0] ^ 1]) + forged[1:], b"rubbish", forged[:2] + b"\x80\x00", real]


class Peer(asyncio.DatagramProtocol):
    def __init__(self, behave: Behaviour) -> None:
        self.behave = behave
        self.seen: list[dns.message.Message] = []
        self.arrived = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        self.seen.append(query)
        self.arrived.set()
        for reply in self.behave(query):
            self.transport.sendto(reply, addr)

    @property
    def upstream(self) -> Upstream:
        return Upstream("127.0.0.1", self.transport.get_extra_info("sockname")[1])


@asynccontextmanager
async def peers(*behaviours: Behaviour) -> AsyncIterator[list[Peer]]:
    loop = asyncio.get_running_loop()
    made: list[Peer] = []
    try:
        for behave in behaviours:
            peer = Peer(behave)
            await loop.create_datagram_endpoint(lambda p=peer: p, local_addr=("127.0.0.1", 0))  # type: ignore[misc]
            made.append(peer)
        yield made
    finally:
        for peer in made:
            peer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
def forwarder() -> Forwarder:
    return Forwarder(rng=random.Random(5), clock=lambda: 1000.0)


def address(data: bytes) -> str:
    message = dns.message.from_wire(data)
    assert message.id == 99
    return str(message.answer[0][0])


async def test_first_upstream_answers_alone(forwarder: Forwarder) -> None:
    async with peers(good("192.0.2.1"), good("192.0.2.2")) as (one, two):
        found = await forwarder.ask(QUERY, (one.upstream, two.upstream), tcp=False)
        assert address(found) == "192.0.2.1"
        assert one.seen[0].id != 99
        assert not two.seen


async def test_silent_upstream_is_overtaken_by_the_next(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "HEDGE", 0.02)
    async with peers(silent, good("192.0.2.2")) as (one, two):
        found = await forwarder.ask(QUERY, (one.upstream, two.upstream), tcp=False)
        assert address(found) == "192.0.2.2"


@pytest.mark.parametrize("rcode", [dns.rcode.SERVFAIL, dns.rcode.REFUSED])
async def test_failing_upstream_gives_way_at_once(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch, rcode: dns.rcode.Rcode
) -> None:
    monkeypatch.setattr(forward, "HEDGE", 3600.0)
    async with peers(code(rcode), good("192.0.2.2")) as (one, two):
        found = await forwarder.ask(QUERY, (one.upstream, two.upstream), tcp=False)
        assert address(found) == "192.0.2.2"


async def test_nonexistence_is_an_answer(forwarder: Forwarder) -> None:
    async with peers(code(dns.rcode.NXDOMAIN), good("192.0.2.2")) as (one, two):
        found = await forwarder.ask(QUERY, (one.upstream, two.upstream), tcp=False)
        assert dns.message.from_wire(found).rcode() == dns.rcode.NXDOMAIN


async def test_forged_replies_are_passed_over(forwarder: Forwarder) -> None:
    async with peers(lying) as (one,):
        found = await forwarder.ask(QUERY, (one.upstream,), tcp=False)
        assert address(found) == "192.0.2.7"


async def test_when_all_fail_the_caller_is_told(
    forwarder: Forwarder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "DEADLINE", 0.1)
    monkeypatch.setattr(forward, "HEDGE", 0.01)
    async with peers(silent, code(dns.rcode.SERVFAIL)) as (one, two):
        with pytest.raises(UnavailableError):
            await forwarder.ask(QUERY, (one.upstream, two.upstream), tcp=False)


async def test_closed_port_fails_fast_and_is_asked_last_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    forwarder = Forwarder(rng=random.Random(5), clock=lambda: now)
    monkeypatch.setattr(forward, "HEDGE", 3600.0)
    async with peers(good("192.0.2.1"), good("192.0.2.2")) as (one, two):
        dead, alive = one.upstream, two.upstream
        one.transport.abort()
        await asyncio.sleep(0)
        found = await forwarder.ask(QUERY, (dead, alive), tcp=False)
        assert address(found) == "192.0.2.2"
        assert forwarder.order((dead, alive)) == [alive, dead]
        now += forward.PENALTY
        assert forwarder.order((dead, alive)) == [dead, alive]


async def test_question_over_tcp_is_asked_over_tcp(forwarder: Forwarder) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2), "big")
        query = dns.message.from_wire(await reader.readexactly(length))
        reply = good("192.0.2.4")(query)[0]
        writer.write(len(reply).to_bytes(2, "big") + reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        found = await forwarder.ask(QUERY, (Upstream("127.0.0.1", port),), tcp=True)
    assert address(found) == "192.0.2.4"


async def test_remembered_failures_are_bounded(forwarder: Forwarder) -> None:
    for number in range(forward.MAX_REMEMBERED + 50):
        forwarder._blame(Upstream("127.0.0.1", number))
    assert len(forwarder._failed) == forward.MAX_REMEMBERED


def test_no_more_than_the_limit_of_upstreams_is_asked(forwarder: Forwarder) -> None:
    many = tuple(Upstream("127.0.0.1", number) for number in range(1, 20))
    assert forwarder.order(many) == list(many[: forward.MAX_UPSTREAMS])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", Upstream("192.0.2.1", 53)),
        ("192.0.2.1:5353", Upstream("192.0.2.1", 5353)),
        ("2001:db8::1", Upstream("2001:db8::1", 53)),
        ("[2001:db8::1]", Upstream("2001:db8::1", 53)),
        ("[2001:db8::1]:54", Upstream("2001:db8::1", 54)),
    ],
)
def test_upstream_addresses_are_read(text: str, expected: Upstream) -> None:
    assert parse_upstream(text) == expected


@pytest.mark.parametrize(
    "text", ["", "dns.example", "192.0.2.1:", "192.0.2.1:0", "192.0.2.1:65536", "[::1", "[::1]x"]
)
def test_wrong_upstream_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_upstream(text)
