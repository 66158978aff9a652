"""Sysctls of the calling thread's network namespace."""

from __future__ import annotations

import errno
from pathlib import Path

from swarm.errors import HostError

PROC = Path("/proc/sys")


def read(path: str) -> str | None:
    """Return a value, None when there is no such sysctl."""
    try:
        return (PROC / path).read_text(encoding="ascii").strip()
    except OSError:
        if path.endswith("/disable_ipv6") and not (PROC / "net/ipv6").exists():
            return "1"  # without IPv6 in the kernel it is off everywhere
        return None


def write(path: str, value: str) -> None:
    """Set a value.

    Raises:
        HostError: the kernel refused.
    """
    try:
        (PROC / path).write_text(value, encoding="ascii")
    except OSError as error:
        if path.endswith("/disable_ipv6") and value == "1" and error.errno == errno.ENOENT:
            return  # no IPv6 in this kernel: nothing to switch off
        raise HostError(f"cannot set {path}: {error.strerror}") from error
