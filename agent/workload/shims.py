"""The agent's dealings with shims: start one, ask it something, have it end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from agent.workload.session import Link, connect
from swarm.errors import DeadlineError, HostError, UnavailableError

SETUP: Final = 40.0
"""Seconds a shim may take to make a workload's namespaces (it takes about 0.1)."""
ANSWER: Final = 10.0
"""Seconds a shim may take to answer."""

_ROOT: Final = Path(__file__).resolve().parent.parent.parent  # where the agent package is


async def spawn(directory: Path) -> dict[str, Any]:
    """Start a shim and return its first status, once the namespaces exist.

    Raises:
        HostError: the namespaces cannot be made.
    """
    with (directory / "shim.log").open("wb") as errors:
        # Without site: the shim needs the standard library only, and starts in half the time.
        starter = await asyncio.create_subprocess_exec(
            sys.executable,
            "-S",
            "-P",
            "-m",
            "agent.workload.shim",
            str(directory),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={"PYTHONPATH": str(_ROOT)},
            cwd="/",
        )
    reporting = asyncio.ensure_future(starter.communicate())
    try:
        async with asyncio.timeout(SETUP):
            output, _ = await asyncio.shield(reporting)
    except asyncio.CancelledError:
        # It will come up all the same, and nobody else knows of it.
        await reporting
        with suppress(UnavailableError):
            async with await connect(directory) as link:
                await link.request("release")
        raise
    except TimeoutError as error:
        reporting.cancel()
        raise HostError("the workload's namespaces could not be made in time") from error
    report: dict[str, Any] = json.loads(output) if output else {}
    if "status" in report:
        status: dict[str, Any] = report["status"]
        return status
    reason = report.get("error") or (directory / "shim.log").read_text(errors="replace").strip()
    raise HostError(f"cannot create the workload: {reason or 'the shim was killed'}")


async def begin(
    directory: Path, operation: str, **arguments: object
) -> tuple[Link, dict[str, Any]]:
    """Connect to a shim for a session and return the link with the reply.

    Raises:
        ShimGoneError: there is no shim any more.
        UnavailableError: it cannot be reached now.
        DeadlineError: it does not answer.
    """
    try:
        async with asyncio.timeout(ANSWER):
            link = await connect(directory)
            try:
                return link, await link.request(operation, **arguments)
            except BaseException:
                link.close()
                raise
    except TimeoutError as error:
        raise DeadlineError("the workload's shim does not answer in time") from error


async def ask(directory: Path, operation: str, **arguments: object) -> dict[str, Any]:
    """Ask a shim one thing.

    Raises:
        ShimGoneError: there is no shim any more.
        UnavailableError: it cannot be reached now.
        DeadlineError: it does not answer.
    """
    link, reply = await begin(directory, operation, **arguments)
    link.close()
    return reply


async def release(directory: Path) -> None:
    """Have a shim end, and with it the namespaces; return once it has, or when it cannot be asked."""
    with suppress(UnavailableError, DeadlineError):
        status = (await ask(directory, "status"))["status"]
        # It answers, so its process id is still its own.
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(status["shim_pid"])
            try:
                await _release_and_wait(directory, descriptor)
            finally:
                os.close(descriptor)


async def _release_and_wait(directory: Path, descriptor: int) -> None:
    reply = await ask(directory, "release")
    if not reply["ok"]:
        return
    try:
        async with asyncio.timeout(ANSWER):
            await _readable(descriptor)
    except TimeoutError as error:
        raise DeadlineError("the workload's shim does not end") from error


async def _readable(descriptor: int) -> None:
    """Wait until a descriptor is readable; a pidfd is once its process has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)
