"""The manager process of a manager node: started, watched, started again.

The manager is a process of its own so that a busy data plane never delays a Raft heartbeat; its death
never touches the data plane, and the agent's death never touches the manager: the next agent finds it
by its pid file and goes on watching.

The manager says it is ready through ``NOTIFY_SOCKET`` (``READY=1``), and what keeps it from that through
``STATUS=``, as a systemd service would (sd_notify(3)).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from swarm.errors import DeadlineError, HostError
from swarm.identity.sockets import unix_path

BACKOFF_BASE: Final = 0.2
BACKOFF_MAX: Final = 10.0
STEADY: Final = 30.0
"""Seconds after which a start counts as a success and the backoff begins anew."""

STOP_TIMEOUT: Final = 10.0
EXIT_LOCKED: Final = 3
"""Status of a manager that needs the unlock key (or another one)."""

EXIT_RETIRED: Final = 4
"""Status of a manager that was removed from the managers' group: it has nothing to do any more."""

MAX_NOTICE: Final = 4096

log = structlog.get_logger(component="supervisor")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Process:
    """A process held by descriptor, so that its number cannot come to mean another one."""

    pid: int
    fd: int
    child: subprocess.Popen[bytes] | None


class Supervisor:
    """Keeps one manager process running while ``run()`` runs; stops it when that is cancelled.

    Args:
        state_dir: passed on.
        run_dir: passed on; also for the pid file and the notification socket.
        log_level: passed on.
        argv: the command; the manager of this installation when absent.
    """

    def __init__(
        self,
        *,
        state_dir: Path,
        run_dir: Path,
        log_level: str = "info",
        argv: Sequence[str] | None = None,
    ) -> None:
        self._run_dir = run_dir
        self._argv = (
            list(argv)
            if argv is not None
            else [
                *(sys.executable, "-m", "manager"),
                *("--state-dir", str(state_dir), "--run-dir", str(run_dir)),
                *("--log-level", log_level),
            ]
        )
        self._notify_path = run_dir / "manager.notify"
        self._pid_path = run_dir / "manager.pid"
        self._ready = asyncio.Event()
        self._exited = asyncio.Event()
        self.status = ""
        """What the manager last said of itself, or how it ended; for a person."""
        self.locked = False
        """The manager's keys are locked: it is started again only with :meth:`unlock`."""
        self.retired = False
        """The manager is none any more; it is not started again."""
        self._unlock_key = ""
        self._unlocked = asyncio.Event()
        self.pid: int | None = None
        """The process, while there is one."""
        self.starts = 0
        """How often a process was started (adopting one does not count)."""

    async def ready(self, within: float) -> None:
        """Wait until the manager serves.

        Raises:
            HostError: it ended first; the text is its own last word.
            DeadlineError: it took longer than ``within`` seconds.
        """
        async with asyncio.TaskGroup() as group:
            ready = group.create_task(self._ready.wait())
            exited = group.create_task(self._exited.wait())
            done, _ = await asyncio.wait(
                {ready, exited}, timeout=within, return_when=asyncio.FIRST_COMPLETED
            )
            ready.cancel()
            exited.cancel()
        if self._ready.is_set():
            return
        if done:
            raise HostError(f"the manager did not start: {self.status}")
        raise DeadlineError(
            f"the manager did not get ready within {within:.0f} s"
            + (f" (it says: {self.status})" if self.status else "")
        )

    def unlock(self, key: str) -> None:
        """Start a locked manager with its unlock key (text form); a wrong one locks it again."""
        self._unlock_key = key
        self.locked = False
        self._exited.clear()
        self._unlocked.set()

    async def run(self) -> None:
        """Keep the manager running until cancelled, then stop it.

        Raises:
            HostError: the notification socket cannot be made.
        """
        loop = asyncio.get_running_loop()
        notices = self._listen()
        loop.add_reader(notices.fileno(), self._noticed, notices)
        try:
            backoff = 0.0
            while True:
                began = loop.time()
                process = self._adopt() or await self._start()
                if process is not None:
                    await self._watch(process)
                if self.retired:
                    log.info("manager.retired", status=self.status)
                    await loop.create_future()
                if self.locked:
                    log.warning("manager.locked")
                    await self._unlocked.wait()
                    self._unlocked.clear()
                    continue
                backoff = 0.0 if loop.time() - began > STEADY else backoff
                backoff = min(max(2 * backoff, BACKOFF_BASE), BACKOFF_MAX)
                log.warning("manager.restarting", status=self.status, seconds=backoff)
                await asyncio.sleep(backoff)
        finally:
            loop.remove_reader(notices.fileno())
            notices.close()
            self._notify_path.unlink(missing_ok=True)

    def _listen(self) -> socket.socket:
        unix_path(self._notify_path)
        notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._notify_path.unlink(missing_ok=True)
            notices.bind(str(self._notify_path))
        except OSError as error:
            notices.close()
            raise HostError(f"cannot listen on {self._notify_path}: {error.strerror}") from error
        return notices

    def _noticed(self, notices: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                for line in notices.recv(MAX_NOTICE).decode("utf-8", "replace").splitlines():
                    key, _, value = line.partition("=")
                    if key == "STATUS":
                        self.status = value
                    elif key == "READY" and value == "1":
                        self._ready.set()

    def _adopt(self) -> _Process | None:
        """Take over the manager of an earlier agent, if it still runs."""
        try:
            known = json.loads(self._pid_path.read_bytes())
            pid, started = int(known["pid"]), str(known["started"])
            fd = os.pidfd_open(pid)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if _started(pid) != started:
            os.close(fd)
            return None
        log.info("manager.adopted", pid=pid)
        self._ready.set()  # it said so to the earlier agent, or the session will find out
        return _Process(pid=pid, fd=fd, child=None)

    async def _start(self) -> _Process | None:
        self.status = ""
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(self._notify_path),
        }
        argv = [*self._argv, "--unlock"] if self._unlock_key else self._argv
        try:
            # A session of its own: Ctrl-C at the agent's terminal must leave the stopping to the agent.
            child = subprocess.Popen(  # noqa: ASYNC220  # exec is done in a millisecond
                argv,
                env=environment,
                stdin=subprocess.PIPE if self._unlock_key else subprocess.DEVNULL,
                start_new_session=True,
            )
            if child.stdin is not None:
                with contextlib.suppress(OSError), child.stdin:
                    child.stdin.write(self._unlock_key.encode() + b"\n")
        except OSError as error:
            self.status = f"cannot start {self._argv[0]}: {error.strerror}"
            self._exited.set()
            return None
        self.starts += 1
        fd = os.pidfd_open(child.pid)
        content = {"pid": child.pid, "started": _started(child.pid)}
        self._pid_path.write_text(json.dumps(content))
        log.info("manager.started", pid=child.pid)
        return _Process(pid=child.pid, fd=fd, child=child)

    async def _watch(self, process: _Process) -> None:
        """Wait for the process's end; when cancelled, bring the end about."""
        self.pid = process.pid
        self._exited.clear()
        try:
            await _ended(process.fd)
        finally:
            if not _is_over(process.fd):
                await self._stop(process)
            self.pid = None
            self._ready.clear()
            os.close(process.fd)
            code = None if process.child is None else process.child.wait()
            self.locked = code == EXIT_LOCKED
            self.retired = code == EXIT_RETIRED
            self._pid_path.unlink(missing_ok=True)
            if code not in {None, 0} and not self.status:
                self.status = _ending(code)
            self._exited.set()
            log.info("manager.ended", pid=process.pid, code=code, status=self.status)

    async def _stop(self, process: _Process) -> None:
        """Ask it to end, then make it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process.fd, number)
            if await _ended(process.fd, STOP_TIMEOUT):
                return


async def _ended(fd: int, within: float | None = None) -> bool:
    """Wait until the process of a pidfd has ended, ``within`` seconds at most; tell whether it has.

    In a task that was cancelled, Python before 3.11.3 takes ``asyncio.timeout`` for one more cancellation
    (gh-102780): a timer does here.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[bool] = loop.create_future()

    def settle(has: bool) -> None:
        if not ended.done():
            ended.set_result(has)

    loop.add_reader(fd, settle, True)
    timer = None if within is None else loop.call_later(within, settle, False)
    try:
        return await ended
    finally:
        loop.remove_reader(fd)
        if timer is not None:
            timer.cancel()


def _is_over(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _started(pid: int) -> str:
    """Return a process's start time in clock ticks since boot: with the pid, it names one process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"the manager was ended by signal {-code}"
    return f"the manager ended with status {code}"
