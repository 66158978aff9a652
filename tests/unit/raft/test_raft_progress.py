"""Windows towards one follower."""

from __future__ import annotations

from manager.raft.config import (
    MAX_INFLIGHT_APPENDS,
    MAX_INFLIGHT_BYTES,
    SNAPSHOT_CHUNK_BYTES,
    SNAPSHOT_WINDOW_BYTES,
)
from manager.raft.messages import Entry, Snapshot
from manager.raft.progress import Mode, Outgoing, Progress


def _entry(index: int, size: int = 0) -> tuple[Entry, ...]:
    return (Entry(index=index, term=1, data=bytes(size)),)


def test_a_probe_waits_for_its_answer() -> None:
    """One append at a time while it is unknown where the logs agree."""
    progress = Progress(next=5)
    assert not progress.blocked
    progress.sent(_entry(5), 0)
    assert progress.blocked
    assert progress.next == 5
    assert progress.maybe_decrease(4, 2)
    assert (progress.next, progress.blocked) == (3, False)


def test_an_old_rejection_is_told_from_a_new_one() -> None:
    """A probe's answer names the entry it was about; any other is late."""
    progress = Progress(next=5)
    assert not progress.maybe_decrease(2, 1)
    progress.match = 4
    progress.become_replicate()
    assert not progress.maybe_decrease(4, 0)
    assert progress.maybe_decrease(6, 0)
    assert (progress.mode, progress.next) == (Mode.PROBE, 5)


def test_the_window_is_bounded_in_appends_and_in_bytes() -> None:
    """Answers free exactly what they confirm."""
    progress = Progress(next=1)
    progress.become_replicate()
    for index in range(1, MAX_INFLIGHT_APPENDS + 1):
        assert not progress.blocked
        progress.sent(_entry(index), 0)
    assert progress.blocked
    assert progress.maybe_update(10)
    assert len(progress.inflight) == MAX_INFLIGHT_APPENDS - 10
    assert not progress.maybe_update(3)
    big = Progress(next=1)
    big.become_replicate()
    big.sent(_entry(1, MAX_INFLIGHT_BYTES), 0)
    assert big.blocked
    big.free_one()
    assert not big.blocked
    assert big.inflight_bytes == 0


def test_a_snapshot_is_cut_into_chunks_that_make_it_whole() -> None:
    """Whatever the follower confirms, all bytes arrive and the window holds."""
    data = bytes(range(256)) * 12_000
    outgoing = Outgoing.of(Snapshot(index=3, term=1, data=data))
    got = b""
    while len(got) < len(data):
        chunks = []
        while (chunk := outgoing.next_chunk()) is not None:
            chunks.append(chunk)
            assert len(chunk.data) <= SNAPSHOT_CHUNK_BYTES
        assert sum(len(chunk.data) for chunk in chunks) <= SNAPSHOT_WINDOW_BYTES
        assert chunks[0].offset == len(got)
        got += chunks[0].data
        outgoing.confirm(len(got))
        outgoing.rewind()
    assert got == data


def test_an_empty_snapshot_is_one_empty_chunk() -> None:
    """There has to be a message, and it can be sent again."""
    outgoing = Outgoing.of(Snapshot(index=3, term=1))
    chunk = outgoing.next_chunk()
    assert chunk is not None
    assert (chunk.total, chunk.data) == (0, b"")
    assert outgoing.next_chunk() is None
    outgoing.rewind()
    assert outgoing.next_chunk() is not None
