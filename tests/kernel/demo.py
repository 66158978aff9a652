"""``python -m kernel.demo``: the encrypted demo under Debian's stock kernel, in an emulated machine."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from kernel import machine

TIMEOUT = 1500
"""Seconds for all of it; see docs/dataplane.md for what was measured."""
PATIENCE = 15
"""How many times slower than usual things may be there."""


def run(share: Path, say: Callable[[str], None] | None = None) -> machine.Result:
    """Run ``swarm lab demo --encrypted`` in the guest.

    Raises:
        machine.UnavailableError: the machine cannot be had here; the text says why.
    """
    cache = machine.prepare()
    return machine.run(
        [sys.executable, str(Path(__file__).with_name("quick.py"))],
        cache=cache,
        share=share,
        environment={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": "/run",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "SWARM_LAB_PATIENCE": str(PATIENCE),
        },
        keep=(Path(sys.prefix),),
        timeout=TIMEOUT,
        say=say,
    )


def main() -> int:
    """Boot, show what the demo says, and end as it ended."""
    _say("booting Debian's stock kernel under emulation; this takes some minutes\n")
    with tempfile.TemporaryDirectory(prefix="swarm-kernel-") as folder:
        try:
            done = run(Path(folder), _say)
        except machine.UnavailableError as error:
            sys.stderr.write(f"Error: {error}\n")
            return 1
    if done.status is None:
        sys.stderr.write(f"the machine ended without an answer: {done.console[-2000:]}\n")
        return 1
    _say(f"({done.seconds:.0f} s in the emulated machine)\n")
    return done.status


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
