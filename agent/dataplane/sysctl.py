"""Sysctls of the calling thread's network namespace."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

from swarm.errors import HostError

PROC = Path("/proc/sys")
USES = 128
"""Namespaces that one private procfs is used for; making one costs a few of them."""
_ROOTS = ("net/ipv4/", "net/ipv6/")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same on every architecture
_libc = ctypes.CDLL(None, use_errno=True)


class Source:
    """Where :class:`Tree` finds ``/proc/sys``: a private instance of procfs, a fresh one every so often.

    The ``net/ipv4`` of all namespaces are entries of one name in one directory, and the kernel looks
    through all that were ever looked for until it finds this thread's: a millisecond with some
    thousands. A fresh instance knows none. Where one may not be made, the host's is used.

    Source: Linux ``fs/proc/proc_sysctl.c`` (``proc_sys_compare``), ``fsopen(2)``, ``fsmount(2)``.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._uses = 0

    def directory(self) -> int:
        """Return a descriptor of the ``sys`` directory, good until the next call."""
        if self._fd < 0 or self._uses >= USES:
            self.close()
            self._fd, self._uses = _private_proc(), 0
        self._uses += 1
        return self._fd

    def close(self) -> None:
        """Let go; the instance ends."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _private_proc() -> int:
    context = _libc.syscall(_FSOPEN, b"proc", 1)  # FSOPEN_CLOEXEC
    if context < 0:
        return _host_proc()
    try:
        if _libc.syscall(_FSCONFIG, context, 6, None, None, 0) < 0:  # FSCONFIG_CMD_CREATE
            return _host_proc()
        mount = _libc.syscall(_FSMOUNT, context, 1, 0)  # FSMOUNT_CLOEXEC
        if mount < 0:
            return _host_proc()
        try:
            return os.open("sys", _DIRECTORY, dir_fd=mount)
        finally:
            os.close(mount)
    finally:
        os.close(context)


def _host_proc() -> int:
    return os.open(PROC, _DIRECTORY)


class Tree:
    """The sysctls of the namespace it is first used in, reached from open directories.

    Args:
        source: where to look; the host's procfs without.
    """

    def __init__(self, source: Source | None = None) -> None:
        self._source = source
        self._roots: dict[str, int] = {}

    def close(self) -> None:
        """Let go."""
        while self._roots:
            os.close(self._roots.popitem()[1])

    def read(self, path: str) -> str | None:
        """Return a value, None when there is no such sysctl."""
        try:
            with os.fdopen(self._open(path, os.O_RDONLY), encoding="ascii") as file:
                return file.read().strip()
        except OSError:
            if path.endswith("/disable_ipv6") and not (PROC / "net/ipv6").exists():
                return "1"  # without IPv6 in the kernel it is off everywhere
            return None

    def write(self, path: str, value: str) -> None:
        """Set a value.

        Raises:
            HostError: the kernel refused.
        """
        try:
            with os.fdopen(self._open(path, os.O_WRONLY), "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            if path.endswith("/disable_ipv6") and value == "1" and error.errno == errno.ENOENT:
                return  # no IPv6 in this kernel: nothing to switch off
            raise HostError(f"cannot set {path}: {error.strerror}") from error

    def _open(self, path: str, flags: int) -> int:
        root = path[: len(_ROOTS[0])]
        if root not in _ROOTS:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if root not in self._roots:
            if self._source is None:
                self._roots[root] = os.open(PROC / root, _DIRECTORY)
            else:
                self._roots[root] = os.open(root, _DIRECTORY, dir_fd=self._source.directory())
        return os.open(path.removeprefix(root), flags | os.O_CLOEXEC, dir_fd=self._roots[root])


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
