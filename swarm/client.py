"""The client of the daemon's local API: what the command line and the lab use.

:func:`connect` opens a blocking channel to the unix socket of one daemon and yields the stubs of
``overswarm.v1.Local`` and ``docker.swarmkit.v1.Control``; a refused call leaves the ``with`` block as
a :class:`swarm.errors.SwarmError` of the same cause as at the server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from swarm import errors
from swarm.api.docker.swarmkit.ca_pb2_grpc import CAStub
from swarm.api.docker.swarmkit.control_pb2_grpc import ControlStub
from swarm.api.overswarm.v1.keys_pb2_grpc import KeysStub
from swarm.api.overswarm.v1.local_pb2_grpc import LocalStub
from swarm.api.overswarm.v1.scheduler_pb2_grpc import ClientCertificatesStub

DEFAULT_HOST: Final = "unix:///run/swarm/swarm.sock"
MAX_MESSAGE: Final = 64 * 1024 * 1024
"""Bytes of the largest answer taken; a list of tens of thousands of objects fits."""

EXIT_CODE_KEY: Final = "exit-code"
"""Trailing metadata that tells which exit status a command that cannot be started means."""


class CommandNotStartedError(errors.SwarmError):
    """A container's command cannot be executed; ``exit_code`` is 126 or 127, as a shell's."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class DaemonUnreachableError(errors.UnavailableError):
    """Nothing answers on the daemon's socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Stubs over one channel, and the socket they lead to."""

    path: Path
    local: LocalStub
    control: ControlStub
    ca: CAStub
    keys: KeysStub
    clients: ClientCertificatesStub


def socket_path(host: str) -> Path:
    """Return the socket that ``unix:///path`` or a plain absolute path names.

    Raises:
        InvalidArgumentError: it names something else.
    """
    path = host.removeprefix("unix://")
    if not path.startswith("/"):
        raise errors.InvalidArgumentError(
            f"{host!r} is not a daemon address: use unix:///path/to/swarm.sock"
        )
    return Path(path)


@contextmanager
def connect(host: str | None = None) -> Iterator[Client]:
    """Open the local API of a daemon.

    Args:
        host: ``unix:///path`` of the socket; ``SWARM_HOST``, then :data:`DEFAULT_HOST` when absent.

    Raises:
        DaemonUnreachableError: no daemon listens there; inside the block too.
        SwarmError: inside the block, what the daemon refused.
    """
    path = socket_path(host or os.environ.get("SWARM_HOST") or DEFAULT_HOST)
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
        ("grpc.enable_http_proxy", 0),
    ]
    with grpc.insecure_channel(f"unix:{path}", options=options) as channel, translated(path):
        yield Client(
            path=path,
            local=LocalStub(channel),
            control=ControlStub(channel),
            ca=CAStub(channel),
            keys=KeysStub(channel),
            clients=ClientCertificatesStub(channel),
        )


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn gRPC's errors into this project's, by status."""
    try:
        yield
    except grpc.RpcError as error:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE and _is_transport(details):
            raise DaemonUnreachableError(_unreachable(path)) from error
        told = {entry.key: entry.value for entry in error.trailing_metadata() or ()}
        status = told.get(EXIT_CODE_KEY)
        if status is not None:
            raise CommandNotStartedError(details, int(status)) from error
        raise errors.error_of(code.name, details) from error


def _is_transport(details: str) -> bool:
    """Say whether gRPC itself speaks (no connection), rather than the daemon."""
    return any(
        hint in details
        for hint in (
            "failed to connect",
            "Connection refused",
            "No such file",
            "Socket closed",
            "Permission denied",
        )
    )


def _unreachable(path: Path) -> str:
    if path.exists() and not os.access(path, os.R_OK | os.W_OK):
        return (
            f"permission denied on the daemon's socket {path}: "
            "run as root, or as a member of the group that owns it"
        )
    return f"cannot connect to the Swarm daemon at unix://{path}. Is 'swarm daemon' running?"
