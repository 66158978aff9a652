"""The first transaction of a swarm: the cluster, its ingress network, its first node."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from datetime import datetime

from manager.api.balancers import with_ingress
from manager.api.networks import create_network
from manager.cluster import (
    certificate_validity,
    ingress_spec,
    new_cluster,
    new_node,
    own_availability,
)
from manager.config import ManagerConfig
from manager.store import Transaction
from swarm.identity.certs import Credentials, Identity, Role, new_key_and_csr, new_root
from swarm.model import NodeRole


def founding(
    config: ManagerConfig,
    identity: Identity,
    *,
    now: datetime,
    make_id: Callable[[], str],
    entropy: Callable[[int], bytes] = secrets.token_bytes,
) -> tuple[Callable[[Transaction], None], Credentials]:
    """Prepare a new swarm.

    Args:
        config: what was asked for.
        identity: the first manager, and the id of the cluster.
        now: aware wall time.
        make_id: makes the ingress network's id.
        entropy: random bytes for tokens and keys.

    Returns:
        The build function of the one transaction that founds the swarm, and the credentials of its
        first manager.
    """
    root = new_root(now)
    key, csr = new_key_and_csr()
    cluster = new_cluster(config, cluster_id=identity.cluster_id, root=root, entropy=entropy)
    certificate = root.issue(
        csr,
        node_id=identity.node_id,
        cluster_id=identity.cluster_id,
        role=Role.MANAGER,
        validity=certificate_validity(cluster),
        now=now,
    )
    node = new_node(
        cluster,
        node_id=identity.node_id,
        role=NodeRole.MANAGER,
        availability=own_availability(config),
        csr=csr,
        certificate=certificate,
    )
    network_id = make_id()

    def build(tx: Transaction) -> None:
        tx.create(cluster)
        create_network(tx, ingress_spec(), network_id=network_id)
        tx.create(with_ingress(tx, node))

    credentials = Credentials(root_pem=root.cert_pem, cert_pem=certificate, key_pem=key)
    return build, credentials
