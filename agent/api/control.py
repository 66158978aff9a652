"""What only a manager answers, handed to the manager process byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from swarm.errors import SwarmError

PREFIXES: Final = (
    "/docker.swarmkit.v1.Control/",
    "/docker.swarmkit.v1.CA/GetUnlockKey",
    "/overswarm.v1.Keys/",
    "/overswarm.v1.ClientCertificates/",
    "/overswarm.v1.Scheduler/",
)
STREAMS: Final = frozenset({"/overswarm.v1.Scheduler/Watch"})
"""Calls that a stream answers; all others are unary."""

ANSWERED: Final = "overswarm-again"
"""Trailing metadata key of every refusal that a manager made itself."""

SOCKET: Final = Path("manager") / "control.sock"
MAX_MESSAGE: Final = 64 << 20
TIMEOUT: Final = 60.0
"""Seconds for a call whose client named no deadline."""


class ControlProxy(grpc.GenericRpcHandler):
    """Passes every call of these services on.

    Args:
        run_dir: where the manager process has its socket.
        require_manager: raises when this node is no manager.
    """

    def __init__(self, run_dir: Path, require_manager: Callable[[], None]) -> None:
        self._target = f"unix:{run_dir / SOCKET}"
        self._require = require_manager
        self._channel: grpc.aio.Channel | None = None

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of one call, None when it is not of these services."""
        method: str = handler_call_details.method
        if not method.startswith(PREFIXES):
            return None
        if method in STREAMS:

            async def copy(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
                await self._copy(method, request, context)

            return grpc.unary_stream_rpc_method_handler(copy)

        async def forward(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            return await self._forward(method, request, context)

        return grpc.unary_unary_rpc_method_handler(forward)

    async def close(self) -> None:
        """Close the connection to the manager."""
        if self._channel is not None:
            await self._channel.close()

    async def _copy(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Pass a stream on for as long as both sides want it."""
        try:
            self._require()
        except SwarmError as error:
            await context.abort(grpc.StatusCode[error.status], str(error))
        stream: Any = self._connection().unary_stream(method)
        call = stream(request, metadata=context.invocation_metadata())
        try:
            async for message in call:
                await context.write(message)
        except grpc.aio.AioRpcError as error:
            await context.abort(
                error.code(), error.details() or "", tuple(error.trailing_metadata() or ())
            )
        finally:
            call.cancel()

    async def _forward(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext[Any, Any]
    ) -> bytes:
        try:
            self._require()
        except SwarmError as error:
            await context.abort(grpc.StatusCode[error.status], str(error))
        remaining: float | None = context.time_remaining()
        call: Any = self._connection().unary_unary(method)
        try:
            answer: bytes = await call(
                request,
                timeout=min(remaining or TIMEOUT, TIMEOUT),
                metadata=context.invocation_metadata(),
            )
        except grpc.aio.AioRpcError as error:
            code, text = error.code(), error.details() or ""
            answered = any(key == ANSWERED for key, _ in error.trailing_metadata() or ())
            if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED} and not answered:
                # One that ends cancels what it has not answered.
                code = grpc.StatusCode.UNAVAILABLE
                text = "the manager of this node is not answering: it is starting, or ending"
            await context.abort(code, text, tuple(error.trailing_metadata() or ()))
            raise
        return answer

    def _connection(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(
                self._target,
                options=[
                    ("grpc.max_receive_message_length", MAX_MESSAGE),
                    ("grpc.max_send_message_length", MAX_MESSAGE),
                    # A manager that is restarted must be found again at once.
                    ("grpc.initial_reconnect_backoff_ms", 100),
                    ("grpc.max_reconnect_backoff_ms", 500),
                ],
            )
        return self._channel
