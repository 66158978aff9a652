"""Where this manager's own next certificate comes from: the leader, which may be itself."""

from __future__ import annotations

import secrets
from typing import Any, Final

from manager.api.access import Caller
from manager.api.forward import Forwarder
from manager.ca.service import NodeCertificates
from swarm.api.docker.swarmkit import ca_pb2
from swarm.errors import UnavailableError
from swarm.identity.certs import Peer

_DESCRIPTOR: Final = ca_pb2.DESCRIPTOR.services_by_name["NodeCA"]
ISSUE: Final = f"/{_DESCRIPTOR.full_name}/IssueNodeCertificate"
STATUS: Final = f"/{_DESCRIPTOR.full_name}/NodeCertificateStatus"
TIMEOUT: Final = 10.0


class OwnIssuer:
    """The :class:`manager.ca.renewal.Issuer` of a manager.

    Args:
        certificates: answers while this manager leads.
        forwarder: reaches the leader otherwise.
        here: this manager.
    """

    def __init__(self, certificates: NodeCertificates, forwarder: Forwarder, here: Peer) -> None:
        self._certificates = certificates
        self._forwarder = forwarder
        self._here = here

    async def __call__(self, csr: bytes) -> bytes:
        """Return the certificate; see :class:`manager.ca.renewal.Issuer`."""
        caller = Caller(peer=self._here, local=True, request_id=secrets.token_hex(12))
        request = ca_pb2.IssueNodeCertificateRequest(csr=csr)
        if self._forwarder.leads:
            return (await self._certificates.issue(request, caller)).certificate.certificate
        issued: Any = ca_pb2.IssueNodeCertificateResponse.FromString(
            await self._forwarder.call(ISSUE, request.SerializeToString(), caller, TIMEOUT)
        )
        status = ca_pb2.NodeCertificateStatusResponse.FromString(
            await self._forwarder.call(
                STATUS,
                ca_pb2.NodeCertificateStatusRequest(node_id=issued.node_id).SerializeToString(),
                caller,
                TIMEOUT,
            )
        )
        if status.certificate.csr != csr:
            raise UnavailableError("another certificate was asked for meanwhile")
        return bytes(status.certificate.certificate)
