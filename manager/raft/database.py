"""SQLite as raft state needs it: one process, one synced transaction at a time, errors that name the file."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manager.raft.errors import CorruptStateError, StorageError

_PAGE_BYTES = 4096


def connect(path: Path) -> sqlite3.Connection:
    """Open a database and keep every other process out of it."""
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        # No second process may write the same log; the lock lives as long as the connection.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = TRUNCATE")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cell_size_check = ON")
        # What a truncation or compaction frees is overwritten, not left readable under an old key.
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("COMMIT")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Do what the block does whole and synced, or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours."""
    try:
        yield
    except sqlite3.OperationalError as cause:
        if "locked" in str(cause):
            raise StorageError(f"Another process uses {path}; stop it first.") from cause
        raise StorageError(f"Cannot read or write {path}: {cause}.") from cause
    except (sqlite3.DatabaseError, sqlite3.ProgrammingError, struct.error) as cause:
        raise corrupt(path, str(cause)) from cause


def record(connection: sqlite3.Connection, path: Path, name: str) -> bytes:
    """Return a record of the ``meta`` table."""
    row = connection.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    if row is None or not isinstance(row[0], bytes):
        raise corrupt(path, f"the record {name!r} is missing")
    return row[0]


def corrupt(path: Path, detail: str) -> CorruptStateError:
    """Return the error for state that is not what was written; says what to do."""
    return CorruptStateError(
        f"The raft state in {path} is damaged ({detail}). It is not used, because a manager that "
        "forgets what it confirmed endangers the others. If other managers run, remove "
        f"{path.parent} and join this manager again; if this is the only one, restore a backup."
    )
