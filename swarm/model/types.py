"""Value types shared by specs and objects.

Field names and meanings are those of ``proto/docker/swarmkit``. Times are nanoseconds since the
epoch, durations nanoseconds, both ``None`` when absent. A field typed ``bytes`` whose wire type is
a message is carried untouched: it means nothing to networking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from swarm.model.enums import (
    EncryptionAlgorithm,
    EndpointResolutionMode,
    IPAMFamily,
    IssuanceState,
    NodeRole,
    NodeState,
    PortProtocol,
    PublishMode,
    Reachability,
    TaskState,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """Position of an object's last change in the Raft log."""

    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """Bookkeeping the store keeps on every object."""

    version: Version = Version()
    created_at: int | None = None
    updated_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """A user-defined index value."""

    key: str = ""
    val: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """Name and labels of an object."""

    name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    indices: tuple[IndexEntry, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """Architecture (``x86_64``) and operating system (``linux``)."""

    architecture: str = ""
    os: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginDescription:
    """One plugin of an engine, such as type ``Network`` name ``overlay``."""

    type: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """Version, labels and plugins of what runs containers on a node."""

    engine_version: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    plugins: tuple[PluginDescription, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeTLSInfo:
    """Who signed a node's certificate: root PEM, issuer subject DER, issuer SPKI DER."""

    trust_root: bytes = b""
    cert_issuer_subject: bytes = b""
    cert_issuer_public_key: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Processor time in 1e-9 cores and memory in bytes."""

    nano_cpus: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDescription:
    """What a node says of itself when it opens a session."""

    hostname: str = ""
    platform: Platform | None = None
    resources: Resources | None = None
    engine: EngineDescription | None = None
    tls_info: NodeTLSInfo | None = None
    fips: bool = False
    csi_info: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """What the managers observe of a node; ``addr`` is its address without port."""

    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    addr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagerStatus:
    """Raft side of a manager node; computed when read, never stored."""

    raft_id: int = 0
    addr: str = ""
    leader: bool = False
    reachability: Reachability = Reachability.UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Driver:
    """A driver's name and options."""

    name: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAMConfig:
    """One subnet: CIDR, optional allocation range (CIDR), gateway (bare address)."""

    family: IPAMFamily = IPAMFamily.UNKNOWN
    subnet: str = ""
    range: str = ""
    gateway: str = ""
    reserved: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAMOptions:
    """Address management of a network."""

    driver: Driver | None = None
    configs: tuple[IPAMConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttachmentConfig:
    """Wish to attach: target network (id or name), aliases, requested addresses."""

    target: str = ""
    aliases: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    driver_attachment_opts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortConfig:
    """One published port."""

    name: str = ""
    protocol: PortProtocol = PortProtocol.TCP
    target_port: int = 0
    published_port: int = 0
    publish_mode: PublishMode = PublishMode.INGRESS


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointSpec:
    """How a service is reached."""

    mode: EndpointResolutionMode = EndpointResolutionMode.VIP
    ports: tuple[PortConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualIP:
    """A service's address (CIDR) on one network."""

    network_id: str = ""
    addr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Allocated ports and virtual addresses of a service."""

    spec: EndpointSpec | None = None
    ports: tuple[PortConfig, ...] = ()
    virtual_ips: tuple[VirtualIP, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerStatus:
    """The container behind a task."""

    container_id: str = ""
    pid: int = 0
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortStatus:
    """Ports a task holds on its host."""

    ports: tuple[PortConfig, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStatus:
    """Observed state of a task, written by the component that owns that state."""

    timestamp: int | None = None
    state: TaskState = TaskState.NEW
    message: str = ""
    err: str = ""
    container: ContainerStatus | None = None
    port_status: PortStatus | None = None
    applied_by: str = ""
    applied_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A manager's node id and ``ip:port``."""

    node_id: str = ""
    addr: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedPeer:
    """A manager and its weight in the agents' choice; 10 is usual."""

    peer: Peer = Peer()
    weight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuanceStatus:
    """State of a certificate request."""

    state: IssuanceState = IssuanceState.UNKNOWN
    err: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A node's certificate request and its answer (PEM)."""

    role: NodeRole = NodeRole.WORKER
    csr: bytes = b""
    status: IssuanceStatus = IssuanceStatus()
    certificate: bytes = b""
    cn: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionKey:
    """A 16-byte key of one subsystem; ``lamport_time`` orders and names it, cluster-wide."""

    subsystem: str = ""
    algorithm: EncryptionAlgorithm = EncryptionAlgorithm.AES_128_GCM
    key: bytes = b""
    lamport_time: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTokens:
    """The secrets that let nodes in, one a role."""

    worker: str = ""
    manager: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootRotation:
    """A root rotation under way."""

    ca_cert: bytes = b""
    ca_key: bytes = b""
    cross_signed_ca_cert: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCA:
    """The cluster's trust root (PEM) and its join tokens."""

    ca_key: bytes = b""
    ca_cert: bytes = b""
    ca_cert_hash: str = ""
    join_tokens: JoinTokens = JoinTokens()
    root_rotation: RootRotation | None = None
    last_forced_rotation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalCA:
    """An external signer."""

    protocol: int = 0
    url: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    ca_cert: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CAConfig:
    """Certificate policy; ``node_cert_expiry`` in nanoseconds."""

    node_cert_expiry: int | None = None
    external_cas: tuple[ExternalCA, ...] = ()
    signing_ca_cert: bytes = b""
    signing_ca_key: bytes = b""
    force_rotate: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class OrchestrationConfig:
    """How many finished tasks are kept."""

    task_history_retention_limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RaftConfig:
    """Raft settings as users see them."""

    snapshot_interval: int = 0
    keep_old_snapshots: int = 0
    log_entries_for_slow_followers: int = 0
    heartbeat_tick: int = 0
    election_tick: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherConfig:
    """Session settings; ``heartbeat_period`` in nanoseconds."""

    heartbeat_period: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDefaults:
    """Defaults for tasks."""

    log_driver: Driver | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EncryptionConfig:
    """Whether managers lock their keys at rest."""

    auto_lock_managers: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BlacklistedCertificate:
    """A removed node's certificate stays refused until ``expiry``."""

    expiry: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A certificate of somebody who is no node; ``cn`` is its common name."""

    name: str = ""
    cn: str = ""
    issued_at: int | None = None
    expiry: int | None = None
