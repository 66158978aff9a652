"""System calls that Python 3.11 does not wrap, as functions that raise OSError."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x0002_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x8_0000

MNT_DETACH = 0x2

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (children, for ``CLONE_NEWPID``).

    Raises:
        OSError: the kernel refused.

    Source: unshare(2).
    """
    _check(_libc.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace behind ``descriptor``, of the given kind.

    Raises:
        OSError: the descriptor is no namespace of that kind, or the privilege is missing.

    Source: setns(2).
    """
    _check(_libc.setns(descriptor, kind), "setns")


def mount(source: str, target: str, *, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount ``source`` on ``target``.

    Raises:
        OSError: the kernel refused.

    Source: mount(2).
    """
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        flags,
        data.encode() or None,
    )
    _check(result, f"mount {source} on {target}")


def unmount(target: str, *, flags: int = 0) -> None:
    """Unmount what is on ``target``.

    Raises:
        OSError: the kernel refused.

    Source: umount2(2).
    """
    _check(_libc.umount2(os.fsencode(target), flags), f"unmount {target}")


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send this process ``signal_number`` when the parent thread ends.

    The setting does not reach back in time: a parent that ended before the call is not noticed.

    Source: prctl(2), PR_SET_PDEATHSIG.
    """
    _check(_libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "prctl")


def set_process_name(name: str) -> None:
    """Name the calling thread for ``ps`` and friends; the kernel keeps 15 bytes.

    Source: prctl(2), PR_SET_NAME.
    """
    _check(_libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")
