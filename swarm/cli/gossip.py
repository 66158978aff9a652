"""``swarm gossip``: what this node's gossip layer knows and how it fares; ``swarm rotate-keys``."""

from __future__ import annotations

from typing import Any

import click

from swarm.api.overswarm.v1 import keys_pb2, local_pb2
from swarm.cli.output import FORMAT_HELP, print_list, print_objects
from swarm.client import connect

_MEMBERS = {
    "Name": "NAME",
    "Address": "ADDRESS",
    "State": "STATE",
    "Networks": "NETWORKS",
    "Compared": "COMPARED",
    "Lacking": "LACKING",
}
_NETWORKS = {
    "Id": "NETWORK",
    "Peers": "PEERS",
    "InSync": "IN SYNC",
    "OwnQueue": "OWN QUEUE",
    "RelayQueue": "RELAY QUEUE",
}
_TABLES = {
    "Network": "NETWORK",
    "Table": "TABLE",
    "Entries": "ENTRIES",
    "Own": "OWN",
    "Tombstones": "TOMBSTONES",
    "Hidden": "HIDDEN",
}
_QUEUE = "queue."
_KEY_ROLES = ("previous", "sending", "next")


@click.command()
@click.option("-f", "--format", "form", default="table", help=FORMAT_HELP)
@click.pass_obj
def gossip(host: str | None, form: str) -> None:
    """Show the gossip cluster: members, keys by fingerprint, tables, queues, convergence per peer.

    COMPARED says how long ago this node's own entries were compared with what a member holds, LACKING how
    many of them it did not hold; those were published again at once.
    """
    with connect(host) as client:
        status = client.local.GossipStatus(local_pb2.GossipStatusRequest(), timeout=30)
    if form != "table":
        print_objects([_object(status)], form=form)
        return
    keys = zip(status.key_fingerprints, _KEY_ROLES, strict=False)
    click.echo(f"This node:    {status.self_name or 'not running'}")
    click.echo(f"Health score: {status.health_score} (0 is best)")
    click.echo(f"Keys:         {', '.join(f'{key} ({role})' for key, role in keys) or 'none'}")
    click.echo(f"Seeds:        {', '.join(status.seeds) or 'none'}")
    click.echo()
    members = [_member_row(each, status.self_name) for each in status.members]
    print_list(members, _MEMBERS, form="table")
    counters = sorted(status.counters.items())
    queues = [(name, count) for name, count in counters if name.startswith(_QUEUE)]
    others = [pair for pair in counters if pair not in queues]
    for rows, columns in (
        ([_network(each) for each in status.network_states], _NETWORKS),
        ([_table(each) for each in status.tables], _TABLES),
        (
            [{"Name": name.removeprefix(_QUEUE), "Count": count} for name, count in queues],
            {"Name": "QUEUE", "Count": "WAITING"},
        ),
        (
            [{"Name": name, "Count": count} for name, count in others],
            {"Name": "COUNTER", "Count": "COUNT"},
        ),
    ):
        if rows:
            click.echo()
            print_list(rows, columns, form="table")


@click.command("rotate-keys")
@click.pass_obj
def rotate_keys(host: str | None) -> None:
    """Make new keys for gossip and encrypted networks now (managers do it every 12 hours anyway).

    Three generations are valid at any time, so nothing is interrupted.
    """
    with connect(host) as client:
        answer = client.keys.RotateKeys(keys_pb2.RotateKeysRequest(), timeout=30)
    click.echo(
        f"Successfully rotated the network keys: the newest is number {answer.lamport_time}."
    )


def _object(status: local_pb2.GossipStatusResponse) -> dict[str, Any]:
    return {
        "Self": status.self_name,
        "Members": [_member(each) for each in status.members],
        "Networks": list(status.networks),
        "NetworkStates": [_network(each) for each in status.network_states],
        "Tables": [_table(each) for each in status.tables],
        "Keys": list(status.key_fingerprints),
        "Seeds": list(status.seeds),
        "HealthScore": status.health_score,
        "Counters": dict(sorted(status.counters.items())),
    }


def _member(member: local_pb2.GossipMember) -> dict[str, Any]:
    compared = member.comparison if member.HasField("comparison") else None
    return {
        "Name": member.name,
        "Address": member.address,
        "State": member.state,
        "Incarnation": member.incarnation,
        "Networks": member.networks,
        "ComparedSeconds": None if compared is None else round(compared.age, 1),
        "ComparedEntries": 0 if compared is None else compared.entries,
        "LackingEntries": 0 if compared is None else compared.lacking,
    }


def _member_row(member: local_pb2.GossipMember, self_name: str) -> dict[str, Any]:
    row = _member(member)
    if member.name == self_name:
        return {**row, "Name": f"{member.name} (this node)", "Compared": "-", "Lacking": "-"}
    never = row["ComparedSeconds"] is None
    row["Compared"] = "never" if never else f"{row['ComparedSeconds']:.0f}s ago"
    row["Lacking"] = "-" if never else f"{row['LackingEntries']} of {row['ComparedEntries']}"
    return row


def _network(network: local_pb2.GossipNetwork) -> dict[str, Any]:
    return {
        "Id": network.id,
        "Peers": network.peers,
        "InSync": network.in_sync,
        "OwnQueue": network.own_queue,
        "RelayQueue": network.relay_queue,
    }


def _table(table: local_pb2.GossipTable) -> dict[str, Any]:
    return {
        "Network": table.network,
        "Table": table.table,
        "Entries": table.entries,
        "Own": table.own,
        "Tombstones": table.tombstones,
        "Hidden": table.hidden,
    }
