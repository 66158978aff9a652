"""Joining over the real tunnels, against a certificate authority that can be told to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from agent.node.join import join
from agent.node.renewal import BACKOFF_BASE, BACKOFF_MAX, FORCED_PAUSE, Renewal, Schedule
from swarm.api.docker.swarmkit import ca_pb2, ca_pb2_grpc, types_pb2
from swarm.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    SwarmError,
    UnavailableError,
)
from swarm.identity.certs import Credentials, Role, RootCA, new_key_and_csr, new_root
from swarm.identity.dialer import TlsDialer
from swarm.identity.front import TlsFront
from swarm.identity.ids import new_id
from swarm.identity.token import JoinToken, TokenError, new_token
from swarm.model import Peer

NOW = datetime.now(UTC)
CLUSTER = new_id()


@dataclass
class Authority:
    """The two services a joiner needs, with real certificates."""

    root: RootCA
    token: JoinToken
    role: Role = Role.WORKER
    busy: int = 0
    fail: str = ""
    stale_csr: bool = False
    membership: types_pb2.NodeMembership.ValueType = types_pb2.NODE_MEMBERSHIP_ACCEPTED
    calls: int = 0
    issued: dict[str, types_pb2.Certificate] = field(default_factory=dict)
    node_id: str = ""

    async def GetRootCACertificate(self, _: Any, __: Any) -> ca_pb2.GetRootCACertificateResponse:  # noqa: N802
        """Serve the root."""
        return ca_pb2.GetRootCACertificateResponse(certificate=self.root.cert_pem)

    async def IssueNodeCertificate(  # noqa: N802
        self, request: ca_pb2.IssueNodeCertificateRequest, context: Any
    ) -> ca_pb2.IssueNodeCertificateResponse:
        """Check the token (a renewal has none) and issue."""
        self.calls += 1
        if self.busy:
            self.busy -= 1
            await context.abort(grpc.StatusCode.ABORTED, "no leader yet")
        if request.token not in {"", str(self.token)}:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "A valid join token is necessary")
        node_id = self.node_id or new_id()
        self.issued[node_id] = types_pb2.Certificate(
            csr=b"" if self.stale_csr else request.csr,
            certificate=self.root.issue(
                request.csr, node_id=node_id, cluster_id=CLUSTER, role=self.role, now=NOW
            ),
        )
        return ca_pb2.IssueNodeCertificateResponse(node_id=node_id, node_membership=self.membership)

    async def NodeCertificateStatus(  # noqa: N802
        self, request: ca_pb2.NodeCertificateStatusRequest, _: Any
    ) -> ca_pb2.NodeCertificateStatusResponse:
        """Hand the certificate out."""
        return ca_pb2.NodeCertificateStatusResponse(
            status=types_pb2.IssuanceStatus(state=4 if self.fail else 3, err=self.fail),  # type: ignore[arg-type]
            certificate=self.issued[request.node_id],
        )


def _issue(
    root: RootCA, node_id: str, role: Role, validity: timedelta | None = None
) -> Credentials:
    key, csr = new_key_and_csr()
    options = {} if validity is None else {"validity": validity}
    cert = root.issue(csr, node_id=node_id, cluster_id=CLUSTER, role=role, now=NOW, **options)
    return Credentials(root_pem=root.cert_pem, cert_pem=cert, key_pem=key)


@contextlib.asynccontextmanager
async def _serving(authority: Authority, directory: Path) -> AsyncIterator[str]:
    """Serve an authority as a manager does; yields ``host:port``."""
    front = TlsFront(
        upstream=directory / "front" / "m.sock",
        credentials=_issue(authority.root, new_id(), Role.MANAGER),
        listen=[("127.0.0.1", 0)],
    )
    front.bind()
    server = grpc.aio.server()
    ca_pb2_grpc.add_CAServicer_to_server(authority, server)  # type: ignore[arg-type]
    ca_pb2_grpc.add_NodeCAServicer_to_server(authority, server)  # type: ignore[arg-type]
    server.add_insecure_port(front.upstream_target)
    await server.start()
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(front.run())
        host, port = front.addresses[0]
        try:
            yield f"{host}:{port}"
        finally:
            running.cancel()
            await server.stop(None)


@pytest.fixture
def authority() -> Authority:
    """An authority with a fresh root."""
    root = new_root(NOW)
    # The generated base classes answer UNIMPLEMENTED for what this one does not have.
    authority = Authority(root=root, token=new_token(root.cert_pem))
    authority.GetUnlockKey = None  # type: ignore[attr-defined]
    return authority


async def test_a_token_becomes_a_certificate(authority: Authority, tmp_path: Path) -> None:
    """The certificate names this node, this cluster, and belongs to the pinned root."""
    async with _serving(authority, tmp_path) as target:
        joined = await join([target], str(authority.token), directory=tmp_path / "dial")
    assert joined.identity.cluster_id == CLUSTER
    assert joined.identity.role is Role.WORKER
    assert joined.credentials.identity == joined.identity
    assert joined.manager == target


async def test_a_foreign_token_is_said_at_once(authority: Authority, tmp_path: Path) -> None:
    """No certificate is even asked for."""
    foreign = new_token(new_root(NOW).cert_pem)
    async with _serving(authority, tmp_path) as target:
        with pytest.raises(PermissionDeniedError, match="belongs to another cluster"):
            await join([target], str(foreign), directory=tmp_path / "dial")
    assert authority.calls == 0


async def test_a_rotated_secret_is_the_managers_word_after_one_try(
    authority: Authority, tmp_path: Path
) -> None:
    """An engine would try five times."""
    rotated = dataclasses.replace(authority.token, secret="0" * 25)
    async with _serving(authority, tmp_path) as target:
        with pytest.raises(InvalidArgumentError, match="A valid join token is necessary"):
            await join([target], str(rotated), directory=tmp_path / "dial")
    assert authority.calls == 1


@pytest.mark.parametrize("text", ["", "SWMTKN-1-abc", "SWMTKN-9-a-b", "hello"])
async def test_a_malformed_token_needs_no_manager(text: str, tmp_path: Path) -> None:
    """Nobody is dialled for it."""
    with pytest.raises(TokenError):
        await join(["127.0.0.1:1"], text, directory=tmp_path / "dial")


async def test_a_refused_connection_is_named(authority: Authority, tmp_path: Path) -> None:
    """With the address that refused."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnavailableError, match=f"refused by 127.0.0.1:{port}"):
        await join([f"127.0.0.1:{port}"], str(authority.token), directory=tmp_path / "dial")


async def test_something_that_is_no_manager_is_named(authority: Authority, tmp_path: Path) -> None:
    """A web server on that port, say."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        with pytest.raises(UnavailableError, match=f"127.0.0.1:{port}"):
            await join([f"127.0.0.1:{port}"], str(authority.token), directory=tmp_path / "dial")
    finally:
        server.close()


async def test_the_next_manager_is_tried(authority: Authority, tmp_path: Path) -> None:
    """One that is down does not keep a node out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = f"127.0.0.1:{taken.getsockname()[1]}"
    async with _serving(authority, tmp_path) as target:
        joined = await join([dead, target], str(authority.token), directory=tmp_path / "dial")
    assert joined.manager == target


async def test_an_election_is_waited_for(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same manager has a leader a moment later."""
    monkeypatch.setattr("agent.node.join._PAUSE", 0.001)
    authority.busy = 2
    async with _serving(authority, tmp_path) as target:
        await join([target], str(authority.token), directory=tmp_path / "dial")
    assert authority.calls == 3


async def test_a_manager_token_gives_a_managers_certificate(
    authority: Authority, tmp_path: Path
) -> None:
    """The role in the certificate is what the node becomes."""
    authority.role = Role.MANAGER
    async with _serving(authority, tmp_path) as target:
        joined = await join([target], str(authority.token), directory=tmp_path / "dial")
    assert joined.identity.role is Role.MANAGER


async def test_a_failed_issue_gives_the_reason(authority: Authority, tmp_path: Path) -> None:
    """The manager's own words."""
    authority.fail = "external signer is down"
    async with _serving(authority, tmp_path) as target:
        with pytest.raises(PermissionDeniedError, match="external signer is down"):
            await join([target], str(authority.token), directory=tmp_path / "dial")


async def test_the_answer_to_an_older_request_is_not_taken(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate would not fit the new key."""
    monkeypatch.setattr("agent.node.certificate.ISSUE_TIMEOUT", 0.5)
    authority.stale_csr = True
    async with _serving(authority, tmp_path) as target:
        with pytest.raises(SwarmError, match="in time"):
            await join([target], str(authority.token), directory=tmp_path / "dial")


@pytest.mark.parametrize("remotes", [[], ["a"] * 100, ["x:y:z"]])
async def test_addresses_that_make_no_sense(remotes: list[str], tmp_path: Path) -> None:
    """Refused before anything is dialled."""
    token = new_token(b"root")
    with pytest.raises(InvalidArgumentError):
        await join(remotes, str(token), directory=tmp_path / "dial")


class TestRenewal:
    """The next certificate, over the same tunnels."""

    @contextlib.asynccontextmanager
    async def _renewing(
        self, authority: Authority, directory: Path, node_id: str
    ) -> AsyncIterator[tuple[Renewal, list[Credentials]]]:
        installed: list[Credentials] = []
        credentials = _issue(authority.root, node_id, Role.WORKER)
        async with _serving(authority, directory) as target:
            dialer = TlsDialer(directory=directory / "dial", credentials=credentials)
            async with asyncio.TaskGroup() as group:
                running = group.create_task(dialer.run())
                yield (
                    Renewal(
                        credentials,
                        dialer=dialer,
                        managers=lambda: (Peer(node_id="m", addr=target),),
                        install=installed.append,
                        rng=random.Random(1),
                    ),
                    installed,
                )
                running.cancel()

    async def test_a_renewal_keeps_identity_and_root(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        """Only key and certificate are new."""
        authority.node_id = new_id()
        async with self._renewing(authority, tmp_path, authority.node_id) as (renewal, installed):
            before = renewal.credentials
            renewed = await renewal.renew(None)
        assert installed == [renewed]
        assert renewed.identity == before.identity
        assert renewed.root_pem == before.root_pem
        assert renewed.key_pem != before.key_pem

    async def test_a_pending_membership_is_no_refusal(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        """Engines say so for every node that ``docker node update`` has touched, and issue all the same."""
        authority.node_id = new_id()
        authority.membership = types_pb2.NODE_MEMBERSHIP_PENDING
        async with self._renewing(authority, tmp_path, authority.node_id) as (renewal, installed):
            assert installed == [await renewal.renew(None)]

    async def test_a_certificate_for_somebody_else_is_refused(
        self, authority: Authority, tmp_path: Path
    ) -> None:
        """Nothing is installed."""
        async with self._renewing(authority, tmp_path, new_id()) as (renewal, installed):
            with pytest.raises(PermissionDeniedError, match="another node"):
                await renewal.renew(None)
        assert installed == []

    async def test_the_demanded_role_must_come(self, authority: Authority, tmp_path: Path) -> None:
        """Otherwise it is tried again later."""
        authority.node_id = new_id()
        async with self._renewing(authority, tmp_path, authority.node_id) as (renewal, installed):
            with pytest.raises(UnavailableError, match="another role"):
                await renewal.renew(Role.MANAGER)
        assert installed == []


def test_schedule_of_renewals() -> None:
    """Between half and four fifths of the validity; sooner on demand; with growing pauses on failure."""
    root = new_root(NOW)
    cert = _issue(root, new_id(), Role.WORKER, timedelta(hours=10)).cert_pem
    assert cert is not None
    start, length = NOW.timestamp() - 3600, 11 * 3600.0  # certificates start an hour early
    for seed in range(20):
        schedule = Schedule(cert, random.Random(seed))
        assert start + 0.5 * length - 1 <= schedule.at <= start + 0.8 * length + 1
    now = NOW.timestamp()
    schedule.demanded(Role.WORKER, now)
    assert schedule.at == pytest.approx(now + FORCED_PAUSE)
    pauses = []
    for _ in range(14):
        schedule.failed(now)
        pauses.append(schedule.at - now)
    assert pauses[:3] == pytest.approx([BACKOFF_BASE, 2 * BACKOFF_BASE, 4 * BACKOFF_BASE])
    assert pauses[-1] == pytest.approx(BACKOFF_MAX)
    assert schedule.role is Role.WORKER
    schedule.renewed(cert)
    assert schedule.role is None
    assert schedule.at > now + 3600
