"""From a raised error to a gRPC status: the one place."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc
import grpc.aio
import structlog

from agent.workload.spec import CommandError
from swarm.errors import InvariantError, SwarmError

EXIT_CODE_KEY: Final = "exit-code"

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

log = structlog.get_logger(component="api")


def answering(
    method: Callable[[Any, Any, Context], Awaitable[T]],
) -> Callable[[Any, Any, Context], Awaitable[T]]:
    """Wrap an RPC's method: an error of ours becomes its status, a bug INTERNAL; the daemon goes on."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: Context) -> T:
        try:
            return await method(self, request, context)
        except SwarmError as error:
            if isinstance(error, InvariantError):
                log.exception("api.call.failed", method=method.__name__)
            await refuse(context, error)
            raise
        except BaseExceptionGroup as group:
            inner = first_swarm_error(group)
            if inner is None:
                log.exception("api.call.failed", method=method.__name__)
                await context.abort(grpc.StatusCode.INTERNAL, f"internal error: {group}")
                raise
            await refuse(context, inner)
            raise
        except OSError as error:
            log.exception("api.call.failed", method=method.__name__)
            await context.abort(grpc.StatusCode.INTERNAL, f"internal error: {error}")
            raise

    return wrapped


async def refuse(context: Context, error: SwarmError) -> None:
    """End a call with an error's status and sentence."""
    metadata: tuple[tuple[str, str], ...] = ()
    if isinstance(error, CommandError):
        metadata = ((EXIT_CODE_KEY, str(error.exit_code)),)
    await context.abort(grpc.StatusCode[error.status], str(error), metadata)


def first_swarm_error(group: BaseExceptionGroup[BaseException]) -> SwarmError | None:
    """Return an error of ours inside a group that holds nothing else."""
    ours, others = group.split(SwarmError)
    if others is not None or ours is None:
        return None
    error: BaseException = ours
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, SwarmError) else None
