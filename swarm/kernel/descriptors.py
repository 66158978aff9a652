"""File descriptors: how many there may be; low numbers are scarce, since some C libraries use select(2)."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
from typing import Final

FIRST_HIGH: Final = 1024
"""FD_SETSIZE: what select(2) cannot wait for begins here."""

MOST_FILES: Final = 1 << 20
"""What the unit file of the service allows, too."""


def allow_many() -> int:
    """Let this process and those it starts open as many files as they may, 1048576 at most; returns how many.

    A shell usually begins with 1024; a node needs two for each container, and others.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def lifted(sock: socket.socket) -> socket.socket:
    """Return a socket under a number select(2) cannot use, in the place of the one given.

    For sockets of which a process has thousands: the low numbers stay free for who needs them. Where the
    limit of open files allows no such number, the socket is returned as it is.

    Raises:
        OSError: too many files are open; the socket is still good.
    """
    if sock.fileno() >= FIRST_HIGH:
        return sock
    try:
        number = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, FIRST_HIGH)
    except OSError as error:
        if error.errno == errno.EINVAL:  # beyond RLIMIT_NOFILE
            return sock
        raise
    high = socket.socket(fileno=number)
    high.settimeout(sock.gettimeout())
    sock.close()
    return high


def lowest_free() -> int:
    """Return the number that the next file opened by this process will have."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    os.close(writing)
    os.close(reading)
    return min(reading, writing)
