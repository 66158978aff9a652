"""A raft state that must not be used any more, marked so that no restart tries it again.

A manager restored from an old copy of its disk is recognised when the others contradict it. Started
again and again it would catch up with what they remember of it, and pass; so the first recognition counts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from manager.raft.errors import StateLostError
from manager.raft.keys import sync_directory

FILE: Final = "refused"
_MAX_TEXT: Final = 2048


def refuse_for_good(directory: Path, reason: str) -> None:
    """Mark the state in ``directory``; durable."""
    (directory / FILE).write_text(reason[:_MAX_TEXT], encoding="utf-8")
    sync_directory(directory)


def check_not_refused(directory: Path) -> None:
    """Check that the state in ``directory`` was not refused before.

    Raises:
        StateLostError: it was; the text is the reason of then.
    """
    path = directory / FILE
    if path.exists():
        raise StateLostError(path.read_text(encoding="utf-8")[:_MAX_TEXT])
