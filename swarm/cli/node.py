"""``swarm node``: the members of the cluster, as managers see them."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any

import click

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2, types_pb2
from swarm.api.overswarm.v1 import local_pb2
from swarm.cli import tasks
from swarm.cli.aliases import Aliased
from swarm.cli.complete import completer
from swarm.cli.listing import Listing, listing
from swarm.cli.lookup import pick, the_cluster
from swarm.cli.output import FORMAT_HELP, natural, print_objects, rfc3339
from swarm.cli.parse import label_match, pairs
from swarm.cli.several import for_each
from swarm.client import Client, connect
from swarm.errors import NotFoundError
from swarm.identity.certs import issuer_id
from swarm.model import (
    Cluster,
    Node,
    NodeAvailability,
    NodeMembership,
    NodeRole,
    NodeTLSInfo,
    Reachability,
    Task,
)

_CALL_SECONDS = 30
_COLUMNS = {
    "ID": "ID",
    "Hostname": "HOSTNAME",
    "Status": "STATUS",
    "Availability": "AVAILABILITY",
    "ManagerStatus": "MANAGER STATUS",
    "EngineVersion": "ENGINE VERSION",
}


def all_nodes(client: Client) -> list[Node]:
    """Return every node, in natural order of host names."""
    answer = client.control.ListNodes(control_pb2.ListNodesRequest(), timeout=_CALL_SECONDS)
    nodes = [codec.decode(Node, node) for node in answer.nodes]
    return sorted(nodes, key=lambda node: natural(hostname(node)))


def hostname(node: Node) -> str:
    """Return what a node calls itself; empty before its first session."""
    return node.description.hostname if node.description is not None else ""


def resolve_node(client: Client, text: str) -> Node:
    """Return the node that an id, a host name or an unambiguous id prefix means; ``self`` is this one.

    Raises:
        NotFoundError: no node is called so.
        ConflictError: several are.
    """
    nodes = all_nodes(client)
    if text == "self":
        text = client.local.Info(local_pb2.InfoRequest(), timeout=_CALL_SECONDS).node_id
    return pick("node", text, nodes, lambda node: (node.id, hostname(node)))


def _named(client: Client) -> list[tuple[str, str]]:
    return [(hostname(each), each.role.name.lower()) for each in all_nodes(client)]


complete_nodes = completer(_named)
"""Completes a host name of a node."""


def _manager_status(node: Node) -> str:
    status = node.manager_status
    if status is None:
        return ""
    return "Leader" if status.leader else Reachability(status.reachability).name.capitalize()


def _engine(node: Node) -> str:
    description = node.description
    return (
        description.engine.engine_version if description is not None and description.engine else ""
    )


@click.group(cls=Aliased)
def node() -> None:
    """Manage the nodes of the cluster (on a manager)."""


@node.command("ls")
@listing("id", "label", "node.label", "membership", "name", "role")
@click.pass_obj
def ls(host: str | None, asked: Listing) -> None:
    """List nodes."""
    with connect(host) as client:
        nodes = all_nodes(client)
        own = client.local.Info(local_pb2.InfoRequest(), timeout=_CALL_SECONDS).node_id
        wanted = _wanted_tls(the_cluster(client))
    rows = []
    for each in nodes:
        if not _matches(each, asked.chosen):
            continue
        is_self = each.id == own
        rows.append(
            {
                "ID": f"{each.id} *" if is_self and asked.table else each.id,
                "Self": is_self,
                "Hostname": hostname(each),
                "Status": each.status.state.name.capitalize(),
                "Availability": each.spec.availability.name.capitalize(),
                "ManagerStatus": _manager_status(each),
                "TLSStatus": _tls_status(each, wanted),
                "EngineVersion": _engine(each),
            }
        )
    asked.show(rows, _COLUMNS)


def _matches(node: Node, chosen: Mapping[str, list[str]]) -> bool:
    engine = node.description.engine if node.description is not None else None
    engine_labels = dict(engine.labels) if engine is not None else {}
    return (
        ("id" not in chosen or any(node.id.startswith(text) for text in chosen["id"]))
        and (
            "name" not in chosen or any(hostname(node).startswith(text) for text in chosen["name"])
        )
        and ("role" not in chosen or node.role.name.lower() in chosen["role"])
        and (
            "membership" not in chosen or node.spec.membership.name.lower() in chosen["membership"]
        )
        and label_match(dict(node.spec.annotations.labels), chosen.get("node.label", []))
        and label_match(engine_labels, chosen.get("label", []))
    )


def _tls_status(node: Node, wanted: NodeTLSInfo) -> str:
    info = node.description.tls_info if node.description is not None else None
    if info is None or not info.trust_root:
        return "Unknown"
    return "Ready" if info == wanted else "Needs Rotation"


def _wanted_tls(cluster: Cluster) -> NodeTLSInfo:
    """Return what every node is to say of itself: of the root that is to come, while there is one."""
    rotation = cluster.root_ca.root_rotation
    root = cluster.root_ca.ca_cert if rotation is None else rotation.ca_cert
    subject, key = issuer_id(root)
    return NodeTLSInfo(trust_root=root, cert_issuer_subject=subject, cert_issuer_public_key=key)


@node.command()
@click.argument("names", metavar="[NODE...]", nargs=-1, shell_complete=complete_nodes)
@listing("id", "label", "name", "desired-state", whole="Print whole ids and errors.")
@click.option("--no-resolve", is_flag=True, help="Print ids of nodes, not their names.")
@click.pass_obj
def ps(host: str | None, names: tuple[str, ...], asked: Listing, no_resolve: bool) -> None:
    """List the tasks of services on nodes (on this one, when none is named)."""
    with connect(host) as client:
        nodes = {each.id: hostname(each) for each in all_nodes(client)}
        request = control_pb2.ListTasksRequest()
        request.filters.node_ids.extend(
            resolve_node(client, name).id for name in names or ("self",)
        )
        answer = client.control.ListTasks(request, timeout=_CALL_SECONDS)
    found = [codec.decode(Task, each) for each in answer.tasks if each.service_id]
    tasks.show(found, {} if no_resolve else nodes, asked)


@node.command()
@click.argument(
    "names", metavar="self|NODE...", nargs=-1, required=True, shell_complete=complete_nodes
)
@click.option("-f", "--format", "form", default="", help=FORMAT_HELP)
@click.option("--pretty", is_flag=True, help="Print it for people.")
@click.pass_obj
def inspect(host: str | None, names: tuple[str, ...], form: str, pretty: bool) -> None:
    """Show nodes in full."""
    with connect(host) as client:
        found = [resolve_node(client, name) for name in names]
    if pretty:
        for each in found:
            _print_pretty(each)
        return
    print_objects([as_docker(each) for each in found], form=form)


def as_docker(node: Node) -> dict[str, Any]:
    """Return a node as docker's API shows it."""
    result: dict[str, Any] = {
        "ID": node.id,
        "Version": {"Index": node.meta.version.index},
        "CreatedAt": rfc3339(node.meta.created_at),
        "UpdatedAt": rfc3339(node.meta.updated_at),
        "Spec": {
            "Labels": dict(node.spec.annotations.labels),
            "Role": node.spec.desired_role.name.lower(),
            "Availability": node.spec.availability.name.lower(),
        },
        "Description": {},
        "Status": {"State": node.status.state.name.lower(), "Addr": node.status.addr},
    }
    if node.spec.annotations.name:
        result["Spec"]["Name"] = node.spec.annotations.name
    if node.status.message:
        result["Status"]["Message"] = node.status.message
    description = node.description
    if description is not None:
        shown: dict[str, Any] = {"Hostname": description.hostname}
        if description.platform is not None:
            shown["Platform"] = {
                "Architecture": description.platform.architecture,
                "OS": description.platform.os,
            }
        if description.resources is not None:
            shown["Resources"] = {
                "NanoCPUs": description.resources.nano_cpus,
                "MemoryBytes": description.resources.memory_bytes,
            }
        if description.engine is not None:
            shown["Engine"] = {
                "EngineVersion": description.engine.engine_version,
                "Labels": dict(description.engine.labels),
                "Plugins": [
                    {"Type": plugin.type, "Name": plugin.name}
                    for plugin in description.engine.plugins
                ],
            }
        if description.tls_info is not None:
            shown["TLSInfo"] = {
                "TrustRoot": description.tls_info.trust_root.decode(errors="replace"),
                "CertIssuerSubject": base64.b64encode(
                    description.tls_info.cert_issuer_subject
                ).decode(),
                "CertIssuerPublicKey": base64.b64encode(
                    description.tls_info.cert_issuer_public_key
                ).decode(),
            }
        result["Description"] = shown
    if node.manager_status is not None:
        result["ManagerStatus"] = {
            "Leader": node.manager_status.leader,
            "Reachability": Reachability(node.manager_status.reachability).name.lower(),
            "Addr": node.manager_status.addr,
        }
    return result


def _print_pretty(node: Node) -> None:
    lines = [
        ("ID", node.id),
        ("Hostname", hostname(node)),
        ("Joined at", rfc3339(node.meta.created_at)),
        ("State", node.status.state.name.capitalize()),
        ("Availability", node.spec.availability.name.capitalize()),
        ("Address", node.status.addr),
        ("Role", node.role.name.lower()),
        ("Manager status", _manager_status(node)),
        ("Engine version", _engine(node)),
        *(("Label", f"{key}={value}") for key, value in node.spec.annotations.labels.items()),
        *(
            (
                f"Address on {attachment.network.spec.annotations.name}",
                ", ".join(attachment.addresses),
            )
            for attachment in node.attachments
        ),
    ]
    for name, value in lines:
        if value:
            click.echo(f"{name + ':':<24}{value}")


@node.command()
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option("--availability", type=click.Choice(["active", "pause", "drain"]))
@click.option("--role", type=click.Choice(["worker", "manager"]))
@click.option("--label-add", multiple=True, metavar="KEY=VALUE")
@click.option("--label-rm", multiple=True, metavar="KEY")
@click.pass_obj
def update(
    host: str | None,
    name: str,
    availability: str | None,
    role: str | None,
    label_add: tuple[str, ...],
    label_rm: tuple[str, ...],
) -> None:
    """Change a node's availability, role or labels."""
    if not (availability or role or label_add or label_rm):
        raise click.UsageError(
            "nothing to change: give --availability, --role, --label-add or --label-rm"
        )
    with connect(host) as client:
        current = resolve_node(client, name)
        labels = dict(current.spec.annotations.labels)
        for key in label_rm:
            if key not in labels:
                raise NotFoundError(f"key {key} doesn't exist in node's labels")
            del labels[key]
        labels.update(pairs(label_add, what="--label-add"))
        spec = dataclasses.replace(
            current.spec,
            annotations=dataclasses.replace(current.spec.annotations, labels=labels),
            membership=NodeMembership.ACCEPTED,
            availability=NodeAvailability[availability.upper()]
            if availability
            else current.spec.availability,
            desired_role=NodeRole[role.upper()] if role else current.spec.desired_role,
        )
        _update(client, current, spec)
    click.echo(name)


def _update(client: Client, current: Node, spec: Any) -> None:
    request = control_pb2.UpdateNodeRequest(
        node_id=current.id,
        node_version=types_pb2.Version(index=current.meta.version.index),
        spec=codec.encode(spec),  # type: ignore[arg-type]  # the codec returns this very message
    )
    client.control.UpdateNode(request, timeout=_CALL_SECONDS)


def _change_role(host: str | None, names: tuple[str, ...], role: NodeRole, done: str) -> int:
    def act(client: Client, name: str) -> str:
        current = resolve_node(client, name)
        if current.spec.desired_role is role:
            return f"Node {name} is already a {role.name.lower()}."
        _update(client, current, dataclasses.replace(current.spec, desired_role=role))
        return f"Node {name} {done} in the swarm."

    return for_each(host, names, act)


@node.command()
@click.argument("names", metavar="NODE...", nargs=-1, required=True, shell_complete=complete_nodes)
@click.pass_obj
def promote(host: str | None, names: tuple[str, ...]) -> int:
    """Make workers managers."""
    return _change_role(host, names, NodeRole.MANAGER, "promoted to a manager")


@node.command()
@click.argument("names", metavar="NODE...", nargs=-1, required=True, shell_complete=complete_nodes)
@click.pass_obj
def demote(host: str | None, names: tuple[str, ...]) -> int:
    """Make managers workers."""
    return _change_role(host, names, NodeRole.WORKER, "demoted to a worker")


@node.command()
@click.argument("names", metavar="NODE...", nargs=-1, required=True, shell_complete=complete_nodes)
@click.option("-f", "--force", is_flag=True, help="Remove a node even if it is still Ready.")
@click.pass_obj
def rm(host: str | None, names: tuple[str, ...], force: bool) -> int:
    """Remove nodes from the cluster; their certificates are refused from then on."""

    def act(client: Client, name: str) -> None:
        found = resolve_node(client, name)
        request = control_pb2.RemoveNodeRequest(node_id=found.id, force=force)
        client.control.RemoveNode(request, timeout=_CALL_SECONDS)

    return for_each(host, names, act)
