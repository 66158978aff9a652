"""The TLS end of a splice: OpenSSL between two memory buffers, on a plain TCP transport.

The event loops' own TLS is not used, for three reasons. They drop the alert OpenSSL has written when a
handshake fails, so that the peer reads "connection reset" instead of "unknown CA". They lose an
alert that arrives while reading is paused, which is how a TLS 1.3 client learns that its certificate was
refused. And the standard loop and uvloop differ in what they raise. Here no plain or sealed byte is kept
between two events, so back-pressure is the transport's own: what is read is decrypted and handed on at
once, and one read bounds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ssl
from typing import Final

from swarm.identity.splice import End

LINGER: Final = 1.0
"""Seconds a peer gets to read the alert that ends a failed handshake."""

_CHUNK: Final = 256 * 1024


class SecureEnd(End):
    """A TLS connection, client or server; :meth:`secured` waits for its handshake."""

    __slots__ = ("_failed", "_incoming", "_outgoing", "_ready", "session")

    def __init__(
        self, context: ssl.SSLContext, *, server_side: bool, server_name: str | None = None
    ) -> None:
        """Prepare the session.

        Args:
            context: roots, certificate and what is verified.
            server_side: whether the peer speaks first.
            server_name: for clients, sent as SNI (unless it is an address) and verified if the context says so.

        Raises:
            ValueError: the name cannot be a server name.
        """
        super().__init__()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failed = False

    async def secured(self, seconds: float) -> None:
        """Wait until the handshake is done.

        Raises:
            OSError: it failed (``ssl.SSLError``), the peer left, or it took too long (``TimeoutError``).
                The alert is on its way; :meth:`linger` lets the peer read it, ``abort`` does not.
        """
        async with asyncio.timeout(seconds):
            await self._ready

    async def linger(self) -> None:
        """Let the peer read the alert, for :data:`LINGER` seconds at most, then drop the connection.

        Closing at once would make the kernel answer bytes still under way with a reset, and a reset
        overtakes the alert.
        """
        try:
            if not self.lost.done():
                with contextlib.suppress(OSError, RuntimeError):
                    self.transport.write_eof()
                await asyncio.wait({self.lost}, timeout=LINGER)
        finally:
            self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the handshake."""
        self._take(transport)
        if not self.transport.is_closing():
            self._handshake()

    def data_received(self, data: bytes) -> None:
        """Decrypt and hand over."""
        if self._failed:
            return
        self._incoming.write(data)
        if self._ready.done():
            self._read()
        else:
            self._handshake()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail a handshake that was under way, then as any end."""
        if not self._ready.done():
            self._fail(exc or ConnectionResetError(errno.ECONNRESET, "the peer hung up"))
        super().connection_lost(exc)

    def write(self, data: bytes) -> None:
        """Encrypt and send."""
        if self._failed or self.transport.is_closing():
            return
        rest = memoryview(data)
        try:
            while rest:  # OpenSSL takes one record, 16 KiB, at a time
                rest = rest[self.session.write(rest) :]
        except ssl.SSLError as error:
            self._fail(error)
        self._flush()

    def close(self) -> None:
        """Send what is buffered and TLS's own goodbye, then end the connection."""
        if self._ready.done() and not self._failed and not self.transport.is_closing():
            with contextlib.suppress(ssl.SSLError):  # wants the peer's goodbye, which nobody needs
                self.session.unwrap()
            self._flush()
        super().close()

    def _handshake(self) -> None:
        try:
            self.session.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._flush()
            return
        except (ssl.SSLError, ValueError) as error:
            self._fail(error)
            self._flush()
            return
        self._flush()
        self.transport.pause_reading()  # until somebody is joined to hand it to
        if not self._ready.done():
            self._ready.set_result(None)
        self._read()

    def _read(self) -> None:
        try:
            while data := self.session.read(_CHUNK):
                self._deliver(data)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._flush()  # a key update wants its answer
            return
        except ssl.SSLError as error:
            if not isinstance(error, ssl.SSLZeroReturnError):
                self._fail(error)
        self._flush()
        self.transport.close()  # the peer said goodbye, or worse

    def _flush(self) -> None:
        if self._outgoing.pending and not self.transport.is_closing():
            self.transport.write(self._outgoing.read())

    def _fail(self, error: Exception) -> None:
        self._failed = True
        self.error = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # nobody may be waiting any more
