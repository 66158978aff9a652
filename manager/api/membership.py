"""RaftMembership: managers enter and leave the group; only the leader answers.

A newcomer becomes a learner here and a voter once it has caught up (:mod:`manager.roles`). Managers of
other engines replicate in another protocol, so they are refused before they are counted on.

Source: SwarmKit ``api/raft.proto``, ``manager/state/raft/raft.go``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

import structlog

from manager.api.access import Caller
from manager.api.backend import Backend
from manager.api.health import RAFT
from manager.api.nodes import FULL
from manager.api.removal import check_removal, once_heard
from manager.api.server import Context
from manager.raft.config import MAX_TEXT_BYTES, MAX_VOTERS
from manager.raft.errors import ChangeRefusal, ChangeRefusedError, NotLeaderError
from manager.raft.membership import Member
from manager.raft.node import RaftNode
from swarm.api.docker.swarmkit import membership_pb2, types_pb2
from swarm.errors import (
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    SwarmError,
)
from swarm.identity.sockets import join_address, split_target
from swarm.model import NodeRole

RAFT_KEY: Final = "overswarm-raft"
"""Metadata key: ``new`` for a manager without a raft state, else the raft id (hexadecimal) of one
that was restarted under another address."""

NEWCOMER: Final = "new"
CHANGE_PATIENCE: Final = 5.0
"""Seconds a change waits for the one before it."""

PAUSE: Final = 0.05
LAST_LEAVES: Final = (
    "You are attempting to leave the swarm on a node that is participating as a manager. "
    "Removing the last manager erases all current state of the swarm. "
    "Use `--force` to ignore this message."
)

_PASSING: Final = frozenset({ChangeRefusal.PENDING, ChangeRefusal.TERM_NOT_STARTED})

log = structlog.get_logger(__name__)


class Membership:
    """The RPCs of RaftMembership.

    Args:
        backend: the store, and who manages.
        raft: this manager's member of the group.
        probe: checks that a part of a manager serves at an address, or raises.
    """

    def __init__(
        self,
        backend: Backend,
        raft: Callable[[], RaftNode],
        probe: Callable[[str, str], Awaitable[None]],
    ) -> None:
        self._backend = backend
        self._raft = raft
        self._probe = probe

    async def Join(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: N802
        """Take a manager in, or note that one has moved.

        Raises:
            InvalidArgumentError: its address is none.
            PermissionDeniedError: it is not to be a manager.
            PreconditionError: it speaks another protocol, cannot be reached, or there are enough.
        """
        addr = _address_untrusted(request.addr, caller.address)
        claim = _claim_untrusted(context)
        await self._backend.barrier()  # a leader of a moment ago may not know its role yet
        node = self._backend.store.view.nodes.get(caller.node_id)
        if node is None or NodeRole.WORKER in {node.role, node.spec.desired_role}:
            raise PermissionDeniedError(f"node {caller.node_id} is not to be a manager (any more)")
        raft = self._raft()
        if claim is not None:
            return await self._move(raft, claim, caller.node_id, addr)
        mine = [m for m in raft.status.members.values() if m.node_id == caller.node_id]
        if len(raft.status.members) - len(mine) >= MAX_VOTERS:
            raise PreconditionError(FULL)
        await self._reach(addr, RAFT)
        for former in mine:
            # It asks as a newcomer, so whatever that member once confirmed is gone from its disk.
            await _patiently(partial(raft.remove, former.raft_id))
        raft_id = secrets.randbelow(2**63 - 1) + 1
        await _patiently(
            lambda: raft.add_learner(raft_id=raft_id, node_id=caller.node_id, addr=addr)
        )
        log.info("manager.joined", node=caller.node_id, addr=addr, raft_id=f"{raft_id:x}")
        return _answer(raft, raft_id)

    async def _move(self, raft: RaftNode, raft_id: int, node_id: str, addr: str) -> Any:
        member = raft.status.members.get(raft_id)
        if member is None or member.node_id != node_id:
            raise NotFoundError(f"node {node_id} is not manager {raft_id:x} of this swarm")
        if member.addr != addr:
            # It hears no leader until the leader knows where it is.
            await self._reach(addr, "")
            await _patiently(lambda: raft.update_member(raft_id=raft_id, addr=addr))
            log.info("manager.moved", node=node_id, addr=addr, before=member.addr)
        return _answer(raft, raft_id)

    async def _reach(self, addr: str, service: str) -> None:
        try:
            await self._probe(addr, service)
        except SwarmError as error:
            raise PreconditionError(
                f"the leader of the swarm cannot reach the new manager at {addr}: {error}"
            ) from error

    async def Leave(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Let the calling manager go; a leader hands over first.

        Raises:
            PermissionDeniedError: it names another manager.
            PreconditionError: too few would be left, or none.
        """
        raft = self._raft()
        member = _leaving(raft, request.node.raft_id, caller.node_id)
        if member is None:
            return membership_pb2.LeaveResponse()
        await once_heard(lambda: self._check_leaving(caller.node_id))
        if member.raft_id == raft.status.id:
            await raft.transfer_leadership()
            raise NotLeaderError  # the call goes on to who leads now
        await _patiently(lambda: raft.remove(member.raft_id))
        log.info("manager.left", node=caller.node_id)
        return membership_pb2.LeaveResponse()

    async def _check_leaving(self, node_id: str) -> None:
        check_removal(node_id, self._backend.managers(), LAST_LEAVES)


def _leaving(raft: RaftNode, raft_id: int, node_id: str) -> Member | None:
    """Find the member a manager means when it leaves: itself. None when it is gone already."""
    for member in raft.status.members.values():
        if member.node_id == node_id and raft_id in {0, member.raft_id}:
            return member
    if raft_id in raft.status.members:
        raise PermissionDeniedError(f"node {node_id} is not manager {raft_id:x}")
    return None


async def _patiently(change: Callable[[], Awaitable[None]]) -> None:
    """Make a membership change once the one before it is through."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + CHANGE_PATIENCE
    while True:
        try:
            return await change()
        except ChangeRefusedError as refusal:
            if refusal.reason not in _PASSING or loop.time() > deadline:
                raise
        await asyncio.sleep(PAUSE)


def _answer(raft: RaftNode, raft_id: int) -> Any:
    status = raft.status
    answer = membership_pb2.JoinResponse(raft_id=raft_id)
    for member in status.members.values():
        answer.members.add(
            raft_id=member.raft_id,
            node_id=member.node_id,
            addr=member.addr,
            status=_status(leader=member.raft_id == status.leader_id),
        )
    return answer


def _status(*, leader: bool) -> Any:
    """Describe a member as far as others need it."""
    return types_pb2.RaftMemberStatus(
        leader=leader, reachability=types_pb2.RAFT_MEMBER_REACHABILITY_REACHABLE
    )


def _address_untrusted(addr: str, peer: str) -> str:
    """Return the address the others are to use; an unspecified one means where the call came from."""
    if len(addr) > MAX_TEXT_BYTES // 4:
        raise InvalidArgumentError("the manager's address is too long")
    host, port = split_target(addr)
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise InvalidArgumentError(f"{addr!r} is not an address and a port") from error
    return join_address(peer if address.is_unspecified else str(address), port)


def _claim_untrusted(context: Context) -> int | None:
    """Return the raft id a manager says it has; None for a newcomer."""
    metadata = dict(context.invocation_metadata() or ())
    claim = metadata.get(RAFT_KEY)
    if claim is None:
        raise PreconditionError(
            "the managers of this swarm replicate their state in a way of their own, which other "
            "engines do not speak: join with the worker token"
        )
    if claim == NEWCOMER:
        return None
    try:
        return int(str(claim)[:16], 16)
    except ValueError as error:
        raise InvalidArgumentError("the manager gives no usable raft id") from error
