"""The gRPC edge: services registered from their descriptors, one gate in front of every RPC.

A servicer is any object with ``async def Method(self, request, caller, context)`` for the RPCs it
serves; several of them may share one service. Unary methods return the response, server streams
write with ``context.write``. A servicer raises :class:`swarm.errors.SwarmError`; here, and only
here, it becomes a gRPC status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message

from manager.api.access import Access, Caller, Metadata, access_of
from swarm.errors import InvariantError, SwarmError, UnimplementedError

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
"""Largest request, as SwarmKit's managers."""

MAX_STREAMS_PER_CONNECTION: Final = 16_384
"""Calls at once on one connection. An engine uses four and a few attachments, but a follower
forwards the calls of all its nodes on one connection."""

MAX_CALLS: Final = 32_768
"""Calls at once in all: three long ones for each of some ten thousand nodes."""

STOP_GRACE: Final = 0.5
"""Seconds running calls get when the server stops; streams of sessions never end by themselves."""

log = structlog.get_logger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = Callable[[Any, Caller, Context], Awaitable[Any]]

OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_concurrent_streams", MAX_STREAMS_PER_CONNECTION),
    ("grpc.max_metadata_size", 16 * 1024),
    # Engines ping idle sessions; a GOAWAY for too many pings would end the session.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
)


class Gate(Protocol):
    """Decides about a call before its handler sees it."""

    def __call__(self, access: Access, peer: str, metadata: Metadata) -> Caller:
        """Return the caller.

        Args:
            access: what the RPC declares.
            peer: ``context.peer()``.
            metadata: the call's metadata.

        Raises:
            SwarmError: the call is refused.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service and the servicers that share its RPCs."""

    descriptor: ServiceDescriptor
    servicers: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What all RPCs of one server share.

    Attributes:
        gate: who may call.
        broken: told about a broken invariant, so that the process can end.
    """

    gate: Gate
    broken: Callable[[InvariantError], None]


def make_server(services: Iterable[Service], edge: Edge) -> grpc.aio.Server:
    """Build a server with every RPC of the services registered; ports are added by the caller.

    Raises:
        InvariantError: an RPC declares no access, or none or several servicers offer it.
    """
    server = grpc.aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers(tuple(handlers(services, edge)))
    return server


def handlers(services: Iterable[Service], edge: Edge) -> list[grpc.GenericRpcHandler]:
    """Build the handlers of some services.

    Raises:
        InvariantError: as :func:`make_server`.
    """
    return [
        grpc.method_handlers_generic_handler(
            service.descriptor.full_name,
            {
                method.name: _method_handler(method, _handler(service.servicers, method), edge)
                for method in service.descriptor.methods
            },
        )
        for service in services
    ]


def _handler(servicers: Sequence[object], method: MethodDescriptor) -> Handler:
    found = [handler for each in servicers if (handler := getattr(each, method.name, None))]
    if len(found) != 1:
        raise InvariantError(f"{len(found)} servicers offer {method.full_name}, one must")
    return found[0]  # type: ignore[no-any-return]  # by name; the shape is the module's contract


def _method_handler(
    method: MethodDescriptor, handler: Handler, edge: Edge
) -> grpc.RpcMethodHandler[Any, Any]:
    access = access_of(method)

    async def call(request: Any, context: Context) -> Any:
        try:
            caller = edge.gate(access, context.peer(), _metadata(context))
            return await handler(request, caller, context)
        except Exception as error:  # noqa: BLE001  # every failure becomes a status, below
            await _refuse(method, error, edge, context)

    read: Callable[[bytes], Message] = message_factory.GetMessageClass(method.input_type).FromString
    build = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    made: grpc.RpcMethodHandler[Any, Any] = build(
        call, request_deserializer=read, response_serializer=_bytes_of
    )
    return made


def _bytes_of(message: Message) -> bytes:
    return message.SerializeToString()


def _metadata(context: Context) -> Metadata:
    return tuple((key, value) for key, value in context.invocation_metadata() or ())


async def _refuse(method: MethodDescriptor, error: Exception, edge: Edge, context: Context) -> None:
    """End a call with the status of an error; texts of our own errors reach the caller verbatim."""
    if isinstance(error, grpc.aio.AbortError):  # a handler chose the status itself
        raise error
    if isinstance(error, SwarmError) and not isinstance(error, InvariantError):
        code = grpc.StatusCode[error.status]
        log.debug("rpc.refused", rpc=method.full_name, code=error.status, detail=str(error))
        await context.abort(code, str(error))
    log.error("rpc.failed", rpc=method.full_name, exc_info=error)
    if isinstance(error, InvariantError):
        edge.broken(error)
    await context.abort(grpc.StatusCode.INTERNAL, f"internal error: {type(error).__name__}")


async def run_server(server: grpc.aio.Server, started: asyncio.Event) -> None:
    """Serve until cancelled, then end running calls after a short grace."""
    await server.start()
    started.set()
    try:
        await server.wait_for_termination()
    finally:
        await server.stop(STOP_GRACE)


class Unimplemented:
    """Every RPC of a service this program does not offer; engines are told so truthfully."""

    def __init__(self, descriptor: ServiceDescriptor) -> None:
        for method in descriptor.methods:
            setattr(self, method.name, _refusal(method.full_name))


def _refusal(name: str) -> Handler:
    async def refuse(request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG001
        raise UnimplementedError(f"{name} is not offered by this manager")

    return refuse
