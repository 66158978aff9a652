"""Why something off the network was refused: one name per cause, counted for the operator."""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """Cause of a refused message, part of a message, or stream."""

    UNDECRYPTABLE = "undecryptable"  # no installed key opens it, or a foreign label
    REPLAYED = "replayed"  # the very bytes that were opened before
    MALFORMED = "malformed"  # opened, but not what the protocol allows
    TRUNCATED = "truncated"  # tail of a compound message cut off
    WRONG_NODE = "wrong_node"  # a ping for another name
    STREAMS_FULL = "streams_full"  # more streams at once than are served, of one host or in all
    UNFINISHED = "unfinished"  # a stream that broke off or stalled
    OVERFLOW = "overflow"  # more waits to be worked on than is reasonable
    ADDRESS = "address"  # not a usable address or port
    ADDRESS_CONFLICT = "address_conflict"  # a known name at another address
    VERSION = "version"  # protocol versions that do not fit ours
    INCARNATION = "incarnation"  # at its limit: cannot be refuted
    MEMBERS_FULL = "members_full"
    RELAYS_FULL = "relays_full"
    PEER_ERROR = "peer_error"  # the other side answered with an error
    UNKNOWN_NODE = "unknown_node"  # event of or about a node that is no active member
    NOT_ATTACHED = "not_attached"  # entry of an owner that is not on the network
    TABLE_FULL = "table_full"


class Refusals:
    """Counts by cause."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def count(self, cause: Refusal, amount: int = 1) -> None:
        """Count one more."""
        self.counts[cause.value] = self.counts.get(cause.value, 0) + amount
