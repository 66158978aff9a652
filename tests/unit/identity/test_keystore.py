"""The certificate files: modes, and a crash at every step of a change."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from swarm.errors import PreconditionError
from swarm.identity.certs import Credentials, Role
from swarm.identity.keystore import (
    CERT_FILE,
    KEY_FILE,
    ROOT_FILE,
    KeyStore,
    KeyStoreError,
    LockedError,
)


class PowerCutError(Exception):
    """The machine stopped here."""


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    """An empty store whose directory does not exist yet."""
    return KeyStore(tmp_path / "certificates")


@pytest.fixture
def old(cluster: Any) -> Credentials:
    """The set in use."""
    made: Credentials = cluster.member(Role.WORKER, "o" * 25)
    return made


@pytest.fixture
def new(foreign: Any) -> Credentials:
    """The set that replaces it, root included."""
    made: Credentials = foreign.member(Role.MANAGER, "n" * 25)
    return made


def test_an_empty_store_holds_nothing(store: KeyStore) -> None:
    """No directory is no error."""
    assert store.load() is None
    store.clear()


def test_what_is_saved_is_loaded(store: KeyStore, old: Credentials, new: Credentials) -> None:
    """The last set saved comes back, and no helper file stays."""
    store.save(old)
    assert store.load() == old
    store.save(new)
    assert store.load() == new
    assert sorted(p.name for p in store.directory.iterdir()) == [CERT_FILE, KEY_FILE, ROOT_FILE]


def test_a_root_alone(store: KeyStore, old: Credentials) -> None:
    """A node that has fetched the root but has no certificate yet."""
    alone = Credentials(root_pem=old.root_pem)
    store.save(alone)
    assert store.load() == alone
    store.save(old)
    assert store.load() == old
    with pytest.raises(PreconditionError, match="holds a node's certificate"):
        store.save(alone)
    assert store.load() == old


def test_nobody_else_can_read(store: KeyStore, old: Credentials) -> None:
    """0700 and 0600, whatever the umask, and tightened when found open."""
    before = os.umask(0)
    try:
        store.directory.mkdir(mode=0o777)
        store.save(old)
    finally:
        os.umask(before)
    assert store.directory.stat().st_mode & 0o777 == 0o700
    for path in store.directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_clear_leaves_nothing(store: KeyStore, old: Credentials) -> None:
    """Leaving a swarm removes every file, staged ones too."""
    store.save(old)
    (store.directory / (CERT_FILE + ".new")).write_bytes(b"x")
    store.clear()
    assert list(store.directory.iterdir()) == []
    assert store.load() is None


def cut_power(monkeypatch: pytest.MonkeyPatch, after: int) -> list[int]:
    """Stop at the given file operation (create, rename, unlink, fsync)."""
    count = [0]

    def wrap(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] > after:
                raise PowerCutError
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(Path, "replace", wrap(Path.replace))
    monkeypatch.setattr(Path, "unlink", wrap(Path.unlink))
    monkeypatch.setattr(os, "fsync", wrap(os.fsync))
    monkeypatch.setattr(os, "open", wrap(os.open))
    return count


@pytest.mark.slow
def test_a_crash_anywhere_leaves_the_old_or_the_new_set(
    store: KeyStore, old: Credentials, new: Credentials
) -> None:
    """Every prefix of the file operations loads as one whole set, and old turns new exactly once."""
    outcomes: list[bool] = []
    for after in range(200):
        store.clear()
        store.save(old)
        with pytest.MonkeyPatch.context() as patch:
            cut_power(patch, after)
            try:
                store.save(new)
                finished = True
            except PowerCutError:
                finished = False
        loaded = KeyStore(store.directory).load()
        assert loaded in {old, new}
        assert len(list(store.directory.iterdir())) == 3
        outcomes.append(loaded == new)
        if finished:
            break
    else:
        pytest.fail("save never finished")
    assert len(outcomes) > 10
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
    assert outcomes[-1]


@pytest.mark.slow
def test_a_crash_during_recovery_is_recovered_from(
    store: KeyStore, old: Credentials, new: Credentials
) -> None:
    """Cut power in the save, then again in the load: the second load still finds a whole set."""
    for first in range(0, 40, 5):
        for second in range(3):
            store.clear()
            store.save(old)
            for after, action in ((first, lambda: store.save(new)), (second, store.load)):
                with pytest.MonkeyPatch.context() as patch:
                    cut_power(patch, after)
                    with contextlib.suppress(PowerCutError):
                        action()
            assert store.load() in {old, new}


@pytest.mark.parametrize("name", [CERT_FILE, KEY_FILE])
def test_a_mismatched_pair_is_noticed(
    store: KeyStore, old: Credentials, new: Credentials, name: str
) -> None:
    """A file restored from another backup is told, with what to do."""
    store.save(new)
    stray = (store.directory / name).read_bytes()
    store.save(old)
    (store.directory / name).write_bytes(stray)
    with pytest.raises(KeyStoreError, match=r"is not the key of.*restore.*join the swarm again"):
        store.load()


@pytest.mark.parametrize("name", [ROOT_FILE, CERT_FILE, KEY_FILE])
def test_a_missing_file_is_named(store: KeyStore, old: Credentials, name: str) -> None:
    """Each of the three is necessary."""
    store.save(old)
    (store.directory / name).unlink()
    with pytest.raises(KeyStoreError, match=f"{name} is missing"):
        store.load()


def test_garbage_is_told(store: KeyStore, old: Credentials) -> None:
    """A truncated key is no crash."""
    store.save(old)
    (store.directory / KEY_FILE).write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    with pytest.raises(KeyStoreError, match="cannot be parsed"):
        store.load()


def test_a_pair_that_does_not_match_is_not_saved(
    store: KeyStore, old: Credentials, new: Credentials
) -> None:
    """The mistake is noticed before anything is replaced."""
    store.save(old)
    mixed = Credentials(root_pem=old.root_pem, cert_pem=old.cert_pem, key_pem=new.key_pem)
    with pytest.raises(PreconditionError, match="does not belong"):
        store.save(mixed)
    assert store.load() == old


def test_a_locked_store(store: KeyStore, old: Credentials) -> None:
    """Under an unlock key the private key is not on the disk in clear, and only that key opens it."""
    store.save(old, bytes(range(32)))
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in (store.directory / KEY_FILE).read_bytes()
    with pytest.raises(LockedError, match="give its unlock key"):
        store.load()
    with pytest.raises(LockedError, match="does not open"):
        store.load(bytes(32))
    opened = store.load(bytes(range(32)))
    assert opened is not None
    assert opened.cert_pem == old.cert_pem
    store.save(opened)
    assert store.load() == opened


def test_a_reader_waits_for_a_change_under_way(
    store: KeyStore, old: Credentials, new: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agent and manager share the directory: a load in the middle of a save must not undo it."""
    store.save(old)
    staged, go_on = threading.Event(), threading.Event()
    write = KeyStore._write

    def pause(self: KeyStore, name: str, content: bytes) -> None:
        write(self, name, content)
        staged.set()
        assert go_on.wait(timeout=30)

    monkeypatch.setattr(KeyStore, "_write", pause)
    with ThreadPoolExecutor(max_workers=2) as pool:
        saving = pool.submit(store.save, new)
        assert staged.wait(timeout=30)
        loading = pool.submit(KeyStore(store.directory).load)
        assert wait([loading], timeout=0.1).not_done == {loading}
        go_on.set()
        saving.result(timeout=30)
        assert loading.result(timeout=30) == new
