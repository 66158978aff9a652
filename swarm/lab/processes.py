"""Start, find and end the processes of a lab host.

A process belongs to a host when it carries the host's mark in its environment (children inherit it),
lives in the host's network namespace, or is a Python module of ours that was given a path of the host
(a workload's shim has namespaces and an environment of its own). That finds daemons, managers, shims
and whatever a person started with ``swarm lab exec``, and nothing else.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from swarm.errors import DeadlineError, HostError
from swarm.lab.state import LabState

MARK: Final = "SWARM_LAB_HOST"
PATIENCE: Final = float(os.environ.get("SWARM_LAB_PATIENCE") or 1)
"""How many times longer than usual the lab waits: under emulation everything is 10 to 20 times slower."""
_END_ROUNDS = 100
_END_PAUSE = 0.05


def environment(lab: LabState, host: str) -> dict[str, str]:
    """Return the environment of commands on ``host``: its daemon, its mark, our commands on PATH."""
    result = dict(os.environ)
    result[MARK] = f"{lab.name}/{host}"
    result["SWARM_HOST"] = lab.socket(host)
    result["SWARM_LAB"] = lab.name
    ours = str(Path(sys.executable).parent)
    result["PATH"] = f"{ours}:{result.get('PATH', os.defpath)}"
    return result


def command(lab: LabState, host: str, argv: Sequence[str]) -> list[str]:
    """Return the argument list that runs ``argv`` inside ``host``."""
    return [
        sys.executable,
        "-m",
        "swarm.lab.enter",
        str(lab.netns(host)),
        str(lab.uts(host)),
        "--",
        *argv,
    ]


def start_daemon(lab: LabState, host: str) -> int:
    """Start ``swarm daemon`` on ``host`` and return its process id.

    The process is its own session and outlives the command that started it; its log is appended.
    """
    lab.run_dir(host).mkdir(parents=True, exist_ok=True)
    lab.state_dir(host).mkdir(parents=True, exist_ok=True)
    argv = [
        sys.executable,
        "-m",
        "agent",
        "--state-dir",
        str(lab.state_dir(host)),
        "--run-dir",
        str(lab.run_dir(host)),
    ]
    words = command(lab, host, argv)
    with lab.log(host).open("ab") as log, Path(os.devnull).open("rb") as nothing:
        return os.posix_spawn(
            words[0],
            words,
            environment(lab, host),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
            setsid=True,
        )


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 when it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] == "Z" else int(fields[19])


def alive(pid: int, started: int) -> bool:
    """Say whether the process is the one that was started then, and still runs."""
    return pid > 0 and start_time(pid) == started


def members(lab: LabState, host: str) -> Iterator[int]:
    """Yield the ids of the processes of ``host``, this one excepted."""
    mark = f"{MARK}={lab.name}/{host}".encode()
    place = f"{lab.run_root / host}/".encode()
    try:
        netns = lab.netns(host).stat()
    except OSError:
        netns = None
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if bears(entry, mark, place):
                yield int(entry.name)
                continue
            theirs = (entry / "ns/net").stat()
        except OSError:
            continue
        if netns is not None and (theirs.st_ino, theirs.st_dev) == (netns.st_ino, netns.st_dev):
            yield int(entry.name)


def bears(entry: Path, mark: bytes, place: bytes) -> bool:
    """Say whether the process at ``/proc/PID`` has a mark in its environment, or a place in its arguments.

    Args:
        entry: its directory in ``/proc``.
        mark: a variable with its value, or with the part of it before a slash.
        place: the start of an argument; counts only for modules that Python was asked to run.

    Raises:
        OSError: the process is gone.
    """
    for part in (entry / "environ").read_bytes().split(b"\0"):
        if part == mark or part.startswith(mark + b"/"):
            return True
    arguments = (entry / "cmdline").read_bytes().split(b"\0")
    return b"-m" in arguments and any(part.startswith(place) for part in arguments)


def matching(lab: LabState, host: str, *words: str) -> list[int]:
    """Return the processes of ``host`` whose command line holds every one of ``words``."""
    result = []
    for pid in members(lab, host):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if all(word.encode() in arguments for word in words):
            result.append(pid)
    return result


def send(pids: Sequence[int], number: int) -> None:
    """Send a signal to processes; one that is gone already is no error."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def end_all(lab: LabState, host: str) -> None:
    """End every process of ``host``, whatever it is, and wait until they are gone.

    Raises:
        HostError: some cannot be ended.
    """
    for _ in range(_END_ROUNDS):
        remaining = [pid for pid in members(lab, host) if start_time(pid)]
        if not remaining:
            return
        send(remaining, signal.SIGKILL)
        reap()
        time.sleep(_END_PAUSE)
    raise HostError(f"processes of host {host} do not end: {remaining}")


def reap() -> None:
    """Collect children of this process that have ended, so that no zombie is counted as alive."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def wait_until(
    condition: Callable[[], bool], *, seconds: float, what: Callable[[], str], pause: float = 0.05
) -> None:
    """Wait until ``condition`` holds, ``seconds`` (times :data:`PATIENCE`) at most.

    Raises:
        DeadlineError: it did not in time; ``what`` says what was waited for and how it stands.
    """
    deadline = time.monotonic() + seconds * PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineError(f"{what()} (waited {seconds * PATIENCE:g} s)")
        time.sleep(pause)
