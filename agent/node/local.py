"""The manager process of this node, as its agent asks it things: over the private socket, as root."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import grpc.aio

from agent.session.service import manager_error
from swarm.api.docker.swarmkit import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    membership_pb2,
    membership_pb2_grpc,
    types_pb2,
)
from swarm.errors import PreconditionError, SwarmError

CHECK: Final = 15.0

# Words of docker's own.
LEAVING: Final = (
    "You are attempting to leave the swarm on a node that is participating as a manager. "
)
LAST: Final = (
    "Removing the last manager erases all current state of the swarm. "
    "Use `--force` to ignore this message."
)
NO_QUORUM: Final = (
    "Removing this node leaves {left} managers out of {all}. "
    "Without a Raft quorum your swarm will be inaccessible. "
)
UNKNOWN: Final = "Doing so may lose the consensus of your cluster. "
RECOVERY: Final = (
    "The only way to restore a swarm that has lost consensus is to reinitialize it with "
    "`--force-new-cluster`. Use `--force` to suppress this message."
)

_REACHABLE: Final = types_pb2.RAFT_MEMBER_REACHABILITY_REACHABLE


class LocalManager:
    """Calls to ``<run>/manager/control.sock``.

    Args:
        socket: its path.
    """

    def __init__(self, socket: Path) -> None:
        self._target = f"unix:{socket}"

    async def unlock_key(self, within: float) -> bytes:
        """Return the key that unlocks this manager; empty when autolock is off.

        Raises:
            SwarmError: the manager does not answer.
        """
        async with self._channel() as channel:
            answer = await ca_pb2_grpc.CAStub(channel).GetUnlockKey(
                ca_pb2.GetUnlockKeyRequest(), timeout=within
            )
        return bytes(answer.unlock_key)

    async def check_departure(self, node_id: str) -> None:
        """Check that the other managers can do without this one.

        Raises:
            PreconditionError: they cannot, or nobody can tell.
        """
        try:
            async with self._channel() as channel:
                answer = await control_pb2_grpc.ControlStub(channel).ListNodes(
                    control_pb2.ListNodesRequest(), timeout=CHECK
                )
        except SwarmError as error:
            raise PreconditionError(LEAVING + UNKNOWN + RECOVERY) from error
        managers = [node for node in answer.nodes if node.HasField("manager_status")]
        others = [node.manager_status for node in managers if node.id != node_id]
        if len(others) == len(managers):
            return  # demoted already
        _check_rest([status.reachability == _REACHABLE for status in others])

    async def leave(self, within: float) -> None:
        """Have the group let this manager go; a leader hands over first.

        Raises:
            PreconditionError: too few would be left, or none.
            SwarmError: the manager does not answer.
        """
        async with self._channel() as channel:
            await membership_pb2_grpc.RaftMembershipStub(channel).Leave(
                membership_pb2.LeaveRequest(), timeout=within
            )

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[Any]:
        async with grpc.aio.insecure_channel(self._target) as channel:
            try:
                yield channel
            except grpc.aio.AioRpcError as error:
                raise manager_error(error, "of this node") from error


def _check_rest(reachable: Sequence[bool]) -> None:
    """Check that a majority of the managers that stay answers.

    Args:
        reachable: for each of them, whether it does.
    """
    if not reachable:
        raise PreconditionError(LEAVING + LAST)
    if sum(reachable) < len(reachable) // 2 + 1:
        counts = NO_QUORUM.format(left=sum(reachable), all=len(reachable))
        raise PreconditionError(LEAVING + counts + RECOVERY)
