"""What gossip said of other nodes' endpoints, remembered over a restart of the agent.

A fresh agent knows nobody until gossip has synchronised; taking the kernel's entries away until then
would cut running transfers. One append-only file a network in the run directory: a line an entry, the
last line of a key counts, with the gossip node that wrote the entry. It is written without sync: it has to survive the agent, not the machine.
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
        self.owners: dict[Key, str] = {}
        """Names of the gossip nodes that wrote them; a node keeps its name over a restart."""
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

    def put(self, table: str, key: str, value: bytes, owner: str = "") -> None:
        """Remember an entry."""
        place = (table, key)
        self.unconfirmed.discard(place)
        if self.entries.get(place) != value or self.owners.get(place, "") != owner:
            self.entries[place], self.owners[place] = value, owner
            self._append(self._line(place))

    def delete(self, table: str, key: str) -> None:
        """Forget an entry."""
        self.unconfirmed.discard((table, key))
        self.owners.pop((table, key), None)
        if self.entries.pop((table, key), None) is not None:
            self._append([table, key, None])

    def remove(self) -> None:
        """Remove the file."""
        self.entries.clear()
        self.owners.clear()
        self.unconfirmed.clear()
        self._path.unlink(missing_ok=True)

    def _take(self, line: str) -> None:
        try:
            table, key, value, *owner = json.loads(line)
            place = (str(table), str(key))
            if value is None:
                self.entries.pop(place, None)
                self.owners.pop(place, None)
            else:
                self.entries[place] = base64.b64decode(value, validate=True)
                self.owners[place] = str(owner[0]) if owner else ""
        except (ValueError, TypeError, binascii.Error):
            return

    def _line(self, place: Key) -> list[str | None]:
        value = base64.b64encode(self.entries[place]).decode("ascii")
        return [*place, value, self.owners.get(place, "")]

    def _append(self, line: list[str | None]) -> None:
        self._lines += 1
        # A full disk must not stop the data plane.
        with contextlib.suppress(OSError), self._path.open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
        self._compact()

    def _compact(self) -> None:
        if self._lines <= max(_MIN_LINES, COMPACT_FACTOR * len(self.entries)):
            return
        staged = self._path.with_name(f".{self._path.name}.new")
        with contextlib.suppress(OSError):
            staged.write_text(
                "".join(json.dumps(self._line(place)) + "\n" for place in self.entries),
                encoding="ascii",
            )
            staged.replace(self._path)
            self._lines = len(self.entries)
