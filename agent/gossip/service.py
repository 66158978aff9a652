"""Sockets and time for one :class:`~agent.gossip.node.Node`.

One task drives the core; every datagram is handed to it as it arrives, so that probes are answered
before anything else happens; every stream has a task of its own in the same group.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import structlog

from agent.gossip.changes import ChangeKind, Entry, TableChange
from agent.gossip.config import LAN, LOCAL, GossipConfig, Timing
from agent.gossip.node import Node, random_name
from agent.gossip.outputs import Datagram, Dial, Output, Trace
from agent.gossip.refusal import Refusal
from agent.gossip.swim import membership, seal, wire
from agent.gossip.swim.keyring import GossipKey
from agent.gossip.swim.wire import State
from swarm.errors import HostError, InvariantError, WireError

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

MAX_STREAMS: Final = 128  # served at once; and as many dialled
MAX_STREAMS_PER_HOST: Final = 16  # nobody keeps the others out by holding connections open
MAX_LARGE_STREAMS: Final = 4  # of those with members, how many may hold more than LARGE bytes
LARGE: Final = 1 << 20
THREADED: Final = 64 << 10  # frames above it are decrypted and unfolded beside the loop
RECEIVE_BUFFER: Final = 4 << 20
REPORT_INTERVAL: Final = 60.0
LINGER: Final = 1.0  # seconds in which a node that left still answers

ORDINARY: Final = frozenset(
    {Refusal.UNKNOWN_NODE, Refusal.NOT_ATTACHED, Refusal.WRONG_NODE}
)  # refusals that come with reordering and restarts, and call for nobody

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One node of the cluster as membership sees it, this one included.

    Attributes:
        incarnation: raised by the node itself whenever it refutes.
        networks: how many it takes part in.
        compared: seconds since own entries were last compared with what it holds; None: never.
        entries: how many were compared then.
        lacking: how many of them it did not hold as they are; they were published again.
    """

    name: str
    host: str
    port: int
    state: State
    incarnation: int = 0
    networks: int = 0
    compared: float | None = None
    entries: int = 0
    lacking: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """How many entries one table of one network has; see :class:`GossipStats` for the sum."""

    network: str
    table: str
    visible: int
    own: int
    tombstones: int
    hidden: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStatus:
    """One network this node takes part in.

    Attributes:
        peers: active nodes on it besides this one.
        in_sync: its first bulk syncs are done.
        syncs: bulk syncs that a peer has answered since this node joined it.
        own_queue: own events that wait to be passed on.
        relay_queue: others' events that do.
    """

    id: str
    peers: int
    in_sync: bool
    syncs: int
    own_queue: int
    relay_queue: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipStats:
    """Figures for operators.

    Attributes:
        queues: waiting messages by queue: ``membership``, ``events``, ``own``, ``relayed``, ``early``.
        refused: refused input by cause (see :class:`agent.gossip.refusal.Refusal`).
        health: Lifeguard's score; 0 is well.
        keys: fingerprints of the previous, the sending and the next key.
        entries: entries held, tombstones and hidden ones included.
        pending_syncs: bulk syncs whose reply is awaited.
        stalled: seconds this process did not run when it should have.
        dropped: events that queues had no room for.
        trimmed: full exchanges that could not hold every attachment.
        traffic: datagrams, streams and bytes, by what and direction: ``datagrams_sent``,
            ``datagram_bytes_sent``, ``streams_dialled``, ``stream_bytes_sent``, the same received
            (``streams_served``).
        largest_frame: bytes of the largest stream message so far; engines refuse above 20 MiB.
    """

    queues: dict[str, int]
    refused: dict[str, int]
    health: int
    keys: tuple[str, ...]
    entries: int
    pending_syncs: int
    stalled: float
    dropped: int
    trimmed: int
    traffic: dict[str, int]
    largest_frame: int


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
        self._serving: Counter[str] = Counter()
        self._dialling = asyncio.Semaphore(MAX_STREAMS)
        self._large = asyncio.Semaphore(MAX_LARGE_STREAMS)
        self._strange = asyncio.Semaphore(1)
        self._traffic: Counter[str] = Counter()
        self._largest = 0
        self._log = log.bind(component="agent/gossip", node=self._node.name)

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
                server = await asyncio.start_server(self._accept, sock=stream_socket)
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
        return tuple(self._member(m) for m in sorted(self._node.swim.members, key=lambda m: m.name))

    def _member(self, member: membership.Member) -> Member:
        db = self._node.db
        peer = db.state.peers.get(member.name)
        if peer is None:
            mine = member.name == self._node.name
            networks = sum(not own.leaving for own in db.state.own.values()) if mine else 0
        else:
            networks = sum(not each.leaving for each in peer.attachments.values())
        compared = None if peer is None else peer.compared
        return Member(
            name=member.name,
            host=member.host,
            port=member.port,
            state=member.state,
            incarnation=member.incarnation,
            networks=networks,
            compared=None if compared is None else self._node.timers.now - compared.at,
            entries=0 if compared is None else compared.entries,
            lacking=0 if compared is None else compared.lacking,
        )

    def seeds(self) -> tuple[tuple[str, int], ...]:
        """Return the addresses that should be members."""
        return self._node.seeds

    def tables(self) -> tuple[TableStatus, ...]:
        """Return the sizes of all tables of all networks; walks over every entry."""
        found: dict[tuple[str, str], Counter[str]] = {}
        for network, place, entry in self._node.db.state.store.items():
            counts = found.setdefault((network, place.table), Counter())
            if entry.visible:
                counts["visible"] += 1
                counts["own"] += entry.owner == self._node.name
            else:
                counts["tombstones" if entry.deleted else "hidden"] += 1
        return tuple(
            TableStatus(
                network=network,
                table=table,
                visible=counts["visible"],
                own=counts["own"],
                tombstones=counts["tombstones"],
                hidden=counts["hidden"],
            )
            for (network, table), counts in sorted(found.items())
        )

    def network_states(self) -> tuple[NetworkStatus, ...]:
        """Return how this node stands on each network it takes part in."""
        db = self._node.db
        return tuple(
            NetworkStatus(
                id=network,
                peers=len(db.state.peers.on(network)),
                in_sync=own.in_sync,
                syncs=own.syncs,
                own_queue=len(own.ours),
                relay_queue=len(own.relayed),
            )
            for network, own in sorted(db.state.own.items())
            if not own.leaving
        )

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
        core, db = self._node.swim, self._node.db
        refused = dict(core.refusals.counts)
        for cause, count in db.refusals.counts.items():
            refused[cause] = refused.get(cause, 0) + count
        return GossipStats(
            queues={
                "membership": len(core.queue),
                "events": len(db.publisher.queue),
                "own": sum(len(own.ours) for own in db.state.own.values()),
                "relayed": sum(len(own.relayed) for own in db.state.own.values()),
                "early": len(db.early),
            },
            refused=refused,
            health=core.awareness.score,
            keys=self._node.keyring.fingerprints(),
            entries=db.state.store.size,
            pending_syncs=len(db.exchange.pending),
            stalled=self._node.timers.stalled,
            dropped=core.queue.dropped
            + db.publisher.queue.dropped
            + db.early.dropped
            + sum(own.ours.dropped + own.relayed.dropped for own in db.state.own.values()),
            trimmed=db.trimmed,
            traffic=dict(self._traffic),
            largest_frame=self._largest,
        )

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
                self._spawn(self._dial(output))
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

    # -- streams ---------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        host = str(peer[0]) if peer else ""
        full = self._serving.total() >= MAX_STREAMS or self._serving[host] >= MAX_STREAMS_PER_HOST
        if self._group is None or full:
            writer.close()
            return
        self._serving[host] += 1
        task = self._spawn(self._serve(reader, writer, host))
        if task is None:
            self._served(writer, host)
        else:
            # Not in the task itself: one that is cancelled before its first step never gets there.
            task.add_done_callback(lambda _: self._served(writer, host))

    def _served(self, writer: asyncio.StreamWriter, host: str) -> None:
        self._serving[host] -= 1
        if not self._serving[host]:
            del self._serving[host]
        _finish(writer)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None] | None:
        """Run something beside the driver; return None when that is ending already."""
        try:
            if self._group is not None:
                return self._group.create_task(work)
        except RuntimeError:  # the group has begun to cancel its tasks, and takes no more
            pass
        work.close()
        return None

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        """Answer one request; one request per connection."""
        writer.transport.set_write_buffer_limits(0)  # drained means sent
        try:
            async with asyncio.timeout(self._config.timing.stream_timeout):
                self._traffic["streams_served"] += 1
                message = await self._read(reader, label=self._config.label, host=host)
                reply = self._node.serve_stream(message, self._now())
                self._flush()
                self._wake.set()
                if reply is not None:
                    self._frame_sent(reply, host)
                    writer.write(reply)
                    await writer.drain()
        except WireError as error:
            self._log.debug("gossip.stream.refused", reason=str(error))
        except (OSError, EOFError, TimeoutError) as error:
            self._log.debug("gossip.stream.broken", reason=repr(error))

    async def _dial(self, dial: Dial) -> None:
        """Send one request, and hand its outcome to the core."""
        try:
            async with asyncio.timeout(dial.timeout), self._dialling:
                reader, writer = await asyncio.open_connection(dial.host, dial.port)
                writer.transport.set_write_buffer_limits(0)  # drained means sent
                try:
                    self._traffic["streams_dialled"] += 1
                    self._frame_sent(dial.frame, dial.host)
                    writer.write(dial.frame)
                    await writer.drain()
                    if dial.reply:
                        message = await self._read(reader, label=b"", host=dial.host)
                        self._node.stream_reply(dial.token, message, self._now())
                    else:
                        # The other side closes once it has read everything.
                        writer.write_eof()
                        await reader.read(1)
                        self._node.stream_sent(dial.token, self._now())
                finally:
                    _finish(writer)
        except (WireError, OSError, EOFError, TimeoutError) as error:
            self._node.stream_failed(dial.token, str(error) or repr(error), self._now())
        self._flush()
        self._wake.set()

    def _frame_sent(self, frame: bytes, host: str) -> None:
        self._traffic["stream_bytes_sent"] += len(frame)
        self._note_size(len(frame), host, sent=True)

    def _note_size(self, size: int, host: str, *, sent: bool) -> None:
        """Say early that messages near the size at which every engine refuses them."""
        if size > self._largest:
            if size > seal.LARGE_FRAME:
                self._log.warning(
                    "gossip.frame.large", size=size, limit=seal.MAX_FRAME, peer=host, sent=sent
                )
            self._largest = size

    async def _read(
        self, reader: asyncio.StreamReader, *, label: bytes, host: str
    ) -> wire.StreamMessage:
        """Read one frame; large ones take turns and are unfolded beside the loop.

        Nothing is known of a sender before its whole frame is there. So hosts that are no members
        share one turn among them: whoever fills it keeps no member waiting.
        """
        if label:
            start = await reader.readexactly(2 + len(label))
            seal.label_size_untrusted(start, label=label)
        header = await reader.readexactly(seal.FRAME_HEADER_SIZE)
        size = seal.frame_size_untrusted(header)
        if size <= THREADED:
            return self._node.decode_stream(header, await self._body(reader, size, host))
        if size <= LARGE:
            body = await self._body(reader, size, host)
            return await asyncio.to_thread(self._node.decode_stream, header, body)
        async with self._large if self._is_member(host) else self._strange:
            body = await self._body(reader, size, host)
            return await asyncio.to_thread(self._node.decode_stream, header, body)

    async def _body(self, reader: asyncio.StreamReader, size: int, host: str) -> bytes:
        body = await reader.readexactly(size)
        self._traffic["stream_bytes_received"] += size
        self._note_size(size, host, sent=False)
        return body

    def _is_member(self, host: str) -> bool:
        return any(m.host == host and not m.gone for m in self._node.swim.members)


class _Datagrams(asyncio.DatagramProtocol):
    """Hands datagrams on; errors of single ones (a closed port) mean nothing here."""

    def __init__(self, receive: Callable[[bytes, str, int], None]) -> None:
        self._receive = receive

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._receive(data, addr[0], addr[1])


def _finish(writer: asyncio.StreamWriter) -> None:
    """Close a stream; what a peer did not take in time must not wait for it for ever."""
    if writer.transport.get_write_buffer_size():
        writer.transport.abort()
    else:
        writer.close()


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
