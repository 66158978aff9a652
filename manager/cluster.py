"""The cluster as an object: what a new one holds, its network keys, its list of removed nodes.

Pure: times, entropy and ids come in, objects go out; :mod:`manager.process` stores them.

Source: SwarmKit ``manager/manager.go`` (defaults), ``ca/config.go``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Final

from manager.ca.authority import new_join_tokens
from manager.config import Availability, ManagerConfig
from swarm.identity.certs import RootCA as SigningCA
from swarm.identity.certs import certificates_untrusted
from swarm.identity.unlock import new_unlock_key
from swarm.model import (
    Annotations,
    BlacklistedCertificate,
    CAConfig,
    Certificate,
    Cluster,
    ClusterSpec,
    DispatcherConfig,
    EncryptionConfig,
    EncryptionKey,
    IssuanceState,
    IssuanceStatus,
    JoinTokens,
    NetworkSpec,
    Node,
    NodeAvailability,
    NodeMembership,
    NodeRole,
    NodeSpec,
    OrchestrationConfig,
    RaftConfig,
    RootCA,
)

NAME: Final = "default"
"""The only name a cluster may have."""

INGRESS: Final = "ingress"
SUBSYSTEM_GOSSIP: Final = "networking:gossip"
SUBSYSTEM_IPSEC: Final = "networking:ipsec"
SUBSYSTEMS: Final = (SUBSYSTEM_GOSSIP, SUBSYSTEM_IPSEC)
SUBSYSTEM_UNLOCK: Final = "swarm-manager"

KEYS_PER_SUBSYSTEM: Final = 3
"""Engines take exactly three: the oldest still decrypts, the middle one encrypts, the newest waits."""

KEY_BYTES: Final = 16
ROTATION: Final = timedelta(hours=12)
"""Time between two rotations of the network keys."""

BLACKLIST_MARGIN: Final = timedelta(days=7)
"""How long past its certificate's expiry a removed node stays refused."""

DEFAULT_POOL: Final = "10.0.0.0/8"
DEFAULT_SUBNET_SIZE: Final = 24
DEFAULT_DATA_PATH_PORT: Final = 4789
SLOW_FOLLOWER_ENTRIES: Final = 500

_SECOND: Final = 1_000_000_000
_AVAILABILITY: Final = {
    Availability.ACTIVE: NodeAvailability.ACTIVE,
    Availability.PAUSE: NodeAvailability.PAUSE,
    Availability.DRAIN: NodeAvailability.DRAIN,
}

Entropy = Callable[[int], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkKeys:
    """The keys of all subsystems and the clock that names the next one."""

    keys: tuple[EncryptionKey, ...]
    clock: int


def new_network_keys(entropy: Entropy) -> NetworkKeys:
    """Make three keys for each subsystem; the lamport clock starts at a random 0 to 65535."""
    made = NetworkKeys(keys=(), clock=int.from_bytes(entropy(2), "big"))
    for subsystem in SUBSYSTEMS:
        for _ in range(KEYS_PER_SUBSYSTEM):
            made = _with_key(made, subsystem, entropy)
    return made


def rotated(keys: NetworkKeys, entropy: Entropy) -> NetworkKeys:
    """Drop the oldest key of each subsystem and add a new one: one generation, never more.

    An update that skips a generation mutes an engine's gossip until the next one.
    """
    for subsystem in SUBSYSTEMS:
        own = sorted(
            (key for key in keys.keys if key.subsystem == subsystem), key=lambda k: k.lamport_time
        )
        stale = own[: len(own) - KEYS_PER_SUBSYSTEM + 1]
        kept = tuple(key for key in keys.keys if key not in stale)
        keys = _with_key(replace(keys, keys=kept), subsystem, entropy)
    return keys


def _with_key(keys: NetworkKeys, subsystem: str, entropy: Entropy) -> NetworkKeys:
    key = EncryptionKey(subsystem=subsystem, key=entropy(KEY_BYTES), lamport_time=keys.clock)
    return NetworkKeys(keys=(*keys.keys, key), clock=keys.clock + 1)


def new_cluster(
    config: ManagerConfig, *, cluster_id: str, root: SigningCA, entropy: Entropy
) -> Cluster:
    """Make the cluster object of a new swarm: tokens, keys, and Swarm's defaults where nothing is asked."""
    tokens = new_join_tokens(root.cert_pem, entropy)
    keys = new_network_keys(entropy)
    unlock = (
        (EncryptionKey(subsystem=SUBSYSTEM_UNLOCK, key=new_unlock_key(entropy)),)
        if config.autolock
        else ()
    )
    return Cluster(
        id=cluster_id,
        spec=ClusterSpec(
            annotations=Annotations(name=NAME),
            orchestration=OrchestrationConfig(
                task_history_retention_limit=config.task_history_limit
            ),
            raft=RaftConfig(
                snapshot_interval=config.snapshot_interval,
                keep_old_snapshots=config.max_snapshots,
                log_entries_for_slow_followers=SLOW_FOLLOWER_ENTRIES,
                heartbeat_tick=1,
                election_tick=10,
            ),
            dispatcher=DispatcherConfig(heartbeat_period=config.heartbeat_ns),
            ca_config=CAConfig(node_cert_expiry=config.cert_expiry_ns),
            encryption_config=EncryptionConfig(auto_lock_managers=config.autolock),
        ),
        root_ca=RootCA(
            ca_key=root.key_pem or b"",
            ca_cert=root.cert_pem,
            ca_cert_hash=root_hash(root.cert_pem),
            join_tokens=JoinTokens(worker=tokens.worker, manager=tokens.manager),
        ),
        network_bootstrap_keys=keys.keys,
        encryption_key_lamport_clock=keys.clock,
        unlock_keys=unlock,
        default_address_pool=config.default_address_pools or (DEFAULT_POOL,),
        subnet_size=config.subnet_size,
        vxlan_udp_port=config.data_path_port,
    )


def ingress_spec() -> NetworkSpec:
    """Return the spec of the network every cluster begins with."""
    return NetworkSpec(annotations=Annotations(name=INGRESS), ingress=True)


def new_node(
    cluster: Cluster,
    *,
    node_id: str,
    role: NodeRole,
    availability: NodeAvailability,
    csr: bytes,
    certificate: bytes,
) -> Node:
    """Make the object of a node that just got its first certificate."""
    return Node(
        id=node_id,
        spec=NodeSpec(
            desired_role=role, membership=NodeMembership.ACCEPTED, availability=availability
        ),
        certificate=issued(node_id=node_id, role=role, csr=csr, certificate=certificate),
        role=role,
        vxlan_udp_port=cluster.vxlan_udp_port,
    )


def issued(*, node_id: str, role: NodeRole, csr: bytes, certificate: bytes) -> Certificate:
    """Describe a certificate that was issued; engines compare ``csr`` with theirs byte for byte."""
    return Certificate(
        role=role,
        csr=csr,
        status=IssuanceStatus(state=IssuanceState.ISSUED),
        certificate=certificate,
        cn=node_id,
    )


def own_availability(config: ManagerConfig) -> NodeAvailability:
    """Translate the configured availability of this node."""
    return _AVAILABILITY[config.availability]


def root_hash(root_pem: bytes) -> str:
    """Return the digest of a root as the cluster object has it."""
    return "sha256:" + hashlib.sha256(root_pem).hexdigest()


def signing_ca(cluster: Cluster) -> SigningCA:
    """Return the CA that signs for the cluster: while the root is being replaced, the new one.

    Its certificates come with what leads from the new root to the old one, which everybody trusts still.
    """
    root = cluster.root_ca
    if root.root_rotation is None:
        return SigningCA(cert_pem=root.ca_cert, key_pem=root.ca_key or None)
    return SigningCA(
        cert_pem=root.ca_cert,
        key_pem=root.root_rotation.ca_key or None,
        intermediates_pem=root.root_rotation.cross_signed_ca_cert,
    )


def trusted_roots(cluster: Cluster) -> bytes:
    """Return the roots that a manager believes, PEM: the cluster's, and the one that will replace it.

    Nodes are told of the new one at the end. A manager that misses the end is still found by the others,
    whose next certificates come without a way to the old root.
    """
    root = cluster.root_ca
    return root.ca_cert + (b"" if root.root_rotation is None else root.root_rotation.ca_cert)


def certificate_validity(cluster: Cluster) -> timedelta:
    """Return how long node certificates are good for."""
    expiry = cluster.spec.ca_config.node_cert_expiry
    return timedelta(microseconds=(expiry or 0) / 1000)


def unlock_key(cluster: Cluster) -> bytes | None:
    """Return the key that unlocks managers; None when autolock is off."""
    for key in cluster.unlock_keys:
        if key.subsystem == SUBSYSTEM_UNLOCK and key.key:
            return key.key
    return None


def blacklisted(cluster: Cluster, node: Node, now: int) -> Cluster:
    """Refuse a node's certificate from now on, until a week after it expires.

    Args:
        cluster: the cluster now.
        node: the node that is removed.
        now: wall time, nanoseconds.
    """
    if node.certificate.certificate:
        leaf = certificates_untrusted(node.certificate.certificate)[0]
        expiry = int(leaf.not_valid_after_utc.timestamp()) * _SECOND
    else:
        expiry = now + (cluster.spec.ca_config.node_cert_expiry or 0)
    entry = BlacklistedCertificate(expiry=expiry + int(BLACKLIST_MARGIN.total_seconds()) * _SECOND)
    return replace(
        cluster, blacklisted_certificates={**cluster.blacklisted_certificates, node.id: entry}
    )


def without_expired(cluster: Cluster, now: int) -> Cluster:
    """Forget removed nodes whose certificates ran out; returns the same object when there are none."""
    kept = {
        node_id: entry
        for node_id, entry in cluster.blacklisted_certificates.items()
        if entry.expiry is None or entry.expiry > now
    }
    if len(kept) == len(cluster.blacklisted_certificates):
        return cluster
    return replace(cluster, blacklisted_certificates=kept)


def redacted(cluster: Cluster) -> Cluster:
    """Return what a client may see: no private key, no network or unlock key; join tokens stay."""
    rotation = cluster.root_ca.root_rotation
    ca_config = replace(cluster.spec.ca_config, signing_ca_cert=b"", signing_ca_key=b"")
    return replace(
        cluster,
        spec=replace(cluster.spec, ca_config=ca_config),
        root_ca=replace(
            cluster.root_ca,
            ca_key=b"",
            root_rotation=None if rotation is None else replace(rotation, ca_key=b""),
        ),
        network_bootstrap_keys=(),
        encryption_key_lamport_clock=0,
        unlock_keys=(),
        default_address_pool=cluster.default_address_pool or (DEFAULT_POOL,),
        subnet_size=cluster.subnet_size or DEFAULT_SUBNET_SIZE,
        vxlan_udp_port=cluster.vxlan_udp_port or DEFAULT_DATA_PATH_PORT,
    )
