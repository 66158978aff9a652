"""Enumerations of the cluster's objects; values are those of the wire."""

from __future__ import annotations

from enum import IntEnum


class NodeMembership(IntEnum):
    """Whether a node was let in; everything that holds a token is, at once."""

    PENDING = 0
    ACCEPTED = 1


class NodeAvailability(IntEnum):
    """What may be placed on a node: anything, nothing new, nothing at all."""

    ACTIVE = 0
    PAUSE = 1
    DRAIN = 2


class NodeRole(IntEnum):
    """What a node is to the control plane."""

    WORKER = 0
    MANAGER = 1


class NodeState(IntEnum):
    """What the managers know of a node's session."""

    UNKNOWN = 0
    DOWN = 1
    READY = 2
    DISCONNECTED = 3


class Reachability(IntEnum):
    """Whether the leader hears a manager."""

    UNKNOWN = 0
    UNREACHABLE = 1
    REACHABLE = 2


class IPAMFamily(IntEnum):
    """Address family of one subnet."""

    UNKNOWN = 0
    IPV4 = 4
    IPV6 = 6


class PortProtocol(IntEnum):
    """Transport of a published port."""

    TCP = 0
    UDP = 1
    SCTP = 2


class PublishMode(IntEnum):
    """Where a port is published: on every node (mesh) or on the task's own host."""

    INGRESS = 0
    HOST = 1


class EndpointResolutionMode(IntEnum):
    """How a service name resolves: to a virtual address, or to every task's."""

    VIP = 0
    DNSRR = 1


class TaskState(IntEnum):
    """Life of a task; observed states only rise, REMOVE is only ever desired."""

    NEW = 0
    PENDING = 64
    ASSIGNED = 192
    ACCEPTED = 256
    PREPARING = 320
    READY = 384
    STARTING = 448
    RUNNING = 512
    COMPLETE = 576
    SHUTDOWN = 640
    FAILED = 704
    REJECTED = 768
    REMOVE = 800
    ORPHANED = 832


class IssuanceState(IntEnum):
    """Where a node's certificate stands; ROTATE asks the node to renew at once."""

    UNKNOWN = 0
    RENEW = 1
    PENDING = 2
    ISSUED = 3
    FAILED = 4
    ROTATE = 5


class EncryptionAlgorithm(IntEnum):
    """Algorithm of a network key."""

    AES_128_GCM = 0
