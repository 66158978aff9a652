"""Why a process ends when several of its tasks fail at once."""

from __future__ import annotations

from swarm.errors import SwarmError


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the most telling of several failures.

    One of our own errors before anything else, and a cause (a full disk) before what others made of
    it ("raft does not run", which could pass).
    """
    found: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        each = pending.pop()
        if isinstance(each, BaseExceptionGroup):
            pending.extend(each.exceptions)
        else:
            found.append(each)
    ours = [each for each in found if isinstance(each, SwarmError)]
    return next((each for each in ours if not each.retryable), ours[0] if ours else found[0])
