"""The linearisable reads a member asks for: at the leader, itself or another, until answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manager.raft.config import MAX_PENDING_READS
from manager.raft.errors import DroppedError
from manager.raft.events import Role
from manager.raft.messages import ReadRequest, ReadResult

if TYPE_CHECKING:
    from manager.raft.core import RaftCore


def ask(core: RaftCore) -> int:
    """Ask for a read point; see :meth:`manager.raft.core.RaftCore.request_read`."""
    if len(core.reads.pending) >= MAX_PENDING_READS:
        raise DroppedError("Too many reads wait for a majority of managers; try again.")
    core.next_context += 1
    context = core.next_context
    core.reads.pending[context] = 0
    if core.role is Role.LEADER:
        core.reads.ask((core.id, context))
    elif core.leader is not None:
        core.send(core.leader, ReadRequest(context=context))
    return context


def age(core: RaftCore) -> None:
    """Let a tick pass: repeat what the leader may not have heard, give up what takes too long."""
    if not core.reads.pending:
        return
    limit = 2 * core.config.election_ticks
    for context, ticks in list(core.reads.pending.items()):
        if ticks >= limit:
            answer(core, context, None)
        else:
            core.reads.pending[context] = ticks + 1
    if core.role is not Role.LEADER and core.ticks % core.config.heartbeat_ticks == 0:
        repeat(core)


def repeat(core: RaftCore) -> None:
    """Put everything that waits to the leader once more, if another member is it."""
    if core.leader is None or core.leader == core.id:
        return
    for context in core.reads.pending:
        core.send(core.leader, ReadRequest(context=context))


def fail(core: RaftCore) -> None:
    """Give up everything that waits."""
    for context in list(core.reads.pending):
        answer(core, context, None)


def answer(core: RaftCore, context: int, index: int | None) -> None:
    """Hand a read point (or None) to the driver, once."""
    if core.reads.pending.pop(context, None) is not None:
        core.read_results.append(ReadResult(context=context, index=index))
