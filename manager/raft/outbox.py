"""Messages on their way out, each held until the batch that makes its claims durable is written."""

from __future__ import annotations

from manager.raft.messages import Body, Message


class Outbox:
    """See the module.

    Attributes:
        leaving: may be sent at once.
    """

    __slots__ = ("_held", "_syncing", "leaving")

    def __init__(self) -> None:
        self.leaving: list[Message[Body]] = []
        self._held: list[Message[Body]] = []
        """Wait for the next batch."""
        self._syncing: list[Message[Body]] = []
        """Wait for the batch that is on its way to the disk."""

    def take(self) -> tuple[Message[Body], ...]:
        """Hand out what may be sent."""
        leaving, self.leaving = self.leaving, []
        return tuple(leaving)

    def hold(self, message: Message[Body]) -> None:
        """Keep a message that claims something the next batch makes durable."""
        self._held.append(message)

    def forget(self) -> None:
        """Drop what waits for the next batch."""
        self._held.clear()

    def sync(self) -> None:
        """The next batch leaves for the disk; what is held waits for it from now on."""
        self._syncing, self._held = self._held, []

    def written(self) -> list[Message[Body]]:
        """The batch is durable; return what waited for it."""
        freed, self._syncing = self._syncing, []
        return freed

    def unheld(self) -> list[Message[Body]]:
        """There is nothing left to make durable; return what waited for the next batch."""
        freed, self._held = self._held, []
        return freed
