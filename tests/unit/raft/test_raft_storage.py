"""State on disk: what survives, and what is refused."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.raft import storage as storage_module
from manager.raft.errors import CorruptStateError, LockedError, StorageError
from manager.raft.keys import is_locked, rewrap
from manager.raft.membership import Member, Membership
from manager.raft.messages import Batch, DurableState, Entry, EntryKind, Snapshot, Stored
from manager.raft.storage import DATABASE, KEY_FILE, Identity, SqliteStorage

IDENTITY = Identity(cluster_id="c1", raft_id=7, node_id="n7")
GROUP = Membership(members={7: Member(raft_id=7, node_id="n7", addr="a7")})
UNLOCK = b"u" * 32


@pytest.fixture(autouse=True, scope="module")
def _small_chunks() -> Iterator[None]:
    """Cut snapshots into several rows without making them large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_module, "CHUNK_BYTES", 50_000)
        yield


def _entries(first: int, terms: list[int]) -> tuple[Entry, ...]:
    return tuple(
        Entry(index=i, term=term, kind=EntryKind.COMMAND, data=b"secret %d/%d" % (i, term))
        for i, term in enumerate(terms, first)
    )


def _filled(directory: Path, unlock_key: bytes | None = None) -> Stored:
    """Make a state with a snapshot at 4 and entries 3 to 8; return what it must load as."""
    storage = SqliteStorage.create(directory, IDENTITY, unlock_key=unlock_key)
    assert storage.load().empty
    storage.save(Batch(state=DurableState(term=1), entries=_entries(1, [1, 1, 1, 1])))
    snapshot = Snapshot(index=4, term=1, membership=GROUP, data=os.urandom(120_000))
    storage.save(
        Batch(
            state=DurableState(term=2, vote=7, commit=4),
            entries=_entries(5, [2, 2, 2, 2]),
            first_index=3,
            prev_term=1,
            keep_to=4,
            snapshot=snapshot,
        )
    )
    storage.close()
    return Stored(
        state=DurableState(term=2, vote=7, commit=4),
        snapshot=snapshot,
        first_index=3,
        prev_term=1,
        entries=_entries(3, [1, 1, 2, 2, 2, 2]),
        incarnation=2,
    )


def _load(directory: Path, unlock_key: bytes | None = None) -> Stored:
    storage = SqliteStorage.open(directory, unlock_key=unlock_key)
    try:
        return storage.load()
    finally:
        storage.close()


def _edit(directory: Path, *statements: str) -> None:
    connection = sqlite3.connect(directory / DATABASE, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    """Also the incarnation, which counts starts."""
    wanted = _filled(tmp_path)
    assert _load(tmp_path) == wanted
    assert _load(tmp_path).incarnation == 3


def test_a_new_leaders_entries_replace_the_old_ones(tmp_path: Path) -> None:
    """Entries beyond keep_to go in the same transaction."""
    _filled(tmp_path)
    storage = SqliteStorage.open(tmp_path)
    storage.load()
    storage.save(
        Batch(
            state=DurableState(term=5),
            entries=_entries(6, [5]),
            first_index=3,
            prev_term=1,
            keep_to=5,
        )
    )
    storage.close()
    loaded = _load(tmp_path)
    assert [(e.index, e.term) for e in loaded.entries] == [(3, 1), (4, 1), (5, 2), (6, 5)]
    assert loaded.snapshot.index == 4


def test_an_installed_snapshot_replaces_the_whole_log(tmp_path: Path) -> None:
    """No entry before or behind it stays."""
    _filled(tmp_path)
    storage = SqliteStorage.open(tmp_path)
    storage.load()
    storage.save(
        Batch(
            state=DurableState(term=9),
            first_index=21,
            prev_term=8,
            keep_to=20,
            snapshot=Snapshot(index=20, term=8, membership=GROUP, data=b""),
        )
    )
    storage.close()
    loaded = _load(tmp_path)
    assert (loaded.entries, loaded.snapshot.index, loaded.first_index) == ((), 20, 21)


def test_nothing_is_readable_on_disk_and_by_others(tmp_path: Path) -> None:
    """Payloads are sealed; files are the owner's only."""
    _filled(tmp_path / "raft")
    for path in (tmp_path / "raft").iterdir():
        assert b"secret" not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "raft").stat().st_mode) == 0o700


EDITS: dict[str, tuple[str, ...]] = {
    "first entry missing": ("DELETE FROM log WHERE idx = 3",),
    "middle entry missing": ("DELETE FROM log WHERE idx = 6",),
    "last entry missing": ("DELETE FROM log WHERE idx = 8",),
    "entry too many": ("INSERT INTO log SELECT 9, term, kind, sealed FROM log WHERE idx = 8",),
    "entries exchanged": (
        "UPDATE log SET sealed = (SELECT sealed FROM log WHERE idx = 7) WHERE idx = 6",
    ),
    "term altered": ("UPDATE log SET term = 3 WHERE idx = 8",),
    "kind altered": ("UPDATE log SET kind = 2 WHERE idx = 8",),
    "kind unknown": ("UPDATE log SET kind = 77 WHERE idx = 8",),
    "state missing": ("DELETE FROM meta WHERE name = 'state'",),
    "state is another record": (
        (
            "UPDATE meta SET value = (SELECT value FROM meta WHERE name = 'incarnation') "
            "WHERE name = 'state'"
        ),
    ),
    "state shortened": ("UPDATE meta SET value = x'00' WHERE name = 'state'",),
    "state of another key": (
        "UPDATE meta SET value = x'00000009' || substr(value, 5) WHERE name = 'state'",
    ),
    "incarnation missing": ("DELETE FROM meta WHERE name = 'incarnation'",),
    "identity altered": (
        (
            "UPDATE meta SET value = CAST(replace(CAST(value AS TEXT), 'n7', 'n8') AS BLOB) "
            "WHERE name = 'identity'"
        ),
    ),
    "identity unreadable": ("UPDATE meta SET value = x'7b7d' WHERE name = 'identity'",),
    "snapshot header missing": ("DELETE FROM snapshot WHERE seq = 0",),
    "snapshot part missing": ("DELETE FROM snapshot WHERE seq = 2",),
    "snapshot end missing": ("DELETE FROM snapshot WHERE seq = 3",),
    "snapshot gone": ("DELETE FROM snapshot",),
    "snapshot parts exchanged": (
        "UPDATE snapshot SET sealed = (SELECT sealed FROM snapshot WHERE seq = 1) WHERE seq = 2",
    ),
    "table gone": ("DROP TABLE log",),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_altered_records_are_refused(tmp_path: Path, edit: tuple[str, ...]) -> None:
    """The error names the file and what to do."""
    _filled(tmp_path)
    _edit(tmp_path, *edit)
    with pytest.raises(StorageError, match=r"raft\.db") as caught:
        _load(tmp_path)
    assert "join this manager again" in str(caught.value) or "Cannot read" in str(caught.value)


def test_an_older_state_record_is_refused(tmp_path: Path) -> None:
    """A record replayed from an old copy does not fit the log it stands beside."""
    storage = SqliteStorage.create(tmp_path, IDENTITY)
    storage.load()
    storage.save(Batch(state=DurableState(term=1), entries=_entries(1, [1])))
    storage.close()
    old = sqlite3.connect(tmp_path / DATABASE)
    record = old.execute("SELECT value FROM meta WHERE name = 'state'").fetchone()[0]
    old.close()
    storage = SqliteStorage.open(tmp_path)
    storage.load()
    storage.save(Batch(state=DurableState(term=1), entries=_entries(2, [1]), keep_to=1))
    storage.close()
    _edit(tmp_path, f"UPDATE meta SET value = x'{record.hex()}' WHERE name = 'state'")
    with pytest.raises(CorruptStateError, match="ends at 2 instead of 1"):
        _load(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_no_flipped_byte_goes_unnoticed(tmp_path: Path, seed: int) -> None:
    """Any byte of the file: refused, or (unused space) without effect on what is loaded."""
    rng = random.Random(seed)
    wanted = _filled(tmp_path / "good")
    pristine = (tmp_path / "good" / DATABASE).read_bytes()
    refused = 0
    for trial in range(12):
        place = tmp_path / str(trial)
        shutil.copytree(tmp_path / "good", place)
        position = rng.randrange(len(pristine))
        damaged = bytearray(pristine)
        damaged[position] ^= 1 << rng.randrange(8)
        (place / DATABASE).write_bytes(damaged)
        try:
            loaded = _load(place)
        except StorageError:
            refused += 1
            continue
        assert loaded == wanted, f"byte {position} changed what was loaded"
    assert refused > 0


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    """At every page border, and in the middle of pages."""
    _filled(tmp_path / "good")
    pristine = (tmp_path / "good" / DATABASE).read_bytes()
    for size in (0, 50, 4096, 4096 * 3, 4096 * 4 + 100, len(pristine) - 4096):
        place = tmp_path / str(size)
        shutil.copytree(tmp_path / "good", place)
        (place / DATABASE).write_bytes(pristine[:size])
        with pytest.raises(StorageError):
            _load(place)


class _PowerFailureError(Exception):
    """Stands for the end of the process."""


class _Failing:
    """A connection that fails before its Nth statement."""

    def __init__(self, inner: sqlite3.Connection, after: int) -> None:
        self._inner = inner
        self._left = after

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _PowerFailureError

    def execute(self, sql: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        """Fail or pass on; the rollback after the failure never happens."""
        self._count()
        return self._inner.execute(sql, parameters)

    def executemany(self, sql: str, rows: list[tuple[object, ...]]) -> sqlite3.Cursor:
        """Fail or pass on."""
        self._count()
        return self._inner.executemany(sql, rows)

    @property
    def in_transaction(self) -> bool:
        """Say no, so that nobody rolls back: the process is gone."""
        return False


def test_a_crash_between_any_two_statements_leaves_the_old_state(tmp_path: Path) -> None:
    """A copy of the files at each such moment, as a power failure leaves them, loads as before."""
    wanted = _filled(tmp_path / "good")
    batch = Batch(
        state=DurableState(term=9, vote=3, commit=8),
        entries=_entries(7, [9, 9, 9]),
        first_index=3,
        prev_term=1,
        keep_to=6,
        snapshot=Snapshot(index=5, term=2, membership=GROUP, data=b"new" * 30_000),
    )
    survived = 0
    for step in range(40):
        storage = SqliteStorage.open(tmp_path / "good")
        storage.load()
        shutil.rmtree(tmp_path / "crash", ignore_errors=True)
        connection = storage._connection
        storage._connection = _Failing(connection, step)  # type: ignore[assignment]
        try:
            storage.save(batch)
        except _PowerFailureError:
            shutil.copytree(tmp_path / "good", tmp_path / "crash")
            loaded = _load(tmp_path / "crash")
            assert (loaded.state, loaded.entries) == (wanted.state, wanted.entries)
            assert loaded.snapshot == wanted.snapshot
            survived += 1
            connection.rollback()
            connection.close()
            continue
        connection.close()
        break
    assert survived >= 6
    assert _load(tmp_path / "good").state == batch.state


def test_a_failed_write_raises_and_stores_nothing(tmp_path: Path) -> None:
    """A full disk, by way of SQLite's own limit."""
    wanted = _filled(tmp_path)
    storage = SqliteStorage.open(tmp_path)
    storage.load()
    pages = storage._connection.execute("PRAGMA page_count").fetchone()[0]
    storage._connection.execute(f"PRAGMA max_page_count = {pages}")
    big = Entry(index=9, term=2, data=bytes(1_000_000))
    batch = Batch(state=DurableState(term=7), entries=(big,), first_index=3, prev_term=1, keep_to=8)
    with pytest.raises(StorageError, match="full"):
        storage.save(batch)
    storage.close()
    assert _load(tmp_path).state == wanted.state


def test_two_processes_do_not_share_the_state(tmp_path: Path) -> None:
    """The second is refused while the first has it open."""
    _filled(tmp_path)
    first = SqliteStorage.open(tmp_path)
    with pytest.raises(StorageError, match="Another process"):
        SqliteStorage.open(tmp_path)
    first.close()
    SqliteStorage.open(tmp_path).close()


def test_existing_state_is_not_overwritten(tmp_path: Path) -> None:
    """Creating is for members that never ran."""
    _filled(tmp_path)
    with pytest.raises(StorageError, match="not overwritten"):
        SqliteStorage.create(tmp_path, IDENTITY)


def test_another_version_is_refused(tmp_path: Path) -> None:
    """Newer software may have written what this one would misread."""
    _filled(tmp_path)
    _edit(tmp_path, "UPDATE meta SET value = x'39' WHERE name = 'format'")
    with pytest.raises(StorageError, match="another version"):
        _load(tmp_path)


def test_an_interrupted_creation_starts_again(tmp_path: Path) -> None:
    """A half-made file is not state."""
    (tmp_path / f"{DATABASE}.new").write_bytes(b"half")
    assert not SqliteStorage.exists(tmp_path)
    SqliteStorage.create(tmp_path, IDENTITY).close()
    assert _load(tmp_path).empty


def test_autolock_needs_the_unlock_key(tmp_path: Path) -> None:
    """Set, change, drop; the state itself is not rewritten."""
    wanted = _filled(tmp_path, unlock_key=UNLOCK)
    assert is_locked(tmp_path / KEY_FILE)
    with pytest.raises(LockedError, match="locked"):
        _load(tmp_path)
    with pytest.raises(LockedError, match="does not fit"):
        _load(tmp_path, b"x" * 32)
    assert _load(tmp_path, UNLOCK).entries == wanted.entries
    with pytest.raises(LockedError):
        rewrap(tmp_path / KEY_FILE, b"x" * 32, None)
    rewrap(tmp_path / KEY_FILE, UNLOCK, b"v" * 32)
    assert _load(tmp_path, b"v" * 32).entries == wanted.entries
    rewrap(tmp_path / KEY_FILE, b"v" * 32, None)
    assert not is_locked(tmp_path / KEY_FILE)
    assert _load(tmp_path).entries == wanted.entries


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text('{"version": 1, "wrap": "clear", "keys": {}}'),
        lambda path: path.write_text('{"version": 1, "wrap": "clear", "keys": {"1": "AAAA"}}'),
        lambda path: path.write_text('{"version": 1, "wrap": "clear", "keys": {"x": 5}}'),
        lambda path: path.write_text('{"version": 2, "wrap": "clear", "keys": {}}'),
        lambda path: path.write_text("[]"),
    ],
    ids=["missing", "cut", "no-keys", "short-key", "bad-number", "version", "shape"],
)
def test_a_damaged_key_file_is_refused(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """The error names the file."""
    _filled(tmp_path)
    damage(tmp_path / KEY_FILE)
    with pytest.raises(CorruptStateError, match=r"raft\.key"):
        _load(tmp_path)


def test_a_new_data_key_seals_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it the old key opens nothing, and a crash half-way is made good on opening.

    Nor is anything left in free pages or a journal that it would open.
    """
    wanted = _filled(tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
        sealed = [
            *connection.execute("SELECT sealed FROM log"),
            *connection.execute("SELECT sealed FROM snapshot"),
            *connection.execute("SELECT value FROM meta WHERE name IN ('state', 'incarnation')"),
        ]
    old_key_file = (tmp_path / KEY_FILE).read_bytes()
    storage = SqliteStorage.open(tmp_path)
    before = (tmp_path / DATABASE).read_bytes()
    storage.rotate_data_key(UNLOCK)
    storage.close()
    assert _load(tmp_path, UNLOCK).entries == wanted.entries
    new_key_file = (tmp_path / KEY_FILE).read_bytes()
    left = b"".join(path.read_bytes() for path in tmp_path.glob(f"{DATABASE}*"))
    assert len(sealed) > 5
    assert [row for row in sealed if row[0][16:40] in left] == []
    (tmp_path / KEY_FILE).write_bytes(old_key_file)
    with pytest.raises(CorruptStateError, match="unknown data key"):
        _load(tmp_path)
    # The crash: both keys in the file, everything still under the old one.
    (tmp_path / KEY_FILE).write_bytes(old_key_file)
    (tmp_path / DATABASE).write_bytes(before)
    storage = SqliteStorage.open(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(SqliteStorage, "_reseal", lambda *_: None)
        storage.rotate_data_key(UNLOCK)
    storage.close()
    assert (tmp_path / KEY_FILE).read_bytes() != new_key_file
    assert _load(tmp_path, UNLOCK).entries == wanted.entries
    assert len((tmp_path / KEY_FILE).read_bytes()) == len(new_key_file)


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(1, 3), max_size=4)), max_size=6
    )
)
def test_batches_give_the_log_a_list_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, list[int]]]
) -> None:
    """Any sequence of cuts and appends."""
    directory = tmp_path_factory.mktemp("raft")
    storage = SqliteStorage.create(directory, IDENTITY)
    storage.load()
    model: list[Entry] = []
    for term, (back, sizes) in enumerate(steps, start=1):
        keep = max(0, len(model) - back)
        fresh = tuple(
            Entry(index=keep + i, term=term, data=bytes(size)) for i, size in enumerate(sizes, 1)
        )
        storage.save(Batch(state=DurableState(term=term), entries=fresh, keep_to=keep))
        model = model[:keep] + list(fresh)
    storage.close()
    assert list(_load(directory).entries) == model
