"""This manager's own certificate: made when it is missing or useless, renewed in its later life."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Final, Protocol

import structlog

from manager.clock import Clock
from manager.cluster import certificate_validity, signing_ca, trusted_roots
from manager.store import Store
from swarm.errors import InvariantError, PreconditionError, SwarmError, UnavailableError
from swarm.identity.certs import (
    CertificateError,
    Credentials,
    Identity,
    Role,
    new_key_and_csr,
    renewal_time,
    verify_chain,
)
from swarm.identity.keystore import KeyStore, LockedError
from swarm.model import Cluster, IssuanceState

LONGEST_NAP: Final = 3600.0
"""Seconds between two looks at the wall clock, which may be set meanwhile."""

RETRY: Final = 5.0
LONGEST_RETRY: Final = 3600.0
"""First and longest pause after a failed renewal, seconds; doubled in between."""

log = structlog.get_logger(__name__)


class Issuer(Protocol):
    """Has the cluster's CA issue a certificate and note it in this manager's Node object."""

    def __call__(self, csr: bytes) -> Awaitable[bytes]:
        """Return the certificate and intermediates, PEM.

        Raises:
            SwarmError: no manager leads, or it refuses.
        """


class OwnCertificate:
    """The certificate of this manager, in its key store and in its Node object.

    Args:
        store: holds the root and its key.
        clock: wall time.
        keystore: where the agent of this node finds certificate and key, too.
        identity: who this manager is.
        rng: draws the time of renewal.
        unlock_key: current key to encrypt the private key with; None while autolock is off.
        issue: has the leader issue one, which may be this manager.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        keystore: KeyStore,
        identity: Identity,
        rng: random.Random,
        unlock_key: Callable[[], bytes | None],
        issue: Issuer,
    ) -> None:
        self._store = store
        self._clock = clock
        self._keystore = keystore
        self._identity = identity
        self._rng = rng
        self._unlock_key = unlock_key
        self._issue = issue
        self._unrecorded = False
        self._changed = asyncio.Event()

    async def ensure(self) -> Credentials:
        """Return usable credentials: the stored ones, or ones made here where those are of no use.

        A manager that was away for longer than its certificate was good for cannot reach the leader
        with it, but it holds the CA's key like every manager. :meth:`run` makes that known.
        """
        clusters = self._store.view.clusters.all()
        try:
            stored = await asyncio.to_thread(self._keystore.load, self._unlock_key())
        except LockedError:
            if not clusters:
                raise
            stored = None  # a crash came between locking the raft state and locking the key
        if not clusters:
            return self._require(stored)
        if stored is not None and self._usable(stored, clusters[0]):
            return await self._under(stored, clusters[0])
        self._unrecorded = True
        return await asyncio.to_thread(self._make, clusters[0])

    async def _under(self, credentials: Credentials, cluster: Cluster) -> Credentials:
        """Return credentials with the cluster's root, stored so."""
        if credentials.root_pem == cluster.root_ca.ca_cert:
            return credentials
        changed = replace(credentials, root_pem=cluster.root_ca.ca_cert)
        await asyncio.to_thread(self._keystore.save, changed, self._unlock_key())
        log.info("certificate.root.changed", node=self._identity.node_id)
        return changed

    def _require(self, stored: Credentials | None) -> Credentials:
        """Return what a manager has whose store is empty yet: the certificate it joined with."""
        if stored is None or stored.cert_pem is None:
            raise PreconditionError(
                f"this manager's certificate is gone from {self._keystore.directory}: "
                "leave the swarm and join it again"
            )
        return stored

    def _make(self, cluster: Cluster) -> Credentials:
        key, csr = new_key_and_csr()
        certificate = signing_ca(cluster).issue(
            csr,
            node_id=self._identity.node_id,
            cluster_id=cluster.id,
            role=Role.MANAGER,
            validity=certificate_validity(cluster),
            now=self._clock.now(),
        )
        made = Credentials(root_pem=cluster.root_ca.ca_cert, cert_pem=certificate, key_pem=key)
        self._keystore.save(made, self._unlock_key())
        log.info("certificate.made", node=self._identity.node_id)
        return made

    def _usable(self, credentials: Credentials, cluster: Cluster) -> bool:
        if credentials.cert_pem is None:
            return False
        try:
            found = verify_chain(credentials.cert_pem, cluster.root_ca.ca_cert, self._clock.now())
        except CertificateError:
            return False
        return found == self._identity

    def trusting(self, credentials: Credentials) -> Credentials:
        """Return credentials with all roots that this manager believes now."""
        for cluster in self._store.view.clusters.all():
            return replace(credentials, root_pem=trusted_roots(cluster))
        return credentials

    def look(self) -> None:
        """Hear that the cluster or a node has changed."""
        self._changed.set()

    async def renew(self) -> Credentials:
        """Get a certificate for a new key, store both, and return them.

        Raises:
            SwarmError: no manager leads, or this one is to be a worker.
        """
        key, csr = await asyncio.to_thread(new_key_and_csr)
        certificate = await self._issue(csr)
        cluster = self._store.view.clusters.only()
        # The leader may have ended a rotation of which we have not heard yet.
        if verify_chain(certificate, trusted_roots(cluster), self._clock.now()) != self._identity:
            raise UnavailableError("the leader issued a certificate of another role")
        credentials = Credentials(
            root_pem=cluster.root_ca.ca_cert, cert_pem=certificate, key_pem=key
        )
        await asyncio.to_thread(self._keystore.save, credentials, self._unlock_key())
        self._unrecorded = False
        log.info("certificate.renewed", node=self._identity.node_id)
        return credentials

    async def run(self, credentials: Credentials, renewed: Callable[[Credentials], None]) -> None:
        """Renew between 50 and 80 % of each certificate's life, or when asked; follow the root.

        Runs until cancelled.

        Args:
            credentials: in use now.
            renewed: takes others into use, with all roots to believe (:meth:`trusting`).
        """
        pause = RETRY
        used = credentials
        while True:
            assert credentials.cert_pem is not None  # noqa: S101  # a manager always has one
            when = renewal_time(credentials.cert_pem, self._rng)
            try:
                while not self._due(when):
                    self._changed.clear()
                    credentials = await self._follow_root(credentials)
                    if self.trusting(credentials) != used:
                        renewed(used := self.trusting(credentials))
                    await self._nap(when)
                credentials = await self.renew()
                renewed(used := self.trusting(credentials))
                pause = RETRY
            except InvariantError:
                raise
            except SwarmError as error:
                log.warning("certificate.renewal.failed", detail=str(error), again=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)

    async def _follow_root(self, credentials: Credentials) -> Credentials:
        for cluster in self._store.view.clusters.all():
            changed = credentials.root_pem != cluster.root_ca.ca_cert
            if changed and self._usable(credentials, cluster):
                return await self._under(credentials, cluster)
        return credentials

    def _due(self, when: datetime) -> bool:
        node = self._store.view.nodes.get(self._identity.node_id)
        asked = node is not None and node.certificate.status.state is IssuanceState.ROTATE
        return self._unrecorded or asked or when <= self._clock.now()

    async def _nap(self, when: datetime) -> None:
        """Wait until a time, but not for ever, or until something has changed."""
        left = max((when - self._clock.now()).total_seconds(), 0)
        try:
            async with asyncio.timeout(min(left, LONGEST_NAP)):
                await self._changed.wait()
        except TimeoutError:
            pass
