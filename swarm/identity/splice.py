"""One connection's bytes carried to another, both ways.

An :class:`End` is the protocol of one connection. Two of them, joined, hand each other what they read;
an end whose peer does not take its bytes stops the other end from reading, so memory stays bounded by the
write buffers and the kernel's own back-pressure does the rest. When either end is lost the other is
closed after what it still holds was sent. The front and the dialer both stand on this; they differ only
in who connects, and in which side of TLS their :class:`~swarm.identity.secure.SecureEnd` plays.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, cast

WRITE_HIGH: Final = 128 * 1024
"""Bytes waiting in one end's write buffer at which the other end stops reading."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds the surviving end gets to send what it still holds."""


class End(asyncio.Protocol):
    """One end of a splice; make it inside a running loop.

    Attributes:
        lost: resolved when the connection is gone.
        spoke: resolved when the first byte came in.
        on_lost: called when the connection is gone, before the other end is told.
        error: why the connection ended, when it did not just end.
        received: bytes read so far (inside TLS, where there is TLS).
    """

    __slots__ = (
        "_dropped",
        "_early",
        "_other",
        "_transport",
        "error",
        "lost",
        "on_lost",
        "received",
        "spoke",
    )

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = loop.create_future()
        self.spoke: asyncio.Future[None] = loop.create_future()
        self.on_lost: Callable[[], None] | None = None
        self.error: Exception | None = None
        self.received = 0
        self._transport: asyncio.Transport | None = None
        self._other: End | None = None
        self._early: list[bytes] = []
        self._dropped = False

    async def adopt(self, sock: socket.socket) -> None:
        """Become the end of a connected socket, which this end owns from now on.

        The one call used for accepted and outgoing sockets alike: uvloop's others, cancelled at the wrong
        moment, leave the descriptor with two owners.

        Raises:
            OSError: the connection is gone already.
        """
        await asyncio.get_running_loop().connect_accepted_socket(lambda: self, sock)

    @property
    def transport(self) -> asyncio.Transport:
        """The connection's transport; there is one from ``connection_made`` on."""
        if self._transport is None:
            raise RuntimeError("this end is not connected yet")
        return self._transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport, and read nothing until there is somebody to hand it to."""
        self._take(transport)
        if not self.transport.is_closing():
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        """Hand bytes over."""
        self._deliver(data)

    def pause_writing(self) -> None:
        """Stop the other end: this one's peer is slow."""
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Let the other end read again."""
        if self._other is not None and not self._other.transport.is_closing():
            self._other.transport.resume_reading()

    def eof_received(self) -> None:
        """Close on end of file: HTTP/2 has no use for half a connection."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other end once it has sent what it holds."""
        self.error = self.error or exc
        if not self.lost.done():
            self.lost.set_result(None)
        if self.on_lost is not None:
            self.on_lost()
        if self._other is not None:
            self._other.close()

    def write(self, data: bytes) -> None:
        """Send bytes; dropped when the connection is closing."""
        if not self.transport.is_closing():
            self.transport.write(data)

    def close(self) -> None:
        """Send what is buffered, then end the connection."""
        self.transport.close()

    def abort(self) -> None:
        """Drop the connection at once, whatever state it is in (even if it comes only now)."""
        self._dropped = True
        if self._transport is not None:
            self._transport.abort()

    def join(self, other: End) -> None:
        """Connect two ends; both must have their transports."""
        self.attach(other)
        other.attach(self)

    def attach(self, other: End) -> None:
        """Do one end's half of :meth:`join`."""
        self._other = other
        early, self._early = self._early, []
        for data in early:
            other.write(data)
        if self.lost.done():
            other.close()
        elif self.transport.is_closing():
            pass  # ``connection_lost`` comes next, and closes the other
        elif other.transport.get_write_buffer_size() <= WRITE_HIGH:
            self.transport.resume_reading()

    def _take(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name
        self._transport.set_write_buffer_limits(high=WRITE_HIGH)
        if self._dropped:  # cancelled between the adoption and this call
            self._transport.abort()

    def _deliver(self, data: bytes) -> None:
        self.received += len(data)
        if not self.spoke.done():
            self.spoke.set_result(None)
        if self._other is None:
            self._early.append(data)  # one read at most: reading is paused until joined
        else:
            self._other.write(data)


async def splice(
    left: End, right: End, *, first: float | None = None, idle: float | None = None
) -> bool:
    """Carry bytes until either end is lost; both are gone on return.

    Args:
        left: the end facing the network.
        right: the end facing our own gRPC.
        first: seconds within which ``left`` must send its first byte; None waits for ever.
        idle: seconds of silence on both sides after which the two are dropped; None waits for ever.

    Returns:
        Whether they were dropped for silence.
    """
    try:
        left.join(right)
        silent = await _silent(left, right, first=first, idle=idle)
        if not silent:
            # A survivor whose peer does not read loses what it was owed.
            await asyncio.wait({left.lost, right.lost}, timeout=CLOSE_TIMEOUT)
        return silent
    finally:
        left.abort()
        right.abort()


async def _silent(left: End, right: End, *, first: float | None, idle: float | None) -> bool:
    ends = {left.lost, right.lost}
    done, _ = await asyncio.wait(
        ends | {left.spoke}, timeout=first, return_when=asyncio.FIRST_COMPLETED
    )
    if not done:
        return True
    while not done & ends:
        before = left.received + right.received
        done, _ = await asyncio.wait(ends, timeout=idle, return_when=asyncio.FIRST_COMPLETED)
        if not done and left.received + right.received == before:
            return True
    return False
