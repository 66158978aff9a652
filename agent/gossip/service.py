"""Sockets and time for one :class:`~agent.gossip.node.Node`.

One task drives the core; every datagram is handed to it as it arrives, so that probes are answered
before anything else happens; every stream (:mod:`agent.gossip.streams`) has a task of its own in the
same group.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Final

import structlog

from agent.gossip import status
from agent.gossip.changes import ChangeKind, Entry, TableChange
from agent.gossip.config import LAN, LOCAL, GossipConfig, Timing
from agent.gossip.node import Node, random_name
from agent.gossip.outputs import Datagram, Dial, Output, Trace
from agent.gossip.refusal import Refusal
from agent.gossip.status import GossipStats, Member, NetworkStatus, TableStatus
from agent.gossip.streams import Streams
from agent.gossip.swim import seal
from agent.gossip.swim.keyring import GossipKey
from agent.gossip.swim.wire import State
from swarm.errors import HostError, InvariantError

__all__ = [
    "LAN",
    "LOCAL",
    "ChangeKind",
    "Entry",
    "Gossip",
    "GossipConfig",
    "GossipKey",
    "GossipStats",
    "Member",
    "NetworkStatus",
    "State",
    "TableChange",
    "TableStatus",
    "Timing",
]

RECEIVE_BUFFER: Final = 4 << 20
REPORT_INTERVAL: Final = 60.0
LINGER: Final = 1.0  # seconds in which a node that left still answers

ORDINARY: Final = frozenset(
    {Refusal.UNKNOWN_NODE, Refusal.NOT_ATTACHED, Refusal.WRONG_NODE, Refusal.UNFINISHED}
)  # refusals that come with reordering and restarts, and call for nobody

log = structlog.get_logger(__name__)


class Gossip:
    """One node's gossip; ``run`` owns its sockets and tasks."""

    def __init__(
        self,
        config: GossipConfig,
        *,
        keys: Sequence[GossipKey],
        rng: random.Random,
        on_change: Callable[[TableChange], None],
    ) -> None:
        """Prepare; nothing is bound or started before :meth:`run`.

        Args:
            config: addresses and timing.
            keys: exactly three; the middle one by Lamport time sends.
            rng: for choices and jitter; nonces come from the system.
            on_change: hears each change of a visible entry, own ones included, from the task that
                runs :meth:`run`; it must not block, and what it raises ends ``run``.

        Raises:
            InvalidArgumentError: the key set is not valid, or the address is none.
        """
        if config.node_name is None:
            # Never from ``rng``: two nodes seeded alike must not claim one name.
            config = replace(config, node_name=random_name(random.SystemRandom()))
        self._config = config
        self._node = Node(
            config, keys=keys, rng=rng, nonces=lambda: os.urandom(seal.NONCE_SIZE), now=0.0
        )
        self._on_change = on_change
        self._ready = asyncio.Event()
        self._wake = asyncio.Event()
        self._group: asyncio.TaskGroup | None = None
        self._datagrams: asyncio.DatagramTransport | None = None
        self._traffic: Counter[str] = Counter()
        self._log = log.bind(component="agent/gossip", node=self._node.name)
        self._streams = Streams(
            self._node,
            config,
            traffic=self._traffic,
            spawn=self._spawn,
            acted=self._acted,
            log=self._log,
        )

    @property
    def node_name(self) -> str:
        """The name under which this node is a member and owns its entries."""
        return self._node.name

    # -- life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Take part until cancelled.

        Raises:
            HostError: an address cannot be bound.
        """
        loop = asyncio.get_running_loop()
        config = self._config
        if self._group is not None:
            raise InvariantError("gossip runs already")
        stream_socket, datagram_socket = _bind(config.bind_host, config.bind_port)
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._datagrams, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self._receive), sock=datagram_socket
                )
                server = await asyncio.start_server(self._streams.accept, sock=stream_socket)
                try:
                    self._node.start(loop.time())
                    self._log.info(
                        "gossip.started",
                        address=f"{config.bind_host}:{config.bind_port}",
                        keys=self._node.keyring.fingerprints(),
                    )
                    group.create_task(self._report())
                    self._ready.set()
                    await self._drive()
                finally:
                    server.close()
                    self._datagrams.close()
        finally:
            self._group = self._datagrams = None
            self._ready.clear()
            stream_socket.close()
            datagram_socket.close()

    async def ready(self) -> None:
        """Wait until the sockets are bound and the node takes part."""
        await self._ready.wait()

    async def leave(self, timeout: float) -> None:  # noqa: ASYNC109  # the budget is divided here
        """Say that this node goes, and wait until that has spread or ``timeout`` seconds passed.

        :meth:`run` goes on answering until it is cancelled.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        self._act(self._node.db.announce_leave)
        await self._until(lambda: self._node.db.leave_spread, loop.time() + timeout * 0.6)
        self._act(self._node.swim.leave)
        await self._until(lambda: self._node.swim.leave_spread, deadline)
        others = [m for m in self._node.swim.members if not m.gone and m.name != self.node_name]
        if others:
            await asyncio.sleep(max(0.0, min(LINGER, deadline - loop.time())))

    # -- control ---------------------------------------------------------------------------

    def set_keys(self, keys: Iterable[GossipKey]) -> None:
        """Install a whole key set at once, however many rotations it is ahead.

        Raises:
            InvalidArgumentError: not exactly three distinct valid keys; nothing changed.
        """
        if self._node.set_keys(keys):
            self._log.info("gossip.keys.changed", keys=self._node.keyring.fingerprints())

    def set_seeds(self, seeds: Iterable[tuple[str, int]]) -> None:
        """Replace the managers' addresses; only those that are no members are (re)joined.

        Raises:
            InvalidArgumentError: a host is no IP address, or a port no port.
        """
        self._act(lambda: self._node.set_seeds(seeds))

    def join_network(self, network: str) -> None:
        """Take part in a network; joining twice changes nothing."""
        self._act(lambda: self._node.db.join_network(network))

    def leave_network(self, network: str) -> None:
        """Stop to take part in a network; own entries on it are withdrawn."""
        self._act(lambda: self._node.db.leave_network(network))

    def put(self, table: str, network: str, key: str, value: bytes) -> None:
        """Publish an own entry or its new value.

        Raises:
            InvalidArgumentError: a name or the value is beyond its limit.
            PreconditionError: this node takes no part in the network.
        """
        self._act(lambda: self._node.db.put(table, network, key, value))

    def delete(self, table: str, network: str, key: str) -> None:
        """Withdraw an own entry; nothing happens if there is none."""
        self._act(lambda: self._node.db.delete(table, network, key))

    # -- views -----------------------------------------------------------------------------

    def entries(self, table: str, network: str) -> dict[str, Entry]:
        """Return the visible entries of one table on one network by key, own ones included."""
        return self._node.entries(table, network)

    def members(self) -> tuple[Member, ...]:
        """Return every known node, this one included, in order of names."""
        return status.members(self._node)

    def seeds(self) -> tuple[tuple[str, int], ...]:
        """Return the addresses that should be members."""
        return self._node.seeds

    def tables(self) -> tuple[TableStatus, ...]:
        """Return the sizes of all tables of all networks; walks over every entry."""
        return status.tables(self._node)

    def network_states(self) -> tuple[NetworkStatus, ...]:
        """Return how this node stands on each network it takes part in."""
        return status.network_states(self._node)

    def networks(self) -> dict[str, tuple[str, ...]]:
        """Return the networks this node takes part in, each with its active peers' names."""
        db = self._node.db
        return {
            network: tuple(peer.name for peer in db.state.peers.on(network))
            for network, own in db.state.own.items()
            if not own.leaving
        }

    def stats(self) -> GossipStats:
        """Return figures for operators."""
        return status.figures(self._node, self._streams.traffic, self._streams.largest)

    # -- driving ---------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _act(self, action: Callable[[], None]) -> None:
        """Change the core from outside; the driver sees to the consequences."""
        if self._group is not None:
            self._node.timers.advance(self._now())
        action()
        self._wake.set()

    def _receive(self, data: bytes, host: str, port: int) -> None:
        self._traffic["datagrams_received"] += 1
        self._traffic["datagram_bytes_received"] += len(data)
        self._node.receive_datagram(data, host, port, self._now())
        self._acted()

    def _acted(self) -> None:
        """See to the consequences of what the core was given: answers at once, the rest soon."""
        self._flush()
        self._wake.set()

    async def _drive(self) -> None:
        while True:
            now = self._now()
            self._node.tick(now)
            busy = self._node.work(now)
            self._flush()
            for change in self._node.take_changes():
                self._on_change(change)
            if busy:
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout_at(self._node.next_deadline()):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    def _flush(self) -> None:
        if self._datagrams is None or self._group is None:
            return
        for output in self._node.take_outputs():
            self._perform(output, self._datagrams)

    def _perform(self, output: Output, datagrams: asyncio.DatagramTransport) -> None:
        match output:
            case Datagram():
                self._traffic["datagrams_sent"] += 1
                self._traffic["datagram_bytes_sent"] += len(output.data)
                try:
                    datagrams.sendto(output.data, (output.host, output.port))
                except ValueError as error:  # uvloop, about an address of the other family
                    self._log.debug("gossip.datagram.unsendable", reason=str(error))
            case Dial():
                self._spawn(self._streams.dial(output))
            case Trace():
                getattr(self._log, output.level)(output.event, **output.data)

    async def _until(self, done: Callable[[], bool], deadline: float) -> None:
        """Wait until the core has spread what it was told; its queues tell, nothing signals it."""
        while not done() and self._now() < deadline and self._group is not None:  # noqa: ASYNC110
            await asyncio.sleep(self._config.timing.gossip_interval / 4)

    async def _report(self) -> None:
        """Log refused input and ill health once a minute, if there is any."""
        reported: dict[str, int] = {}
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            stats = self.stats()
            fresh = {
                cause: count - reported.get(cause, 0)
                for cause, count in stats.refused.items()
                if count > reported.get(cause, 0)
            }
            reported = stats.refused
            if stats.health or not ORDINARY.issuperset(fresh):
                self._log.warning("gossip.health.poor", refused=fresh, health=stats.health)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None] | None:
        """Run something beside the driver; return None when that is ending already."""
        try:
            if self._group is not None:
                return self._group.create_task(work)
        except RuntimeError:  # the group has begun to cancel its tasks, and takes no more
            pass
        work.close()
        return None


class _Datagrams(asyncio.DatagramProtocol):
    """Hands datagrams on; errors of single ones (a closed port) mean nothing here."""

    def __init__(self, receive: Callable[[bytes, str, int], None]) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receive(data, addr[0], addr[1])


def _bind(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """Return a listening stream socket and a datagram socket on the same address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            sock = socket.socket(family, kind)
            opened.append(sock)
            sock.setblocking(False)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            sock.bind((host, port))
    except OSError as error:
        for sock in opened:
            sock.close()
        if error.errno == errno.EADDRINUSE:
            raise HostError(
                f"address {host}:{port} is in use: another gossip node or Docker runs here"
            ) from error
        raise HostError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return opened[0], opened[1]
