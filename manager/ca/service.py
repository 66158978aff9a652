"""The CA and NodeCA services: the root for joiners, certificates for members.

Certificates are signed within the transaction that stores them, so a node never sees a pending
state for long; :mod:`manager.ca.authority` decides who gets one.

Source: SwarmKit ``api/ca.proto``, ``ca/server.go``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import structlog

from manager.api.access import Caller
from manager.api.backend import Backend, created
from manager.api.balancers import with_ingress
from manager.api.checks import required
from manager.api.server import Context
from manager.api.wire import encoded
from manager.ca.authority import Authority, Grant, JoinTokens
from manager.cluster import certificate_validity, issued, new_node, signing_ca, unlock_key
from manager.store import RepeatedError, Transaction
from swarm.api.docker.swarmkit import ca_pb2
from swarm.errors import InvalidArgumentError, StaleError, UnavailableError
from swarm.identity.certs import Role
from swarm.model import (
    Cluster,
    IssuanceState,
    IssuanceStatus,
    Node,
    NodeAvailability,
    NodeMembership,
    NodeRole,
)

FINAL: Final = frozenset({IssuanceState.ISSUED, IssuanceState.FAILED, IssuanceState.ROTATE})
"""States in which a certificate request has its answer."""

log = structlog.get_logger(__name__)


class CertificateAuthority:
    """The RPCs of CA.

    Args:
        backend: where the cluster object is.
        root: the root certificate this manager's own belongs to.
    """

    def __init__(self, backend: Backend, root: Callable[[], bytes]) -> None:
        self._backend = backend
        self._store = backend.store
        self._root = root

    async def GetRootCACertificate(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the root, byte for byte as join tokens pin it."""
        clusters = self._store.view.clusters.all()
        root = next((each.root_ca.ca_cert for each in clusters), self._root())
        return ca_pb2.GetRootCACertificateResponse(certificate=root)

    async def GetUnlockKey(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the key that unlocks managers, empty while autolock is off.

        Raises:
            UnavailableError: no majority confirms that it is the newest.
        """
        try:
            await self._backend.barrier()
        except (UnavailableError, StaleError):
            if not caller.local:  # this host's own agent needs it to open its certificate
                raise
        cluster = next(iter(self._store.view.clusters.all()), None)
        if cluster is None:
            raise UnavailableError("this manager has no state yet")
        answer = ca_pb2.GetUnlockKeyResponse(unlock_key=unlock_key(cluster) or b"")
        answer.version.index = cluster.meta.version.index
        return answer


class NodeCertificates:
    """The RPCs of NodeCA."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store

    async def IssueNodeCertificate(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Issue a first certificate for a token, or a new one for a member's certificate."""
        node = await self.issue(request, caller)
        return ca_pb2.IssueNodeCertificateResponse(
            node_id=node.id,
            node_membership=NodeMembership.ACCEPTED.value,  # type: ignore[arg-type]  # same numbers
        )

    async def issue(self, request: Any, caller: Caller) -> Node:
        """Issue a certificate; return the node it names.

        Raises:
            InvalidArgumentError: the request or the token is no good.
            NotFoundError: a renewal for a node that is not stored.
        """
        csr: bytes = request.csr
        if not csr:
            raise InvalidArgumentError("the certificate request is empty")
        availability = _availability_untrusted(request.availability)
        fresh_id = self._backend.make_id()

        def build(tx: Transaction) -> str:
            cluster = tx.clusters.only()
            grant = self._decide(tx, cluster, caller, request.token, fresh_id)
            certificate = signing_ca(cluster).issue(
                csr,
                node_id=grant.node_id,
                cluster_id=cluster.id,
                role=grant.role,
                validity=certificate_validity(cluster),
                now=self._backend.clock.now(),
            )
            role = NodeRole.MANAGER if grant.role is Role.MANAGER else NodeRole.WORKER
            if grant.renewal:
                node = tx.nodes.require(grant.node_id)
                renewed = issued(node_id=node.id, role=role, csr=csr, certificate=certificate)
                return tx.update(replace(node, certificate=renewed)).id
            node = new_node(
                cluster,
                node_id=grant.node_id,
                role=role,
                availability=availability,
                csr=csr,
                certificate=certificate,
            )
            return tx.create(with_ingress(tx, node)).id

        def repeated(error: RepeatedError) -> str:
            # A renewal creates nothing; it was this caller's own node then.
            return created(error) if error.created else caller.node_id

        node_id = await self._backend.once(caller, build, repeated=repeated)
        node = self._store.view.nodes.require(node_id)
        log.info(
            "certificate.issued",
            node=node.id,
            role=node.certificate.role.name.lower(),
            renewal=node.id != fresh_id,
            address=caller.peer.address,
        )
        return node

    def _decide(
        self, tx: Transaction, cluster: Cluster, caller: Caller, token: str, fresh_id: str
    ) -> Grant:
        tokens = cluster.root_ca.join_tokens
        authority = Authority(
            cluster_id=cluster.id,
            root_pem=cluster.root_ca.ca_cert,
            tokens=JoinTokens(worker=tokens.worker, manager=tokens.manager),
        )

        def role_of(node_id: str) -> Role | None:
            node = tx.nodes.get(node_id)
            if node is None:
                return None
            return Role.MANAGER if node.role is NodeRole.MANAGER else Role.WORKER

        return authority.decide(
            caller.peer,
            token,
            role_of=role_of,
            removed=cluster.blacklisted_certificates,
            make_id=lambda: fresh_id,
        )

    async def NodeCertificateStatus(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return a node's certificate once its request has an answer; waits until then."""
        node_id = required(request.node_id, "node ID")
        await self._backend.barrier()  # another leader may have issued it a moment ago
        watch = self._store.watch()
        while True:
            node = self._store.view.nodes.require(node_id)
            if node.certificate.status.state in FINAL:
                return ca_pb2.NodeCertificateStatusResponse(
                    status=_status(node.certificate.status),
                    certificate=encoded(node.certificate),
                )
            await anext(watch)


def _status(status: IssuanceStatus) -> Any:
    """Encode the status; engines crash on an absent one."""
    return encoded(status)


def _availability_untrusted(value: int) -> NodeAvailability:
    try:
        return NodeAvailability(value)
    except ValueError as error:
        raise InvalidArgumentError(f"{value} is no node availability") from error
