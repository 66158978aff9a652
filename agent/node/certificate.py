"""Asking a manager for a certificate: the steps that joining and renewing share.

Source: SwarmKit ``ca/certificates.go``, ``api/ca.proto``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

import grpc
import grpc.aio

from agent.session.service import Dialer, manager_error
from swarm.api.docker.swarmkit import ca_pb2, ca_pb2_grpc, types_pb2
from swarm.errors import (
    DeadlineError,
    PermissionDeniedError,
    WireError,
)
from swarm.identity import certs
from swarm.model import IssuanceState, NodeAvailability

CALL_TIMEOUT: Final = 5.0
"""Seconds for one call; engines allow the same."""

ISSUE_TIMEOUT: Final = 20.0
"""Seconds from the request to the certificate."""

_PAUSE: Final = 0.2
_FINAL: Final = frozenset({IssuanceState.ISSUED, IssuanceState.ROTATE})


@contextlib.contextmanager
def calling(dialer: Dialer, target: str) -> Iterator[None]:
    """Turn a failed call into an error that says what happened on the way to that manager."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        dialed = dialer.last_error(target)
        if dialed is not None and error.code() in {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        }:
            raise dialed from error
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            raise DeadlineError(
                f"no answer from {target}: is the address right, and 2377/tcp open?"
            ) from error
        raise manager_error(error, target) from error


async def fetch_root(channel: grpc.aio.Channel, dialer: Dialer, target: str) -> bytes:
    """Fetch the root certificate; the caller decides whether to believe it.

    Raises:
        SwarmError: the manager cannot be reached or refuses.
        WireError: the answer is no usable root.
    """
    stub = ca_pb2_grpc.CAStub(channel)
    with calling(dialer, target):
        answer = await stub.GetRootCACertificate(
            ca_pb2.GetRootCACertificateRequest(), timeout=CALL_TIMEOUT
        )
    root: bytes = answer.certificate
    certs.roots_untrusted(root, datetime.now(UTC))
    return root


async def request(
    channel: grpc.aio.Channel,
    dialer: Dialer,
    target: str,
    *,
    token: str = "",
    availability: NodeAvailability = NodeAvailability.ACTIVE,
) -> tuple[str, bytes, bytes]:
    """Get a certificate for a new key; return (node id, certificate PEM, key PEM), not yet verified.

    Args:
        channel: to a manager, verified; with our certificate when ``token`` is empty.
        dialer: the channel's, for the cause of a failure.
        target: the manager, for messages.
        token: empty for a renewal.
        availability: of a new node.

    Raises:
        SwarmError: the manager cannot be reached, refuses, or takes too long.
    """
    key_pem, csr = await asyncio.to_thread(certs.new_key_and_csr)
    stub = ca_pb2_grpc.NodeCAStub(channel)
    with calling(dialer, target):
        answer = await stub.IssueNodeCertificate(
            ca_pb2.IssueNodeCertificateRequest(
                csr=csr,
                token=token,
                availability=types_pb2.NodeAvailability.Value(
                    f"NODE_AVAILABILITY_{availability.name}"
                ),
            ),
            timeout=CALL_TIMEOUT,
        )
    # ``node_membership`` says nothing: an engine resets it to pending whenever ``docker node update`` is used.
    node_id: str = answer.node_id
    if not 0 < len(node_id) <= 64:
        raise WireError(f"manager {target} gave no usable node id")
    try:
        async with asyncio.timeout(ISSUE_TIMEOUT):
            certificate = await _issued(stub, dialer, target, node_id, csr)
    except TimeoutError as error:
        raise DeadlineError(f"manager {target} issued no certificate in time") from error
    return node_id, certificate, key_pem


async def _issued(
    stub: ca_pb2_grpc.NodeCAAsyncStub, dialer: Dialer, target: str, node_id: str, csr: bytes
) -> bytes:
    """Wait until our request, and not an older one of the same node, is answered."""
    while True:
        status = await _status(stub, dialer, target, node_id)
        if status is not None:
            state = int(status.status.state)
            if state == IssuanceState.FAILED:
                raise PermissionDeniedError(
                    f"manager {target} refused the certificate: {status.status.err[:200]}"
                )
            if state in _FINAL and status.certificate.csr == csr:
                return bytes(status.certificate.certificate)
        await asyncio.sleep(_PAUSE)


async def _status(
    stub: ca_pb2_grpc.NodeCAAsyncStub, dialer: Dialer, target: str, node_id: str
) -> ca_pb2.NodeCertificateStatusResponse | None:
    """Ask once; the manager answers when there is something to say. None: nothing yet."""
    with calling(dialer, target):
        try:
            answer: ca_pb2.NodeCertificateStatusResponse = await stub.NodeCertificateStatus(
                ca_pb2.NodeCertificateStatusRequest(node_id=node_id), timeout=CALL_TIMEOUT
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                return None
            raise
    return answer
