"""The networks this node takes part in, and what it wants their tables to say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from agent.gossip.networkdb.table import Key
from agent.gossip.swim.queue import BroadcastQueue

MAX_OWN_QUEUE: Final = 1 << 14
MAX_RELAY_QUEUE: Final = 1 << 13


@dataclass(slots=True, kw_only=True)
class Wish:
    """An entry this node wants to exist; kept apart from the table, where others may overwrite it.

    Attributes:
        asserted: when it was published last.
        contested: somebody holds another version; an answer is due.
    """

    value: bytes
    asserted: float
    contested: bool = False


@dataclass(slots=True, kw_only=True)
class OwnNetwork:
    """One network of this node.

    Attributes:
        time: network time of the last join or leave announced.
        leaving: left; remembered until ``changed`` is old enough.
        in_sync: the first bulk syncs are done; only then are others' events relayed.
        awaiting: syncs that have to end before that.
        wishes: own entries by key.
        ours: own events waiting to be gossiped; they go first.
        relayed: others' events waiting to be gossiped.
        syncs: bulk syncs that a peer has answered since the join.
        republish_at: when own entries may be published again because a peer lacks them.
        republish_pause: the pause after that; doubles as long as they get lost.
    """

    time: int
    changed: float
    republish_pause: float
    leaving: bool = False
    in_sync: bool = False
    awaiting: int = 0
    syncs: int = 0
    republish_at: float = 0.0
    wishes: dict[Key, Wish] = field(default_factory=dict)
    ours: BroadcastQueue = field(default_factory=lambda: BroadcastQueue(limit=MAX_OWN_QUEUE))
    relayed: BroadcastQueue = field(default_factory=lambda: BroadcastQueue(limit=MAX_RELAY_QUEUE))
