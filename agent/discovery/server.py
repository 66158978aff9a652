"""One container's DNS server: both transports, the local answers, the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final, cast

import dns.rcode

from agent.discovery import wire
from agent.discovery.answers import answer
from agent.discovery.forward import Forwarder, Upstream
from agent.discovery.names import NameTable
from swarm.errors import UnavailableError

MAX_FORWARDS: Final = 1024
"""Questions of all containers that may wait for upstreams at one time."""
MAX_FORWARDS_EACH: Final = 256
"""Questions of one container that may wait for upstreams at one time."""
MAX_CONNECTIONS: Final = 128
"""TCP connections of one container at one time."""
MAX_PIPELINED: Final = 32
"""Questions that one TCP connection may have under way; reading pauses there."""
MAX_UNSENT: Final = 1 << 20
"""Bytes of UDP replies that may wait for the socket; more are dropped, clients ask again."""
IDLE: Final = 10.0
"""Seconds after which a silent TCP connection is closed (RFC 7766 asks for a few seconds)."""

Reply = Callable[[bytes], None]


@dataclass(slots=True, kw_only=True)
class Shared:
    """What all containers' servers have in common."""

    names: NameTable
    rng: Random
    forwarder: Forwarder
    group: asyncio.TaskGroup
    forwards: int = 0
    """Questions that wait for upstreams now."""


@dataclass(slots=True, kw_only=True)
class Server:
    """The server of one container; :meth:`dispatch` is where both transports meet."""

    shared: Shared
    networks: tuple[str, ...]
    upstreams: tuple[Upstream, ...]
    connections: set[asyncio.Transport] = field(default_factory=set)
    pending: set[asyncio.Task[None]] = field(default_factory=set)
    endpoint: asyncio.DatagramTransport | None = None
    listener: asyncio.Server | None = None

    def dispatch(self, data: bytes, reply: Reply, *, tcp: bool) -> None:
        """Answer one message through ``reply``: at once, later, or (for nonsense) never.

        ``reply`` is called with empty bytes when there will be no answer.
        """
        try:
            query = wire.parse_query_untrusted(data)
        except wire.NotAQueryError:
            reply(b"")
            return
        except wire.BadQueryError as error:
            reply(error.reply)
            return
        limit = wire.MAX_MESSAGE if tcp else query.udp_limit
        local = answer(query, self.shared.names, self.networks, self.shared.rng, limit)
        if local is not None:
            reply(local)
        elif not self.upstreams:
            reply(wire.reply_code(query, dns.rcode.SERVFAIL, limit))
        elif self.shared.forwards >= MAX_FORWARDS or len(self.pending) >= MAX_FORWARDS_EACH:
            reply(wire.reply_code(query, dns.rcode.REFUSED, limit))
        else:
            task = self.shared.group.create_task(self._forward(query, reply, limit, tcp=tcp))
            self.shared.forwards += 1
            self.pending.add(task)
            task.add_done_callback(self._forwarded)

    async def _forward(self, query: wire.Query, reply: Reply, limit: int, *, tcp: bool) -> None:
        try:
            found = await self.shared.forwarder.ask(query, self.upstreams, tcp=tcp)
        except UnavailableError:
            reply(wire.reply_code(query, dns.rcode.SERVFAIL, limit))
        else:
            reply(wire.clip(found, query, limit))

    def _forwarded(self, task: asyncio.Task[None]) -> None:
        self.shared.forwards -= 1
        self.pending.discard(task)

    def close(self) -> None:
        """Close the sockets and drop the questions under way."""
        if self.endpoint is not None:
            self.endpoint.abort()
        if self.listener is not None:
            self.listener.close()
        for connection in tuple(self.connections):
            connection.abort()
        for task in tuple(self.pending):
            task.cancel()


class Datagrams(asyncio.DatagramProtocol):
    """The UDP side."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where answers go."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Answer one datagram."""

        def reply(message: bytes) -> None:
            transport = self._transport
            if not message or transport is None or transport.is_closing():
                return
            if _unsent(transport) < MAX_UNSENT:
                transport.sendto(message, addr)

        self._server.dispatch(data, reply, tcp=False)

    def error_received(self, exc: Exception) -> None:
        """Pass over an ICMP error: a client went away before its answer."""


def _unsent(transport: asyncio.DatagramTransport) -> int:
    # Both asyncio's and uvloop's datagram transports have it; the type stubs do not know.
    return cast("asyncio.WriteTransport", transport).get_write_buffer_size()


class Connection(asyncio.Protocol):
    """One TCP connection: length-prefixed messages, pipelined, answered as they get ready."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._under_way = 0
        self._ended = False
        self._writable = True
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the idle timer, or refuse one connection too many."""
        transport = cast("asyncio.Transport", transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            transport.abort()
            return
        self._transport = transport
        self._server.connections.add(transport)
        self._rearm()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # nothing to tell
        """Forget the connection; answers still under way go nowhere."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._server.connections.discard(self._transport)
            self._transport = None

    def data_received(self, data: bytes) -> None:
        """Take in a piece of the stream."""
        if self._transport is None:
            return
        self._buffer += data
        self._rearm()
        self._advance()

    def eof_received(self) -> bool:
        """Keep the other direction open for the answers that are still due."""
        self._ended = True
        return self._under_way > 0 or not self._writable

    def pause_writing(self) -> None:
        """Stop taking questions from a client that does not read its answers."""
        self._writable = False
        self._regulate()

    def resume_writing(self) -> None:
        """Go on."""
        self._writable = True
        self._advance()

    def _advance(self) -> None:
        while self._writable and self._under_way < MAX_PIPELINED and len(self._buffer) >= 2:
            length = int.from_bytes(self._buffer[:2], "big")
            if len(self._buffer) < 2 + length:
                break
            message = bytes(self._buffer[2 : 2 + length])
            del self._buffer[: 2 + length]
            self._under_way += 1
            self._server.dispatch(message, self._reply, tcp=True)
        if self._ended and not self._under_way and self._writable and self._transport is not None:
            self._transport.close()
        self._regulate()

    def _reply(self, message: bytes) -> None:
        if message and self._transport is not None and not self._transport.is_closing():
            self._transport.write(len(message).to_bytes(2, "big") + message)
        if self._ended or self._under_way == MAX_PIPELINED:
            # Not at once: a reply may come from inside _advance itself.
            asyncio.get_running_loop().call_soon(self._advance)
        self._under_way -= 1

    def _regulate(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._writable and self._under_way < MAX_PIPELINED:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(IDLE, self._expire)

    def _expire(self) -> None:
        if self._transport is not None:
            self._transport.abort()
