"""What gossip said of other nodes' endpoints, remembered over a restart of the agent.

A fresh agent knows nobody until gossip has synchronised; taking the kernel's entries away until then
would cut running transfers. One append-only file a network in the run directory: a line an entry, the
last line of a key counts. It is written without sync: it has to survive the agent, not the machine.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
from pathlib import Path
from typing import Final

import structlog

COMPACT_FACTOR: Final = 4
"""A file is rewritten when it has this many times more lines than entries (and over 1000)."""

_MIN_LINES: Final = 1000

log = structlog.get_logger(component="memory")

Key = tuple[str, str]
"""Table and key."""


class EntryLog:
    """The remembered entries of one network.

    Args:
        path: the file; made with the first entry.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines = 0
        self.entries: dict[Key, bytes] = {}
        self.unconfirmed: set[Key] = set()
        """Entries that come from the file and that gossip has not repeated yet."""

    def load(self) -> None:
        """Read the file; a line that makes no sense (the last one, after a crash) is passed over."""
        try:
            lines = self._path.read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("memory.unreadable", path=str(self._path), detail=str(error))
            return
        for line in lines:
            self._take(line)
        self._lines = len(lines)
        self.unconfirmed = set(self.entries)
        self._compact()

    def put(self, table: str, key: str, value: bytes) -> None:
        """Remember an entry."""
        self.unconfirmed.discard((table, key))
        if self.entries.get((table, key)) != value:
            self.entries[table, key] = value
            self._append(table, key, base64.b64encode(value).decode("ascii"))

    def delete(self, table: str, key: str) -> None:
        """Forget an entry."""
        self.unconfirmed.discard((table, key))
        if self.entries.pop((table, key), None) is not None:
            self._append(table, key, None)

    def remove(self) -> None:
        """Remove the file."""
        self.entries.clear()
        self.unconfirmed.clear()
        self._path.unlink(missing_ok=True)

    def _take(self, line: str) -> None:
        try:
            table, key, value = json.loads(line)
            if value is None:
                self.entries.pop((table, key), None)
            else:
                self.entries[str(table), str(key)] = base64.b64decode(value, validate=True)
        except (ValueError, TypeError, binascii.Error):
            return

    def _append(self, table: str, key: str, value: str | None) -> None:
        self._lines += 1
        # A full disk must not stop the data plane.
        with contextlib.suppress(OSError), self._path.open("a", encoding="ascii") as file:
            file.write(json.dumps([table, key, value]) + "\n")
        self._compact()

    def _compact(self) -> None:
        if self._lines <= max(_MIN_LINES, COMPACT_FACTOR * len(self.entries)):
            return
        staged = self._path.with_name(f".{self._path.name}.new")
        with contextlib.suppress(OSError):
            staged.write_text(
                "".join(
                    json.dumps([table, key, base64.b64encode(value).decode("ascii")]) + "\n"
                    for (table, key), value in self.entries.items()
                ),
                encoding="ascii",
            )
            staged.replace(self._path)
            self._lines = len(self.entries)
