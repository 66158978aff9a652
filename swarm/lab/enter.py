"""Become a process of a lab host: ``python -m swarm.lab.enter NETNS UTS -- COMMAND ...``.

Small on purpose: it is the first thing every daemon and every ``swarm lab exec`` runs.
"""

from __future__ import annotations

import os
import sys

from swarm.kernel import libc


def enter(netns: str, uts: str) -> None:
    """Move this single-threaded process into a host's namespaces.

    Raises:
        OSError: a namespace is gone, or the privilege is missing.
    """
    for path, kind in ((netns, libc.CLONE_NEWNET), (uts, libc.CLONE_NEWUTS)):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            libc.setns(descriptor, kind)
        finally:
            os.close(descriptor)


def execute(netns: str, uts: str, argv: list[str], environment: dict[str, str]) -> int:
    """Enter a host and become ``argv``; returns only on failure, with a shell's exit status."""
    try:
        enter(netns, uts)
    except OSError as error:
        print(f"cannot enter the host: {error}", file=sys.stderr)  # noqa: T201  # the caller's terminal
        return 125
    try:
        os.execvpe(argv[0], argv, environment)  # noqa: S606  # becoming the command is the point
    except FileNotFoundError:
        print(f"{argv[0]}: command not found", file=sys.stderr)  # noqa: T201
        return 127
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 126


if __name__ == "__main__":
    sys.exit(execute(sys.argv[1], sys.argv[2], sys.argv[4:], dict(os.environ)))
