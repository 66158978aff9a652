"""``swarm init``, ``join``, ``leave``, ``join-token`` and ``info``."""

from __future__ import annotations

from typing import Any

import click

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2, types_pb2
from swarm.api.overswarm.v1 import local_pb2
from swarm.cli.lock import print_unlock_key
from swarm.cli.lookup import the_cluster
from swarm.cli.output import FORMAT_HELP, print_objects, waiting
from swarm.cli.parse import Duration
from swarm.client import Client, connect

_AVAILABILITY = click.Choice(["active", "pause", "drain"])
_JOIN_SECONDS = 90
_CALL_SECONDS = 30


def availability(text: str) -> types_pb2.NodeAvailability.ValueType:
    """Return the wire value of ``active``, ``pause`` or ``drain``."""
    return types_pb2.NodeAvailability.Value(f"NODE_AVAILABILITY_{text.upper()}")


@click.command()
@click.option(
    "--advertise-addr", default="", metavar="IP|INTERFACE[:PORT]", help="Address other nodes use."
)
@click.option("--autolock", is_flag=True, help="Lock the manager's keys at rest.")
@click.option("--availability", "wanted", type=_AVAILABILITY, default="active", show_default=True)
@click.option(
    "--cert-expiry",
    type=Duration(),
    default="2160h0m0s",
    show_default=True,
    help="Validity of node certificates.",
)
@click.option(
    "--data-path-addr", default="", metavar="IP|INTERFACE", help="Address for VXLAN traffic."
)
@click.option(
    "--data-path-port", default=0, metavar="PORT", help="UDP port of VXLAN traffic (default 4789)."
)
@click.option(
    "--default-addr-pool", multiple=True, metavar="CIDR", help="Pool that subnets are cut from."
)
@click.option(
    "--default-addr-pool-mask-length",
    type=click.IntRange(1, 29),
    help="Prefix length of the subnets cut from the pools (default 24).",
)
@click.option("--dispatcher-heartbeat", type=Duration(), default="5s", show_default=True)
@click.option(
    "--force-new-cluster", is_flag=True, help="Make a cluster of one from this manager's state."
)
@click.option(
    "--listen-addr", default="0.0.0.0:2377", show_default=True, metavar="IP|INTERFACE[:PORT]"
)
@click.option("--max-snapshots", default=0, show_default=True)
@click.option("--snapshot-interval", default=10_000, show_default=True)
@click.option("--task-history-limit", default=5, show_default=True)
@click.pass_obj
def init(host: str | None, /, **flags: Any) -> None:
    """Start a cluster; this node becomes its first manager."""
    request = local_pb2.InitRequest(
        listen_addr=flags["listen_addr"],
        advertise_addr=flags["advertise_addr"],
        data_path_addr=flags["data_path_addr"],
        data_path_port=_port(flags["data_path_port"]),
        default_addr_pools=flags["default_addr_pool"],
        default_addr_pool_mask_length=flags["default_addr_pool_mask_length"] or 0,
        availability=availability(flags["wanted"]),
        cert_expiry_ns=flags["cert_expiry"],
        dispatcher_heartbeat_ns=flags["dispatcher_heartbeat"],
        task_history_limit=flags["task_history_limit"],
        autolock=flags["autolock"],
        force_new_cluster=flags["force_new_cluster"],
        snapshot_interval=flags["snapshot_interval"],
        max_snapshots=flags["max_snapshots"],
    )
    with connect(host) as client, waiting("starting the cluster"):
        answer = client.local.Init(request, timeout=_JOIN_SECONDS)
        cluster, address = the_cluster(client), manager_address(client)
    click.echo(f"Swarm initialized: current node ({answer.node_id}) is now a manager.\n")
    _print_join("worker", cluster.root_ca.join_tokens.worker, address)
    click.echo(
        "To add a manager to this swarm, run 'swarm join-token manager' and follow the instructions."
    )
    if answer.unlock_key:
        click.echo()
        print_unlock_key(answer.unlock_key)


def _port(number: int) -> int:
    if number and not 1024 <= number <= 49151:
        raise click.BadParameter(
            f"{number} is not between 1024 and 49151", param_hint="--data-path-port"
        )
    return number


def manager_address(client: Client) -> str:
    """Return ``host:port`` at which this manager takes joiners."""
    info = client.local.Info(local_pb2.InfoRequest(), timeout=_CALL_SECONDS)
    for peer in info.managers:
        if peer.node_id == info.node_id:
            return str(peer.addr)
    host = f"[{info.advertise_addr}]" if ":" in info.advertise_addr else info.advertise_addr
    return f"{host}:{info.listen_addr.rpartition(':')[2]}"


def _print_join(role: str, token: str, address: str) -> None:
    click.echo(f"To add a {role} to this swarm, run the following command:\n")
    click.echo(f"    swarm join --token {token} {address}\n")


@click.command()
@click.argument("remote", metavar="HOST[:PORT]", nargs=-1, required=True)
@click.option(
    "--advertise-addr", default="", metavar="IP|INTERFACE[:PORT]", help="Address other nodes use."
)
@click.option("--availability", "wanted", type=_AVAILABILITY, default="active", show_default=True)
@click.option(
    "--data-path-addr", default="", metavar="IP|INTERFACE", help="Address for VXLAN traffic."
)
@click.option(
    "--listen-addr", default="0.0.0.0:2377", show_default=True, metavar="IP|INTERFACE[:PORT]"
)
@click.option("--token", required=True, help="Token for entry into the swarm.")
@click.pass_obj
def join(
    host: str | None, /, remote: tuple[str, ...], token: str, wanted: str, **addresses: str
) -> None:
    """Join a swarm as the node that the token says: a worker or a manager."""
    request = local_pb2.JoinRequest(
        remote_addrs=remote,
        token=token,
        listen_addr=addresses["listen_addr"],
        advertise_addr=addresses["advertise_addr"],
        data_path_addr=addresses["data_path_addr"],
        availability=availability(wanted),
    )
    with connect(host) as client, waiting(f"joining the swarm at {remote[0]}"):
        answer = client.local.Join(request, timeout=_JOIN_SECONDS)
    click.echo(f"This node joined a swarm as a {'manager' if answer.manager else 'worker'}.")


@click.command()
@click.option("-f", "--force", is_flag=True, help="Leave even if that harms the swarm.")
@click.pass_obj
def leave(host: str | None, force: bool) -> None:
    """Leave the swarm; the networks of this host go, and so does its identity."""
    with connect(host) as client, waiting("leaving the swarm"):
        client.local.Leave(local_pb2.LeaveRequest(force=force), timeout=_JOIN_SECONDS)
    click.echo("Node left the swarm.")


@click.command("join-token")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@click.option("-q", "--quiet", is_flag=True, help="Only print the token.")
@click.option(
    "--rotate", is_flag=True, help="Make a new token; the old one is refused from now on."
)
@click.pass_obj
def join_token(host: str | None, role: str, quiet: bool, rotate: bool) -> None:
    """Print what another host must run to join as ROLE."""
    with connect(host) as client:
        cluster = the_cluster(client)
        if rotate:
            request = control_pb2.UpdateClusterRequest(
                cluster_id=cluster.id,
                cluster_version=types_pb2.Version(index=cluster.meta.version.index),
                spec=codec.encode(cluster.spec),  # type: ignore[arg-type]  # the codec returns this very message
                rotation=control_pb2.KeyRotation(
                    worker_join_token=role == "worker", manager_join_token=role == "manager"
                ),
            )
            client.control.UpdateCluster(request, timeout=_CALL_SECONDS)
            cluster = the_cluster(client)
        address = manager_address(client)
    token = getattr(cluster.root_ca.join_tokens, role)
    if quiet:
        click.echo(token)
        return
    if rotate:
        click.echo(f"Successfully rotated {role} join token.\n")
    _print_join(role, token, address)


_LIFECYCLE = {
    local_pb2.NODE_LIFECYCLE_INACTIVE: "inactive",
    local_pb2.NODE_LIFECYCLE_PENDING: "pending",
    local_pb2.NODE_LIFECYCLE_ACTIVE: "active",
    local_pb2.NODE_LIFECYCLE_ERROR: "error",
    local_pb2.NODE_LIFECYCLE_LOCKED: "locked",
}


@click.command()
@click.option("-f", "--format", "form", default="table", help=FORMAT_HELP)
@click.pass_obj
def info(host: str | None, form: str) -> None:
    """Show this node: its state, its cluster, its addresses."""
    with connect(host) as client:
        answer = client.local.Info(local_pb2.InfoRequest(), timeout=_CALL_SECONDS)
    shown = {
        "Version": answer.version,
        "Name": answer.hostname,
        "Swarm": _LIFECYCLE.get(answer.lifecycle, "unknown"),
        "Error": answer.error,
        "NodeID": answer.node_id,
        "ClusterID": answer.cluster_id,
        "IsManager": answer.manager,
        "ListenAddress": answer.listen_addr,
        "NodeAddress": answer.advertise_addr,
        "DataPathAddress": answer.data_path_addr,
        "DataPathPort": answer.data_path_port,
        "Managers": [{"NodeID": peer.node_id, "Addr": peer.addr} for peer in answer.managers],
        "Containers": answer.containers_total,
        "ContainersRunning": answer.containers_running,
        "Networks": answer.networks,
    }
    if form != "table":
        print_objects([shown], form=form)
        return
    for key, value in shown.items():
        if key == "Managers":
            click.echo("Managers:" + "".join(f" {peer.addr}" for peer in answer.managers))
        elif value != "" and not (key == "DataPathPort" and not value):
            click.echo(f"{key}: {str(value).lower() if isinstance(value, bool) else value}")
