"""Autolock: what lies on this manager's disk opens without a key exactly while the cluster says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

from manager.cluster import unlock_key as unlock_key_of
from manager.raft.keys import is_locked, rewrap
from manager.raft.storage import KEY_FILE, SqliteStorage
from manager.store import Store
from swarm.identity.keystore import KeyStore, LockedError


class BetweenWrites(Protocol):
    """Runs a blocking call where raft writes nothing meanwhile."""

    def __call__(self, call: Callable[[], None]) -> Awaitable[None]:
        """Run it; see :meth:`manager.raft.node.RaftNode.between_writes`."""


class Lock:
    """The raft data key's wrapping and the private key's encryption.

    Args:
        store: holds the cluster object.
        storage: the raft state.
        keystore: certificate and private key.
        key: the unlock key this manager was started with; None while it was not locked.
        between_writes: of the raft node.
    """

    def __init__(
        self,
        store: Store,
        storage: SqliteStorage,
        keystore: KeyStore,
        *,
        key: bytes | None,
        between_writes: BetweenWrites,
    ) -> None:
        self.key = key
        self._store = store
        self._storage = storage
        self._keystore = keystore
        self._between_writes = between_writes
        self._changing = asyncio.Lock()

    async def follow(self) -> None:
        """Lock, unlock or rekey as the cluster object says.

        Raises:
            StorageError: the disk refused.
        """
        async with self._changing:
            for cluster in self._store.view.clusters.all():
                wanted = unlock_key_of(cluster)
                await self._between_writes(partial(self._apply, wanted))
                self.key = wanted

    def _apply(self, wanted: bytes | None) -> None:
        key_file = self._storage.directory / KEY_FILE
        current = self.key if is_locked(key_file) else None
        if wanted is not None and current is None:
            # The data key once stood on this disk in the clear; whoever has a copy of that must not
            # read what is written from now on.
            self._storage.rotate_data_key(wanted)
        elif wanted != current:
            rewrap(key_file, current, wanted)
        credentials = self._keystore.load(self.key)
        if credentials is not None and self._key_of_certificate() != wanted:
            self._keystore.save(credentials, wanted)

    def _key_of_certificate(self) -> bytes | None:
        """Return what opens the private key: nothing, or the unlock key used until now."""
        try:
            self._keystore.load(None)
        except LockedError:
            return self.key
        return None
