"""Tasks in the log: common parts once, networks by id, and the very same task when read."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.store.entry import (
    MAX_WHOLE_BYTES,
    Action,
    Attempt,
    Edit,
    dump_attempt,
    dump_entry,
    load_entry,
)
from manager.store.loading import LEAST, Dump, load_object
from manager.store.tables import TableId
from swarm.api import codec
from swarm.errors import WireError
from swarm.model import (
    Annotations,
    Driver,
    Endpoint,
    EndpointSpec,
    IndexEntry,
    Meta,
    Network,
    NetworkAttachment,
    NetworkAttachmentConfig,
    NetworkSpec,
    PortConfig,
    Task,
    TaskSpec,
    TaskState,
    TaskStatus,
    Version,
    VirtualIP,
)

META = Meta(version=Version(index=9), created_at=1, updated_at=2)
STORED = {
    name: Network(id=name, meta=META, spec=NetworkSpec(annotations=Annotations(name=name)))
    for name in ("blue", "green")
}

texts = st.text(max_size=20)
labels = st.dictionaries(texts, texts, max_size=2)
annotations = st.builds(
    Annotations,
    name=texts,
    labels=labels,
    indices=st.lists(st.builds(IndexEntry, key=texts, val=texts), max_size=1).map(tuple),
)
addresses = st.lists(st.sampled_from(["10.0.0.2/24", "fd00::2/64"]), max_size=2).map(tuple)
networks = st.sampled_from(
    [*STORED.values(), Network(id="gone"), replace(STORED["blue"], pending_delete=True)]
)
attachments = st.builds(
    NetworkAttachment,
    network=networks,
    addresses=addresses,
    aliases=st.lists(texts, max_size=2).map(tuple),
    driver_attachment_opts=labels,
)
tasks = st.builds(
    Task,
    id=st.text(min_size=1, max_size=30),
    meta=st.just(META),
    spec=st.builds(
        TaskSpec,
        container=st.none() | st.just(b"\x0a\x05nginx"),
        networks=st.lists(st.builds(NetworkAttachmentConfig, target=texts), max_size=2).map(tuple),
        force_update=st.integers(0, 9),
    ),
    service_id=texts,
    slot=st.integers(0, 2**40),
    node_id=texts,
    annotations=annotations,
    service_annotations=annotations,
    status=st.builds(
        TaskStatus,
        timestamp=st.none() | st.integers(0, 2**60),
        state=st.sampled_from(TaskState),
        message=texts,
    ),
    desired_state=st.sampled_from(TaskState),
    networks=st.lists(attachments, max_size=3).map(tuple),
    endpoint=st.none()
    | st.builds(
        Endpoint,
        spec=st.none() | st.just(EndpointSpec()),
        ports=st.lists(st.builds(PortConfig, target_port=st.integers(1, 9)), max_size=2).map(tuple),
        virtual_ips=st.lists(st.builds(VirtualIP, network_id=texts), max_size=2).map(tuple),
    ),
    log_driver=st.none() | st.builds(Driver, name=texts),
    spec_version=st.none() | st.builds(Version, index=st.integers(0, 9)),
    assigned_generic_resources=st.sampled_from([(), (b"\x0a\x03\x0a\x01x",)]),
    job_iteration=st.none() | st.builds(Version, index=st.integers(0, 9)),
    volumes=st.sampled_from([(), (b"v",)]),
)


@given(tasks)
def test_a_task_is_read_as_it_was_written(task: Task) -> None:
    """With its parts beside it as in the log, and behind it as in a snapshot."""
    data, parts = Dump(STORED.get)(task)
    assert all(len(part) >= LEAST for part in parts)
    apart = load_object(TableId.TASK, data, META, STORED.get, parts=parts)
    joined = load_object(TableId.TASK, b"".join((data, *parts)), META, STORED.get)
    assert apart == joined == task


@given(tasks)
def test_whole_tasks_are_read_too(task: Task) -> None:
    """What an earlier version wrote has nothing apart and whole networks."""
    assert load_object(TableId.TASK, codec.dumps(task), META, STORED.get) == task


def test_a_batch_holds_what_is_common_once() -> None:
    spec = TaskSpec(container=b"\x0a\x64" + b"x" * 100)
    dump = Dump(STORED.get)
    edits = []
    for number in range(10):
        task = Task(
            id=f"t{number}", spec=spec, networks=(NetworkAttachment(network=STORED["blue"]),)
        )
        data, parts = dump(task)
        edits.append(
            Edit(action=Action.CREATE, table=TableId.TASK, id=task.id, data=data, parts=parts)
        )
    entry = dump_entry([dump_attempt(Attempt(id=b"a", edits=tuple(edits)))])
    assert entry.count(b"x" * 100) == 1
    (attempt,) = load_entry(entry)
    assert attempt.edits == tuple(edits)


@pytest.mark.parametrize("places", [[1], [0, 7]])
def test_a_part_that_is_not_there_is_malformed(places: list[int]) -> None:
    edit = Edit(action=Action.CREATE, table=TableId.TASK, id="t", parts=(b"x" * 20,))
    message = dump_attempt(Attempt(id=b"a", edits=(edit,)))
    del message.changes[0].parts[:]
    message.changes[0].parts.extend(places)
    with pytest.raises(WireError, match="part that is not there"):
        load_entry(dump_entry([message]))


def test_parts_are_bounded_however_often_they_are_named() -> None:
    edit = Edit(action=Action.CREATE, table=TableId.TASK, id="t", parts=(b"x" * 200_000,))
    message = dump_attempt(Attempt(id=b"a", edits=(edit,)))
    message.changes[0].parts.extend([0] * (MAX_WHOLE_BYTES // 200_000))
    with pytest.raises(WireError, match="exceed"):
        load_entry(dump_entry([message]))


@pytest.mark.parametrize("junk", [b"\xff", b"\x1a\xff", b"\x50\xff\xff\x03"])
def test_junk_is_malformed(junk: bytes) -> None:
    with pytest.raises(WireError):
        load_object(TableId.TASK, junk, META, STORED.get)
    with pytest.raises(WireError):
        load_object(TableId.TASK, b"", META, STORED.get, parts=(b"\x1a\xff",))
