"""The encrypted demo for a slow machine: ``swarm`` commands run in forks of a process that has loaded it all.

Starting Python and loading gRPC takes ten seconds under emulation, and the demo types some forty commands.
They are the same commands with the same arguments, in the same namespaces and environment. Run in the guest.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from swarm.lab import enter, processes

MODULES = ("cluster", "container", "gossip", "lab", "network", "node", "prune")
_LENGTH = struct.Struct("!I")


class Forks:
    """A process that forks one child for each command. Made before this one has a thread or a channel."""

    def __init__(self) -> None:
        ask, answer = os.pipe(), os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(ask[1])
            os.close(answer[0])
            try:
                _serve(os.fdopen(ask[0], "rb"), os.fdopen(answer[1], "wb"))
            finally:
                os._exit(0)
        os.close(ask[0])
        os.close(answer[1])
        self._out, self._in = os.fdopen(ask[1], "wb"), os.fdopen(answer[0], "rb")
        self._lock = threading.Lock()

    def run(self, *request: Any) -> Any:
        """Run a command to its end: (status, standard output, standard error)."""
        with self._lock:
            _put(self._out, request)
            return _get(self._in)

    def close(self) -> None:
        """End it."""
        self._out.close()
        os.waitpid(self._pid, 0)


def _put(stream: Any, value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(_LENGTH.pack(len(data)) + data)
    stream.flush()


def _get(stream: Any) -> Any:
    head = stream.read(_LENGTH.size)
    if not head:
        raise EOFError
    return pickle.loads(stream.read(_LENGTH.unpack(head)[0]))


def _serve(requests: Any, answers: Any) -> None:
    for name in MODULES:
        importlib.import_module(f"swarm.cli.{name}")
    while True:
        try:
            netns, uts, words, environment, timeout = _get(requests)
        except EOFError:
            return
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            pid = os.fork()
            if pid == 0:
                _become(netns, uts, words, environment, (out.fileno(), err.fileno()), timeout)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
        _put(answers, (status, *texts))


def _become(
    netns: str,
    uts: str,
    words: list[str],
    environment: dict[str, str],
    files: tuple[int, int],
    timeout: float,
) -> None:
    status = 1
    try:
        signal.alarm(int(timeout))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(fd, mode) for fd, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        enter.enter(netns, uts)
        os.environ.clear()
        os.environ.update(environment)
        from swarm.cli.main import invoke

        status = invoke(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> int:
    """Run the demo."""
    forks = Forks()
    from swarm.cli.main import invoke
    from swarm.lab.cluster import Lab

    usual = Lab.run

    def run(
        lab: Any, host: str, *argv: str, timeout: float = 60.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        if argv[0] != "swarm" or stdin is not None:
            return usual(lab, host, *argv, timeout=timeout, stdin=stdin)
        state = lab.state
        state.require(host)
        words: Sequence[str] = argv[1:]
        status, out, err = forks.run(
            str(state.netns(host)),
            str(state.uts(host)),
            list(words),
            processes.environment(state, host),
            timeout * processes.PATIENCE,
        )
        return subprocess.CompletedProcess(list(argv), status, out, err)

    Lab.run = run  # type: ignore[method-assign]  # what this program is for
    try:
        return invoke(["lab", "demo", "--encrypted"])
    finally:
        forks.close()


if __name__ == "__main__":
    sys.exit(main())
