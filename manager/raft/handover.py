"""How a leader passes leadership on: on request, and when it has removed itself (dissertation 3.10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from manager.raft.errors import ChangeRefusal, ChangeRefusedError
from manager.raft.events import TransferAborted, TransferStarted
from manager.raft.messages import TimeoutNow

if TYPE_CHECKING:
    from manager.raft.core import RaftCore


@dataclass(slots=True)
class Transfer:
    """A handover under way."""

    to: int
    started: int
    """Leader's tick at its start."""
    told: bool = False
    """The target was complete and got its TimeoutNow."""


def start(core: RaftCore, to: int | None) -> int:
    """Begin a handover; the target is told once its log is complete."""
    if core.transfer is not None:
        raise ChangeRefusedError(ChangeRefusal.TRANSFERRING, core.transfer.to)
    target = best_voter(core) if to is None else to
    if target is None:
        raise ChangeRefusedError(ChangeRefusal.NO_TARGET, core.id)
    if target not in core.peers:
        raise ChangeRefusedError(ChangeRefusal.UNKNOWN, target)
    if target not in core.membership.voters:
        raise ChangeRefusedError(ChangeRefusal.NOT_VOTER, target)
    if target == core.id:
        raise ChangeRefusedError(ChangeRefusal.NO_TARGET, target)
    core.transfer = Transfer(to=target, started=core.ticks)
    core.events.append(TransferStarted(to=target))
    maybe_tell(core)
    return target


def best_voter(core: RaftCore) -> int | None:
    """Return the most complete of the other voters that were heard lately."""
    candidates = core.active_voters(core.membership) - {core.id}
    return max(candidates, key=lambda i: (core.peers[i].match, -i), default=None)


def maybe_tell(core: RaftCore) -> None:
    """Tell the member that takes over, as soon as its log is complete."""
    transfer = core.transfer
    if transfer is None or transfer.told:
        return
    if core.peers[transfer.to].match == core.log.last_index:
        transfer.told = True
        core.send(transfer.to, TimeoutNow())


def end(core: RaftCore) -> None:
    """Give a handover up, if one is under way; proposals are taken again."""
    if core.transfer is not None:
        core.events.append(TransferAborted(to=core.transfer.to))
        core.transfer = None


def leave(core: RaftCore) -> None:
    """Step down after the own removal is committed, and let the most complete voter go on."""
    successor = best_voter(core)
    if successor is not None:
        core.send(successor, TimeoutNow())
    core.become_follower(core.term, None)
