"""The agent's end of a connection to a shim."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from agent.workload import frames
from swarm.errors import InvalidArgumentError, PreconditionError, UnavailableError
from swarm.kernel.descriptors import lifted

SOCKET: Final = "attach.sock"
_STREAMS: Final = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}


class ShimGoneError(UnavailableError):
    """Nobody listens on the workload's socket: its shim has ended."""


class Link:
    """One connection to a shim: frames out, frames in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        self._writer.close()

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """Send a frame, waiting while the shim does not take it.

        Raises:
            UnavailableError: the shim is gone.
        """
        try:
            self._writer.write(frames.pack(kind, payload))
            await self._writer.drain()
        except OSError as error:
            raise UnavailableError("the workload's shim is gone") from error

    async def receive(self) -> tuple[int, bytes] | None:
        """Return the next frame, or None when the shim has closed the connection or is gone."""
        try:
            kind, length = frames.HEADER.unpack(await self._reader.readexactly(frames.HEADER.size))
            frames.check(kind, length)
            return kind, await self._reader.readexactly(length)
        except (EOFError, OSError, frames.FrameError):
            return None

    async def request(self, operation: str, **arguments: object) -> dict[str, Any]:
        """Send the connection's request and return the reply, whose ``ok`` may be false.

        Raises:
            InvalidArgumentError: the arguments are too long.
            UnavailableError: the shim is gone, or has too many callers.
        """
        payload = json.dumps({"op": operation, **arguments}).encode()
        if len(payload) > frames.MAX_JSON:
            raise InvalidArgumentError("command line and environment are too long")
        await self.send(frames.REQUEST, payload)
        frame = await self.receive()
        if frame is None:
            raise UnavailableError("the workload's shim does not answer")
        reply: dict[str, Any] = json.loads(frame[1])
        return reply


async def connect(directory: Path) -> Link:
    """Connect to the shim whose workload lives in ``directory``.

    Raises:
        ShimGoneError: there is no such shim (any more).
        UnavailableError: it cannot be reached for another reason, which may pass.
    """
    handle = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        handle.setblocking(False)
        anchor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # A Unix socket's path has room for 107 bytes only, fewer than a state directory may need.
            handle.connect(f"/proc/self/fd/{anchor}/{SOCKET}")
        finally:
            os.close(anchor)
        handle = lifted(handle)
        reader, writer = await asyncio.open_unix_connection(sock=handle, limit=2 * frames.MAX_JSON)
    except (ConnectionRefusedError, FileNotFoundError) as error:
        handle.close()
        raise ShimGoneError("the workload's shim is gone") from error
    except OSError as error:
        handle.close()
        raise UnavailableError(f"the workload's shim cannot be reached: {error}") from error
    return Link(reader, writer)


class AttachSession:
    """A caller's side of a running command; iterate over it for the output.

    Iteration ends with the command, and then :attr:`exit_code` is set. The command waits while nobody
    reads, so a session that is of no further interest must be closed.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self.exit_code: int | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[tuple[str, bytes]]:
        """Yield (``"stdout"`` or ``"stderr"``, data) until the command ends; a terminal is all stdout.

        Raises:
            UnavailableError: the shim was killed before the command's end was known.
        """
        while self.exit_code is None:
            frame = await self._link.receive()
            if frame is None:
                raise UnavailableError("the workload's shim was killed")
            kind, payload = frame
            if kind == frames.EXIT:
                self.exit_code = frames.CODE.unpack(payload)[0]
            elif kind in _STREAMS:
                yield _STREAMS[kind], payload

    async def wait(self) -> int:
        """Read (and drop) the output up to the end and return the exit code.

        Raises:
            UnavailableError: the shim was killed before the command's end was known.
        """
        async for _ in self:
            pass
        if self.exit_code is None:
            raise PreconditionError("the session ended without an exit code")
        return self.exit_code

    async def write_stdin(self, data: bytes) -> None:
        """Send input, waiting while the command does not take it.

        Raises:
            UnavailableError: the shim is gone.
        """
        for start in range(0, len(data), frames.MAX_PAYLOAD):
            await self._link.send(frames.STDIN, data[start : start + frames.MAX_PAYLOAD])

    async def close_stdin(self) -> None:
        """End the input (on a terminal: send the end-of-file character)."""
        await self._link.send(frames.STDIN_CLOSE)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's size, each 1 to 65535."""
        await self._link.send(frames.RESIZE, frames.SIZE.pack(rows, columns))

    async def signal(self, number: int) -> None:
        """Send a signal to the command."""
        await self._link.send(frames.SIGNAL, frames.CODE.pack(number))

    async def close(self) -> None:
        """Detach; a command started by ``exec`` loses its streams, a workload's own does not care."""
        self._link.close()
