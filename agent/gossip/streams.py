"""Streams of one node: who is served at once, one request each, and requests of our own.

Nothing is known of a sender before its whole frame is there and a key has opened it. So three bounds
keep members served whatever strangers do, a stranger being any address at which no member lives or
lived and which is no seed:

- a host has at most MAX_STREAMS_PER_HOST streams;
- of strangers' streams MAX_STRANGERS may be unread: one more ends the one that has taken longest;
- frames above LARGE bytes take turns, one per host, all strangers being one host.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from agent.gossip.config import GossipConfig
from agent.gossip.node import Node
from agent.gossip.outputs import Dial
from agent.gossip.refusal import Refusal
from agent.gossip.swim import seal, wire
from swarm.errors import WireError

MAX_STREAMS: Final = 128  # served at once; and as many dialled
MAX_STREAMS_PER_HOST: Final = 16
MAX_STRANGERS: Final = 64  # of those served, how many may be from strangers and not read yet
MAX_LARGE_STREAMS: Final = 4  # of those with members, how many may hold more than LARGE bytes
LARGE: Final = 1 << 20
THREADED: Final = 64 << 10  # frames above it are decrypted and unfolded beside the loop
_STRANGERS: Final = ""  # the host all strangers are, where they take turns


class Streams:
    """Serves and dials; tasks belong to the service.

    Attributes:
        traffic: streams and bytes, by what and direction.
        largest: bytes of the largest frame so far.
    """

    def __init__(
        self,
        node: Node,
        config: GossipConfig,
        *,
        traffic: Counter[str],
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None] | None],
        acted: Callable[[], None],
        log: Any,
    ) -> None:
        """Prepare.

        Args:
            node: the core.
            config: label and time-outs.
            traffic: counts; shared with the datagrams.
            spawn: starts a task, or returns None when the service is ending.
            acted: hears that the core was given something.
            log: bound to this node.
        """
        self.traffic = traffic
        self.largest = 0
        self._node = node
        self._config = config
        self._spawn = spawn
        self._acted = acted
        self._log = log
        self._serving: Counter[str] = Counter()
        self._unread: dict[asyncio.Task[None], None] = {}  # of strangers, the oldest first
        self._dialling = asyncio.Semaphore(MAX_STREAMS)
        self._large = asyncio.Semaphore(MAX_LARGE_STREAMS)
        self._turns: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = (
            Counter()
        )  # for a turn, by host; the one whose turn it is, too

    # -- serving ---------------------------------------------------------------------------

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take a connection, or close it if there are too many."""
        peer = writer.get_extra_info("peername")
        host = str(peer[0]) if peer else ""
        stranger = not self._node.knows_host(host)
        if stranger and len(self._unread) >= MAX_STRANGERS:
            oldest = next(iter(self._unread))
            del self._unread[oldest]
            oldest.cancel()
            self._node.swim.refusals.count(Refusal.STREAMS_FULL)
        if self._serving.total() >= MAX_STREAMS or self._serving[host] >= MAX_STREAMS_PER_HOST:
            self._node.swim.refusals.count(Refusal.STREAMS_FULL)
            writer.close()
            return
        self._serving[host] += 1
        task = self._spawn(self._serve(reader, writer, host))
        if task is None:
            self._served(writer, host)
            return
        if stranger:
            self._unread[task] = None
        # Not in the task itself: one that is cancelled before its first step never gets there.
        task.add_done_callback(lambda task: self._ended(task, writer, host))

    def _ended(self, task: asyncio.Task[None], writer: asyncio.StreamWriter, host: str) -> None:
        self._unread.pop(task, None)
        self._served(writer, host)

    def _served(self, writer: asyncio.StreamWriter, host: str) -> None:
        self._serving[host] -= 1
        if not self._serving[host]:
            del self._serving[host]
        _finish(writer)

    async def _serve(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str
    ) -> None:
        """Answer one request; one request per connection."""
        writer.transport.set_write_buffer_limits(0)  # drained means sent
        try:
            async with asyncio.timeout(self._config.timing.stream_timeout):
                self.traffic["streams_served"] += 1
                message, sealed = await self._read(reader, label=self._config.label, host=host)
                task = asyncio.current_task()
                if task is not None:
                    self._unread.pop(task, None)
                reply = self._node.serve_stream(message, sealed, self._now())
                self._acted()
                if reply is not None:
                    self._frame_sent(reply, host)
                    writer.write(reply)
                    await writer.drain()
        except WireError as error:
            self._refuse(error)
        except (OSError, EOFError, TimeoutError) as error:
            self._node.swim.refusals.count(Refusal.UNFINISHED)
            self._log.debug("gossip.stream.broken", reason=repr(error))

    def _refuse(self, error: WireError) -> None:
        sealed = isinstance(error, seal.SealError)
        self._node.swim.refusals.count(Refusal.UNDECRYPTABLE if sealed else Refusal.MALFORMED)
        self._log.debug("gossip.stream.refused", reason=str(error))

    # -- dialling --------------------------------------------------------------------------

    async def dial(self, dial: Dial) -> None:
        """Send one request, and hand its outcome to the core."""
        try:
            async with asyncio.timeout(dial.timeout), self._dialling:
                reader, writer = await asyncio.open_connection(dial.host, dial.port)
                writer.transport.set_write_buffer_limits(0)  # drained means sent
                try:
                    self.traffic["streams_dialled"] += 1
                    self._frame_sent(dial.frame, dial.host)
                    writer.write(dial.frame)
                    await writer.drain()
                    if dial.reply:
                        message, sealed = await self._read(reader, label=b"", host=dial.host)
                        self._node.stream_reply(dial.token, message, sealed, self._now())
                    else:
                        # The other side closes once it has read everything.
                        writer.write_eof()
                        await reader.read(1)
                        self._node.stream_sent(dial.token, self._now())
                finally:
                    _finish(writer)
        except WireError as error:
            self._refuse(error)
            self._node.stream_failed(dial.token, str(error), self._now())
        except (OSError, EOFError, TimeoutError) as error:
            self._node.stream_failed(dial.token, str(error) or repr(error), self._now())
        self._acted()

    # -- frames ----------------------------------------------------------------------------

    async def _read(
        self, reader: asyncio.StreamReader, *, label: bytes, host: str
    ) -> tuple[wire.StreamMessage, bytes]:
        """Read one frame; return its message and its sealed body.

        Large ones take turns and are unfolded beside the loop.
        """
        if label:
            start = await reader.readexactly(2 + len(label))
            seal.label_size_untrusted(start, label=label)
        header = await reader.readexactly(seal.FRAME_HEADER_SIZE)
        size = seal.frame_size_untrusted(header)
        if size <= THREADED:
            body = await self._body(reader, size, host)
            return self._node.decode_stream(header, body), body
        if size <= LARGE:
            body = await self._body(reader, size, host)
            message = await asyncio.to_thread(self._node.decode_stream, header, body)
            return message, body
        async with self._turn(host):
            body = await self._body(reader, size, host)
            message = await asyncio.to_thread(self._node.decode_stream, header, body)
            return message, body

    @asynccontextmanager
    async def _turn(self, host: str) -> AsyncIterator[None]:
        """Wait until a host may send a large frame."""
        place = host if self._node.knows_host(host) else _STRANGERS
        self._waiting[place] += 1
        try:
            async with self._turns.setdefault(place, asyncio.Lock()):
                if place == _STRANGERS:
                    yield
                else:
                    async with self._large:
                        yield
        finally:
            self._waiting[place] -= 1
            if not self._waiting[place]:
                del self._waiting[place], self._turns[place]

    async def _body(self, reader: asyncio.StreamReader, size: int, host: str) -> bytes:
        body = await reader.readexactly(size)
        self.traffic["stream_bytes_received"] += size
        self._note_size(size, host, sent=False)
        return body

    def _frame_sent(self, frame: bytes, host: str) -> None:
        self.traffic["stream_bytes_sent"] += len(frame)
        self._note_size(len(frame), host, sent=True)

    def _note_size(self, size: int, host: str, *, sent: bool) -> None:
        """Say early that messages near the size at which every engine refuses them."""
        if size > self.largest:
            if size > seal.LARGE_FRAME:
                self._log.warning(
                    "gossip.frame.large", size=size, limit=seal.MAX_FRAME, peer=host, sent=sent
                )
            self.largest = size

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


def _finish(writer: asyncio.StreamWriter) -> None:
    """Close a stream; what a peer did not take in time must not wait for it for ever."""
    if writer.transport.get_write_buffer_size():
        writer.transport.abort()
    else:
        writer.close()
