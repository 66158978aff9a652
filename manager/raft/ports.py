"""What a node stands on: the state machine it drives and the transport it speaks through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from manager.raft.membership import Member
from manager.raft.messages import Body, Message


class StateMachine(Protocol):
    """What the log drives. Every replica must do the same with the same input."""

    def apply(self, index: int, data: bytes) -> Any:
        """Apply a committed command; the result, or the SwarmError raised, reaches the proposer."""

    def snapshot(self) -> bytes:
        """Return the whole state."""

    def restore(self, index: int, data: bytes) -> None:
        """Replace the whole state by a snapshot taken at ``index``."""


class Transport(Protocol):
    """How messages travel. They may be lost, repeated and reordered, and senders may lie."""

    def send(self, messages: Sequence[Message[Body]]) -> None:
        """Send without waiting; what cannot be sent is dropped."""

    def update_members(self, members: Mapping[int, Member]) -> None:
        """Learn where members are reached, whenever that changes."""

    async def run(
        self,
        deliver: Callable[[Message[Body]], None],
        unreachable: Callable[[int], None],
        lost: Callable[[int], None],
    ) -> None:
        """Carry messages until cancelled.

        Args:
            deliver: takes each message that arrives.
            unreachable: told of members that a message did not reach.
            lost: told of members whose own connection to this one has ended.
        """
