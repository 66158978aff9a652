"""What this manager offers to schedulers, and about them."""

from __future__ import annotations

from manager.api.backend import Backend
from manager.api.scheduler import Scheduler
from manager.api.server import Service
from manager.ca.clients import ClientCertificates
from swarm.api.overswarm.v1 import scheduler_pb2


def scheduler_services(backend: Backend) -> tuple[Service, ...]:
    """Return the services of schedulers and their certificates."""
    services = scheduler_pb2.DESCRIPTOR.services_by_name
    return (
        Service(descriptor=services["Scheduler"], servicers=(Scheduler(backend),)),
        Service(
            descriptor=services["ClientCertificates"], servicers=(ClientCertificates(backend),)
        ),
    )
