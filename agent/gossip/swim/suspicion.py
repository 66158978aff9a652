"""How long a suspect may prove that it lives.

The time starts at its maximum and shrinks with every further node that suspects independently:
one slow accuser alone cannot kill, three agreeing ones need not wait. Source: Lifeguard, section
IV.B (LHA-Suspicion); memberlist's arithmetic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Limits of one suspicion.

    Attributes:
        minimum: seconds, with every confirmation in (or none to be had).
        maximum: seconds, with none.
        confirmations: how many further accusers bring the time to its minimum.
    """

    minimum: float
    maximum: float
    confirmations: int


def bounds(*, nodes: int, probe_interval: float, mult: int, max_mult: int) -> Bounds:
    """Return the limits in a cluster of ``nodes``, this one included."""
    wanted = mult - 2
    if nodes - 2 < wanted:
        wanted = 0  # too few nodes could confirm
    scale = max(1.0, math.log10(max(1, nodes)))
    minimum = mult * scale * probe_interval
    return Bounds(minimum=minimum, maximum=max_mult * minimum, confirmations=wanted)


@dataclass(slots=True, kw_only=True)
class Suspicion:
    """One running suspicion.

    Attributes:
        since: when it began.
        limits: its bounds, fixed at the start.
        accusers: who has accused so far; the first one does not count as a confirmation.
    """

    since: float
    limits: Bounds
    accusers: set[str] = field(default_factory=set)

    def confirm(self, origin: str) -> bool:
        """Count a further accuser; return False if that changes nothing."""
        if len(self.accusers) > self.limits.confirmations or origin in self.accusers:
            return False
        self.accusers.add(origin)
        return True

    def deadline(self) -> float:
        """Return when the suspect counts as dead."""
        limits = self.limits
        if limits.confirmations < 1:
            return self.since + limits.minimum
        confirmed = max(0, len(self.accusers) - 1)
        share = math.log(confirmed + 1) / math.log(limits.confirmations + 1)
        span = limits.maximum - share * (limits.maximum - limits.minimum)
        return self.since + max(limits.minimum, span)
