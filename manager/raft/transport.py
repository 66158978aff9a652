"""Raft messages over gRPC: one client stream to each other manager, one servicer for theirs.

Nothing here waits for anybody: each peer has a bounded queue and a task of its own, and what does
not fit or does not arrive is dropped and reported. Raft repeats what it needs.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import structlog

from manager.raft.codec import from_wire_untrusted, to_wire
from manager.raft.membership import Member
from manager.raft.messages import Append, Body, Message, SnapshotChunk
from swarm.api.overswarm.v1 import raft_pb2, raft_pb2_grpc
from swarm.errors import SwarmError, WireError

log = structlog.get_logger("manager.raft.transport")

MAX_QUEUED_MESSAGES = 4096
"""Messages waiting for one peer; the core's own windows keep it far below this."""

MAX_QUEUED_BYTES = 32 * 1024 * 1024
"""Payload waiting for one peer."""

MAX_HINTS = 64
"""Addresses remembered of senders outside the configuration."""

WRITE_SECONDS = 5.0
"""A peer that takes no byte for so long is treated as gone."""

STEADY_SECONDS = 1.0
"""A stream that lasted so long was no failure when it ends: the next one may begin at once."""

RETRY_SECONDS = (0.1, 0.5)
"""First and longest pause before a peer is dialled again; doubled in between, cut short when the
peer is heard."""

ChannelFactory = Callable[[str], Awaitable[grpc.aio.Channel]]
"""Opens a channel to a manager's host:port, with this node's certificate."""

Deliver = Callable[[Message[Body]], None]


class Identify(Protocol):
    """Names the caller of an RPC."""

    def __call__(self, context: grpc.aio.ServicerContext[Any, Any]) -> str | None:
        """Return the node id in the caller's certificate, or None if it cannot be told."""


@dataclass(slots=True, eq=False)
class Stream:
    """One stream to another manager."""

    began: float
    """Loop time."""
    over: bool = False


class Peer:
    """One other manager: a queue and the task that empties it."""

    __slots__ = (
        "_bytes",
        "_queue",
        "_wake",
        "addr",
        "heard",
        "raft_id",
        "reached",
        "task",
    )

    def __init__(self, raft_id: int, addr: str) -> None:
        self.raft_id = raft_id
        self.addr = addr
        self.heard = asyncio.Event()
        """It spoke since the last failure, so it is there."""
        self.reached = False
        """A message was written since the last failure."""
        self.task: asyncio.Task[None] | None = None
        self._queue: deque[Message[Body]] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()

    def put(self, message: Message[Body]) -> bool:
        """Queue a message; False when there is no room."""
        size = _payload(message.body)
        if len(self._queue) >= MAX_QUEUED_MESSAGES or self._bytes + size > MAX_QUEUED_BYTES:
            return False
        self._queue.append(message)
        self._bytes += size
        self._wake.set()
        return True

    async def get(self, stream: Stream | None = None) -> Message[Body] | None:
        """Wait for the next message; None when the stream it shall go to has ended."""
        while not self._queue and not (stream is not None and stream.over):
            self._wake.clear()
            await self._wake.wait()
        if stream is not None and stream.over:
            return None
        message = self._queue.popleft()
        self._bytes -= _payload(message.body)
        return message

    def hang_up(self, stream: Stream) -> None:
        """A stream has ended."""
        stream.over = True
        self._wake.set()

    def clear(self) -> None:
        """Drop what waits."""
        self._queue.clear()
        self._bytes = 0


class GrpcTransport:
    """The :class:`manager.raft.node.Transport` of a real manager."""

    def __init__(
        self,
        *,
        raft_id: int,
        addr: str,
        channel: ChannelFactory,
        hints: Mapping[int, str] | None = None,
    ) -> None:
        """Prepare; nothing happens before ``run``.

        Args:
            raft_id: this member.
            addr: host:port where the others reach this one.
            channel: opens channels; each is closed here.
            hints: addresses by raft id that are known before the configuration is (a joiner's).
        """
        self._raft_id = raft_id
        self._addr = addr
        self._channel = channel
        self._hints: dict[int, str] = dict(hints or {})
        self._members: Mapping[int, Member] = {}
        self._peers: dict[int, Peer] = {}
        self._tasks: asyncio.TaskGroup | None = None
        self._deliver: Deliver | None = None
        self._unreachable: Callable[[int], None] | None = None
        self._lost: Callable[[int], None] | None = None
        self._speaking: dict[int, object] = {}
        """Member to the stream on which it spoke last."""

    # The node's side ------------------------------------------------------------------------

    def send(self, messages: Sequence[Message[Body]]) -> None:
        """Queue messages; what has no known address or no room is dropped."""
        for message in messages:
            peer = self._peers.get(message.to) or self._hinted(message.to)
            if (peer is None or not peer.put(message)) and self._unreachable is not None:
                self._unreachable(message.to)

    def update_members(self, members: Mapping[int, Member]) -> None:
        """Dial who is new, hang up on who is gone, redial who moved."""
        self._members = members
        wanted = {i: m.addr for i, m in members.items() if i != self._raft_id}
        for raft_id, peer in list(self._peers.items()):
            if wanted.get(raft_id) != peer.addr and (raft_id in wanted or members):
                self._drop(peer)
                # Who is gone may still have to be told so.
                self._remember(raft_id, peer.addr)
        for raft_id, addr in wanted.items():
            if raft_id not in self._peers:
                self._add(raft_id, addr)

    async def run(
        self,
        deliver: Deliver,
        unreachable: Callable[[int], None],
        lost: Callable[[int], None],
    ) -> None:
        """Carry messages until cancelled; see :class:`manager.raft.ports.Transport`."""
        self._unreachable, self._lost = unreachable, lost
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                self._deliver = deliver
                for peer in self._peers.values():
                    self._start(peer)
                await asyncio.Event().wait()
        finally:
            self._tasks = self._deliver = self._lost = None

    # The servicer's side --------------------------------------------------------------------

    def receive(
        self, wire: raft_pb2.RaftMessage, caller: str | None, stream: object = None
    ) -> bool:
        """Take one message off a stream; False when this member does not run.

        Args:
            wire: the message.
            caller: node id in the certificate at the other end, if known.
            stream: which one; see :meth:`ended`.

        Raises:
            WireError: malformed, or sent in another manager's name.
        """
        message = from_wire_untrusted(wire)
        member = self._members.get(message.sender)
        if member is not None and caller is not None and member.node_id != caller:
            raise WireError(f"Node {caller} speaks for manager {message.sender:x}.")
        if self._deliver is None:
            return False
        if wire.reply_to and member is None:
            self._remember(message.sender, wire.reply_to)
        if (peer := self._peers.get(message.sender)) is not None:
            peer.heard.set()
            self._speaking[message.sender] = stream
        self._deliver(message)
        return True

    def ended(self, stream: object) -> None:
        """A stream has ended; whoever spoke on it last, and on no later one, may be dead."""
        for raft_id in [each for each, on in self._speaking.items() if on is stream]:
            del self._speaking[raft_id]
            if self._lost is not None:
                self._lost(raft_id)

    # Peers ----------------------------------------------------------------------------------

    def _remember(self, raft_id: int, addr: str) -> None:
        self._hints.pop(raft_id, None)
        if len(self._hints) >= MAX_HINTS:
            del self._hints[next(iter(self._hints))]
        self._hints[raft_id] = addr

    def _hinted(self, raft_id: int) -> Peer | None:
        addr = self._hints.get(raft_id)
        return None if addr is None else self._add(raft_id, addr)

    def _add(self, raft_id: int, addr: str) -> Peer:
        peer = self._peers[raft_id] = Peer(raft_id, addr)
        self._start(peer)
        return peer

    def _start(self, peer: Peer) -> None:
        if self._tasks is not None:
            peer.task = self._tasks.create_task(self._serve(peer))

    def _drop(self, peer: Peer) -> None:
        del self._peers[peer.raft_id]
        self._speaking.pop(peer.raft_id, None)
        if peer.task is not None:
            peer.task.cancel()

    async def _serve(self, peer: Peer) -> None:
        """Keep a stream to one peer open for as long as there is something to say."""
        pause = RETRY_SECONDS[0]
        while True:
            stream = Stream(asyncio.get_running_loop().time())
            try:
                await self._stream(peer, stream)
                if asyncio.get_running_loop().time() - stream.began >= STEADY_SECONDS:
                    continue  # at once: what waits was not tried yet
            except (grpc.RpcError, SwarmError, OSError, asyncio.InvalidStateError) as error:
                log.debug("peer.lost", peer=f"{peer.raft_id:x}", addr=peer.addr, error=str(error))
            if peer.reached:
                pause, peer.reached = RETRY_SECONDS[0], False
            if self._unreachable is not None:
                self._unreachable(peer.raft_id)
            peer.clear()
            peer.heard.clear()
            await asyncio.sleep(RETRY_SECONDS[0])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause - RETRY_SECONDS[0]):
                    await peer.heard.wait()
            # By now raft has newer things to say than what waited.
            peer.clear()
            pause = min(2 * pause, RETRY_SECONDS[1])

    async def _stream(self, peer: Peer, stream: Stream) -> None:
        """Write messages to one stream, opened for the first of them, until it fails or ends.

        Followers say nothing to each other for hours. Their next message, a vote perhaps, must not
        be what finds out that the stream has long ended.
        """
        message = await peer.get()
        stream.began = asyncio.get_running_loop().time()
        async with asyncio.timeout(WRITE_SECONDS):
            channel = await self._channel(peer.addr)
        try:
            call = raft_pb2_grpc.RaftStub(channel).Messages()
            call.add_done_callback(lambda _: peer.hang_up(stream))
            reply_to = self._addr
            try:
                while message is not None:
                    async with asyncio.timeout(WRITE_SECONDS):
                        await call.write(to_wire(message, reply_to=reply_to))
                    peer.reached, reply_to = True, ""
                    message = await peer.get(stream)
            finally:
                call.cancel()
        finally:
            await channel.close()


class RaftServicer(raft_pb2_grpc.RaftServicer):
    """Serves ``overswarm.v1.Raft``; who may call is the server's interceptor's business."""

    def __init__(self, transport: GrpcTransport, identify: Identify | None = None) -> None:
        """Hand messages to ``transport``; ``identify`` ties a stream to the caller's node id."""
        self._transport = transport
        self._identify = identify

    async def Messages(  # noqa: N802  # the name is the contract's
        self,
        request_iterator: AsyncIterator[raft_pb2.RaftMessage],
        context: grpc.aio.ServicerContext[raft_pb2.RaftMessage, raft_pb2.RaftStreamEnd],
    ) -> raft_pb2.RaftStreamEnd:
        """Take in one manager's messages until it hangs up."""
        caller = self._identify(context) if self._identify is not None else None
        stream = object()
        try:
            async for wire in request_iterator:
                try:
                    running = self._transport.receive(wire, caller, stream)
                except WireError as error:
                    log.warning(
                        "message.refused", reason="malformed", caller=caller, error=str(error)
                    )
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
                if not running:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "This manager is not ready.")
        finally:
            self._transport.ended(stream)
        return raft_pb2.RaftStreamEnd()


def _payload(body: Body) -> int:
    if isinstance(body, Append):
        return sum(entry.size for entry in body.entries)
    return len(body.data) if isinstance(body, SnapshotChunk) else 0
