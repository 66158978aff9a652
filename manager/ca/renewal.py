"""This manager's own certificate: made when it is missing or useless, renewed in its later life."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

import structlog

from manager.api.backend import Backend
from manager.cluster import certificate_validity, issued, signing_ca
from manager.store import Transaction
from swarm.errors import SwarmError
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
from swarm.model import Cluster, NodeRole

LONGEST_NAP: Final = 3600.0
"""Seconds between two looks at the wall clock, which may be set meanwhile."""

RETRY: Final = 5.0
LONGEST_RETRY: Final = 3600.0
"""First and longest pause after a failed renewal, seconds; doubled in between."""

log = structlog.get_logger(__name__)


class OwnCertificate:
    """The certificate of this manager, in its key store and in its Node object.

    Args:
        backend: this manager signs with the cluster's key in the store, so it must lead.
        keystore: where the agent of this node finds certificate and key, too.
        identity: who this manager is.
        rng: draws the time of renewal.
        unlock_key: current key to encrypt the private key with; None while autolock is off.
    """

    def __init__(
        self,
        backend: Backend,
        keystore: KeyStore,
        identity: Identity,
        rng: random.Random,
        unlock_key: Callable[[], bytes | None],
    ) -> None:
        self._backend = backend
        self._keystore = keystore
        self._identity = identity
        self._rng = rng
        self._unlock_key = unlock_key

    async def ensure(self) -> Credentials:
        """Return usable credentials: the stored ones, or new ones where those are of no use."""
        cluster = self._backend.store.view.clusters.only()
        try:
            stored = await asyncio.to_thread(self._keystore.load, self._unlock_key())
        except LockedError:
            stored = None  # a crash came between locking the raft state and locking the key
        if stored is not None and self._usable(stored, cluster):
            return stored
        return await self.renew()

    def _usable(self, credentials: Credentials, cluster: Cluster) -> bool:
        if credentials.cert_pem is None or credentials.root_pem != cluster.root_ca.ca_cert:
            return False
        try:
            found = verify_chain(
                credentials.cert_pem, credentials.root_pem, self._backend.clock.now()
            )
        except CertificateError:
            return False
        return found == self._identity

    async def renew(self) -> Credentials:
        """Make a new key and certificate, store both, and return them."""
        key, csr = new_key_and_csr()
        node_id = self._identity.node_id

        def build(tx: Transaction) -> tuple[bytes, bytes]:
            cluster = tx.clusters.only()
            certificate = signing_ca(cluster).issue(
                csr,
                node_id=node_id,
                cluster_id=cluster.id,
                role=Role.MANAGER,
                validity=certificate_validity(cluster),
                now=self._backend.clock.now(),
            )
            node = tx.nodes.require(node_id)
            made = issued(node_id=node_id, role=NodeRole.MANAGER, csr=csr, certificate=certificate)
            tx.update(replace(node, certificate=made))
            return cluster.root_ca.ca_cert, certificate

        root, certificate = await self._backend.store.transact(build)
        credentials = Credentials(root_pem=root, cert_pem=certificate, key_pem=key)
        await asyncio.to_thread(self._keystore.save, credentials, self._unlock_key())
        log.info("certificate.renewed", node=node_id)
        return credentials

    async def run(self, credentials: Credentials, renewed: Callable[[Credentials], None]) -> None:
        """Renew between 50 and 80 % of each certificate's life, until cancelled.

        Args:
            credentials: in use now.
            renewed: takes the new ones into use.
        """
        pause = RETRY
        while True:
            assert credentials.cert_pem is not None  # noqa: S101  # a manager always has one
            await self._until(renewal_time(credentials.cert_pem, self._rng))
            try:
                credentials = await self.renew()
                renewed(credentials)
                pause = RETRY
            except SwarmError as error:
                log.warning("certificate.renewal.failed", detail=str(error), again=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)

    async def _until(self, when: datetime) -> None:
        while (left := (when - self._backend.clock.now()).total_seconds()) > 0:  # noqa: ASYNC110  # a time, not an event
            await asyncio.sleep(min(left, LONGEST_NAP))
