"""Specs: what users ask for. The cluster copies them and never edits them."""

from __future__ import annotations

from dataclasses import dataclass

from swarm.model.enums import NodeAvailability, NodeMembership, NodeRole
from swarm.model.types import (
    Annotations,
    CAConfig,
    DispatcherConfig,
    Driver,
    EncryptionConfig,
    EndpointSpec,
    IPAMOptions,
    NetworkAttachmentConfig,
    OrchestrationConfig,
    RaftConfig,
    TaskDefaults,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """What is wanted of a node."""

    annotations: Annotations = Annotations()
    desired_role: NodeRole = NodeRole.WORKER
    membership: NodeMembership = NodeMembership.PENDING
    availability: NodeAvailability = NodeAvailability.ACTIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Cluster-wide settings."""

    annotations: Annotations = Annotations()
    acceptance_policy: bytes = b""
    orchestration: OrchestrationConfig = OrchestrationConfig()
    raft: RaftConfig = RaftConfig()
    dispatcher: DispatcherConfig = DispatcherConfig()
    ca_config: CAConfig = CAConfig()
    task_defaults: TaskDefaults = TaskDefaults()
    encryption_config: EncryptionConfig = EncryptionConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec:
    """What is wanted of a network."""

    annotations: Annotations = Annotations()
    driver_config: Driver | None = None
    ipv6_enabled: bool = False
    internal: bool = False
    ipam: IPAMOptions | None = None
    attachable: bool = False
    ingress: bool = False
    network: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkAttachmentSpec:
    """A task that only attaches the container of somebody else (64 hex digits)."""

    container_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenericRuntimeSpec:
    """A workload of another runtime; ``payload`` is a serialized ``google.protobuf.Any``."""

    kind: str = ""
    payload: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What is wanted of a task: at most one of container, attachment and generic is present."""

    container: bytes | None = None
    attachment: NetworkAttachmentSpec | None = None
    generic: GenericRuntimeSpec | None = None
    resources: bytes | None = None
    restart: bytes | None = None
    placement: bytes | None = None
    log_driver: Driver | None = None
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    force_update: int = 0
    resource_references: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicatedService:
    """So many tasks, wherever they fit."""

    replicas: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """What is wanted of a service."""

    annotations: Annotations = Annotations()
    task: TaskSpec = TaskSpec()
    replicated: ReplicatedService | None = None
    global_: bytes | None = None
    replicated_job: bytes | None = None
    global_job: bytes | None = None
    update: bytes | None = None
    networks: tuple[NetworkAttachmentConfig, ...] = ()
    endpoint: EndpointSpec | None = None
    rollback: bytes | None = None
