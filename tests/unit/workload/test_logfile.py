"""The bounded log: what is written is read, over the change of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.workload import frames
from agent.workload.logfile import CURRENT, PREVIOUS, RECORD, LogReader, LogWriter


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


def writer(directory: int, limit: int) -> Iterator[LogWriter]:
    made = LogWriter(directory, limit=limit)
    yield made
    os.close(made._descriptor)


@pytest.fixture
def small(directory: int) -> Iterator[LogWriter]:
    """Return a writer with room for three records of ten bytes in a file."""
    yield from writer(directory, 3 * (RECORD.size + 10))


@pytest.fixture
def large(directory: int) -> Iterator[LogWriter]:
    yield from writer(directory, 1 << 20)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[LogReader]:
    made = LogReader(tmp_path)
    yield made
    made.close()


def read(reader: LogReader) -> list[bytes]:
    found = []
    while records := reader.read():
        found += [data for _, _, data in records]
    return found


def numbered(number: int) -> bytes:
    return b"%010d" % number


def test_records_keep_stream_time_and_bytes(large: LogWriter, reader: LogReader) -> None:
    large.write(frames.STDOUT, b"out\xff\0")
    large.write(frames.STDERR, b"err")
    (one, two) = reader.read()
    assert (one[0], one[2]) == (frames.STDOUT, b"out\xff\0")
    assert (two[0], two[2]) == (frames.STDERR, b"err")
    assert 0 < one[1] <= two[1]


def test_reader_goes_on_where_it_was(large: LogWriter, reader: LogReader) -> None:
    assert read(reader) == []
    large.write(frames.STDOUT, b"a")
    assert read(reader) == [b"a"]
    assert read(reader) == []
    large.write(frames.STDOUT, b"b")
    assert read(reader) == [b"b"]


def test_log_is_bounded_and_keeps_the_newest(
    small: LogWriter, reader: LogReader, tmp_path: Path
) -> None:
    for number in range(100):
        small.write(frames.STDOUT, numbered(number))
    assert sum((tmp_path / name).stat().st_size for name in (CURRENT, PREVIOUS)) <= 6 * (
        RECORD.size + 10
    )
    assert read(reader) == [numbered(number) for number in range(96, 100)]


def test_reader_that_keeps_up_misses_nothing(small: LogWriter, reader: LogReader) -> None:
    found = []
    for number in range(50):
        small.write(frames.STDOUT, numbered(number))
        if number % 3 == 0:
            found += read(reader)
    found += read(reader)
    assert found == [numbered(number) for number in range(50)]


def test_reader_that_is_overtaken_goes_on_with_the_oldest_that_is_left(
    small: LogWriter, reader: LogReader
) -> None:
    small.write(frames.STDOUT, numbered(0))
    assert read(reader) == [numbered(0)]
    for number in range(1, 11):
        small.write(frames.STDOUT, numbered(number))
    # 0 to 2 are in the file the reader holds open, 3 to 5 are gone, 6 to 8 and 9 to 10 are left.
    assert read(reader) == [numbered(number) for number in (1, 2, 6, 7, 8, 9, 10)]


def test_record_larger_than_the_limit_is_kept(small: LogWriter, reader: LogReader) -> None:
    small.write(frames.STDOUT, b"x" * 500)
    small.write(frames.STDOUT, b"y")
    assert read(reader) == [b"x" * 500, b"y"]


def test_half_a_record_is_not_read(large: LogWriter, reader: LogReader, tmp_path: Path) -> None:
    large.write(frames.STDOUT, b"whole")
    with (tmp_path / CURRENT).open("ab") as file:
        file.write(RECORD.pack(frames.STDOUT, 10, 0) + b"half")
    assert read(reader) == [b"whole"]


def test_writer_goes_on_with_the_log_it_finds(
    directory: int, large: LogWriter, reader: LogReader
) -> None:
    large.write(frames.STDOUT, b"before")
    for again in writer(directory, 1 << 20):
        again.write(frames.STDOUT, b"after")
    assert read(reader) == [b"before", b"after"]


def test_full_disk_loses_output_and_nothing_else(directory: int) -> None:
    made = LogWriter(directory)
    os.close(made._descriptor)
    made._descriptor = os.open("/dev/full", os.O_WRONLY)
    made.write(frames.STDOUT, b"lost")
    assert made._size == 0
    os.close(made._descriptor)


def test_log_of_a_removed_directory_is_empty(tmp_path: Path) -> None:
    assert LogReader(tmp_path / "nosuch").read() == []


@given(st.lists(st.tuples(st.integers(0, 60), st.booleans()), max_size=40), st.integers(40, 200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_reader_after_every_write_sees_everything_whatever_the_sizes(
    tmp_path: Path, steps: list[tuple[int, bool]], limit: int
) -> None:
    for name in (CURRENT, PREVIOUS):
        (tmp_path / name).unlink(missing_ok=True)
    descriptor = os.open(tmp_path, os.O_RDONLY)
    reader = LogReader(tmp_path)
    written, found = [], []
    for made in writer(descriptor, limit):
        for number, (size, _) in enumerate(steps):
            data = bytes([number % 256]) * (size + 1)
            made.write(frames.STDOUT, data)
            written.append(data)
            found += read(reader)
    assert found == written
    reader.close()
    os.close(descriptor)
