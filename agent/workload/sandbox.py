"""A workload's namespaces, made by the shim for itself and its children.

The shim is in all of them but the PID namespace, whose first process is a tiny reaper
(:func:`start_init`): every process of the workload ends with it, and it ends with the shim.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import NoReturn

from swarm.kernel import libc
from swarm.kernel.netns import loopback_up

MAX_DESCRIPTOR = 1 << 16
"""Above every descriptor a process here can have."""

_FILES = {
    # name in the workload's directory: (where it appears, whether the workload is wrong without it)
    "resolv.conf": ("/etc/resolv.conf", True),
    "hosts": ("/etc/hosts", True),
    "hostname": ("/etc/hostname", False),
}


class SandboxError(Exception):
    """The namespaces could not be made; the text says which step failed."""


def enter(directory: str, hostname: str) -> None:
    """Move the calling (single-threaded) process into new namespaces and arrange its files.

    Args:
        directory: path of the workload's directory (a descriptor from before would belong to the old
            mount namespace, from which nothing can be bound).
        hostname: the workload's host name.

    Raises:
        SandboxError: a step failed; the process is of no further use.
    """
    try:
        libc.unshare(
            libc.CLONE_NEWNET
            | libc.CLONE_NEWNS
            | libc.CLONE_NEWUTS
            | libc.CLONE_NEWIPC
            | libc.CLONE_NEWPID
        )
        # Unmounts on the host still reach us, so that we hold no disk hostage; ours stay here.
        libc.mount("none", "/", flags=libc.MS_REC | libc.MS_SLAVE)
        for name, (target, needed) in _FILES.items():
            if not needed and not os.path.exists(target):  # noqa: PTH110  # pathlib costs start-up
                continue
            libc.mount(f"{directory}/{name}", target, flags=libc.MS_BIND)
        _mount_sys()
        socket.sethostname(hostname)
        loopback_up()
    except OSError as error:
        raise SandboxError(f"cannot make the workload's namespaces: {error}") from error


def _mount_sys() -> None:
    """Mount a ``/sys`` that shows the new network namespace, and keep the control groups."""
    flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
    try:
        groups = os.open("/sys/fs/cgroup", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        groups = -1
    libc.mount("sysfs", "/sys", kind="sysfs", flags=flags)
    if groups >= 0:
        with contextlib.suppress(OSError):  # a kernel without control groups has no such directory
            source = f"/proc/self/fd/{groups}"
            libc.mount(source, "/sys/fs/cgroup", flags=libc.MS_BIND | libc.MS_REC)
        os.close(groups)


def start_init() -> int:
    """Fork the first process of the new PID namespace and return its id.

    It mounts the namespace's ``/proc`` (only a process inside can), after which ``/proc/self`` no
    longer works for the caller, and then only reaps orphans.

    Raises:
        SandboxError: ``/proc`` could not be mounted.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _init(writer)
    os.close(writer)
    problem = b""
    while piece := os.read(reader, 4096):
        problem += piece
    os.close(reader)
    if problem != b"ok":
        os.waitpid(pid, 0)
        text = problem.decode("utf-8", "replace") or "it died"
        raise SandboxError(f"cannot start the workload's first process: {text}")
    return pid


def _init(report: int) -> NoReturn:
    try:
        libc.die_with_parent(signal.SIGKILL)
        libc.set_process_name("swarm-init")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel then reaps by itself
        flags = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC
        libc.mount("proc", "/proc", kind="proc", flags=flags)
        # Fails if the shim died before die_with_parent() took effect, and so do we.
        os.write(report, b"ok")
        os.closerange(0, MAX_DESCRIPTOR)
        while True:
            signal.pause()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.write(report, str(error).encode())
    finally:
        os._exit(1)
