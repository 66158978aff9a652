"""What a task's workload, endpoints and service are called. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from typing import Final

from agent.node.state import ServicePart
from swarm import balancing
from swarm.model import NetworkAttachment, PortProtocol, PublishMode, Task

TASK_LABEL: Final = "com.docker.swarm.task.id"
"""Label of a workload that is a task's; engines use the same."""


def workload_id(task_id: str) -> str:
    """Return the id of a task's workload: one task has one."""
    return hashlib.sha256(f"task {task_id}".encode()).hexdigest()


def task_name(task: Task) -> str:
    """Return ``SERVICE.SLOT.TASK``, or ``SERVICE.NODE.TASK`` for a task without a slot.

    Source: swarmkit ``api/naming``.
    """
    if task.annotations.name:
        return task.annotations.name
    where = str(task.slot) if task.slot else task.node_id
    parts = (task.service_annotations.name, where, task.id)
    return ".".join(part for part in parts if part)


def labels(task: Task) -> dict[str, str]:
    """Return the labels by which engines mark a task's container."""
    return {
        **task.service_annotations.labels,
        "com.docker.swarm.node.id": task.node_id,
        "com.docker.swarm.service.id": task.service_id,
        "com.docker.swarm.service.name": task.service_annotations.name,
        "com.docker.swarm.task": "",
        "com.docker.swarm.task.name": task_name(task),
        TASK_LABEL: task.id,
    }


def host_ports(task: Task) -> tuple[str, ...]:
    """Return the ports a task publishes on its own host, as ``PUBLISHED:TARGET/PROTOCOL``."""
    ports = () if task.endpoint is None else task.endpoint.ports
    return tuple(
        f"{port.published_port}:{port.target_port}/{PortProtocol(port.protocol).name.lower()}"
        for port in ports
        if port.publish_mode is PublishMode.HOST
    )


def service_part(task: Task, assigned: NetworkAttachment) -> ServicePart:
    """Return what the task's endpoint on one of its networks is to the service."""
    network = assigned.network
    virtual: list[str] = []
    ports: list[str] = []
    if task.endpoint is not None:
        virtual = [
            str(ipaddress.ip_interface(each.addr).ip)
            for each in task.endpoint.virtual_ips
            if each.network_id == network.id and each.addr
        ]
        ports = [
            f"{port.published_port}:{port.target_port}/{PortProtocol(port.protocol).name.lower()}"
            for port in task.endpoint.ports
            if network.spec.ingress and port.publish_mode is PublishMode.INGRESS
        ]
    spread = balancing_of(task)
    return ServicePart(
        service_id=task.service_id,
        service_name=task.service_annotations.name,
        virtual_ips=tuple(virtual),
        aliases=assigned.aliases,
        ports=tuple(ports),
        weight=spread.weight,
        sticky=spread.sticky,
        prefer_local=spread.prefer_local,
    )


def balancing_of(task: Task) -> balancing.Balancing:
    """Return what the labels of service and task say of the spread of flows."""
    return balancing.parse_lenient(task.service_annotations.labels, task.annotations.labels)
