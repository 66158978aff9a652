"""The supervisor, with real small processes in place of the manager."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent import supervisor as module
from agent.supervisor import Supervisor
from swarm.errors import DeadlineError, HostError

NOTIFY = (
    "import os, socket, sys, time\n"
    "def say(text):\n"
    "    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:\n"
    "        s.sendto(text.encode(), os.environ['NOTIFY_SOCKET'])\n"
)


def _program(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "manager.py"
    path.write_text(NOTIFY + body)
    return [sys.executable, str(path)]


def _make(tmp_path: Path, body: str) -> Supervisor:
    return Supervisor(state_dir=tmp_path, run_dir=tmp_path, argv=_program(tmp_path, body))


@contextlib.asynccontextmanager
async def _running(supervisor: Supervisor) -> AsyncIterator[asyncio.Task[None]]:
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(supervisor.run())
        yield task
        task.cancel()


async def test_ready_is_what_the_process_says(tmp_path: Path) -> None:
    """And cancelling ends it, its files included."""
    supervisor = _make(tmp_path, "say('READY=1\\nSTATUS=serving')\ntime.sleep(60)\n")
    async with _running(supervisor) as task:
        await supervisor.ready(10)
        pid = supervisor.pid
        assert supervisor.status == "serving"
        task.cancel()
        await asyncio.wait({task})
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (tmp_path / "manager.pid").exists()


async def test_a_process_that_cannot_start_gives_its_reason(tmp_path: Path) -> None:
    """The person sees why, not that something failed."""
    supervisor = _make(tmp_path, "say('STATUS=port 2377 is taken')\nsys.exit(1)\n")
    async with _running(supervisor):
        with pytest.raises(HostError, match="port 2377 is taken"):
            await supervisor.ready(10)


async def test_a_process_that_never_gets_ready(tmp_path: Path) -> None:
    """The last status tells what it is at."""
    supervisor = _make(tmp_path, "say('STATUS=replaying the log')\ntime.sleep(60)\n")
    async with _running(supervisor):
        with pytest.raises(DeadlineError):
            await supervisor.ready(0.01)


async def test_a_killed_process_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With growing pauses, and it gets ready again."""
    monkeypatch.setattr(module, "BACKOFF_BASE", 0.01)
    supervisor = _make(tmp_path, "say('READY=1')\ntime.sleep(60)\n")
    async with _running(supervisor):
        await supervisor.ready(10)
        first = supervisor.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        while supervisor.starts < 2:  # noqa: ASYNC110  # nothing announces a start
            await asyncio.sleep(0.01)
        await supervisor.ready(10)
        assert supervisor.pid not in {None, first}


async def test_a_stubborn_process_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGTERM first, then SIGKILL."""
    monkeypatch.setattr(module, "STOP_TIMEOUT", 0.1)
    body = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('READY=1')\ntime.sleep(60)\n"
    supervisor = _make(tmp_path, body)
    async with _running(supervisor):
        await supervisor.ready(10)
        pid = supervisor.pid
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_a_manager_outlives_its_agent_and_is_found_again(tmp_path: Path) -> None:
    """The next supervisor adopts it by pid and start time, and can stop it."""
    argv = _program(tmp_path, "time.sleep(60)\n")
    orphan = await asyncio.create_subprocess_exec(*argv)
    started = module._started(orphan.pid)
    (tmp_path / "manager.pid").write_text(json.dumps({"pid": orphan.pid, "started": started}))
    supervisor = Supervisor(state_dir=tmp_path, run_dir=tmp_path, argv=argv)
    async with _running(supervisor):
        await supervisor.ready(10)
        assert (supervisor.pid, supervisor.starts) == (orphan.pid, 0)
    assert await orphan.wait() == -signal.SIGTERM


async def test_another_process_with_that_number_is_left_alone(tmp_path: Path) -> None:
    """A pid file from before a reboot must not stop a stranger."""
    (tmp_path / "manager.pid").write_text(json.dumps({"pid": os.getpid(), "started": "1"}))
    supervisor = _make(tmp_path, "say('READY=1')\ntime.sleep(60)\n")
    async with _running(supervisor):
        await supervisor.ready(10)
        assert supervisor.pid != os.getpid()
        assert supervisor.starts == 1


async def test_a_locked_manager_waits_for_its_key(tmp_path: Path) -> None:
    """It is not started again and again; the key reaches it on standard input."""
    body = (
        "if '--unlock' not in sys.argv:\n    sys.exit(3)\n"
        "say('READY=1\\nSTATUS=' + sys.stdin.readline().strip())\ntime.sleep(60)\n"
    )
    supervisor = _make(tmp_path, body)
    async with _running(supervisor):
        with pytest.raises(HostError):
            await supervisor.ready(10)
        assert supervisor.locked
        supervisor.unlock("SWMKEY-1-x")
        while supervisor.starts < 2:  # noqa: ASYNC110  # nothing announces a start
            await asyncio.sleep(0.01)
        await supervisor.ready(10)
        assert supervisor.status == "SWMKEY-1-x"
