"""``swarm gossip``: what this node's gossip layer knows and how it fares."""

from __future__ import annotations

import click

from swarm.api.overswarm.v1 import local_pb2
from swarm.cli.output import FORMAT_HELP, print_list, print_objects
from swarm.client import connect

_COLUMNS = {"Name": "NAME", "Address": "ADDRESS", "State": "STATE"}


@click.command()
@click.option("-f", "--format", "form", default="table", help=FORMAT_HELP)
@click.pass_obj
def gossip(host: str | None, form: str) -> None:
    """Show the gossip cluster: members, networks, keys by fingerprint, counters."""
    with connect(host) as client:
        status = client.local.GossipStatus(local_pb2.GossipStatusRequest(), timeout=30)
    members = [
        {"Name": each.name, "Address": each.address, "State": each.state} for each in status.members
    ]
    if form != "table":
        shown = {
            "Self": status.self_name,
            "Members": members,
            "Networks": list(status.networks),
            "Keys": list(status.key_fingerprints),
            "HealthScore": status.health_score,
            "Counters": dict(status.counters),
        }
        print_objects([shown], form=form)
        return
    click.echo(f"This node:    {status.self_name or 'not running'}")
    click.echo(f"Health score: {status.health_score} (0 is best)")
    click.echo(f"Keys:         {', '.join(status.key_fingerprints) or 'none'}")
    click.echo(f"Networks:     {', '.join(status.networks) or 'none'}")
    click.echo()
    print_list(members, _COLUMNS, form="table")
    busy = {name: count for name, count in sorted(status.counters.items()) if count}
    if busy:
        click.echo()
        print_list(
            [{"Name": name, "Count": count} for name, count in busy.items()],
            {"Name": "COUNTER", "Count": "COUNT"},
            form="table",
        )
