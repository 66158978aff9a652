"""How a manager comes by its raft state: it is there, is founded, or comes of joining the others."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from manager.config import ManagerConfig, Mode
from manager.joining import answering_health, join_group
from manager.paths import Paths
from manager.raft.storage import Identity as RaftIdentity
from manager.raft.storage import SqliteStorage
from manager.refusal import check_not_refused
from manager.store import Store
from swarm.errors import InvariantError, PreconditionError
from swarm.identity.certs import Role
from swarm.identity.dialer import TlsDialer
from swarm.identity.ids import new_id
from swarm.identity.keystore import KeyStore
from swarm.identity.sockets import listen_tcp


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A raft state ready for use.

    Attributes:
        storage: the state.
        unlock_key: what it is sealed with; None when it is not locked.
        joined: the others have taken this manager in just now.
        addresses: where they are, by raft id, when it joined.
    """

    storage: SqliteStorage
    unlock_key: bytes | None = field(repr=False)
    joined: bool = False
    addresses: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Gets a manager its raft state.

    Attributes:
        config: what this manager was told.
        paths: where it keeps what.
        store: empty so far.
        keystore: certificate and private key.
        dialer: reaches other managers.
        broken: told about a broken invariant.
    """

    config: ManagerConfig
    paths: Paths
    store: Store
    keystore: KeyStore
    dialer: TlsDialer
    broken: Callable[[InvariantError], None]

    async def state(self, unlock_key: bytes | None) -> Opened:
        """Open the raft state, or get one at the first start.

        Raises:
            StorageError: it is damaged, in use, or cannot be written.
            LockedError: the unlock key is missing or wrong.
            StateLostError: it was found to be an old copy before.
            SwarmError: it cannot be founded or got from the others; the text says why.
        """
        raft = self.paths.raft
        if SqliteStorage.exists(raft):
            check_not_refused(raft)
            storage = await asyncio.to_thread(SqliteStorage.open, raft, unlock_key=unlock_key)
            return Opened(storage=storage, unlock_key=unlock_key)
        if self.config.mode is Mode.JOIN:
            return await self._join(unlock_key)
        # Better an early word than a half-founded swarm.
        for listener in listen_tcp(*self.config.listen):
            listener.close()
        identity = RaftIdentity(
            cluster_id=new_id(), raft_id=secrets.randbelow(2**63 - 1) + 1, node_id=new_id()
        )
        storage = await asyncio.to_thread(SqliteStorage.create, raft, identity)
        return Opened(storage=storage, unlock_key=unlock_key)

    async def _join(self, unlock_key: bytes | None) -> Opened:
        """Have the other managers take this one in."""
        credentials = await asyncio.to_thread(self.keystore.load, unlock_key)
        identity = None if credentials is None else credentials.identity
        if credentials is None or identity is None or identity.role is not Role.MANAGER:
            raise PreconditionError(
                f"there is no manager's certificate in {self.keystore.directory}"
            )
        self.dialer.reload(credentials)
        async with answering_health(
            self.store, self.paths.front, self.config.listen, credentials, self.broken
        ):
            joined = await join_group(
                self.config.join_addrs,
                addr=self.config.advertise_addr,
                identity=identity,
                dialer=self.dialer,
            )
        if joined.unlock_key is not None:
            await asyncio.to_thread(self.keystore.save, credentials, joined.unlock_key)
        storage = await asyncio.to_thread(
            SqliteStorage.create, self.paths.raft, joined.identity, unlock_key=joined.unlock_key
        )
        return Opened(
            storage=storage,
            unlock_key=joined.unlock_key,
            joined=True,
            addresses=joined.addresses,
        )
