"""Objects: a spec plus what the cluster made of it. Everything in the store is one of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swarm.model.enums import NodeRole, TaskState
from swarm.model.specs import ClusterSpec, NetworkSpec, NodeSpec, ServiceSpec, TaskSpec
from swarm.model.types import (
    Annotations,
    BlacklistedCertificate,
    Certificate,
    ClientCertificate,
    Driver,
    EncryptionKey,
    Endpoint,
    IPAMOptions,
    ManagerStatus,
    Meta,
    NodeDescription,
    NodeStatus,
    RootCA,
    TaskStatus,
    Version,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network; ``driver_state`` and ``ipam`` hold what was allocated (VNIs, subnets, gateways)."""

    id: str = ""
    meta: Meta = Meta()
    spec: NetworkSpec = NetworkSpec()
    driver_state: Driver | None = None
    ipam: IPAMOptions | None = None
    pending_delete: bool = False
    extra: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttachment:
    """A network with the addresses (CIDR) given to one task or node on it."""

    network: Network = Network()
    addresses: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    driver_attachment_opts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A member of the cluster; ``attachments`` are its load balancer addresses, one a network."""

    id: str = ""
    meta: Meta = Meta()
    spec: NodeSpec = NodeSpec()
    description: NodeDescription | None = None
    status: NodeStatus = NodeStatus()
    manager_status: ManagerStatus | None = None
    certificate: Certificate = Certificate()
    role: NodeRole = NodeRole.WORKER
    attachments: tuple[NetworkAttachment, ...] = ()
    vxlan_udp_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A service."""

    id: str = ""
    meta: Meta = Meta()
    spec: ServiceSpec = ServiceSpec()
    endpoint: Endpoint | None = None
    update_status: bytes | None = None
    previous_spec: ServiceSpec | None = None
    pending_delete: bool = False
    spec_version: Version | None = None
    previous_spec_version: Version | None = None
    job_status: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One workload, or one attachment of a workload somebody else runs, on one node."""

    id: str = ""
    meta: Meta = Meta()
    spec: TaskSpec = TaskSpec()
    service_id: str = ""
    slot: int = 0
    node_id: str = ""
    annotations: Annotations = Annotations()
    service_annotations: Annotations = Annotations()
    status: TaskStatus = TaskStatus()
    desired_state: TaskState = TaskState.NEW
    networks: tuple[NetworkAttachment, ...] = ()
    endpoint: Endpoint | None = None
    log_driver: Driver | None = None
    spec_version: Version | None = None
    assigned_generic_resources: tuple[bytes, ...] = ()
    job_iteration: Version | None = None
    volumes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The cluster itself: settings, trust root, network keys."""

    id: str = ""
    meta: Meta = Meta()
    spec: ClusterSpec = ClusterSpec()
    root_ca: RootCA = RootCA()
    network_bootstrap_keys: tuple[EncryptionKey, ...] = ()
    encryption_key_lamport_clock: int = 0
    blacklisted_certificates: Mapping[str, BlacklistedCertificate] = field(default_factory=dict)
    unlock_keys: tuple[EncryptionKey, ...] = ()
    fips: bool = False
    default_address_pool: tuple[str, ...] = ()
    subnet_size: int = 0
    vxlan_udp_port: int = 0
    client_certificates: tuple[ClientCertificate, ...] = ()
