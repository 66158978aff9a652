"""All containers' DNS servers of this node."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from random import Random
from typing import Final

import structlog

from agent.discovery import redirect
from agent.discovery.forward import Forwarder, parse_upstream
from agent.discovery.names import NameTable
from agent.discovery.server import Connection, Datagrams, Server, Shared
from agent.discovery.tables import Tables
from swarm.errors import HostError, NotFoundError, PreconditionError, SwarmError
from swarm.kernel.descriptors import lifted
from swarm.kernel.netns import in_netns, loopback_up
from swarm.kernel.nft import NftError

BACKLOG: Final = 64
RECEIVE_BUFFER: Final = 1 << 20
"""Bytes of unread queries: a burst waits while the loop is busy, instead of costing a time-out."""
_SO_RCVBUFFORCE: Final = 33  # asm-generic/socket.h; goes beyond net.core.rmem_max

log = structlog.get_logger(component="discovery")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sockets:
    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


@dataclass(slots=True)
class _Lock:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    users: int = 0


@dataclass(slots=True, kw_only=True)
class _Served:
    netns_path: str
    server: Server


class Discovery:
    """Serve names to containers.

    ``run()`` must be running before anything is served; cancelling it closes all sockets but leaves
    the redirects, so that the next agent can take over the same ports.

    Args:
        names: the table to answer from; the caller keeps filling it.
        rng: shuffles answers and draws transaction ids: :class:`random.SystemRandom` outside of tests.
    """

    def __init__(self, names: NameTable, *, rng: Random) -> None:
        self.names = names
        self._rng = rng
        self._served: dict[str, _Served] = {}
        self._locks: dict[str, _Lock] = {}
        self._shared: Shared | None = None
        self._tables = Tables()
        self.ready = asyncio.Event()
        """Set while :meth:`serve` may be called."""

    async def run(self) -> None:
        """Own the tasks of all servers until cancelled."""
        clock = asyncio.get_running_loop().time
        try:
            with self._tables:
                async with asyncio.TaskGroup() as group:
                    self._shared = Shared(
                        names=self.names,
                        rng=self._rng,
                        forwarder=Forwarder(rng=self._rng, clock=clock),
                        group=group,
                    )
                    self.ready.set()
                    await asyncio.get_running_loop().create_future()
        finally:
            self.ready.clear()
            self._shared = None
            for served in self._served.values():
                served.server.close()
            self._served.clear()

    async def serve(
        self,
        key: str,
        netns_path: str,
        *,
        networks: tuple[str, ...],
        upstreams: tuple[str, ...] = (),
    ) -> None:
        """Serve one container, replacing what was served under ``key`` before.

        Until :meth:`stop`, the sockets keep the namespace alive.

        Args:
            key: the caller's name for the container.
            netns_path: its network namespace.
            networks: ids of its networks; the first that knows a name answers.
            upstreams: servers for all other names, as ``ADDRESS`` or ``ADDRESS:PORT``; none for a
                container that is only on internal networks.

        Raises:
            PreconditionError: :meth:`run` is not running.
            InvalidArgumentError: an upstream or the path makes no sense.
            NotFoundError: the namespace is gone.
            HostError: nftables cannot translate addresses here, or the sockets cannot be made.
        """
        parsed = tuple(parse_upstream(text) for text in upstreams)
        async with self._exclusive(key):
            self._require()
            self._close(key)
            sockets = await _opened(netns_path, self._tables)
            try:
                server = Server(shared=self._require(), networks=networks, upstreams=parsed)
                await _listen(server, sockets)
            except BaseException:
                sockets.close()
                raise
            self._served[key] = _Served(netns_path=netns_path, server=server)
        log.info("discovery.serving", container=key, networks=networks, upstreams=upstreams)

    async def update(
        self, key: str, networks: tuple[str, ...], upstreams: tuple[str, ...] | None = None
    ) -> None:
        """Change a served container's networks (and upstreams, if given); takes effect at once.

        Raises:
            NotFoundError: nothing is served under ``key``.
            InvalidArgumentError: an upstream makes no sense.
        """
        served = self._served.get(key)
        if served is None:
            raise NotFoundError(f"no name service for {key}")
        if upstreams is not None:
            served.server.upstreams = tuple(parse_upstream(text) for text in upstreams)
        served.server.networks = networks

    async def stop(self, key: str) -> None:
        """Stop serving a container and take its redirect away; unknown keys are fine."""
        async with self._exclusive(key):
            served = self._close(key)
            if served is not None:
                with suppress(SwarmError):  # the namespace is gone, and the redirect with it
                    await asyncio.to_thread(_clean, served.netns_path, self._tables)
                log.info("discovery.stopped", container=key)

    def _require(self) -> Shared:
        if self._shared is None:
            raise PreconditionError("the name service is not running")
        return self._shared

    @asynccontextmanager
    async def _exclusive(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, _Lock())
        lock.users += 1
        try:
            async with lock.lock:
                yield
        finally:
            lock.users -= 1
            if not lock.users:
                del self._locks[key]

    def _close(self, key: str) -> _Served | None:
        served = self._served.pop(key, None)
        if served is not None:
            served.server.close()
        return served


async def _listen(server: Server, sockets: _Sockets) -> None:
    loop = asyncio.get_running_loop()
    try:
        server.endpoint, _ = await loop.create_datagram_endpoint(
            lambda: Datagrams(server), sock=sockets.udp
        )
        server.listener = await loop.create_server(
            lambda: Connection(server), sock=sockets.tcp, backlog=BACKLOG
        )
    except BaseException:
        server.close()
        raise


async def _opened(netns_path: str, tables: Tables) -> _Sockets:
    opening = asyncio.get_running_loop().run_in_executor(None, _open, netns_path, tables)
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        # The thread cannot be called back: close what it makes when it is done.
        opening.add_done_callback(_discard)
        raise


def _discard(opening: asyncio.Future[_Sockets]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _open(netns_path: str, tables: Tables) -> _Sockets:
    """Make the sockets and the redirect inside a namespace; runs in a worker thread."""
    with in_netns(netns_path):
        try:
            loopback_up()
            with tables.here() as nft:
                # A resolver that keeps one socket open is tracked by the kernel as leading to the old
                # port: take that port again, or such a client would wait for ever.
                before = redirect.installed(nft)
                udp = _bind(socket.SOCK_DGRAM, before.udp if before else 0)
                try:
                    tcp = _bind(socket.SOCK_STREAM, before.tcp if before else 0)
                except OSError:
                    udp.close()
                    raise
                sockets = _Sockets(udp=udp, tcp=tcp)
                ports = redirect.Ports(udp=udp.getsockname()[1], tcp=tcp.getsockname()[1])
                try:
                    if ports != before:
                        redirect.install(nft, ports)
                except NftError:
                    sockets.close()
                    raise
        except NftError as error:
            raise HostError(f"cannot redirect 127.0.0.11:53 in {netns_path}: {error}") from error
        except OSError as error:
            raise HostError(f"cannot listen on 127.0.0.11 in {netns_path}: {error}") from error
    return sockets


def _bind(kind: socket.SocketKind, port: int) -> socket.socket:
    handle = socket.socket(socket.AF_INET, kind)
    try:
        handle.setblocking(False)
        if kind == socket.SOCK_STREAM:
            handle.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            handle.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        try:
            handle.bind((redirect.ADDRESS, port))
        except OSError:
            if not port:
                raise
            handle.bind((redirect.ADDRESS, 0))  # somebody took the old port in the meantime
        return lifted(handle)
    except OSError:
        handle.close()
        raise


def _clean(netns_path: str, tables: Tables) -> None:
    with in_netns(netns_path), tables.here() as nft:
        redirect.uninstall(nft)
