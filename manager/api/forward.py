"""Calls that only the leader answers, passed on to it byte for byte in the caller's name.

A unary call that meets a change of leader is made again under its request id, here or at the new
leader, until it is answered or :data:`PATIENCE` is over; the store carries a request out once however
often it arrives. Streams end with the leader's term: their clients begin sessions anew anyway;
one that had not begun is begun at the new leader.

Source: SwarmKit ``ca/forward.go``, ``protobuf/plugin/raftproxy``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from manager.api.access import Caller, forwarding
from manager.api.leader import Leader, LeaderView
from manager.api.server import AGAIN, ELSEWHERE, REQUEST_ID, Context, Rpc
from manager.raft.errors import NotLeaderError
from swarm.errors import StaleError, SwarmError
from swarm.identity.dialer import TlsDialer

PATIENCE: Final = 8.0
"""Seconds a call waits in all for a leader that answers it; a lost quorum is said after it."""

STREAM_PATIENCE: Final = 3.0
"""The same for a stream, whose client tries another manager instead."""

PAUSE: Final = 0.1
"""Seconds before a call is tried again while nothing seems to have changed."""

MAX_MESSAGE: Final = (1 << 31) - 1
PASSED_ON: Final = "overswarm-"
"""Metadata keys that begin so go on to the leader; others are the caller's own business."""

log = structlog.get_logger(__name__)


class LeaderLostError(StaleError):
    """The leader a call was passed on to does not lead any more, or was not reached.

    Attributes:
        begun: it had answered with a first message of a stream.
    """

    def __init__(self, text: str, *, begun: bool = False) -> None:
        super().__init__(text)
        self.begun = begun


_RETRIED: Final = (*ELSEWHERE, LeaderLostError)


class Forwarder:
    """The :class:`manager.api.server.Router` of a manager. Run :meth:`run` beside the servers."""

    def __init__(self, view: LeaderView, dialer: TlsDialer) -> None:
        self._view = view
        self._dialer = dialer
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: dict[Any, str] = {}  # call under way -> address it went to
        self._doomed: asyncio.Queue[grpc.aio.Channel] = asyncio.Queue()
        view.listen(self._changed)

    async def run(self) -> None:
        """Close channels that lead to former leaders, until cancelled; then all."""
        try:
            while True:
                await (await self._doomed.get()).close()
        finally:
            for channel in self._channels.values():
                await channel.close()
            self._channels.clear()

    async def route(
        self,
        rpc: Rpc,
        request: Any,
        caller: Caller,
        context: Context,
        here: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Have a call answered; see :class:`manager.api.server.Router`.

        Raises:
            NoLeaderError: no manager leads.
            SwarmError: as the call itself.
        """
        clock = asyncio.get_running_loop().time
        left: float | None = context.time_remaining()
        patience = STREAM_PATIENCE if rpc.takes_stream or rpc.gives_stream else PATIENCE
        deadline = clock() + (patience if left is None else min(left, patience))
        while True:
            leader = await self._view.known(deadline - clock())
            try:
                if leader.here:
                    return await here()
                if caller.forwarded:  # once is enough: its forwarder finds the new leader by itself
                    raise NotLeaderError(None, leader.addr)
                if rpc.takes_stream or rpc.gives_stream:
                    return await self._stream(leader, rpc, request, caller, context)
                return await self._unary(leader, rpc, request, caller, context)
            except _RETRIED as error:
                begun = rpc.takes_stream or (rpc.gives_stream and not _unbegun(error))
                if caller.forwarded or begun or clock() >= deadline:
                    raise
                log.debug("rpc.again", rpc=rpc.path, detail=str(error))
            if self._view.current == leader:
                await self._view.change(PAUSE)

    @property
    def leads(self) -> bool:
        """Whether this manager leads."""
        return self._view.current is not None and self._view.current.here

    async def call(self, path: str, request: bytes, caller: Caller, within: float) -> bytes:
        """Make a call of this manager's own at another manager that leads.

        Raises:
            NoLeaderError: no manager leads.
            LeaderLostError: it is this one, was not reached, or refused.
        """
        leader = await self._view.known(within)
        if leader.here:
            raise LeaderLostError("this manager leads")
        call: Any = self._channel(leader.addr).unary_unary(path)
        call = call(request, metadata=_metadata(caller, None), timeout=within)
        try:
            answer: bytes = await self._watched(leader, call)
        except grpc.aio.AioRpcError as error:
            raise self._lost(leader, error) from error
        return answer

    async def _unary(
        self, leader: Leader, rpc: Rpc, request: bytes, caller: Caller, context: Context
    ) -> bytes | None:
        call: Any = self._channel(leader.addr).unary_unary(rpc.path)
        call = call(request, metadata=_metadata(caller, context), timeout=context.time_remaining())
        try:
            answer: bytes = await self._watched(leader, call)
        except grpc.aio.AioRpcError as error:
            if _means_again(error):
                raise self._lost(leader, error) from error
            await _pass_back(error, context)
            return None
        return answer

    async def _stream(
        self, leader: Leader, rpc: Rpc, request: Any, caller: Caller, context: Context
    ) -> bytes | None:
        channel = self._channel(leader.addr)
        metadata = _metadata(caller, context)
        open_: Any = {
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
            (True, True): channel.stream_stream,
        }[rpc.takes_stream, rpc.gives_stream]
        call: Any = open_(rpc.path)(request, metadata=metadata, timeout=context.time_remaining())
        copied = _Copied()
        try:
            if not rpc.gives_stream:
                answer: bytes = await self._watched(leader, call)
                return answer
            await self._watched(leader, copied.run(call, context), handle=call)
        except LeaderLostError as error:
            error.begun = copied.begun
            raise
        except grpc.aio.AioRpcError as error:
            if _means_again(error):
                lost = self._lost(leader, error)
                lost.begun = copied.begun
                raise lost from error
            await _pass_back(error, context)
        finally:
            call.cancel()
        return None

    async def _watched(self, leader: Leader, work: Awaitable[Any], *, handle: Any = None) -> Any:
        """Await a call, which ends when its leader's term does."""
        handle = work if handle is None else handle
        if self._view.current != leader:
            handle.cancel()
        self._calls[handle] = leader.addr
        try:
            return await work
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                handle.cancel()
                raise
            raise LeaderLostError("the leader of the swarm changed") from None
        finally:
            self._calls.pop(handle, None)

    def _changed(self, leader: Leader | None) -> None:
        kept = None if leader is None or leader.here else leader.addr
        for call, addr in tuple(self._calls.items()):
            if addr != kept:
                call.cancel()
        for addr in [addr for addr in self._channels if addr != kept]:
            self._doomed.put_nowait(self._channels.pop(addr))

    def _channel(self, addr: str) -> grpc.aio.Channel:
        channel = self._channels.get(addr)
        if channel is None:
            channel = self._channels[addr] = self._dialer.channel(
                addr,
                options=(
                    ("grpc.max_receive_message_length", MAX_MESSAGE),
                    ("grpc.max_send_message_length", MAX_MESSAGE),
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 500),
                ),
            )
        return channel

    def _lost(self, leader: Leader, error: grpc.aio.AioRpcError) -> LeaderLostError:
        dialed = self._dialer.last_error(leader.addr)
        detail = str(dialed) if dialed is not None else error.details() or error.code().name
        return LeaderLostError(f"the leader at {leader.addr} does not answer: {detail}")


def _unbegun(error: SwarmError) -> bool:
    """Say whether a stream failed before the first message, so that it can begin elsewhere."""
    return isinstance(error, NotLeaderError) or (
        isinstance(error, LeaderLostError) and not error.begun
    )


def _metadata(caller: Caller, context: Context | None) -> tuple[tuple[str, str | bytes], ...]:
    own = () if context is None else context.invocation_metadata() or ()
    passed = tuple((key, value) for key, value in own if key.startswith(PASSED_ON))
    named = ((REQUEST_ID, caller.request_id),) if caller.request_id else ()
    return (*forwarding(caller), *named, *passed)


def _means_again(error: grpc.aio.AioRpcError) -> bool:
    """Say whether a call did not reach a leader, or met a change of leader there."""
    for key, value in error.trailing_metadata() or ():
        if key == AGAIN:
            return value == "true"
    # A manager that stops cancels what it has not answered.
    return error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


class _Copied:
    """A stream of answers on its way back."""

    begun = False

    async def run(self, call: AsyncIterator[bytes], context: Context) -> None:
        """Write every message until the stream ends."""
        async for message in call:
            self.begun = True
            await context.write(message)


async def _pass_back(error: grpc.aio.AioRpcError, context: Context) -> None:
    """End a call exactly as the leader ended it."""
    await context.abort(error.code(), error.details() or "", tuple(error.trailing_metadata() or ()))
