"""One command run by the shim: its descriptors, its output to log and callers, its end."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import select
import signal
import termios
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol

from agent.workload import frames
from agent.workload.loop import READ, WRITE, Loop

NOT_FOUND = 127
NOT_EXECUTABLE = 126
DAEMON_ERROR = 125
SIGNAL_BASE = 128

CHUNK = frames.MAX_PAYLOAD
STDIN_HIGH = 256 * 1024
"""Bytes of input that may wait for the command before its caller is made to wait."""

_END_OF_TRANSMISSION = b"\x04"


class SpawnError(Exception):
    """The command could not be started."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Listener(Protocol):
    """Somebody attached to a command."""

    def send(self, kind: int, payload: bytes) -> None:
        """Pass on a frame."""

    def full(self) -> bool:
        """Tell whether the command must wait before it says more."""

    def admit(self, *, more: bool) -> None:
        """Allow or forbid further input."""


class Process:
    """A running command.

    A slow listener makes the command wait, as a slow reader of a pipe would; nothing is dropped. What
    is left in the pipes when the command ends is taken out at once, so that its end is not delayed.

    Args:
        loop: the shim's loop.
        argv: the command, looked up in the ``PATH`` of ``env``.
        env: the environment.
        cwd: where it starts.
        tty: give it a terminal.
        stdin: give it an input; ``/dev/null`` otherwise.
        size: rows and columns of the terminal.
        log: takes (stream, data), or None.
        on_exit: called once, after all output was passed on.

    Raises:
        SpawnError: it did not start.
    """

    __slots__ = (
        "_inputs",
        "_log",
        "_loop",
        "_master",
        "_on_exit",
        "_outputs",
        "_paused",
        "_pending",
        "_pidfd",
        "_stdin",
        "_stdin_ended",
        "exit_code",
        "listeners",
        "pid",
        "tty",
    )

    def __init__(
        self,
        loop: Loop,
        *,
        argv: Sequence[str],
        env: dict[str, str],
        cwd: str,
        tty: bool,
        stdin: bool,
        size: tuple[int, int] = (0, 0),
        log: Callable[[int, bytes], None] | None = None,
        on_exit: Callable[[Process], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._on_exit = on_exit
        self._pending = bytearray()
        self._stdin_ended = False
        self._paused = False
        self.exit_code: int | None = None
        self.listeners: set[Listener] = set()
        self.tty = tty
        self._inputs: list[int] = []  # the command's own ends, closed once it has them
        self._outputs: dict[int, int] = {}
        self._master = self._stdin = -1
        try:
            ends = self._open_terminal(size) if tty else self._open_pipes(stdin=stdin)
            self.pid = _fork(argv, env, cwd, ends, tty=tty)
            self._pidfd = os.pidfd_open(self.pid)
        except SpawnError:
            self._close_all()
            raise
        except OSError as error:
            self._close_all()
            raise SpawnError(DAEMON_ERROR, f"cannot start a process: {error.strerror}") from error
        finally:
            for descriptor in self._inputs:
                os.close(descriptor)
            self._inputs.clear()
        loop.add(self._pidfd, READ, self._exited)
        for descriptor in self._outputs:
            os.set_blocking(descriptor, False)
            loop.add(descriptor, READ, lambda _, fd=descriptor: self._readable(fd))  # type: ignore[misc]
        if self._stdin >= 0:
            os.set_blocking(self._stdin, False)

    def _open_terminal(self, size: tuple[int, int]) -> tuple[int, int, int]:
        self._master, inner = os.openpty()
        self._inputs.append(inner)
        self._stdin = os.dup(self._master)  # a number of its own, to be waited for on its own
        self._outputs[self._master] = frames.STDOUT
        self.resize(*size)
        return inner, inner, inner

    def _open_pipes(self, *, stdin: bool) -> tuple[int, int, int]:
        if stdin:
            inner_stdin, self._stdin = os.pipe()
        else:
            inner_stdin = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._inputs.append(inner_stdin)
        for kind in (frames.STDOUT, frames.STDERR):
            outer, inner = os.pipe()
            self._outputs[outer] = kind
            self._inputs.append(inner)
        return inner_stdin, self._inputs[1], self._inputs[2]

    def signal(self, number: int) -> None:
        """Send a signal to the command, if it still runs."""
        if self.exit_code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal's size; nothing without a terminal, or when a side is 0."""
        if self._master >= 0 and rows and columns:
            termios.tcsetwinsize(self._master, (rows, columns))

    def write(self, data: bytes) -> None:
        """Pass input on to the command, as fast as it takes it."""
        if self._stdin >= 0 and not self._stdin_ended:
            idle = not self._pending
            self._pending += data
            if idle:
                self._flush(first=True)
            self.admit_all()

    def end_input(self) -> None:
        """Close the command's input once everything was passed on."""
        if self._stdin < 0 or self._stdin_ended:
            return
        if self.tty:
            self.write(_END_OF_TRANSMISSION)
            return
        self._stdin_ended = True
        if not self._pending:
            self._close_stdin()

    def hang_up(self) -> None:
        """Close this side of all streams: a command whose only listener went away notices it."""
        self._close_stdin()
        for descriptor in tuple(self._outputs):
            self._close_output(descriptor)

    def regulate(self) -> None:
        """Let the command wait while a listener is full."""
        wait = any(listener.full() for listener in self.listeners)
        if wait == self._paused:
            return
        self._paused = wait
        for descriptor in self._outputs:
            # Not merely masked: a hang-up is reported whatever the mask, round after round.
            if wait:
                self._loop.drop(descriptor)
            else:
                self._loop.add(descriptor, READ, lambda _, fd=descriptor: self._readable(fd))  # type: ignore[misc]

    def _readable(self, descriptor: int) -> None:
        self._read(descriptor)
        self.regulate()

    def _read(self, descriptor: int) -> bool:
        try:
            data = os.read(descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal's other side was closed
                raise
            data = b""
        if not data:
            self._close_output(descriptor)
            return False
        kind = self._outputs[descriptor]
        if self._log is not None:
            self._log(kind, data)
        for listener in tuple(self.listeners):
            listener.send(kind, data)
        return True

    def _flush(self, events: int = 0, *, first: bool = False) -> None:
        del events
        try:
            written = os.write(self._stdin, self._pending)
            del self._pending[:written]
        except BlockingIOError:
            pass
        except OSError:  # the command closed its input
            self._close_stdin()
            self.admit_all()
            return
        if self._pending:
            if first:
                self._loop.add(self._stdin, WRITE, self._flush)
        else:
            self._loop.drop(self._stdin)
            if self._stdin_ended:
                self._close_stdin()
        self.admit_all()

    def admit_all(self) -> None:
        """Let callers send input while the command keeps up with it."""
        for listener in tuple(self.listeners):
            listener.admit(more=len(self._pending) < STDIN_HIGH)

    def _exited(self, events: int) -> None:
        del events
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return
        code = os.waitstatus_to_exitcode(status)
        self.exit_code = code if code >= 0 else SIGNAL_BASE - code
        self._loop.drop(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._on_exit(self)

    def drain(self) -> None:
        """Pass on what is left in the pipes after the end, and close everything."""
        for descriptor in tuple(self._outputs):
            while descriptor in self._outputs and self._read(descriptor):
                pass
        self._close_all()

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._loop.drop(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._pending.clear()

    def _close_output(self, descriptor: int) -> None:
        self._loop.drop(descriptor)
        del self._outputs[descriptor]
        os.close(descriptor)
        if descriptor == self._master:
            self._master = -1

    def _close_all(self) -> None:
        self.hang_up()


def _fork(
    argv: Sequence[str], env: dict[str, str], cwd: str, ends: tuple[int, int, int], *, tty: bool
) -> int:
    """Fork and execute, and return once the command runs.

    Raises:
        SpawnError: it does not.
    """
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise SpawnError(DAEMON_ERROR, f"cannot fork: {error.strerror}") from error
    if pid == 0:
        _child(argv, env, cwd, ends, writer, tty=tty)
    os.close(writer)
    problem = b""
    while piece := os.read(reader, CHUNK):
        problem += piece
    os.close(reader)
    if problem:
        os.waitpid(pid, 0)
        code, text = json.loads(problem)
        raise SpawnError(code, text)
    return pid


def _child(
    argv: Sequence[str],
    env: dict[str, str],
    cwd: str,
    ends: tuple[int, int, int],
    report: int,
    *,
    tty: bool,
) -> NoReturn:
    problem = (DAEMON_ERROR, "the process could not be prepared")
    try:
        os.setsid()
        if tty:
            fcntl.ioctl(ends[0], termios.TIOCSCTTY, 0)
        for target, descriptor in enumerate(ends):
            os.dup2(descriptor, target)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(0o022)
        try:
            os.chdir(cwd)
        except OSError as error:
            problem = (NOT_EXECUTABLE, f'chdir to "{cwd}": {_reason(error)}')
            raise
        os.execvpe(argv[0], list(argv), env)  # noqa: S606  # no shell is what is wanted
    except OSError as error:
        if problem[0] == DAEMON_ERROR:
            problem = explain(argv[0], error)
    finally:
        os.write(report, json.dumps(problem).encode())
        os._exit(1)


def explain(command: str, error: OSError) -> tuple[int, str]:
    """Return the exit code and the words for a command that cannot be executed, as Docker has them."""
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        if "/" in command:
            return NOT_FOUND, f'exec: "{command}": stat {command}: no such file or directory'
        return NOT_FOUND, f'exec: "{command}": executable file not found in $PATH'
    return NOT_EXECUTABLE, f'exec: "{command}": {_reason(error)}'


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


HANGUP = select.EPOLLHUP | select.EPOLLERR
