"""The known managers, and which to ask next.

Each manager has a weight: what the cluster says (10 is usual), lowered by failures and raised by
successes. The choice is random in proportion, so that agents spread out and avoid a sick manager
without ever giving it up.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Final

from swarm.model import Peer, WeightedPeer

DEFAULT_WEIGHT: Final = 10.0
FAILURE: Final = -10.0
SUCCESS: Final = 10.0
SMOOTHING: Final = 0.5
"""Share of an observation in the new weight; the rest is the old weight."""

_FLOOR: Final = 1.0  # added to the lightest, so that every manager keeps a chance


class ManagerList:
    """Weighted managers; order is kept as given, so that a seeded choice repeats."""

    __slots__ = ("_weights",)

    def __init__(self, peers: Iterable[Peer] = ()) -> None:
        self._weights: dict[Peer, float] = dict.fromkeys(peers, DEFAULT_WEIGHT)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """The managers, in the order they were given."""
        return tuple(self._weights)

    def weight(self, peer: Peer) -> float:
        """Return a known manager's weight."""
        return self._weights[peer]

    def replace(self, listed: Iterable[WeightedPeer]) -> bool:
        """Take over the cluster's list; say whether the set of managers changed.

        A known manager keeps what was observed of it, mixed with the cluster's weight; managers that
        are not listed are forgotten. An empty list is refused (returns False): it would leave this node
        with nobody to ask, for good.
        """
        wanted = {entry.peer: float(entry.weight) for entry in listed}
        if not wanted:
            return False
        changed = set(wanted) != set(self._weights)
        self._weights = {
            peer: weight
            if peer not in self._weights
            else _mix(self._weights[peer], min(weight, DEFAULT_WEIGHT))
            for peer, weight in wanted.items()
        }
        return changed

    def observe(self, peer: Peer, observation: float) -> None:
        """Note a success (+10) or failure (-10); a manager no longer listed is ignored."""
        if peer in self._weights:
            self._weights[peer] = _mix(self._weights[peer], observation)

    def choose(self, rng: random.Random) -> Peer | None:
        """Pick a manager at random in proportion to the weights; None when none is known."""
        if not self._weights:
            return None
        lightest = min(*self._weights.values(), 0.0)
        peers = list(self._weights)
        return rng.choices(peers, [self._weights[peer] - lightest + _FLOOR for peer in peers])[0]


def _mix(old: float, new: float) -> float:
    return (1 - SMOOTHING) * old + SMOOTHING * new
