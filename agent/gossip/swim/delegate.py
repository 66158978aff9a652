"""The layer above membership, as membership sees it."""

from __future__ import annotations

from typing import Protocol

from agent.gossip.swim.membership import Member


class Delegate(Protocol):
    """The layer above: it rides on membership messages and hears about members."""

    @property
    def pending(self) -> bool:
        """Whether there are messages for everybody."""

    def broadcasts(self, *, room: int, overhead: int) -> list[bytes]:
        """Return messages for everybody that fit ``room`` bytes, ``overhead`` each included."""

    def user_message(self, body: bytes) -> None:
        """Take a message another node's upper layer sent."""

    def local_state(self, *, join: bool) -> bytes:
        """Return what a push/pull carries for the layer above."""

    def merge_state(self, state: bytes) -> None:
        """Take what the other side's push/pull carried."""

    def member_up(self, member: Member) -> None:
        """Hear of a node that was unknown, dead or gone, and is alive."""

    def member_down(self, member: Member) -> None:
        """Hear of a node that died or left (see its state)."""

    def accused(self, *, dead: bool) -> None:
        """Hear that others doubted this node's life, and whether they had given it up."""

    def joined(self) -> None:
        """Hear that a join has reached another node."""
