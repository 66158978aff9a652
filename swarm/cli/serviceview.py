"""Services as ``swarm service inspect`` shows them."""

from __future__ import annotations

import base64
from typing import Any

import click

from swarm.api.docker.swarmkit import specs_pb2
from swarm.cli import ports, tasks
from swarm.cli.output import rfc3339
from swarm.model import (
    EndpointSpec,
    PortConfig,
    PublishMode,
    Service,
    ServiceSpec,
)


def as_docker(item: Service, source: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return a service as docker's API shows it, with ``SourceAddress``, which is ours."""
    result: dict[str, Any] = {
        "ID": item.id,
        "Version": {"Index": item.meta.version.index},
        "CreatedAt": rfc3339(item.meta.created_at),
        "UpdatedAt": rfc3339(item.meta.updated_at),
        "Spec": _spec_as_docker(item.spec),
    }
    if item.previous_spec is not None:
        result["PreviousSpec"] = _spec_as_docker(item.previous_spec)
    endpoint: dict[str, Any] = {"Spec": {}}
    if item.endpoint is not None:
        endpoint["Spec"] = _endpoint_as_docker(item.endpoint.spec)
        if item.endpoint.ports:
            endpoint["Ports"] = [_port_as_docker(each) for each in item.endpoint.ports]
        if item.endpoint.virtual_ips:
            endpoint["VirtualIPs"] = [
                {"NetworkID": each.network_id, "Addr": each.addr}
                for each in item.endpoint.virtual_ips
            ]
    if source:
        endpoint["SourceAddress"] = source
    result["Endpoint"] = endpoint
    return result


def _spec_as_docker(spec: ServiceSpec) -> dict[str, Any]:
    template: dict[str, Any] = {}
    if spec.task.container is not None:
        container = specs_pb2.ContainerSpec.FromString(spec.task.container)
        template["ContainerSpec"] = {"Image": container.image}
        for key, values in (("Args", container.args), ("Env", container.env)):
            if values:
                template["ContainerSpec"][key] = list(values)
    process = tasks.process_of(spec.task)
    if process is not None:
        template["ProcessSpec"] = {
            "Args": list(process.argv),
            "Env": list(process.env),
            "Dir": process.cwd,
            "Hostname": process.hostname,
        }
    elif spec.task.generic is not None:
        template["GenericSpec"] = {
            "Kind": spec.task.generic.kind,
            "Payload": base64.b64encode(spec.task.generic.payload or b"").decode(),
        }
    networks = spec.task.networks or spec.networks
    if networks:
        template["Networks"] = [
            {"Target": each.target, **({"Aliases": list(each.aliases)} if each.aliases else {})}
            for each in networks
        ]
    if spec.task.placement is not None:
        placement = specs_pb2.Placement.FromString(spec.task.placement)
        template["Placement"] = {
            "Constraints": list(placement.constraints),
            "MaxReplicas": placement.max_replicas,
        }
    template["ForceUpdate"] = spec.task.force_update
    mode: dict[str, Any] = {"Global": {}}
    if spec.replicated is not None:
        mode = {"Replicated": {"Replicas": spec.replicated.replicas}}
    return {
        "Name": spec.annotations.name,
        "Labels": dict(spec.annotations.labels),
        "TaskTemplate": template,
        "Mode": mode,
        "EndpointSpec": _endpoint_as_docker(spec.endpoint),
    }


def _endpoint_as_docker(spec: EndpointSpec | None) -> dict[str, Any]:
    spec = spec or EndpointSpec()
    result: dict[str, Any] = {"Mode": spec.mode.name.lower()}
    if spec.ports:
        result["Ports"] = [_port_as_docker(each) for each in spec.ports]
    return result


def _port_as_docker(port: PortConfig) -> dict[str, Any]:
    result: dict[str, Any] = {
        "Protocol": port.protocol.name.lower(),
        "TargetPort": port.target_port,
        "PublishMode": port.publish_mode.name.lower(),
    }
    if port.published_port:
        result["PublishedPort"] = port.published_port
    return result


def print_pretty(item: Service, source: str) -> None:
    """Print a service for people; ``source`` says what becomes of clients' addresses."""
    spec = item.spec
    addresses = item.endpoint.virtual_ips if item.endpoint else ()
    published = item.endpoint.ports if item.endpoint else ()
    lines = [
        ("ID", item.id),
        ("Name", spec.annotations.name),
        *(("Label", f"{key}={value}") for key, value in spec.annotations.labels.items()),
        ("Service mode", mode(spec)),
        ("Replicas", str(spec.replicated.replicas) if spec.replicated else ""),
        ("Runs", tasks.what(spec.task)),
        ("Networks", ", ".join(each.target for each in spec.task.networks or spec.networks)),
        ("Endpoint mode", _endpoint_as_docker(spec.endpoint)["Mode"]),
        *(("Virtual address", f"{each.addr} on {each.network_id}") for each in addresses),
        ("Published", ports.shown(published, PublishMode.INGRESS)),
        ("Client's address", source),
        ("Published on hosts", ports.shown(published, PublishMode.HOST)),
    ]
    for name, value in lines:
        if value:
            click.echo(f"{name + ':':<20}{value}")


def mode(spec: ServiceSpec) -> str:
    """Return a service's mode as docker calls it; empty when it has none."""
    names = ("replicated", "global_", "replicated_job", "global_job")
    found = next((name for name in names if getattr(spec, name) is not None), "")
    return found.rstrip("_").replace("_", "-")
