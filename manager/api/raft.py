"""The Raft service at the edge: other managers' messages, tied to the certificate they came with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from manager.api.access import Caller
from manager.api.server import Context
from manager.raft.transport import GrpcTransport, RaftServicer


class RaftMessages:
    """The RPCs of Raft.

    Args:
        transport: takes the messages in.
    """

    def __init__(self, transport: Callable[[], GrpcTransport]) -> None:
        self._transport = transport

    async def Messages(  # noqa: N802  # the name is the contract's
        self, request: AsyncIterator[Any], caller: Caller, context: Context
    ) -> Any:
        """Take in one manager's messages until it hangs up."""
        servicer = RaftServicer(self._transport(), lambda _: caller.node_id)
        return await servicer.Messages(request, context)
