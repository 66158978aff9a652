"""How a manager without a state gets one: it asks the managers it was told of to take it in.

While it asks, its port serves ``Health`` alone, by which the leader sees that it can be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio
import structlog

from manager.api.gates import TlsGate
from manager.api.health import Health
from manager.api.membership import NEWCOMER, RAFT_KEY
from manager.api.server import Edge, Service, make_server, run_server
from manager.raft.storage import Identity as RaftIdentity
from manager.store import Store
from swarm.api.docker.swarmkit import (
    ca_pb2,
    ca_pb2_grpc,
    health_pb2,
    health_pb2_grpc,
    membership_pb2,
    membership_pb2_grpc,
)
from swarm.errors import (
    InvariantError,
    PermissionDeniedError,
    PreconditionError,
    SwarmError,
    UnavailableError,
)
from swarm.identity.certs import Credentials, Identity
from swarm.identity.dialer import TlsDialer
from swarm.identity.front import TlsFront
from swarm.identity.sockets import unix_path

CALL_TIMEOUT: Final = 15.0
"""Seconds for one call; the leader's own check and an election fit in."""

PROBE_TIMEOUT: Final = 5.0
PATIENCE: Final = 20.0
"""Seconds to go on asking while managers are out of reach or elect a leader."""

PAUSE: Final = 0.5
MAX_RAFT_ID: Final = 2**63

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """What a new manager was told.

    Attributes:
        identity: who it is in the group.
        addresses: where the others are, by raft id.
        unlock_key: what it must seal its state with; None while autolock is off.
    """

    identity: RaftIdentity
    addresses: Mapping[int, str]
    unlock_key: bytes | None = field(repr=False)


async def join_group(
    managers: Sequence[str], *, addr: str, identity: Identity, dialer: TlsDialer
) -> Joined:
    """Ask managers in turn to take this one in.

    Args:
        managers: ``host:port`` each.
        addr: where the others reach this one.
        identity: in this node's certificate.
        dialer: shows that certificate.

    Raises:
        UnavailableError: none could be reached in time; the text says why.
        SwarmError: a manager refused.
    """
    if not managers:
        raise PreconditionError("no manager to join is known")
    deadline = asyncio.get_running_loop().time() + PATIENCE
    failure: SwarmError = UnavailableError("no manager answers")
    while True:
        for target in managers:
            channel = dialer.channel(target)
            try:
                return await _join(channel, addr=addr, identity=identity)
            except grpc.aio.AioRpcError as error:
                failure = _explained(error, target, dialer)
                if not failure.retryable:
                    raise failure from error
                log.info("join.manager.failed", manager=target, detail=str(failure))
            finally:
                await channel.close()
        if asyncio.get_running_loop().time() > deadline:
            raise failure
        await asyncio.sleep(PAUSE)


async def _join(channel: grpc.aio.Channel, *, addr: str, identity: Identity) -> Joined:
    key = await ca_pb2_grpc.CAStub(channel).GetUnlockKey(
        ca_pb2.GetUnlockKeyRequest(), timeout=CALL_TIMEOUT
    )
    answer = await membership_pb2_grpc.RaftMembershipStub(channel).Join(
        membership_pb2.JoinRequest(addr=addr),
        metadata=((RAFT_KEY, NEWCOMER),),
        timeout=CALL_TIMEOUT,
    )
    if not 0 < answer.raft_id < MAX_RAFT_ID:
        raise UnavailableError("the leader gave no usable raft id")
    return Joined(
        identity=RaftIdentity(
            cluster_id=identity.cluster_id, raft_id=answer.raft_id, node_id=identity.node_id
        ),
        addresses={m.raft_id: m.addr for m in answer.members if m.raft_id != answer.raft_id},
        unlock_key=bytes(key.unlock_key) or None,
    )


async def announce_move(
    managers: Sequence[str], *, raft_id: int, addr: str, dialer: TlsDialer
) -> bool:
    """Tell some manager that this member is reached elsewhere now; say whether one took it in."""
    for target in managers:
        channel = dialer.channel(target)
        try:
            await membership_pb2_grpc.RaftMembershipStub(channel).Join(
                membership_pb2.JoinRequest(addr=addr),
                metadata=((RAFT_KEY, f"{raft_id:x}"),),
                timeout=CALL_TIMEOUT,
            )
        except grpc.aio.AioRpcError as error:
            log.info(
                "move.unannounced",
                manager=target,
                detail=str(_explained(error, target, dialer)),
            )
        else:
            return True
        finally:
            await channel.close()
    return False


@contextlib.asynccontextmanager
async def answering_health(
    store: Store,
    socket: Path,
    listen: tuple[str, int],
    credentials: Credentials,
    broken: Callable[[InvariantError], None],
) -> AsyncIterator[None]:
    """Serve ``Health`` alone on the port while the block runs.

    Args:
        store: empty so far.
        socket: behind the TLS front.
        listen: address and port.
        credentials: of this manager.
        broken: told about a broken invariant.

    Raises:
        HostError: the port is taken.
    """
    identity = credentials.identity
    assert identity is not None  # noqa: S101  # a manager has a certificate
    front = TlsFront(upstream=socket, credentials=credentials, listen=[listen])
    gate = TlsGate(store, front.peer, identity.cluster_id)
    health = Service(
        descriptor=health_pb2.DESCRIPTOR.services_by_name["Health"],
        servicers=(Health(lambda: True),),
    )
    server = make_server([health], Edge(gate=gate, broken=broken))
    front.bind()
    unix_path(socket).unlink(missing_ok=True)
    server.add_insecure_port(front.upstream_target)
    failure: SwarmError | None = None
    async with asyncio.TaskGroup() as group:
        up = asyncio.Event()
        tasks = [group.create_task(run_server(server, up))]
        await up.wait()
        tasks.append(group.create_task(front.run()))
        try:
            yield
        except SwarmError as error:
            failure = error  # it leaves as it is, in no group
        for task in tasks:
            task.cancel()
    if failure is not None:
        raise failure


async def probe(dialer: TlsDialer, addr: str, service: str) -> None:
    """Check that a manager answers at an address.

    Args:
        dialer: shows this manager's certificate.
        addr: ``host:port``.
        service: ``Raft``: it is ready to take part; empty: it is there.

    Raises:
        UnavailableError: it does not, or is not ready to take part.
    """
    channel = dialer.channel(addr)
    try:
        answer: Any = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=service), timeout=PROBE_TIMEOUT
        )
    except grpc.aio.AioRpcError as error:
        raise _explained(error, addr, dialer) from error
    finally:
        await channel.close()
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise UnavailableError(f"the manager at {addr} is not ready")


def _explained(error: grpc.aio.AioRpcError, target: str, dialer: TlsDialer) -> SwarmError:
    code, text = error.code(), error.details() or error.code().name
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        dialed = dialer.last_error(target)
        return dialed if dialed is not None else UnavailableError(f"manager {target}: {text}")
    if code is grpc.StatusCode.ABORTED:
        return UnavailableError(f"manager {target}: {text}")
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return PermissionDeniedError(text)
    return PreconditionError(text)
