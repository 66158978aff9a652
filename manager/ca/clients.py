"""Certificates of schedulers: issued under a name, listed, revoked.

They have the role ``swarm-scheduler`` and a common name of their own, which is how a certificate is
revoked: the common name goes to the list of removed nodes, and running connections are cut.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import structlog

from manager.api.access import Caller
from manager.api.backend import Backend, nothing
from manager.api.checks import required
from manager.api.server import Context
from manager.api.servicespecs import check_name
from manager.api.wire import encoded
from manager.cluster import BLACKLIST_MARGIN, certificate_validity, signing_ca, trusted_roots
from manager.store import RepeatedError, Transaction
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.errors import ConflictError, ExhaustedError, InvalidArgumentError, NotFoundError
from swarm.identity.certs import Role, certificates_untrusted
from swarm.model import Annotations, BlacklistedCertificate, ClientCertificate, Cluster

MAX_CLIENTS: Final = 256
"""Certificates in force at once."""

SHORTEST: Final = timedelta(hours=1)
LONGEST: Final = timedelta(days=3650)
"""Validity that may be asked for."""

SECOND: Final = 1_000_000_000

log = structlog.get_logger(__name__)


class ClientCertificates:
    """The RPCs of ClientCertificates."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store

    async def CreateClientCertificate(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Issue a certificate for a request; the private key never comes here."""
        name, csr = required(request.name, "name"), bytes(request.csr)
        check_name(Annotations(name=name))
        if not csr:
            raise InvalidArgumentError("the certificate request is empty")
        validity = _validity_untrusted(request.validity_ns)
        cn, now = self._backend.make_id(), self._backend.clock.now()

        def build(tx: Transaction) -> tuple[bytes, ClientCertificate]:
            cluster = tx.clusters.only()
            certificate = signing_ca(cluster).issue(
                csr,
                node_id=cn,
                cluster_id=cluster.id,
                role=Role.SCHEDULER,
                validity=validity or certificate_validity(cluster),
                now=now,
            )
            leaf = certificates_untrusted(certificate)[0]
            client = ClientCertificate(
                name=name,
                cn=cn,
                issued_at=self._backend.clock.wall(),
                expiry=int(leaf.not_valid_after_utc.timestamp()) * SECOND,
            )
            tx.update(with_client(cluster, client, self._backend.clock.wall()))
            return certificate, client

        def repeated(error: RepeatedError) -> tuple[bytes, ClientCertificate]:
            raise ConflictError(
                f"client certificate {name} was issued, but its answer was lost; revoke it and"
                " make another"
            ) from error

        certificate, client = await self._backend.once(caller, build, repeated=repeated)
        log.info("client_certificate.issued", name=name, cn=cn)
        answer = scheduler_pb2.CreateClientCertificateResponse(
            root=trusted_roots(self._store.view.clusters.only()),
            certificate=certificate,
            managers=sorted(status.addr for status in self._backend.managers().values()),
        )
        answer.client.CopyFrom(encoded(client))
        return answer

    async def ListClientCertificates(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the certificates that were not revoked."""
        await self._backend.barrier()
        clients = self._store.view.clusters.only().client_certificates
        return scheduler_pb2.ListClientCertificatesResponse(clients=map(encoded, clients))

    async def RevokeClientCertificate(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Refuse a certificate from now on."""
        name = required(request.name, "name")

        def build(tx: Transaction) -> None:
            tx.update(without_client(tx.clusters.only(), name))

        await self._backend.once(caller, build, repeated=nothing)
        log.info("client_certificate.revoked", name=name)
        return scheduler_pb2.RevokeClientCertificateResponse()


def with_client(cluster: Cluster, client: ClientCertificate, now: int) -> Cluster:
    """Note a certificate that was issued; those that ran out are forgotten.

    Raises:
        ConflictError: one of that name is in force.
        ExhaustedError: there are too many.
    """
    kept = tuple(each for each in cluster.client_certificates if (each.expiry or 0) > now)
    if any(each.name == client.name for each in kept):
        raise ConflictError(
            f"client certificate {client.name} exists already; revoke it first, or take another name"
        )
    if len(kept) >= MAX_CLIENTS:
        raise ExhaustedError(f"{MAX_CLIENTS} client certificates are in force; revoke some")
    return replace(cluster, client_certificates=(*kept, client))


def without_client(cluster: Cluster, name: str) -> Cluster:
    """Revoke a certificate: no longer listed, and refused until a week after it runs out.

    Raises:
        NotFoundError: there is none of that name.
    """
    found = [each for each in cluster.client_certificates if each.name == name]
    if not found:
        raise NotFoundError(f"client certificate {name} not found")
    margin = int(BLACKLIST_MARGIN.total_seconds()) * SECOND
    refused = {
        each.cn: BlacklistedCertificate(expiry=(each.expiry or 0) + margin) for each in found
    }
    return replace(
        cluster,
        client_certificates=tuple(
            each for each in cluster.client_certificates if each.name != name
        ),
        blacklisted_certificates={**cluster.blacklisted_certificates, **refused},
    )


def newly_refused(old: object, new: object) -> tuple[str, ...]:
    """Return the common names that a change of the cluster object put on the list of refused ones."""
    if not isinstance(new, Cluster):
        return ()
    before = old.blacklisted_certificates if isinstance(old, Cluster) else {}
    return tuple(new.blacklisted_certificates.keys() - before.keys())


def _validity_untrusted(nanoseconds: int) -> timedelta | None:
    if not nanoseconds:
        return None
    validity = timedelta(seconds=min(max(nanoseconds // SECOND, 0), 1 << 40))
    if not SHORTEST <= validity <= LONGEST:
        raise InvalidArgumentError(
            "a client certificate is good for at least an hour and at most ten years"
        )
    return validity
