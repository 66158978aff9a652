"""Carry a terminal to a container and back: the client side of AttachContainer and ExecContainer."""

from __future__ import annotations

import os
import queue
import select
import shutil
import signal
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from swarm.api.overswarm.v1 import local_pb2
from swarm.errors import UnavailableError

_CHUNK: Final = 64 * 1024
_FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_Call = Callable[[Iterator[local_pb2.StreamRequest]], Iterable[local_pb2.StreamResponse]]


def converse(
    call: _Call,
    opening: local_pb2.StreamOpen,
    *,
    started: Callable[[], None] | None = None,
) -> int:
    """Run one attach or exec stream to its end and return the command's exit status.

    Args:
        call: the stub's method.
        opening: what to attach to, or what to execute.
        started: called once the stream is wired up, before anything is read from it.

    Raises:
        UnavailableError: the stream ended without an exit status.
    """
    requests: queue.SimpleQueue[local_pb2.StreamRequest | None] = queue.SimpleQueue()
    requests.put(local_pb2.StreamRequest(open=opening))
    stop = threading.Event()
    responses = call(iter(requests.get, None))
    reader = threading.Thread(target=_read_stdin, args=(requests, stop), daemon=True)
    with _terminal(opening, requests):
        try:
            for response in responses:
                kind = response.WhichOneof("kind")
                if kind == "attached":
                    if started is not None:
                        started()
                    if opening.stdin_open:
                        reader.start()
                elif kind == "exit_code":
                    return response.exit_code
                else:
                    _write(
                        sys.stdout if kind == "stdout" else sys.stderr,
                        getattr(response, kind or ""),
                    )
        finally:
            stop.set()
            requests.put(None)
    raise UnavailableError(
        "the daemon ended the stream before the command ended; the container goes on"
    )


def window() -> tuple[int, int]:
    """Return rows and columns of this terminal."""
    size = shutil.get_terminal_size()
    return size.lines, size.columns


def _write(stream: Any, data: bytes) -> None:
    stream.buffer.write(data)
    stream.flush()


def _read_stdin(
    requests: queue.SimpleQueue[local_pb2.StreamRequest | None], stop: threading.Event
) -> None:
    descriptor = sys.stdin.fileno()
    while not stop.is_set():
        if not select.select([descriptor], [], [], 0.2)[0]:
            continue
        data = os.read(descriptor, _CHUNK)
        if not data:
            requests.put(local_pb2.StreamRequest(close_stdin=True))
            return
        requests.put(local_pb2.StreamRequest(stdin=data))


@contextmanager
def _terminal(
    opening: local_pb2.StreamOpen, requests: queue.SimpleQueue[local_pb2.StreamRequest | None]
) -> Iterator[None]:
    """Pass signals on, and hand the whole keyboard over when the command has a terminal of its own."""

    def pass_on(number: int, _: object) -> None:
        requests.put(local_pb2.StreamRequest(signal=number))

    def resize(*_: object) -> None:
        rows, columns = window()
        requests.put(local_pb2.StreamRequest(resize=local_pb2.Resize(rows=rows, columns=columns)))

    handlers: list[tuple[int, Any]] = [
        (number, signal.signal(number, pass_on)) for number in _FORWARDED
    ]
    raw = opening.tty and sys.stdin.isatty()
    before: list[Any] = []
    if raw:
        before = termios.tcgetattr(sys.stdin)
        tty.setraw(sys.stdin)
        handlers.append((signal.SIGWINCH, signal.signal(signal.SIGWINCH, resize)))
    try:
        yield
    finally:
        for number, handler in handlers:
            signal.signal(number, handler)
        if raw:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
