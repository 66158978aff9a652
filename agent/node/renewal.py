"""The next certificate, in time.

The schedule is pure; :class:`Renewal` carries it out. A renewal under the same root changes nothing
else: the session, gossip and workloads go on.

Source: SwarmKit ``ca/renewer.go``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

import grpc.aio
import structlog

from agent.node import certificate
from agent.session.service import Dialer
from swarm.errors import DeadlineError, PermissionDeniedError, SwarmError, UnavailableError
from swarm.identity.certs import (
    MANAGER_NAME,
    CertificateError,
    Credentials,
    Fault,
    Role,
    renewal_time,
    verify_chain,
)
from swarm.model import Peer

BACKOFF_BASE: Final = 5.0
BACKOFF_MAX: Final = 3600.0
FORCED_PAUSE: Final = 0.5
"""Seconds before a demanded renewal: demands come in pairs (role and certificate state)."""

log = structlog.get_logger(component="renewal")


class Schedule:
    """When to renew, and as what. All times are seconds since the epoch."""

    __slots__ = ("_backoff", "_rng", "at", "role")

    def __init__(self, cert_pem: bytes, rng: random.Random) -> None:
        self._rng = rng
        self._backoff = 0.0
        self.role: Role | None = None
        self.at = renewal_time(cert_pem, rng).timestamp()

    def demanded(self, role: Role, now: float) -> None:
        """Take a manager's demand for a new certificate of that role."""
        self.role = role
        self._backoff = 0.0
        self.at = min(self.at, now + FORCED_PAUSE)

    def renewed(self, cert_pem: bytes) -> None:
        """Take a success: the next is due somewhere between half and four fifths of its validity."""
        self._backoff = 0.0
        self.role = None
        self.at = renewal_time(cert_pem, self._rng).timestamp()

    def failed(self, now: float) -> None:
        """Take a failure: try again after 5 s, 10 s, 20 s ... at most an hour."""
        self._backoff = min(max(2 * self._backoff, BACKOFF_BASE), BACKOFF_MAX)
        self.at = now + self._backoff


class RenewingDialer(Dialer, Protocol):
    """A dialer that can be given new roots while a renewal is under way."""

    def reload(self, credentials: Credentials) -> None:
        """Use other credentials for new connections."""


class Renewal:
    """Renews a worker's certificate.

    Args:
        credentials: the current ones.
        dialer: shows the current certificate to managers.
        managers: returns the managers to ask, the preferred one first.
        install: stores new credentials and puts them to use.
        scheduled: says whether this renewal follows the certificate's age, or only what managers
            demand (on a manager, whose own process renews).
        rng: spreads the renewals of many nodes.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        dialer: RenewingDialer,
        managers: Callable[[], tuple[Peer, ...]],
        install: Callable[[Credentials], object],
        rng: random.Random,
        scheduled: Callable[[], bool] = lambda: True,
    ) -> None:
        assert credentials.cert_pem is not None  # noqa: S101  # members have one
        self.credentials = credentials
        self._dialer = dialer
        self._managers = managers
        self._install = install
        self._scheduled = scheduled
        self._schedule = Schedule(credentials.cert_pem, rng)
        self._changed = asyncio.Event()

    def demand(self, role: Role) -> None:
        """Renew now, because a manager says so; until it works."""
        self._schedule.demanded(role, _now())
        self._changed.set()

    async def run(self) -> None:
        """Renew whenever it is time, until cancelled."""
        while True:
            self._changed.clear()
            due = self._scheduled() or self._schedule.role is not None
            try:
                async with asyncio.timeout(max(self._schedule.at - _now(), 0.0) if due else None):
                    await self._changed.wait()
                continue
            except TimeoutError:
                pass
            await self._attempt()

    async def _attempt(self) -> None:
        wanted = self._schedule.role
        try:
            renewed = await self.renew(wanted)
        except SwarmError as error:
            self._schedule.failed(_now())
            log.warning("certificate.renewal.failed", reason=str(error))
            return
        self.credentials = renewed
        assert renewed.cert_pem is not None  # noqa: S101  # just issued
        self._schedule.renewed(renewed.cert_pem)
        log.info("certificate.renewed", next=datetime.fromtimestamp(self._schedule.at, UTC))

    async def renew(self, role: Role | None) -> Credentials:
        """Get and install a new certificate.

        Raises:
            SwarmError: no manager gave one, or not of the wanted role.
        """
        error: SwarmError = UnavailableError("no manager is known")
        for peer in self._managers():
            try:
                return await self._renew_at(peer.addr, role)
            except (UnavailableError, DeadlineError) as failure:
                error = failure
        raise error

    async def _renew_at(self, target: str, role: Role | None) -> Credentials:
        channel = self._dialer.channel(target, server_name=MANAGER_NAME)
        try:
            node_id, cert_pem, key_pem = await certificate.request(channel, self._dialer, target)
            root = await self._root_for(channel, target, cert_pem)
        finally:
            await channel.close()
        identity = verify_chain(cert_pem, root, datetime.now(UTC))
        current = self.credentials.identity
        if current is None or (identity.node_id, identity.cluster_id) != (
            current.node_id,
            current.cluster_id,
        ):
            raise PermissionDeniedError(
                f"{target} issued a certificate for another node ({node_id})"
            )
        if role is not None and identity.role is not role:
            raise UnavailableError(f"{target} issued a certificate for another role")
        renewed = Credentials(root_pem=root, cert_pem=cert_pem, key_pem=key_pem)
        self._install(renewed)
        return renewed

    async def _root_for(self, channel: grpc.aio.Channel, target: str, cert_pem: bytes) -> bytes:
        """Return the roots a new certificate belongs to: ours, or newer ones that ours lead to."""
        now = datetime.now(UTC)
        try:
            verify_chain(cert_pem, self.credentials.root_pem, now)
        except CertificateError as error:
            if error.fault is not Fault.FOREIGN or self.credentials.cert_pem is None:
                raise
        else:
            return self.credentials.root_pem
        root = await certificate.fetch_root(channel, self._dialer, target)
        verify_chain(self.credentials.cert_pem, root, now)
        return root


def _now() -> float:
    return datetime.now(UTC).timestamp()
