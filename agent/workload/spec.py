"""What a workload is asked to be, and what has become of it."""

from __future__ import annotations

import enum
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from swarm.errors import InvalidArgumentError

MAX_SPEC: Final = 512 * 1024
"""Bytes of a spec as JSON; the kernel takes no command line beyond a few of these anyway."""

_ID: Final = re.compile(r"[0-9a-f]{64}")
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_HOSTNAME: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9.-]{0,61}[a-zA-Z0-9])?")
_WORD: Final = re.compile(r"[^\s\0]{1,255}")


class CommandError(InvalidArgumentError):
    """The command cannot be started; ``exit_code`` is what the caller should exit with."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class State(enum.Enum):
    """Where a workload is in its life."""

    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    DEAD = "dead"
    """Its shim was killed, and with it everything in the workload."""

    @property
    def over(self) -> bool:
        """The command has ended (or never will start)."""
        return self in {State.EXITED, State.DEAD}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """What the user asked for; never changed afterwards."""

    id: str
    """64 hex digits."""
    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Laid over the defaults: PATH, HOME, HOSTNAME, and TERM with a terminal."""
    cwd: str = "/"
    hostname: str = ""
    """Empty means the first 12 digits of the id."""
    tty: bool = False
    stdin_open: bool = False
    networks: tuple[str, ...] = ()
    """References of networks, for whoever attaches them; the runtime does not read them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: float
    """Seconds since the epoch."""
    auto_remove: bool = False
    """Remove the workload once its command has ended and ``on_exit`` has returned."""
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ("ndots:0",)
    extra_hosts: tuple[tuple[str, str], ...] = ()
    """Lines for /etc/hosts: (address, names)."""

    @property
    def effective_hostname(self) -> str:
        """The host name inside."""
        return self.hostname or self.id[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A workload at one moment."""

    spec: WorkloadSpec
    state: State
    pid: int = 0
    """Of the command, in the agent's PID namespace; 0 unless it runs."""
    exit_code: int | None = None
    started_at: float | None = None
    finished_at: float | None = None
    message: str = ""
    """Why the command could not be started, if it could not."""
    netns_path: str = ""
    """Path of the network namespace; empty once it was released."""


def validate(spec: WorkloadSpec) -> None:
    """Refuse a spec that can never run.

    Raises:
        InvalidArgumentError: says what is wrong with it.
    """
    if not _ID.fullmatch(spec.id):
        raise InvalidArgumentError("a workload id has 64 hex digits")
    if not _NAME.fullmatch(spec.name):
        raise InvalidArgumentError(
            f"invalid workload name {spec.name!r}: letters, digits, '_', '.' and '-' only, at most 128"
        )
    if not _HOSTNAME.fullmatch(spec.effective_hostname):
        raise InvalidArgumentError(f"invalid host name {spec.hostname!r}")
    if not spec.argv or not spec.argv[0]:
        raise InvalidArgumentError("no command given")
    if not spec.cwd.startswith("/"):
        raise InvalidArgumentError(f"the working directory {spec.cwd!r} is not an absolute path")
    if any("\0" in text for text in (*spec.argv, spec.cwd, *spec.env.values())):
        raise InvalidArgumentError("a command line cannot hold a null character")
    for name in spec.env:
        if not name or "=" in name or "\0" in name:
            raise InvalidArgumentError(f"invalid environment variable {name!r}")
    for word in (*spec.dns_search, *spec.dns_options, *(a for a, _ in spec.extra_hosts)):
        if not _WORD.fullmatch(word):
            raise InvalidArgumentError(f"{word!r} cannot stand in resolv.conf or hosts")
    if any("\n" in names or "\0" in names for _, names in spec.extra_hosts):
        raise InvalidArgumentError("a line of the hosts file cannot hold a line break")
    if len(encode_spec(spec)) > MAX_SPEC:
        raise InvalidArgumentError("command line and environment are too long")


def encode_spec(spec: WorkloadSpec) -> str:
    """Return a spec as JSON; the shim reads it too."""
    return json.dumps(asdict(spec) | {"hostname": spec.effective_hostname})


def decode_spec(text: str) -> WorkloadSpec:
    """Read a spec back.

    Raises:
        InvalidArgumentError: it is not one of ours.
    """
    try:
        stored: dict[str, Any] = json.loads(text)
        known = {entry.name for entry in fields(WorkloadSpec)}
        if unknown := stored.keys() - known:
            raise InvalidArgumentError(f"unknown fields in a workload's spec: {sorted(unknown)}")
        for name in ("argv", "networks", "dns_search", "dns_options"):
            stored[name] = tuple(stored[name])
        stored["extra_hosts"] = tuple((a, n) for a, n in stored["extra_hosts"])
        spec = WorkloadSpec(**stored)
        validate(spec)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidArgumentError(f"unreadable workload spec: {error}") from error
    return spec
