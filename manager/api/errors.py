"""Refusals whose gRPC code engines know as ``UNKNOWN``: plain errors with a text."""

from __future__ import annotations

from typing import ClassVar

from swarm.errors import SwarmError


class NameConflictError(SwarmError):
    """Another network has the name already (upper and lower case alike)."""

    status: ClassVar[str] = "UNKNOWN"


class SequenceError(SwarmError):
    """The object changed since the caller read it; read it again."""

    status: ClassVar[str] = "UNKNOWN"

    def __init__(self) -> None:
        super().__init__("update out of sequence")
