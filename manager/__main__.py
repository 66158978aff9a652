"""``python -m manager``: run a manager as the agent's supervisor starts it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import signal
import sys
from pathlib import Path
from typing import Final

import structlog
import uvloop

from manager.notify import Notifier
from manager.process import serve
from manager.raft.errors import LockedError as RaftLockedError
from manager.raft.errors import RemovedError
from swarm.errors import SwarmError
from swarm.identity.keystore import LockedError
from swarm.identity.unlock import parse_unlock_key
from swarm.log import LEVELS, configure

EXIT_FAILED: Final = 1
EXIT_LOCKED: Final = 3
"""Exit code of a manager that needs the unlock key (or another one)."""

EXIT_RETIRED: Final = 4
"""Exit code of a manager that was removed from the managers' group."""

COLLECTION: Final = (50_000, 20, 50)
"""Thresholds of the garbage collector. The store makes many objects that live long and hold no
cycles; with Python's own thresholds, searching them for cycles is a quarter of a write's cost."""

log = structlog.get_logger("manager")


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    options = _parser().parse_args(arguments)
    gc.set_threshold(*COLLECTION)
    configure(level=options.log_level)
    notifier = Notifier.from_environment()
    try:
        unlock_key = parse_unlock_key(sys.stdin.readline()) if options.unlock else None
        uvloop.run(_run(options.state_dir, options.run_dir, unlock_key, notifier))
    except SwarmError as error:
        log.debug("manager.failed", exc_info=error)
        return _fail(notifier, str(error), _code(error))
    except Exception as error:  # the last line of defence: say it and end
        log.exception("manager.failed")
        return _fail(notifier, f"internal error: {type(error).__name__}: {error}", EXIT_FAILED)
    return 0


async def _run(
    state_dir: Path, run_dir: Path, unlock_key: bytes | None, notifier: Notifier
) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.ensure_future(
        serve(state_dir, run_dir, unlock_key=unlock_key, notifier=notifier)
    )
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        notifier.stopping()
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await task
    except asyncio.CancelledError:
        if not stopping:
            raise


def _code(error: SwarmError) -> int:
    if isinstance(error, LockedError | RaftLockedError):
        return EXIT_LOCKED
    return EXIT_RETIRED if isinstance(error, RemovedError) else EXIT_FAILED


def _fail(notifier: Notifier, text: str, code: int) -> int:
    notifier.status(text)
    with contextlib.suppress(OSError):
        print(" ".join(text.split()), file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m manager", description="Run a swarm manager.")
    parser.add_argument("--state-dir", type=Path, required=True, help="holds manager.json")
    parser.add_argument("--run-dir", type=Path, required=True, help="for sockets")
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    parser.add_argument(
        "--unlock", action="store_true", help="read the unlock key from standard input"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
