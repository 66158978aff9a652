"""A workload's output on disk: records with stream and time, in two files that take turns.

A record is one byte of stream (STDOUT or STDERR of :mod:`agent.workload.frames`), four of length,
eight of time (nanoseconds since the epoch), then the bytes as the command wrote them.
"""

from __future__ import annotations

import os
import struct
import time

from agent.workload import frames

RECORD = struct.Struct(">BIQ")
CURRENT = "log"
PREVIOUS = "log.1"
LIMIT = 16 << 20
"""Bytes of one file; a workload's log takes at most twice that."""


class LogWriter:
    """Appends records. A full disk loses output, it never stops the command."""

    __slots__ = ("_descriptor", "_directory", "_limit", "_size")

    def __init__(self, directory: int, *, limit: int = LIMIT) -> None:
        self._directory = directory
        self._limit = limit
        self._descriptor = -1
        self._size = 0
        self._open()

    def write(self, stream: int, data: bytes) -> None:
        """Append one record, starting a new file when this one is full."""
        record = RECORD.pack(stream, len(data), time.time_ns()) + data
        if self._size and self._size + len(record) > self._limit:
            self._rotate()
        try:
            written = os.write(self._descriptor, record)
            if written < len(record):
                os.ftruncate(
                    self._descriptor, self._size
                )  # half a record would hide all later ones
                return
        except OSError:
            return
        self._size += written

    def _open(self) -> None:
        self._descriptor = os.open(
            CURRENT,
            os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
            0o600,
            dir_fd=self._directory,
        )
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        try:
            os.rename(CURRENT, PREVIOUS, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.close(self._descriptor)
            self._open()
        except OSError:
            self._size = 0  # the directory is gone: go on with the open file


class LogReader:
    """Reads records from the oldest on, over the change of files, as far as they are complete.

    A reader that is overtaken by two changes of files goes on with the oldest that is left.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = os.fspath(directory)
        self._descriptor = -1
        self._inode = 0
        self._buffer = bytearray()

    def read(self) -> list[tuple[int, int, bytes]]:
        """Return the next records as (stream, nanoseconds, data); empty when there are no more now."""
        while True:
            piece = self._piece()
            if not piece:
                successor = self._successor()
                if successor is None:
                    return []
                # What was written between our look and the change of files is still in the old one.
                piece = self._piece()
                if not piece:
                    self._switch(successor)
                    continue
            self._buffer += piece
            if records := self._split():
                return records

    def _piece(self) -> bytes:
        return os.read(self._descriptor, frames.MAX_PAYLOAD) if self._descriptor >= 0 else b""

    def close(self) -> None:
        """Close the open file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _successor(self) -> str | None:
        """Return the name of the file to read after this one, if there is one already."""
        current, previous = self._inode_of(CURRENT), self._inode_of(PREVIOUS)
        if self._descriptor >= 0 and self._inode == current:
            return None
        if previous and (self._descriptor < 0 or self._inode != previous):
            return PREVIOUS
        return CURRENT if current else None

    def _inode_of(self, name: str) -> int:
        try:
            return os.stat(f"{self._directory}/{name}").st_ino  # noqa: PTH116  # pathlib costs start-up
        except OSError:
            return 0

    def _switch(self, name: str) -> None:
        try:
            descriptor = os.open(f"{self._directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # it was renamed or removed just now: look again
        self.close()
        self._descriptor, self._inode = descriptor, os.fstat(descriptor).st_ino
        self._buffer.clear()

    def _split(self) -> list[tuple[int, int, bytes]]:
        records: list[tuple[int, int, bytes]] = []
        position = 0
        while len(self._buffer) - position >= RECORD.size:
            stream, length, at = RECORD.unpack_from(self._buffer, position)
            start = position + RECORD.size
            if len(self._buffer) < start + length:
                break
            records.append((stream, at, bytes(self._buffer[start : start + length])))
            position = start + length
        del self._buffer[:position]
        return records
