"""What readers of the tables see: changes and entries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class ChangeKind(Enum):
    """How a visible entry changed; judged by what was visible before, never by the wire."""

    CREATE = "create"
    UPDATE = "update"
    DELETE = "delete"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableChange:
    """One change of one visible entry, own entries included.

    Attributes:
        owner: name of the node that wrote what is visible now (or was, when deleted).
        value: the value now; when deleted, the last one.
        previous: the value before; None when created.
    """

    kind: ChangeKind
    table: str
    network: str
    key: str
    owner: str
    value: bytes
    previous: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One visible entry."""

    owner: str
    value: bytes
