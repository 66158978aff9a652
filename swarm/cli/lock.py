"""``swarm unlock``, ``unlock-key`` and ``update``: the lock on the managers' keys, and what else is cluster-wide."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from swarm.api import codec
from swarm.api.docker.swarmkit import ca_pb2, control_pb2, types_pb2
from swarm.api.overswarm.v1 import local_pb2
from swarm.cli.lookup import the_cluster
from swarm.cli.output import waiting
from swarm.cli.parse import Duration
from swarm.client import Client, connect
from swarm.errors import PreconditionError
from swarm.identity.unlock import format_unlock_key
from swarm.model import Cluster, ClusterSpec

_CALL_SECONDS = 30
_UNLOCK_SECONDS = 60


def print_unlock_key(key: str) -> None:
    """Tell a person the key, and to keep it."""
    click.echo(
        "To unlock a swarm manager after it restarts, run the `swarm unlock`\n"
        "command and provide the following key:\n\n"
        f"    {key}\n\n"
        "Remember to store this key in a password manager, since without it you\n"
        "will not be able to restart the manager."
    )


def _unlock_key(client: Client) -> str:
    """Return the unlock key as text; empty while autolock is off."""
    key = client.ca.GetUnlockKey(ca_pb2.GetUnlockKeyRequest(), timeout=_CALL_SECONDS).unlock_key
    return format_unlock_key(key) if key else ""


def _change(client: Client, cluster: Cluster, spec: ClusterSpec, *, rotate: bool = False) -> None:
    request = control_pb2.UpdateClusterRequest(
        cluster_id=cluster.id,
        cluster_version=types_pb2.Version(index=cluster.meta.version.index),
        spec=codec.encode(spec),  # type: ignore[arg-type]  # the codec returns this very message
        rotation=control_pb2.KeyRotation(manager_unlock_key=rotate),
    )
    client.control.UpdateCluster(request, timeout=_CALL_SECONDS)


@click.command()
@click.pass_obj
def unlock(host: str | None) -> None:
    """Unlock this node's manager after a restart; the key is read from standard input."""
    with connect(host) as client:
        info = client.local.Info(local_pb2.InfoRequest(), timeout=_CALL_SECONDS)
        if info.lifecycle != local_pb2.NODE_LIFECYCLE_LOCKED:
            raise PreconditionError(
                "This node is not part of a swarm"
                if info.lifecycle == local_pb2.NODE_LIFECYCLE_INACTIVE
                else "swarm is not locked"
            )
        key = click.prompt("Please enter unlock key", hide_input=True, err=True)
        with waiting("unlocking the manager"):
            client.local.Unlock(local_pb2.UnlockRequest(unlock_key=key), timeout=_UNLOCK_SECONDS)


@click.command("unlock-key")
@click.option("-q", "--quiet", is_flag=True, help="Only print the key.")
@click.option("--rotate", is_flag=True, help="Make a new key; the old one opens nothing any more.")
@click.pass_obj
def unlock_key(host: str | None, quiet: bool, rotate: bool) -> None:
    """Print the key that unlocks managers."""
    with connect(host) as client:
        if rotate:
            cluster = the_cluster(client)
            if not cluster.spec.encryption_config.auto_lock_managers:
                raise PreconditionError("cannot rotate because autolock is not turned on")
            _change(client, cluster, cluster.spec, rotate=True)
            if not quiet:
                click.echo("Successfully rotated manager unlock key.\n")
        key = _unlock_key(client)
    if not key:
        raise PreconditionError("no unlock key is set")
    if quiet:
        click.echo(key)
    else:
        print_unlock_key(key)


@click.command()
@click.option("--autolock", type=bool, default=None, help="Lock the managers' keys at rest.")
@click.option("--cert-expiry", type=Duration(), default=None, help="Validity of node certificates.")
@click.option("--dispatcher-heartbeat", type=Duration(), default=None)
@click.option("--max-snapshots", type=int, default=None)
@click.option("--snapshot-interval", type=int, default=None)
@click.option("--task-history-limit", type=int, default=None)
@click.pass_context
def update(ctx: click.Context, /, **flags: Any) -> None:
    """Change settings of the swarm; only what is given changes."""
    if all(value is None for value in flags.values()):
        click.echo(ctx.get_help())
        return
    with connect(ctx.obj) as client:
        cluster = the_cluster(client)
        spec = _updated(cluster.spec, flags)
        _change(client, cluster, spec)
        locked_before = cluster.spec.encryption_config.auto_lock_managers
        newly_locked = spec.encryption_config.auto_lock_managers and not locked_before
        key = _unlock_key(client) if newly_locked else ""
    click.echo("Swarm updated.")
    if key:
        print_unlock_key(key)


def _updated(spec: ClusterSpec, flags: dict[str, Any]) -> ClusterSpec:
    """Return the spec with the given flags in it."""
    places = {
        "autolock": ("encryption_config", "auto_lock_managers"),
        "cert_expiry": ("ca_config", "node_cert_expiry"),
        "dispatcher_heartbeat": ("dispatcher", "heartbeat_period"),
        "max_snapshots": ("raft", "keep_old_snapshots"),
        "snapshot_interval": ("raft", "snapshot_interval"),
        "task_history_limit": ("orchestration", "task_history_retention_limit"),
    }
    for flag, (part, name) in places.items():
        if flags[flag] is not None:
            changed = dataclasses.replace(getattr(spec, part), **{name: flags[flag]})
            spec = dataclasses.replace(spec, **{part: changed})
    return spec
