"""Network namespaces by file descriptor: make, keep, enter, leave.

Only the data plane's worker thread calls these: ``setns`` and ``unshare`` change the calling
thread alone. Python 3.11 has neither, hence ctypes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from swarm.errors import HostError, InvalidArgumentError, InvariantError, NotFoundError

CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_PRIVATE = 0x40000
MNT_DETACH = 2
NS_GET_NSTYPE = 0xB703  # linux/nsfs.h
OWN = "/proc/thread-self/ns/net"
_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not hold the worker up

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def open_own() -> int:
    """Return a new descriptor of the calling thread's network namespace."""
    return os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)


def open_netns(path: str) -> int:
    """Return a new descriptor of the network namespace at ``path``.

    Raises:
        NotFoundError: there is no such file (its process has ended).
        InvalidArgumentError: the file is not a network namespace.
    """
    try:
        fd = os.open(path, _READ)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise NotFoundError(f"there is no network namespace at {path}") from error
    except OSError as error:
        raise InvalidArgumentError(f"cannot open {path}: {error.strerror}") from error
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        os.close(fd)
        raise InvalidArgumentError(f"{path} is not a network namespace")
    return fd


def same(one: int, other: int) -> bool:
    """Tell whether two descriptors mean the same namespace."""
    first, second = os.fstat(one), os.fstat(other)
    return (first.st_dev, first.st_ino) == (second.st_dev, second.st_ino)


@contextlib.contextmanager
def entered(fd: int, home: int) -> Iterator[None]:
    """Run the body in namespace ``fd``; leave the thread in ``home`` whatever happens.

    Raises:
        InvariantError: the thread cannot return; it must not touch anything any more.
    """
    _check(_libc.setns(fd, CLONE_NEWNET), "setns")
    try:
        yield
    finally:
        if _libc.setns(home, CLONE_NEWNET) != 0:
            raise InvariantError("the worker thread cannot return to its network namespace")


@contextlib.contextmanager
def scratch(home: int) -> Iterator[int]:
    """Run the body in a new namespace that ends with it; yields its descriptor."""
    _check(_libc.unshare(CLONE_NEWNET), "unshare")
    fd = open_own()
    try:
        with entered(fd, home):
            yield fd
    finally:
        os.close(fd)


class Store:
    """Named namespaces that outlive the process: bind mounts on files in one directory.

    The directory is a private mount of its own. On a usual host every mount is shared, so a bind
    mount made there would be copied into each service's mount namespace and keep its network
    namespace alive for ever.
    """

    def __init__(self, directory: Path, home: int) -> None:
        self._directory = directory
        self._home = home

    def names(self) -> tuple[str, ...]:
        """Return the names that exist, sorted, without the debris of a crash."""
        if not self._directory.is_dir():
            return ()
        return tuple(
            sorted(path.name for path in self._directory.iterdir() if self._is_netns(path))
        )

    def open(self, name: str) -> int | None:
        """Return a descriptor of the namespace ``name``, None when there is none."""
        path = self._directory / name
        return open_netns(str(path)) if self._is_netns(path) else None

    def make(self, name: str) -> int:
        """Make the namespace ``name`` and return a descriptor of it.

        Raises:
            HostError: the process may not.
        """
        try:
            self._prepare()
            path = self._directory / name
            path.touch(mode=0o400)
            _check(_libc.unshare(CLONE_NEWNET), "unshare")
            fd = open_own()
            try:
                with entered(fd, self._home):
                    # A file already mounted over cannot be here: make is for absent names.
                    source, target = OWN.encode(), os.fsencode(path)
                    _check(_libc.mount(source, target, b"none", MS_BIND, None), "mount")
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise HostError(f"cannot make a network namespace: {error.strerror}") from error
        return fd

    def drop(self, name: str) -> None:
        """Forget the namespace ``name``; the kernel ends it with its last user."""
        path = self._directory / name
        while _libc.umount2(os.fsencode(path), MNT_DETACH) == 0:
            pass
        # Unlinking also detaches copies of the mount in other mount namespaces.
        path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the directory and its mount; the names in it must be gone."""
        if not self._directory.is_dir():
            return
        for path in self._directory.iterdir():
            self.drop(path.name)
        while _libc.umount2(os.fsencode(self._directory), MNT_DETACH) == 0:
            pass
        with contextlib.suppress(FileNotFoundError):
            self._directory.rmdir()

    def _prepare(self) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        target = os.fsencode(self._directory)
        if os.path.ismount(self._directory) or self._is_mounted():
            return
        _check(_libc.mount(target, target, b"none", MS_BIND, None), "mount")
        _check(_libc.mount(b"none", target, None, MS_PRIVATE, None), "mount")

    def _is_mounted(self) -> bool:
        # os.path.ismount cannot see a directory bound onto itself: same device, same inode.
        wanted = str(self._directory.resolve())
        for line in Path("/proc/thread-self/mountinfo").read_text(encoding="utf-8").splitlines():
            point = line.split(" ")[4]
            if point.encode().decode("unicode_escape") == wanted:
                return True
        return False

    @staticmethod
    def _is_netns(path: Path) -> bool:
        try:
            fd = os.open(path, _READ)
        except OSError:
            return False
        try:
            return fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
        except OSError as error:
            if error.errno in {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}:
                return False
            raise
        finally:
            os.close(fd)
