"""The gRPC edge: services registered from their descriptors, one gate in front of every RPC.

A servicer is any object with ``async def Method(self, request, caller, context)`` for the RPCs it
serves; several of them may share one service. Unary methods return the response, server streams
write with ``context.write``. A servicer raises :class:`swarm.errors.SwarmError`; here, and only
here, it becomes a gRPC status.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeAlias

import grpc
import grpc.aio
import structlog
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from manager.api.access import Access, Caller, Metadata, access_of
from manager.raft.errors import DroppedError, NotLeaderError, QuorumLostError
from swarm.errors import InvalidArgumentError, InvariantError, SwarmError, UnimplementedError

MAX_REQUEST_BYTES: Final = 4 * 1024 * 1024
"""Largest request, as SwarmKit's managers."""

MAX_STREAMS_PER_CONNECTION: Final = 16_384
"""Calls at once on one connection. An engine uses four and a few attachments, but a follower
forwards the calls of all its nodes on one connection."""

MAX_CALLS: Final = 32_768
"""Calls at once in all: three long ones for each of some ten thousand nodes."""

STOP_GRACE: Final = 0.5
"""Seconds running calls get when the server stops; streams of sessions never end by themselves."""

REQUEST_ID: Final = "request-id"
"""Metadata key: name of a request, shared by its retries."""

MAX_REQUEST_ID: Final = 64
AGAIN: Final = "overswarm-again"
"""Trailing metadata of every refusal; ``true`` says only: another manager leads, or will in a moment."""

ELSEWHERE: Final = (NotLeaderError, QuorumLostError, DroppedError)
"""What a write meets while leadership changes hands; made again under its request id, it is carried
out once."""

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
class Rpc:
    """How one RPC is called.

    Attributes:
        path: ``/package.Service/Method``.
        takes_stream: the client sends a stream.
        gives_stream: the server sends one.
    """

    path: str
    takes_stream: bool
    gives_stream: bool


class Router(Protocol):
    """Finds the manager that answers."""

    async def route(
        self,
        rpc: Rpc,
        request: Any,
        caller: Caller,
        context: Context,
        here: Callable[[], Awaitable[Any]],
    ) -> Any:
        """Have a call answered by the leader, which may be this manager.

        Args:
            rpc: which.
            request: bytes, or an iterator of them.
            caller: in whose name.
            context: of the call.
            here: answers it on this manager; may be called again.

        Returns:
            The response, a message or its bytes; None for a stream that was written.

        Raises:
            SwarmError: the call is refused.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service and the servicers that share its RPCs.

    Attributes:
        descriptor: its contract.
        servicers: each RPC is a method of one of them.
        access: who may call, for a contract of others, which cannot declare it; None for ours.
    """

    descriptor: ServiceDescriptor
    servicers: tuple[object, ...]
    access: Access | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What all RPCs of one server share.

    Attributes:
        gate: who may call.
        broken: told about a broken invariant, so that the process can end.
        router: takes calls that only the leader answers to it; without one all are answered here.
    """

    gate: Gate
    broken: Callable[[InvariantError], None]
    router: Router | None = None


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
                method.name: _method_handler(
                    method,
                    _handler(service.servicers, method),
                    edge,
                    service.access or access_of(method),
                )
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
    method: MethodDescriptor, handler: Handler, edge: Edge, access: Access
) -> grpc.RpcMethodHandler[Any, Any]:
    rpc = Rpc(
        path=f"/{method.containing_service.full_name}/{method.name}",
        takes_stream=method.client_streaming,
        gives_stream=method.server_streaming,
    )
    kind: type[Message] = message_factory.GetMessageClass(method.input_type)

    async def call(request: Any, context: Context) -> Any:
        try:
            metadata = _metadata(context)
            caller = _named(edge.gate(access, context.peer(), metadata), metadata)

            async def here() -> Any:
                read = _each_untrusted if rpc.takes_stream else _parsed_untrusted
                return await handler(read(kind, request), caller, context)

            if not access.leader or edge.router is None:
                return await here()
            return await edge.router.route(rpc, request, caller, context, here)
        except Exception as error:  # noqa: BLE001  # every failure becomes a status, below
            await _refuse(method, error, edge, context)

    build = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[method.client_streaming, method.server_streaming]
    # Requests stay bytes until somebody here answers them, so that they can be passed on as they are.
    made: grpc.RpcMethodHandler[Any, Any] = build(call, response_serializer=_bytes_of)
    return made


def _parsed_untrusted(kind: type[Message], request: bytes) -> Message:
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise InvalidArgumentError(f"the request is no {kind.__name__}") from error


async def _each_untrusted(
    kind: type[Message], requests: AsyncIterator[bytes]
) -> AsyncIterator[Message]:
    async for request in requests:
        yield _parsed_untrusted(kind, request)


def _bytes_of(message: Message | bytes) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()


def _metadata(context: Context) -> Metadata:
    return tuple((key, value) for key, value in context.invocation_metadata() or ())


def _named(caller: Caller, metadata: Metadata) -> Caller:
    """Give the request its name: what a member or a forwarding manager says, else a new one."""
    name = ""
    if caller.peer.identity is not None or caller.forwarded:
        name = next((str(value) for key, value in metadata if key == REQUEST_ID), "")
    if not 0 < len(name) <= MAX_REQUEST_ID:
        name = secrets.token_hex(12)
    return replace(caller, request_id=name)


async def _refuse(method: MethodDescriptor, error: Exception, edge: Edge, context: Context) -> None:
    """End a call with the status of an error; texts of our own errors reach the caller verbatim."""
    if isinstance(error, grpc.aio.AbortError):  # a handler chose the status itself
        raise error
    if isinstance(error, SwarmError) and not isinstance(error, InvariantError):
        code = grpc.StatusCode[error.status]
        log.debug("rpc.refused", rpc=method.full_name, code=error.status, detail=str(error))
        again = "true" if isinstance(error, ELSEWHERE) else "false"
        await context.abort(code, str(error), ((AGAIN, again),))
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
