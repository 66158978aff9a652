"""The gates in front of the two servers: the TLS port, and this host's private socket."""

from __future__ import annotations

from collections.abc import Callable

from manager.api.access import Access, Caller, Metadata, admit
from manager.store import Store
from swarm.identity.certs import Peer


class TlsGate:
    """Admits by certificate; for calls that came through the TLS front.

    Args:
        store: knows who was removed from the cluster.
        peer_of: ``TlsFront.peer``.
        cluster_id: the cluster whose certificates count. (A manager that has just joined has an empty
            store until the leader has filled it.)
    """

    def __init__(self, store: Store, peer_of: Callable[[str], Peer], cluster_id: str) -> None:
        self._store = store
        self._peer_of = peer_of
        self._cluster_id = cluster_id

    def __call__(self, access: Access, peer: str, metadata: Metadata) -> Caller:
        """Return the caller; see :class:`manager.api.server.Gate`."""
        cluster = next(iter(self._store.view.clusters.all()), None)
        return admit(
            access,
            self._peer_of(peer),
            metadata,
            cluster_id=self._cluster_id,
            removed=() if cluster is None else cluster.blacklisted_certificates,
        )


class LocalGate:
    """Admits everything as this node's manager: only root can open the socket.

    Args:
        peer: this manager, and the address the other nodes reach it at.
    """

    def __init__(self, peer: Peer) -> None:
        self._caller = Caller(peer=peer, local=True)

    def __call__(self, access: Access, peer: str, metadata: Metadata) -> Caller:  # noqa: ARG002
        """Return the caller; see :class:`manager.api.server.Gate`."""
        return self._caller
