"""Enter a network namespace from a worker thread, and come back.

Namespaces belong to threads. A socket keeps for life the namespace of the thread that made it, so the
way to serve many namespaces from one event loop is: a worker thread enters, makes the sockets, comes
back, and hands them over.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from swarm.errors import HostError, InvalidArgumentError, InvariantError, NotFoundError
from swarm.kernel import libc

_NS_GET_NSTYPE = 0xB703  # _IO(0xb7, 3), linux/nsfs.h
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1
_IFREQ = struct.Struct("16sH22x")  # struct ifreq: name, then the union's short


def open_netns(path: str | os.PathLike[str]) -> int:
    """Open a network namespace by its path and return a descriptor that the caller must close.

    The descriptor keeps the namespace alive: hold it no longer than needed.

    Raises:
        NotFoundError: nothing is there (the process or the named namespace is gone).
        InvalidArgumentError: the path is not a network namespace.
        HostError: the namespace may not be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, NotADirectoryError) as error:
        raise NotFoundError(f"network namespace {os.fspath(path)} does not exist") from error
    except OSError as error:
        raise HostError(f"network namespace {os.fspath(path)} cannot be opened: {error}") from error
    try:
        kind = fcntl.ioctl(descriptor, _NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != libc.CLONE_NEWNET:
        os.close(descriptor)
        raise InvalidArgumentError(f"{os.fspath(path)} is not a network namespace")
    return descriptor


@contextmanager
def in_netns(target: str | os.PathLike[str] | int) -> Iterator[None]:
    """Run the body of the ``with`` statement inside a network namespace.

    For worker threads: only the calling thread moves. Threads started inside stay inside. Never await
    in the body.

    Args:
        target: a path, or a descriptor (which stays open).

    Raises:
        NotFoundError: the path does not exist.
        InvalidArgumentError: it is not a network namespace.
        HostError: entering is not permitted.
        InvariantError: the thread could not come back; it must not be used any more.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        own = not isinstance(target, int)
        there = target if isinstance(target, int) else open_netns(target)
        try:
            libc.setns(there, libc.CLONE_NEWNET)
        except OSError as error:
            raise HostError(f"cannot enter the network namespace: {error}") from error
        finally:
            if own:
                os.close(there)
        try:
            yield
        finally:
            try:
                libc.setns(home, libc.CLONE_NEWNET)
            except OSError as error:  # pragma: no cover  # needs a privilege lost half way
                raise InvariantError(f"thread is lost in a network namespace: {error}") from error
    finally:
        os.close(home)


def loopback_up() -> None:
    """Bring ``lo`` up in the calling thread's network namespace, if it is down.

    Raises:
        OSError: the kernel refused.

    Source: netdevice(7), SIOCGIFFLAGS and SIOCSIFFLAGS.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as handle:
        request = _IFREQ.pack(b"lo", 0)
        _, flags = _IFREQ.unpack(fcntl.ioctl(handle, _SIOCGIFFLAGS, request))
        if not flags & _IFF_UP:
            fcntl.ioctl(handle, _SIOCSIFFLAGS, _IFREQ.pack(b"lo", flags | _IFF_UP))
