"""What a task is asked to run, out of its spec. Pure.

Source: ``overswarm.v1.Process`` in ``proto/overswarm/v1/scheduler.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import DecodeError

from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import InvalidArgumentError, UnimplementedError
from swarm.model import Task

KIND: Final = "process"
MAX_PAYLOAD: Final = 512 * 1024
"""Bytes of a payload; the kernel takes no command line beyond a few of these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A command; empty texts mean the runtime's defaults."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = ""
    hostname: str = ""


def process_of(task: Task) -> Process:
    """Return the command of a task of the generic runtime ``process``.

    Raises:
        UnimplementedError: it is a task of another runtime; the text says which.
        InvalidArgumentError: its payload makes no sense.
    """
    generic = task.spec.generic
    if generic is None:
        what = "container images" if task.spec.container is not None else "empty specs"
        raise UnimplementedError(
            f"this node cannot run {what}: it has no image runtime, only the generic runtime {KIND!r}"
        )
    if generic.kind != KIND:
        raise UnimplementedError(
            f"this node knows no runtime {generic.kind!r:.80}, only the generic runtime {KIND!r}"
        )
    if len(generic.payload or b"") > MAX_PAYLOAD:
        raise InvalidArgumentError(f"the payload of a task has more than {MAX_PAYLOAD} bytes")
    packed, message = Packed(), scheduler_pb2.Process()
    try:
        packed.ParseFromString(generic.payload or b"")
        if not packed.Unpack(message):
            raise InvalidArgumentError(
                f"the payload of the task is {packed.type_url!r:.120}, not an overswarm.v1.Process"
            )
    except DecodeError as error:
        raise InvalidArgumentError("the payload of the task is malformed") from error
    if not message.argv or not message.argv[0]:
        raise InvalidArgumentError("the task has no command")
    return Process(
        argv=tuple(message.argv),
        env=dict(map(_variable, message.env)),
        cwd=message.cwd,
        hostname=message.hostname,
    )


def _variable(line: str) -> tuple[str, str]:
    name, equals, value = line.partition("=")
    if not name or not equals:
        raise InvalidArgumentError(f"invalid environment variable {line!r:.80} in the task")
    return name, value
