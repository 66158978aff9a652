"""The services a manager offers on 2377 and on its private socket, and who answers each RPC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from manager.api.attachments import Attachments
from manager.api.backend import Backend
from manager.api.clusters import Clusters
from manager.api.health import Health
from manager.api.keys import Keys
from manager.api.membership import Membership
from manager.api.networks import Networks
from manager.api.nodes import Nodes
from manager.api.raft import RaftMessages
from manager.api.scheduling import scheduler_services
from manager.api.server import Service, Unimplemented
from manager.api.services import Services
from manager.api.standard import standard_services
from manager.api.tasks import Tasks
from manager.ca.service import CertificateAuthority, NodeCertificates
from manager.dispatcher.hub import Hub
from manager.dispatcher.service import Dispatcher
from manager.joining import probe
from manager.raft.node import RaftNode
from manager.raft.transport import GrpcTransport
from swarm.api.docker.swarmkit import (
    ca_pb2,
    control_pb2,
    dispatcher_pb2,
    health_pb2,
    logbroker_pb2,
    membership_pb2,
    resource_pb2,
)
from swarm.api.overswarm.v1 import keys_pb2, raft_pb2
from swarm.identity.dialer import TlsDialer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the services of one manager stand on.

    Attributes:
        backend: the store, reads and the clock.
        hub: the sessions of the nodes.
        ca: issues certificates.
        certificates: the same, to nodes.
        clusters: changes the cluster object.
        raft: this manager's member of the group.
        transport: takes the other members' messages.
        dialer: reaches other managers.
        led: says whether some manager leads.
    """

    backend: Backend
    hub: Hub
    ca: CertificateAuthority
    certificates: NodeCertificates
    clusters: Clusters
    raft: RaftNode
    transport: GrpcTransport
    dialer: TlsDialer
    led: Callable[[], bool]


def offered(parts: Parts) -> tuple[Service, ...]:
    """Return every service of a manager."""
    backend = parts.backend
    logs = logbroker_pb2.DESCRIPTOR.services_by_name["LogBroker"]
    services = (
        _service(ca_pb2.DESCRIPTOR, "CA", parts.ca),
        _service(ca_pb2.DESCRIPTOR, "NodeCA", parts.certificates),
        _service(dispatcher_pb2.DESCRIPTOR, "Dispatcher", Dispatcher(parts.hub)),
        _service(resource_pb2.DESCRIPTOR, "ResourceAllocator", Attachments(backend)),
        _service(
            control_pb2.DESCRIPTOR,
            "Control",
            Nodes(backend),
            Networks(backend),
            parts.clusters,
            Tasks(backend),
            Services(backend),
        ),
        _service(keys_pb2.DESCRIPTOR, "Keys", Keys(backend)),
        _service(health_pb2.DESCRIPTOR, "Health", Health(parts.led)),
        _service(
            membership_pb2.DESCRIPTOR,
            "RaftMembership",
            Membership(backend, lambda: parts.raft, partial(probe, parts.dialer)),
        ),
        _service(raft_pb2.DESCRIPTOR, "Raft", RaftMessages(lambda: parts.transport)),
        Service(descriptor=logs, servicers=(Unimplemented(logs),)),
        *scheduler_services(backend),
    )
    return services + standard_services(services, parts.led)


def _service(file: Any, name: str, *servicers: object) -> Service:
    return Service(descriptor=file.services_by_name[name], servicers=servicers)
