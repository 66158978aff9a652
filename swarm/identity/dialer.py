"""The client side of port 2377: grpc.aio speaks to a unix socket, TLS to the manager starts here.

grpcio's own TLS refuses a server that does not select ALPN (engines before 28 stop doing so after a renewal),
says little about why a handshake failed, and cannot leave a certificate unverified. So each remote gets a unix socket
in a private directory; every connection made to it becomes one TLS connection to the remote.

What went wrong on the TLS side is told by :meth:`TlsDialer.last_error`, since gRPC only sees a
closed socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import grpc.aio
import structlog

from swarm.errors import ExhaustedError, PreconditionError, UnavailableError
from swarm.identity.certs import MANAGER_NAME, ROOT_NAME, Credentials
from swarm.identity.secure import SecureEnd
from swarm.identity.sockets import (
    accept,
    begin,
    listen_unix,
    private_directory,
    split_target,
    tune,
)
from swarm.identity.splice import End, splice
from swarm.identity.tls import (
    TlsFault,
    check_server,
    classify,
    client_context,
    deferred_context,
    explain,
    is_self_signed,
    unverified_context,
)

MAX_ROUTES: Final = 256
"""Remotes at once; a cluster has a handful of managers. The longest unused one makes room."""

MAX_CONNECTIONS: Final = 64
"""TLS connections at once to one remote; gRPC keeps one per channel."""

CONNECT_TIMEOUT: Final = 5.0
"""Seconds for one TCP connection attempt; each address of a name gets one."""

HANDSHAKE_TIMEOUT: Final = 10.0

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # Channels must not share connections: a new channel is how a caller asks for new credentials.
    ("grpc.use_local_subchannel_pool", 1),
    # The caller has its own back-off; gRPC's, up to two minutes, would come on top of it.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 20_000),
    ("grpc.max_reconnect_backoff_ms", 4_000),
    ("grpc.max_receive_message_length", (1 << 31) - 1),
)

log = structlog.get_logger(__name__)

__all__ = ["MANAGER_NAME", "ROOT_NAME", "DialError", "TlsDialer"]

Option = tuple[str, int | str]


class DialError(UnavailableError):
    """A connection to a manager did not come about, or was refused right after; ``fault`` says why."""

    def __init__(self, fault: TlsFault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


@dataclass(slots=True, kw_only=True, eq=False)
class _Route:
    """One remote under one server name (None: unverified), and the socket that stands for it."""

    target: str
    server_name: str | None
    path: Path
    listener: socket.socket
    used: int
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    acceptor: asyncio.Task[None] | None = None


class TlsDialer:
    """TLS connections to managers for grpc.aio channels.

    Run :meth:`run` as a task; routes may be opened before it runs (their connections wait).
    """

    def __init__(self, *, directory: Path, credentials: Credentials | None = None) -> None:
        """Prepare; nothing is opened yet.

        Args:
            directory: for the sockets; made private (0700). One dialer per directory.
            credentials: roots, and this node's certificate if it has one; None before the first root.

        Raises:
            HostError: the credentials cannot be loaded.
        """
        self.directory = directory
        self._credentials = credentials
        self._context = None if credentials is None else client_context(credentials)
        self._unverified = unverified_context()
        self._routes: dict[tuple[str, str | None], _Route] = {}
        self._errors: dict[str, DialError] = {}
        self._group: asyncio.TaskGroup | None = None
        self._numbers = itertools.count(1)
        self._clock = itertools.count(1)

    def reload(self, credentials: Credentials) -> None:
        """Use other roots and another certificate for every connection from now on.

        Running connections stay; open a new channel to be seen with the new certificate.

        Raises:
            HostError: they cannot be loaded; the old ones stay in use.
        """
        self._context = client_context(credentials)
        self._credentials = credentials

    def last_error(self, target: str) -> DialError | None:
        """Return why the last connection to ``host:port`` failed; None once the remote has spoken since."""
        return self._errors.get(target)

    def route(self, target: str, *, server_name: str = MANAGER_NAME) -> str:
        """Open (or find) the unix socket that leads to a manager; return it as a gRPC target.

        Args:
            target: ``host:port``, IPv6 in brackets.
            server_name: ``swarm-manager``, or ``swarm-ca`` before this node has a certificate; sent as
                SNI and looked for among the names of the manager's certificate.

        Raises:
            InvalidArgumentError: the target is not ``host:port``.
            PreconditionError: there are no roots to verify a manager with.
            ExhaustedError: 256 remotes are in use.
            HostError: the socket cannot be made.
        """
        if self._context is None:
            raise PreconditionError("no root CA is known yet to verify a manager with")
        return self._open(target, server_name)

    def channel(
        self, target: str, *, server_name: str = MANAGER_NAME, options: Sequence[Option] = ()
    ) -> grpc.aio.Channel:
        """Open a channel to a manager; close it as any channel. Raises as :meth:`route`."""
        return _channel(self.route(target, server_name=server_name), server_name, options)

    def fetch_unverified(self, target: str, options: Sequence[Option] = ()) -> grpc.aio.Channel:
        """Open a channel to whoever answers: no verification, no certificate shown.

        Only for fetching the root CA, whose digest the caller must compare with the join token.

        Raises:
            InvalidArgumentError: the target is not ``host:port``.
            ExhaustedError: 256 remotes are in use.
            HostError: the socket cannot be made.
        """
        return _channel(self._open(target, None), target, options)

    def forget(self, target: str) -> None:
        """Close every route to a target, and its connections."""
        self._errors.pop(target, None)
        for key in [key for key in self._routes if key[0] == target]:
            self._close(self._routes.pop(key))

    async def run(self) -> None:
        """Dial until cancelled; every connection is dropped and every socket removed then."""
        if self._group is not None:
            raise PreconditionError("this dialer runs already")
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for route in self._routes.values():
                    self._start(group, route)
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None
            self.close()

    def close(self) -> None:
        """Close every route; :meth:`run` does so itself when it ends."""
        for route in self._routes.values():
            self._close(route)
        self._routes.clear()

    def _open(self, target: str, server_name: str | None) -> str:
        split_target(target)
        key = (target, server_name)
        route = self._routes.get(key)
        if route is None:
            self._make_room()
            path = private_directory(self.directory) / f"{next(self._numbers)}.sock"
            route = _Route(
                target=target,
                server_name=server_name,
                path=path,
                listener=listen_unix(path),
                used=0,
            )
            self._routes[key] = route
            if self._group is not None:
                self._start(self._group, route)
        route.used = next(self._clock)
        return f"unix:{route.path}"

    def _make_room(self) -> None:
        if len(self._routes) < MAX_ROUTES:
            return
        idle = [key for key, route in self._routes.items() if not route.tasks]
        if not idle:
            raise ExhaustedError(f"{MAX_ROUTES} remotes are being talked to already")
        self._close(self._routes.pop(min(idle, key=lambda key: self._routes[key].used)))

    def _start(self, group: asyncio.TaskGroup, route: _Route) -> None:
        take = functools.partial(self._accepted, group, route)
        trouble = functools.partial(self._failed, route)
        route.acceptor = group.create_task(accept(route.listener, take, trouble))
        route.acceptor.add_done_callback(lambda _: route.listener.close())

    @staticmethod
    def _close(route: _Route) -> None:
        if route.acceptor is None:
            route.listener.close()
        else:  # it closes the listener itself, once the event loop has let go of it
            route.acceptor.cancel()
        for task in route.tasks:
            task.cancel()
        with contextlib.suppress(OSError):
            route.path.unlink()

    def _accepted(
        self, group: asyncio.TaskGroup, route: _Route, sock: socket.socket, _: object
    ) -> None:
        if len(route.tasks) >= MAX_CONNECTIONS:
            sock.close()
            return
        box = [sock]
        task = begin(group, self._serve(box, route), sock)
        if task is None:
            return
        route.tasks.add(task)
        task.add_done_callback(functools.partial(_finished, route, box))

    async def _serve(self, box: list[socket.socket], route: _Route) -> None:
        """Carry one gRPC connection; whatever happens to it, the dialer goes on."""
        try:
            await self._carry(box, route)
        except Exception as error:  # one connection's defect must not end the others
            log.exception("dialer.connection.failed", target=route.target)
            self._failed(route, error)

    async def _carry(self, box: list[socket.socket], route: _Route) -> None:
        local = End()
        try:
            remote = await self._dial(route)
        except (OSError, ValueError) as error:  # the IDNA codec refuses odd host names
            self._failed(route, error)
            return
        try:
            remote.spoke.add_done_callback(lambda _: self._errors.pop(route.target, None))
            await local.adopt(box.pop())
            remote.on_lost = functools.partial(self._lost, route, remote, local)
            await splice(remote, local)
        finally:
            remote.abort()
            local.abort()

    def _lost(self, route: _Route, remote: SecureEnd, local: End) -> None:
        """Note, before gRPC learns it, that a server hung up without a word.

        A server that does not like our certificate says so only after the TLS 1.3 handshake.
        """
        if remote.received == 0 and not local.lost.done():
            self._failed(route, remote.error or ConnectionResetError(errno.ECONNRESET, "closed"))

    async def _dial(self, route: _Route) -> SecureEnd:
        context = self._unverified if route.server_name is None else self._context
        assert context is not None  # noqa: S101  # route() has checked
        try:
            return await self._secure(route, context)
        except ssl.SSLCertVerificationError as error:
            if not is_self_signed(error):
                raise
        # Perhaps a cluster whose root is being replaced: look at the chain ourselves.
        credentials = self._credentials
        assert credentials is not None and route.server_name is not None  # noqa: S101, PT018
        remote = await self._secure(route, deferred_context(credentials))
        try:
            check_server(remote.session, credentials, route.server_name, datetime.now(UTC))
        except BaseException:
            remote.abort()
            raise
        return remote

    async def _secure(self, route: _Route, context: ssl.SSLContext) -> SecureEnd:
        host, port = split_target(route.target)
        remote = SecureEnd(context, server_side=False, server_name=route.server_name or host)
        sock = await _connect(host, port)
        try:
            await remote.adopt(sock)
            await remote.secured(HANDSHAKE_TIMEOUT)
        except ssl.SSLError:
            await remote.linger()
            raise
        except BaseException:
            remote.abort()
            raise
        return remote

    def _failed(self, route: _Route, error: Exception) -> None:
        fault = classify(error)
        text = explain(fault, route.target, route.server_name, error)
        failure = DialError(fault, text)
        failure.__cause__ = error
        before = self._errors.pop(route.target, None)
        self._errors[route.target] = failure
        while len(self._errors) > MAX_ROUTES:
            del self._errors[next(iter(self._errors))]
        if before is None or before.fault is not fault:  # the same failure again says nothing new
            log.warning("dialer.connection.refused", target=route.target, reason=fault.value)


def _channel(unix_target: str, authority: str, options: Sequence[Option]) -> grpc.aio.Channel:
    merged: dict[str, int | str] = dict(CHANNEL_OPTIONS)
    merged["grpc.default_authority"] = authority
    merged.update(options)
    return grpc.aio.insecure_channel(unix_target, options=list(merged.items()))


def _finished(route: _Route, box: list[socket.socket], task: asyncio.Task[None]) -> None:
    route.tasks.discard(task)
    for sock in box:  # still there when the remote was never reached
        sock.close()


async def _connect(host: str, port: int) -> socket.socket:
    """Connect over TCP to the first address of a name that answers.

    Raises:
        OSError: the last address's error (``socket.gaierror`` when the name has none).
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    last: OSError = ConnectionRefusedError(errno.ECONNREFUSED, "no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
        try:
            tune(sock)
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await loop.sock_connect(sock, address)
        except OSError as error:  # TimeoutError is one
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last
