"""The sockets under the tunnels: TCP listeners, private unix sockets, and addresses as text."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, NoReturn

from swarm.errors import HostError, InvalidArgumentError

BACKLOG: Final = 512
MAX_UNIX_PATH: Final = 107
"""Longest path a unix socket can have (``sun_path`` less its final zero)."""

KEEPALIVE_IDLE: Final = 30
KEEPALIVE_INTERVAL: Final = 10
KEEPALIVE_COUNT: Final = 3
"""Seconds, seconds, probes: a peer that vanished is noticed after about a minute of silence."""

_USER_TIMEOUT_MS: Final = 60_000
_ACCEPT_BATCH: Final = 64
_ACCEPT_PAUSE: Final = 0.2
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_CONNECT_RETRY: Final = 0.02
_CONNECT_TRIES: Final = 100
_NO_SUCH_FAMILY: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})


def private_directory(path: Path) -> Path:
    """Make a directory only this user can enter (0700), or tighten the one that is there.

    Raises:
        HostError: it cannot be made, is no directory, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat(follow_symlinks=False)
        if status.st_uid != os.geteuid():
            raise HostError(f"{path} belongs to user {status.st_uid}, not to the user running this")
        if status.st_mode & 0o777 != 0o700:
            path.chmod(0o700)
    except OSError as error:
        raise HostError(f"cannot prepare the directory {path}: {error.strerror}") from error
    return path


def split_target(target: str) -> tuple[str, int]:
    """Take ``host:port`` or ``[ipv6]:port`` apart.

    Raises:
        InvalidArgumentError: it is neither; the message says so.
    """
    host, colon, port = target.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise InvalidArgumentError(f"{target[:256]!r} is not host:port")
    if not 1 <= int(port) <= 65535:
        raise InvalidArgumentError(f"port {port} is not between 1 and 65535")
    if ":" in host and not bracketed:
        raise InvalidArgumentError(f"write the IPv6 address in brackets: [{host[:256]}]:{port}")
    return host, int(port)


def join_address(host: str, port: int) -> str:
    """Write ``ip:port``, IPv6 in brackets and IPv4-mapped addresses as the IPv4 they are."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host}:{port}"
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return f"{mapped}:{port}" if mapped is not None else f"[{host}]:{port}"
    return f"{host}:{port}"


def listen_tcp(host: str, port: int) -> list[socket.socket]:
    """Bind and listen; an empty host means every address of both families.

    Args:
        host: an address, or ``""`` for 0.0.0.0 and [::] together (IPv4 alone where IPv6 is off).
        port: 0 lets the kernel choose, the same one for both families.

    Raises:
        HostError: an address cannot be bound; the text names it and the reason.
    """
    if host:
        return [_bind(host, port)]
    first = _bind("0.0.0.0", port)
    try:
        return [first, _bind("::", first.getsockname()[1])]
    except HostError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _NO_SUCH_FAMILY:
            return [first]
        first.close()
        raise


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = join_address(host, port)
    listener: socket.socket | None = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise HostError(f"cannot listen on {where}: {reason}") from error
    return listener


async def accept(
    listener: socket.socket,
    take: Callable[[socket.socket, Any], None],
    trouble: Callable[[OSError], None],
) -> NoReturn:
    """Accept connections until cancelled; the listener stays open.

    The loop's own ``sock_accept`` can lose a connection that arrives while it is being cancelled.

    Args:
        listener: non-blocking.
        take: called with each connection and its peer's address, in the loop; owns the socket.
        trouble: called when the machine is out of descriptors or memory; accepting pauses for 0.2 s then,
            since the waiting connection would otherwise spin the loop.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None

    def resume() -> None:
        loop.add_reader(listener.fileno(), ready)

    def ready() -> None:
        nonlocal timer
        for _ in range(_ACCEPT_BATCH):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    continue  # the client gave up between its SYN and our accept
                loop.remove_reader(listener.fileno())
                timer = loop.call_later(_ACCEPT_PAUSE, resume)
                trouble(error)
                return
            sock.setblocking(False)
            take(sock, address)

    resume()
    try:
        await loop.create_future()
    finally:
        if timer is not None:
            timer.cancel()
        loop.remove_reader(listener.fileno())
    raise AssertionError  # pragma: no cover  # nobody resolves that future


def begin(
    group: asyncio.TaskGroup, work: Coroutine[Any, Any, None], sock: socket.socket
) -> asyncio.Task[None] | None:
    """Begin to serve a connection; None, with the connection closed, when the group is about to end.

    A listener may be ready in the very turn in which its group is cancelled.
    """
    try:
        return group.create_task(work)
    except RuntimeError:
        work.close()
        sock.close()
        return None


def tune(sock: socket.socket) -> None:
    """Send small frames at once, and notice a peer that vanished within about a minute."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_COUNT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


def unix_path(path: Path) -> Path:
    """Return a socket path that fits the kernel's limit.

    Raises:
        HostError: it is too long.
    """
    length = len(os.fsencode(path))
    if length > MAX_UNIX_PATH:
        raise HostError(
            f"the socket path {path} has {length} bytes, the kernel allows {MAX_UNIX_PATH}: "
            "choose a shorter run directory"
        )
    return path


def listen_unix(path: Path) -> socket.socket:
    """Listen on a unix socket in a directory that is private already; a stale socket is replaced.

    Raises:
        HostError: it cannot be bound.
    """
    unix_path(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        path.unlink(missing_ok=True)
        listener.bind(os.fspath(path))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise HostError(f"cannot listen on {path}: {error.strerror}") from error
    return listener


async def connect_unix(path: Path, *, name: str | None = None) -> socket.socket:
    """Connect to a unix socket, our own end bound to the abstract address ``name`` if given.

    A full backlog makes a non-blocking unix connect fail with EAGAIN, and unlike TCP nothing is then
    under way: event loops take it for progress and report a connection that is none. So: try again.

    Raises:
        OSError: nobody listens there, or the backlog stayed full for two seconds.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if name is not None:
            sock.bind(b"\0" + name.encode("ascii"))
        tries = 1
        while (code := sock.connect_ex(os.fspath(path))) == errno.EAGAIN and tries < _CONNECT_TRIES:
            tries += 1
            await asyncio.sleep(_CONNECT_RETRY)
    except BaseException:
        sock.close()
        raise
    if code:
        sock.close()
        raise OSError(code, os.strerror(code), os.fspath(path))
    return sock
