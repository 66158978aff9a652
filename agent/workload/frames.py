"""The frames between a shim and its callers: one byte of kind, four of length, then the payload.

A caller opens a connection, sends one REQUEST (JSON) and gets one REPLY (JSON with ``ok``). For
``attach`` and ``exec`` the streams follow, for ``watch`` a STATUS at each change, for ``follow`` a
LOGGED whenever the log grew; EXIT (a signed 32-bit code) ends all but ``watch``.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">BI")
SIZE = struct.Struct(">HH")  # RESIZE: rows, columns
CODE = struct.Struct(">i")  # EXIT, SIGNAL

REQUEST = 1
REPLY = 2
STDIN = 3
STDIN_CLOSE = 4
RESIZE = 5
SIGNAL = 6
STDOUT = 7
STDERR = 8
EXIT = 9
STATUS = 10
LOGGED = 11

MAX_PAYLOAD = 1 << 16
MAX_JSON = 1 << 20
"""Bytes of a REQUEST, REPLY or STATUS, which may carry a command line and an environment."""

_LIMITS = dict.fromkeys((REQUEST, REPLY, STATUS), MAX_JSON) | dict.fromkeys(
    (STDIN, STDIN_CLOSE, RESIZE, SIGNAL, STDOUT, STDERR, EXIT, LOGGED), MAX_PAYLOAD
)


class FrameError(ValueError):
    """The other side does not speak this protocol."""


def pack(kind: int, payload: bytes = b"") -> bytes:
    """Return one frame."""
    return HEADER.pack(kind, len(payload)) + payload


def check(kind: int, length: int) -> None:
    """Refuse a header that announces an unknown kind or too much.

    Raises:
        FrameError: it does.
    """
    if length > _LIMITS.get(kind, -1):
        raise FrameError(f"frame of kind {kind} and {length} bytes")


class Splitter:
    """Cuts a stream of bytes into frames."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take in a piece and return the frames that are complete now.

        Raises:
            FrameError: the stream makes no sense; it cannot be used any further.
        """
        self._buffer += data
        frames: list[tuple[int, bytes]] = []
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            kind, length = HEADER.unpack_from(self._buffer, position)
            check(kind, length)
            end = position + HEADER.size + length
            if len(self._buffer) < end:
                break
            frames.append((kind, bytes(self._buffer[position + HEADER.size : end])))
            position = end
        del self._buffer[:position]
        return frames
