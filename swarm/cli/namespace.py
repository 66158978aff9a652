"""``swarm attach`` and ``detach``: networks for namespaces that somebody else made."""

from __future__ import annotations

from pathlib import Path

import click

from swarm.api.overswarm.v1 import local_pb2
from swarm.client import connect

_ATTACH_SECONDS = 60


@click.command()
@click.option(
    "--netns", default="", metavar="PATH", help="Network namespace, such as /run/netns/blue."
)
@click.option("--pid", default=0, metavar="PID", help="A process that lives in the namespace.")
@click.option("--network", required=True, help="Network to attach to.")
@click.option("--name", default="", help="Name under which others resolve it.")
@click.option("--alias", multiple=True, help="Another name.")
@click.option("--ip", default="", help="IPv4 address.")
@click.option("--ip6", default="", help="IPv6 address.")
@click.option(
    "--interface", default="", help="Name of the interface; the first free ethN when absent."
)
@click.pass_obj
def attach(
    host: str | None,
    netns: str,
    pid: int,
    network: str,
    name: str,
    alias: tuple[str, ...],
    ip: str,
    ip6: str,
    interface: str,
) -> None:
    """Put a network namespace on an overlay network; prints the endpoint's id.

    The namespace must go on existing by itself (a process in it, or a mount); 'swarm detach' with the
    printed id takes it off the network again.
    """
    if bool(netns) == bool(pid):
        raise click.UsageError("give --netns or --pid, one of them")
    request = local_pb2.AttachNamespaceRequest(
        network=local_pb2.NetworkWish(network=network, aliases=alias, ipv4=ip, ipv6=ip6),
        name=name,
        interface=interface,
    )
    if netns:
        request.netns_path = str(Path(netns).absolute())
    else:
        request.pid = pid
    with connect(host) as client:
        endpoint = client.local.AttachNamespace(request, timeout=_ATTACH_SECONDS).endpoint
    click.echo(endpoint.endpoint_id)
    for address in endpoint.addresses:
        click.echo(f"{endpoint.interface}: {address} on {endpoint.network_name}", err=True)


@click.command()
@click.argument("endpoint", metavar="ENDPOINT|NAME")
@click.option("--network", default="", help="Only from this network.")
@click.pass_obj
def detach(host: str | None, endpoint: str, network: str) -> None:
    """Take a namespace off its networks again."""
    request = local_pb2.DetachNamespaceRequest(endpoint=endpoint, network=network)
    with connect(host) as client:
        client.local.DetachNamespace(request, timeout=_ATTACH_SECONDS)
