"""What a task's spec says is to be run."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.any_pb2 import Any as Packed
from hypothesis import given
from hypothesis import strategies as st

from agent.tasks.process import MAX_PAYLOAD, process_of
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import InvalidArgumentError, UnimplementedError
from swarm.model import GenericRuntimeSpec, Task, TaskSpec


def task(payload: bytes | None = None, kind: str = "process") -> Task:
    return Task(spec=TaskSpec(generic=GenericRuntimeSpec(kind=kind, payload=payload)))


def packed(**fields: object) -> bytes:
    wrapper = Packed()
    wrapper.Pack(scheduler_pb2.Process(**fields))  # type: ignore[arg-type]
    return wrapper.SerializeToString()


def test_a_process_is_read() -> None:
    found = process_of(
        task(packed(argv=["a", "-b"], env=["X=1", "Y=a=b"], cwd="/tmp", hostname="h"))
    )
    assert (found.argv, found.cwd, found.hostname) == (("a", "-b"), "/tmp", "h")
    assert found.env == {"X": "1", "Y": "a=b"}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (TaskSpec(container=b"\x0a\x05nginx"), "container images"),
        (TaskSpec(), "empty specs"),
        (TaskSpec(generic=GenericRuntimeSpec(kind="plugin", payload=b"")), "'plugin'"),
    ],
)
def test_other_runtimes_are_refused_with_a_reason(spec: TaskSpec, words: str) -> None:
    with pytest.raises(UnimplementedError, match=words):
        process_of(Task(spec=spec))


@pytest.mark.parametrize(
    "payload",
    [
        None,
        b"\xff",
        packed(),
        packed(argv=[""]),
        packed(argv=["a"], env=["NOVALUE"]),
        packed(argv=["a"], env=["=x"]),
        bytes(MAX_PAYLOAD + 1),
    ],
)
def test_nonsense_is_refused(payload: bytes | None) -> None:
    with pytest.raises(InvalidArgumentError):
        process_of(task(payload))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_process_or_refused(payload: bytes) -> None:
    with contextlib.suppress(InvalidArgumentError):
        assert process_of(task(payload)).argv
