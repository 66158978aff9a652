"""What the gossip cores ask the outside to do, in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Datagram:
    """Send sealed bytes to an address; loss is nobody's concern."""

    host: str
    port: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Dial:
    """Connect, write one frame, and report the outcome under ``token``.

    Attributes:
        token: returned with ``stream_reply``, ``stream_sent`` or ``stream_failed``.
        frame: the sealed request.
        reply: whether one frame is to be read back.
        timeout: seconds for all of it.
    """

    token: int
    host: str
    port: int
    frame: bytes
    reply: bool
    timeout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """A fact worth a line in the log."""

    event: str
    level: str = "info"
    data: Mapping[str, object] = field(default_factory=dict)


Output = Datagram | Dial | Trace
