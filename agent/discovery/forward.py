"""Ask upstream servers: the best one first, the next soon after, the first good answer wins.

Queries leave from the namespace of the daemon, each from a socket of its own (so the source port is
random too), with a fresh transaction id.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from random import Random
from typing import Final

import dns.rcode

from agent.discovery import wire
from swarm.errors import InvalidArgumentError, UnavailableError, WireError

MAX_UPSTREAMS: Final = 6
"""Upstreams of one container that are asked; resolv.conf(5) itself reads three."""
HEDGE: Final = 0.4
"""Seconds without an answer after which the next upstream is asked as well."""
DEADLINE: Final = 4.5
"""Seconds for the whole question; stub resolvers give up after five."""
PENALTY: Final = 30.0
"""Seconds for which an upstream that failed is asked last."""
MAX_REMEMBERED: Final = 1024
"""Upstreams whose failures are remembered."""

_GIVE_UP: Final = {dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.FORMERR}


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where an upstream server listens, over UDP and TCP."""

    host: str
    port: int = 53


def parse_upstream(text: str) -> Upstream:
    """Read ``ADDRESS``, ``ADDRESS:PORT`` or ``[ADDRESS]:PORT``.

    Raises:
        InvalidArgumentError: it is none of these.
    """
    host, port = text, "53"
    if text.startswith("["):
        host, separator, rest = text[1:].partition("]")
        if not separator or (rest and not rest.startswith(":")):
            raise InvalidArgumentError(f"{text!r} is no address of a DNS server")
        port = rest[1:] or port
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        ip_address(host)
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is no address of a DNS server") from error
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidArgumentError(f"{text!r} is no address of a DNS server")
    return Upstream(host, int(port))


class _Exchange(asyncio.DatagramProtocol):
    """One question to one upstream over UDP; packets that do not answer it are passed over."""

    def __init__(self, accept: Callable[[bytes], bool], done: asyncio.Future[bytes]) -> None:
        self._accept = accept
        self._done = done

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002  # connected
        if not self._done.done() and self._accept(data):
            self._done.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._done.done():
            self._done.set_exception(exc)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(exc or ConnectionResetError("socket closed"))


class Forwarder:
    """The upstream side of all containers' servers; remembers which upstreams failed lately.

    Args:
        rng: draws transaction ids; give it :class:`random.SystemRandom` outside of tests.
        clock: seconds, monotonic.
    """

    def __init__(self, *, rng: Random, clock: Callable[[], float]) -> None:
        self._rng = rng
        self._clock = clock
        self._failed: OrderedDict[Upstream, float] = OrderedDict()

    async def ask(self, query: wire.Query, upstreams: tuple[Upstream, ...], *, tcp: bool) -> bytes:
        """Return an upstream's reply under the query's own transaction id.

        A server that refuses or fails counts as one that did not answer, as long as another is left.

        Args:
            query: the question.
            upstreams: whom to ask, in order of preference.
            tcp: ask over TCP (as the client did, which hints at a long answer).

        Raises:
            UnavailableError: none of them gave a usable answer in time.
        """
        outcomes: asyncio.Queue[bytes | None] = asyncio.Queue()
        waiting = self.order(upstreams)
        running = 0
        try:
            async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
                tasks: list[asyncio.Task[None]] = []
                while waiting or running:
                    if waiting:
                        attempt = self._attempt(query, waiting.pop(0), outcomes, tcp=tcp)
                        tasks.append(group.create_task(attempt))
                        running += 1
                    try:
                        async with asyncio.timeout(HEDGE if waiting else None):
                            reply = await outcomes.get()
                    except TimeoutError:
                        continue
                    running -= 1
                    if reply is not None:
                        for task in tasks:
                            task.cancel()
                        return wire.with_identity(reply, wire.identity_of(query.data))
        except TimeoutError:
            for upstream in upstreams[:MAX_UPSTREAMS]:
                self._blame(upstream)
        raise UnavailableError("no upstream DNS server gave an answer")

    def order(self, upstreams: tuple[Upstream, ...]) -> list[Upstream]:
        """Return whom to ask in which order: those that failed lately come last."""
        now = self._clock()
        return sorted(
            dict.fromkeys(upstreams[:MAX_UPSTREAMS]),
            key=lambda upstream: self._failed.get(upstream, now) > now,
        )

    async def _attempt(
        self,
        query: wire.Query,
        upstream: Upstream,
        outcomes: asyncio.Queue[bytes | None],
        *,
        tcp: bool,
    ) -> None:
        identity = self._rng.getrandbits(16)
        request = wire.with_identity(query.data, identity)
        try:
            if tcp:
                reply = await _over_tcp(request, upstream)
                code = wire.upstream_code_untrusted(reply, query, identity)
            else:
                reply, code = await _over_udp(request, upstream, query, identity)
        except (OSError, EOFError, WireError):
            self._blame(upstream)
            outcomes.put_nowait(None)
            return
        if code in _GIVE_UP:
            # Not the upstream's fault as a rule (a broken zone): no penalty, only the next one.
            outcomes.put_nowait(None)
            return
        self._failed.pop(upstream, None)
        outcomes.put_nowait(reply)

    def _blame(self, upstream: Upstream) -> None:
        self._failed[upstream] = self._clock() + PENALTY
        self._failed.move_to_end(upstream)
        while len(self._failed) > MAX_REMEMBERED:
            self._failed.popitem(last=False)


async def _over_udp(
    request: bytes, upstream: Upstream, query: wire.Query, identity: int
) -> tuple[bytes, int]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[bytes] = loop.create_future()
    codes: list[int] = []

    def accept(data: bytes) -> bool:
        try:
            codes.append(wire.upstream_code_untrusted(data, query, identity))
        except WireError:
            return False  # forged or stale: the real one may still come
        return True

    transport, _ = await loop.create_datagram_endpoint(
        lambda: _Exchange(accept, done), remote_addr=(upstream.host, upstream.port)
    )
    try:
        transport.sendto(request)
        return await done, codes[0]
    finally:
        done.cancel()
        transport.close()


async def _over_tcp(request: bytes, upstream: Upstream) -> bytes:
    reader, writer = await asyncio.open_connection(upstream.host, upstream.port)
    try:
        writer.write(len(request).to_bytes(2, "big") + request)
        await writer.drain()
        length = int.from_bytes(await reader.readexactly(2), "big")
        return await reader.readexactly(length)
    finally:
        writer.close()
