"""The server side of port 2377: TLS ends here, the bytes go on to the gRPC server over a unix socket.

Members show a certificate and joiners have none, on one port, and engines stop offering ALPN after a
renewal; grpcio's own TLS can do neither. So this front terminates TLS and splices each connection to grpcio's
socket in a directory only we can enter. Before it connects there, it binds its own end to an abstract
address with a random name; ``context.peer()`` shows that name to an RPC, and :meth:`TlsFront.peer` turns it
into who is calling.

Everything here meets strangers first. What they can take up is bounded (:class:`FrontLimits`): when
handshakes pile up the oldest is dropped, so that a flood cannot keep members out for longer than a
handshake takes.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import socket
import ssl
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import structlog
from cryptography import x509

from swarm.errors import HostError, UnavailableError
from swarm.identity.certs import CertificateError, Credentials, Identity, Peer, identity_of
from swarm.identity.secure import SecureEnd
from swarm.identity.sockets import (
    accept,
    begin,
    connect_unix,
    join_address,
    listen_tcp,
    private_directory,
    tune,
    unix_path,
)
from swarm.identity.splice import End, splice
from swarm.identity.tls import TlsFault, classify, server_context

DEFAULT_PORT: Final = 2377
REPORT_INTERVAL: Final = 10.0
"""Seconds between two warnings about the same kind of refusal; the ones between are only counted."""

_PEER_SCHEME: Final = "unix-abstract:"
_NAME_PREFIX: Final = "overswarm-"

log = structlog.get_logger(__name__)

__all__ = ["DEFAULT_PORT", "FrontLimits", "Identity", "Peer", "Refusal", "TlsFront"]


class Refusal(StrEnum):
    """Why the front ended a connection on its own account, beside :class:`TlsFault`."""

    FULL = "full"
    EVICTED = "evicted"
    SUBJECT = "certificate_subject"
    SILENT = "silent"
    UPSTREAM = "upstream"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontLimits:
    """What strangers and members can take up.

    Attributes:
        handshake: seconds a TLS handshake may take.
        first_byte: seconds after it within which the client must speak; HTTP/2 clients speak at once.
        stranger_idle: seconds of silence allowed to a connection without a certificate (members are
            watched by gRPC and TCP keep-alive instead). Joiners poll every 30 s at the slowest.
        handshakes: handshakes under way at once; one more drops the oldest.
        strangers: established connections without a certificate.
        connections: established connections in all. Each may hold about half a MiB in buffers.
    """

    handshake: float = 10.0
    first_byte: float = 15.0
    stranger_idle: float = 90.0
    handshakes: int = 256
    strangers: int = 512
    connections: int = 4096


class TlsFront:
    """The TLS front of one manager.

    Call :meth:`bind`, then run :meth:`run` as a task; cancel it to stop.
    """

    def __init__(
        self,
        *,
        upstream: Path,
        credentials: Credentials,
        listen: Sequence[tuple[str, int]] = (("", DEFAULT_PORT),),
        limits: FrontLimits | None = None,
    ) -> None:
        """Prepare; nothing is opened yet.

        Args:
            upstream: where the gRPC server listens; its directory is made private (0700).
            credentials: certificate, key and roots.
            listen: (address, port) pairs; address ``""`` is 0.0.0.0 and [::].
            limits: bounds; the defaults when absent.

        Raises:
            HostError: the credentials cannot be loaded.
        """
        self.upstream = upstream
        self.limits = limits or FrontLimits()
        self._listen = tuple(listen)
        self._context = server_context(credentials)
        self._listeners: list[socket.socket] = []
        self._peers: dict[str, Peer] = {}
        self._ends: dict[str, End] = {}
        self._handshakes: dict[asyncio.Task[None], None] = {}  # oldest first
        self._strangers = 0
        self._refusals: Counter[str] = Counter()
        self._reported: dict[str, float] = {}

    @property
    def upstream_target(self) -> str:
        """What to pass to ``server.add_insecure_port``."""
        return f"unix:{self.upstream}"

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """The bound (address, port) pairs, after :meth:`bind`."""
        return tuple(listener.getsockname()[:2] for listener in self._listeners)

    @property
    def refusals(self) -> Mapping[str, int]:
        """Connections that came to nothing, by reason (a :class:`TlsFault` or :class:`Refusal`)."""
        return self._refusals

    @property
    def connections(self) -> int:
        """Established connections now."""
        return len(self._peers)

    def bind(self) -> None:
        """Make the private directory and bind every address; connections queue until :meth:`run`.

        Raises:
            HostError: an address is taken (the text names it), or the directory cannot be made.
        """
        if self._listeners:
            return
        private_directory(unix_path(self.upstream).parent)
        try:
            for host, port in self._listen:
                self._listeners += listen_tcp(host, port)
        except HostError:
            self.close()
            raise

    def close(self) -> None:
        """Give the addresses back; :meth:`run` does so itself when it ends."""
        for listener in self._listeners:
            listener.close()
        self._listeners = []

    def reload(self, credentials: Credentials) -> None:
        """Use another certificate, key and roots for every handshake from now on.

        Raises:
            HostError: they cannot be loaded; the old ones stay in use.
        """
        self._context = server_context(credentials)

    def peer(self, grpc_peer: str) -> Peer:
        """Return who is at the other end of an RPC.

        Args:
            grpc_peer: what ``context.peer()`` says.

        Raises:
            UnavailableError: the connection is gone, or did not come through this front. Never treat
                that as a caller without a certificate.
        """
        peer = self._peers.get(grpc_peer.removeprefix(_PEER_SCHEME))
        if peer is None:
            raise UnavailableError("the caller's connection is gone")
        return peer

    def disconnect(self, node_id: str) -> int:
        """Drop every connection of a node (one that was removed); return how many there were."""
        names = [
            name
            for name, peer in self._peers.items()
            if peer.identity is not None and peer.identity.node_id == node_id
        ]
        for name in names:
            if (end := self._ends.get(name)) is not None:
                end.abort()
        return len(names)

    async def run(self) -> None:
        """Serve until cancelled; every connection is dropped then, and the addresses are free again.

        Raises:
            HostError: as :meth:`bind`.
        """
        self.bind()
        log.info("front.started", addresses=[join_address(*pair) for pair in self.addresses])
        try:
            async with asyncio.TaskGroup() as group:
                for listener in self._listeners:
                    take = functools.partial(self._accepted, group)
                    trouble = functools.partial(self._refused, Refusal.FULL, "")
                    group.create_task(accept(listener, take, trouble))
        finally:
            self.close()
            log.info("front.stopped")

    def _accepted(self, group: asyncio.TaskGroup, sock: socket.socket, address: Any) -> None:
        where = join_address(address[0], address[1])
        if len(self._handshakes) >= self.limits.handshakes:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
            self._refused(Refusal.EVICTED, where)
        box = [sock]
        task = begin(group, self._serve(box, where), sock)
        if task is None:
            return
        self._handshakes[task] = None
        task.add_done_callback(functools.partial(self._finished, box))

    def _finished(self, box: list[socket.socket], task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)
        for sock in box:  # still there when the task was cancelled before its first step
            sock.close()

    async def _serve(self, box: list[socket.socket], address: str) -> None:
        """Carry one connection from handshake to end; whatever it does, the front goes on."""
        client = SecureEnd(self._context, server_side=True)
        try:
            if await self._handshake(client, box.pop(), address):
                await self._established(client, address)
        except Exception:
            # A defect met by one connection (event loops have raised odd errors out of half-closed TLS)
            # must not end the others.
            log.exception("front.connection.failed", peer=address)
        finally:
            client.abort()

    async def _handshake(self, client: SecureEnd, sock: socket.socket, address: str) -> bool:
        try:
            tune(sock)
        except OSError as error:  # reset before we got to it
            sock.close()
            self._refused(classify(error), address, error)
            return False
        try:
            await client.adopt(sock)
            await client.secured(self.limits.handshake)
        except (OSError, ValueError) as error:
            self._refused(classify(error), address, error)
            if isinstance(error, ssl.SSLError):
                await client.linger()
            return False
        finally:
            task = asyncio.current_task()
            if task is not None:
                self._handshakes.pop(task, None)
        return True

    async def _established(self, client: SecureEnd, address: str) -> None:
        try:
            peer = Peer(address=address, identity=_identity(client))
        except (CertificateError, ValueError) as error:
            self._refused(Refusal.SUBJECT, address, error)
            return
        stranger = peer.identity is None
        full = len(self._peers) >= self.limits.connections
        if full or (stranger and self._strangers >= self.limits.strangers):
            self._refused(Refusal.FULL, address)
            return
        name = _NAME_PREFIX + secrets.token_hex(16)
        self._strangers += stranger
        self._peers[name], self._ends[name] = peer, client
        try:
            await self._carry(client, name, peer)
        finally:
            del self._peers[name], self._ends[name]
            self._strangers -= stranger

    async def _carry(self, client: SecureEnd, name: str, peer: Peer) -> None:
        server = End()
        try:
            await server.adopt(await connect_unix(self.upstream, name=name))
        except OSError as error:
            self._refused(Refusal.UPSTREAM, peer.address, error)
            return
        idle = self.limits.stranger_idle if peer.identity is None else None
        if await splice(client, server, first=self.limits.first_byte, idle=idle):
            self._refused(Refusal.SILENT, peer.address)
        log.debug(
            "front.connection.closed",
            peer=peer.address,
            node=peer.identity.node_id if peer.identity else None,
            received=client.received,
            sent=server.received,
        )

    def _refused(
        self, reason: TlsFault | Refusal, address: str, error: Exception | None = None
    ) -> None:
        self._refusals[reason.value] += 1
        now = asyncio.get_running_loop().time()
        last = self._reported.get(reason.value)
        if last is not None and now - last < REPORT_INTERVAL:
            return
        self._reported[reason.value] = now
        log.warning(
            "front.connection.refused",
            reason=reason.value,
            peer=address,
            detail=str(error) if error else None,
            count=self._refusals[reason.value],
        )


def _identity(client: SecureEnd) -> Identity | None:
    """Read the verified client certificate; None when there is none.

    Raises:
        CertificateError: it was issued by our roots but names nobody.
        ValueError: it cannot be parsed.
    """
    der = client.session.getpeercert(binary_form=True)
    if der is None:
        return None
    return identity_of(x509.load_der_x509_certificate(der))
