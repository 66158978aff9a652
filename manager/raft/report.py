"""What a member's events look like in the log of its process; refusals are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

import structlog

from manager.raft.events import (
    Event,
    LeaderChanged,
    MembershipChanged,
    OldCopy,
    QuorumLost,
    Reason,
    Refused,
    Role,
    RoleChanged,
    SnapshotReceived,
    SnapshotSent,
    StateLost,
    TransferAborted,
    TransferStarted,
    Truncated,
    WasRemoved,
)

log = structlog.get_logger("manager.raft")

_QUIET = frozenset(
    {
        Reason.STALE_REPLY,
        Reason.UNEXPECTED,
        Reason.OLDER_TERM,
        Reason.LOG_GAP,
        Reason.LEASE,
        Reason.VOTED,
        Reason.BEHIND,
    }
)
"""Refusals that a healthy group produces, logged at debug level only."""

_NAMES: dict[type[Event], str] = {
    RoleChanged: "role.changed",
    LeaderChanged: "leader.changed",
    MembershipChanged: "membership.changed",
    Truncated: "log.truncated",
    SnapshotSent: "snapshot.sent",
    SnapshotReceived: "snapshot.received",
    QuorumLost: "quorum.lost",
    TransferStarted: "transfer.started",
    TransferAborted: "transfer.aborted",
    WasRemoved: "member.removed",
    StateLost: "state.lost",
    OldCopy: "state.outdated",
}


class Report:
    """Logs events.

    Attributes:
        refused: how many messages were refused, by reason.
    """

    __slots__ = ("refused",)

    def __init__(self) -> None:
        self.refused: Counter[Reason] = Counter()

    def note(self, event: Event) -> None:
        """Log one event. Of refusals for one reason the 1st, 10th, 100th and so on are warnings."""
        if not isinstance(event, Refused):
            log.info(_NAMES[type(event)], **_plain(event))
            return
        self.refused[event.reason] += 1
        count = self.refused[event.reason]
        loud = event.reason not in _QUIET and str(count).strip("0") == "1"
        (log.warning if loud else log.debug)(
            "message.refused",
            reason=event.reason.value,
            message=event.message,
            sender=f"{event.sender:x}",
            term=event.term,
            count=count,
        )


def _plain(event: Event) -> dict[str, Any]:
    return {k: v.value if isinstance(v, Role) else v for k, v in asdict(event).items()}
