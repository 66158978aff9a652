"""The cluster's Control service, handed to the manager process byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from swarm.errors import SwarmError

PREFIX: Final = "/docker.swarmkit.v1.Control/"
SOCKET: Final = Path("manager") / "control.sock"
MAX_MESSAGE: Final = 64 << 20
TIMEOUT: Final = 60.0
"""Seconds for a call whose client named no deadline."""


class ControlProxy(grpc.GenericRpcHandler):
    """Passes every unary call of the service on.

    Args:
        run_dir: where the manager process has its socket.
        require_manager: raises when this node is no manager.
    """

    def __init__(self, run_dir: Path, require_manager: Callable[[], None]) -> None:
        self._target = f"unix:{run_dir / SOCKET}"
        self._require = require_manager
        self._channel: grpc.aio.Channel | None = None

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of one call, None when it is not of this service."""
        method: str = handler_call_details.method
        if not method.startswith(PREFIX):
            return None

        async def forward(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
            return await self._forward(method, request, context)

        return grpc.unary_unary_rpc_method_handler(forward)

    async def close(self) -> None:
        """Close the connection to the manager."""
        if self._channel is not None:
            await self._channel.close()

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
            text = error.details() or ""
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                text = f"the manager of this node is not answering: {text}"
            await context.abort(error.code(), text, error.trailing_metadata() or ())
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
