"""Sysctls of the calling thread's network namespace."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from swarm.errors import HostError

PROC = Path("/proc/sys")
_ROOTS = ("net/ipv4/", "net/ipv6/")


class Tree:
    """The sysctls of the namespace its constructor ran in, reached from open directories.

    Every namespace's ``/proc/sys/net/ipv4`` is an entry of one name in one directory, and the kernel
    looks through all of them to find this thread's: by path, each sysctl of the thousandth
    namespace costs what a hundred do here. Only that namespace's threads may use it.
    """

    def __init__(self) -> None:
        self._roots: dict[str, int] = {}
        for root in _ROOTS:
            with contextlib.suppress(FileNotFoundError):  # no IPv6 in this kernel
                self._roots[root] = os.open(
                    PROC / root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
                )

    def close(self) -> None:
        """Let go."""
        while self._roots:
            os.close(self._roots.popitem()[1])

    def read(self, path: str) -> str | None:
        """Return a value, None when there is no such sysctl."""
        try:
            with open(self._open(path, os.O_RDONLY), encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            if path.endswith("/disable_ipv6") and "net/ipv6/" not in self._roots:
                return "1"  # without IPv6 in the kernel it is off everywhere
            return None

    def write(self, path: str, value: str) -> None:
        """Set a value.

        Raises:
            HostError: the kernel refused.
        """
        try:
            with open(self._open(path, os.O_WRONLY), "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            if path.endswith("/disable_ipv6") and value == "1" and error.errno == errno.ENOENT:
                return  # no IPv6 in this kernel: nothing to switch off
            raise HostError(f"cannot set {path}: {error.strerror}") from error

    def _open(self, path: str, flags: int) -> int:
        for root, fd in self._roots.items():
            if path.startswith(root):
                return os.open(path.removeprefix(root), flags | os.O_CLOEXEC, dir_fd=fd)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def read(path: str) -> str | None:
    """Return a value, None when there is no such sysctl."""
    with contextlib.closing(Tree()) as tree:
        return tree.read(path)


def write(path: str, value: str) -> None:
    """Set a value.

    Raises:
        HostError: the kernel refused.
    """
    with contextlib.closing(Tree()) as tree:
        tree.write(path, value)
