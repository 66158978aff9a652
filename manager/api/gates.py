"""The gates in front of the two servers: the TLS port, and this host's private socket."""

from __future__ import annotations

from collections.abc import Callable

from manager.api.access import Access, Caller, Metadata, admit
from manager.raft.errors import NotLeaderError
from manager.store import Store
from swarm.errors import StaleError
from swarm.identity.certs import Peer


class TlsGate:
    """Admits by certificate; for calls that came through the TLS front.

    Args:
        store: knows the cluster and who was removed from it.
        peer_of: ``TlsFront.peer``.
        leading: None while this manager leads, else the error for calls only the leader answers.
    """

    def __init__(
        self,
        store: Store,
        peer_of: Callable[[str], Peer],
        leading: Callable[[], NotLeaderError | None],
    ) -> None:
        self._store = store
        self._peer_of = peer_of
        self._leading = leading

    def __call__(self, access: Access, peer: str, metadata: Metadata) -> Caller:
        """Return the caller; see :class:`manager.api.server.Gate`."""
        cluster = next(iter(self._store.view.clusters.all()), None)
        if cluster is None:
            raise StaleError("this manager has no cluster yet")
        caller = admit(
            access,
            self._peer_of(peer),
            metadata,
            cluster_id=cluster.id,
            removed=cluster.blacklisted_certificates,
        )
        _require_leader(access, self._leading)
        return caller


class LocalGate:
    """Admits everything as this node's manager: only root can open the socket.

    Args:
        peer: this manager, and the address the other nodes reach it at.
        leading: as for :class:`TlsGate`.
    """

    def __init__(self, peer: Peer, leading: Callable[[], NotLeaderError | None]) -> None:
        self._caller = Caller(peer=peer, local=True)
        self._leading = leading

    def __call__(self, access: Access, peer: str, metadata: Metadata) -> Caller:  # noqa: ARG002
        """Return the caller; see :class:`manager.api.server.Gate`."""
        _require_leader(access, self._leading)
        return self._caller


def _require_leader(access: Access, leading: Callable[[], NotLeaderError | None]) -> None:
    if access.leader and (error := leading()) is not None:
        raise error
