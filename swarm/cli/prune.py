"""``swarm network prune``: away with the networks that nothing uses."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Final

import click

from swarm.api.docker.swarmkit import control_pb2
from swarm.cli.network import is_manager, network, visible_networks
from swarm.cli.parse import Duration, filters, label_match
from swarm.client import connect
from swarm.errors import PreconditionError, SwarmError
from swarm.model import Network

_CALL_SECONDS = 30
_NANO: Final = 10**9
_WARNING: Final = (
    "WARNING! This will remove all custom networks not used by at least one container."
)


@network.command()
@click.option(
    "--filter",
    "wanted",
    multiple=True,
    metavar="NAME=VALUE",
    help="until=TIME (or a duration before now), label=... or label!=...",
)
@click.option("-f", "--force", is_flag=True, help="Do not ask first.")
@click.pass_obj
def prune(host: str | None, wanted: tuple[str, ...], force: bool) -> None:
    """Remove every network that no container and no service uses; ask first."""
    chosen = filters(wanted, known={"until", "label", "label!"})
    until = _moment(chosen.get("until", []))
    if not force:
        click.echo(_WARNING)
        if not click.confirm("Are you sure you want to continue?", default=False):
            return
    with connect(host) as client:
        if not is_manager(client):
            raise PreconditionError(
                "this node is not a manager: networks are removed on a manager node"
            )
        networks = [each for each in visible_networks(client) if _matches(each, chosen, until)]
    removed = [each.spec.annotations.name for each in networks if _removed(host, each)]
    if removed:
        click.echo("\n".join(("Deleted Networks:", *removed, "")))


def _removed(host: str | None, item: Network) -> bool:
    """Remove a network unless it is in use; managers know, and docker too goes by these words."""
    try:
        with connect(host) as client:
            request = control_pb2.RemoveNetworkRequest(network_id=item.id)
            client.control.RemoveNetwork(request, timeout=_CALL_SECONDS)
    except SwarmError as error:
        if f"network {item.id} is in use" in str(error):
            return False
        raise
    return True


def _matches(item: Network, chosen: dict[str, list[str]], until: int | None) -> bool:
    labels = dict(item.spec.annotations.labels)
    return (
        not item.spec.ingress
        and (until is None or (item.meta.created_at or 0) < until)
        and label_match(labels, chosen.get("label", []))
        and not any(label_match(labels, [text]) for text in chosen.get("label!", []))
    )


def _moment(texts: list[str]) -> int | None:
    """Return the time that ``until`` means, in nanoseconds; it may be given once.

    Raises:
        click.BadParameter: it is no time, or there are two.
    """
    if not texts:
        return None
    if len(texts) > 1:
        raise click.BadParameter("until is given twice", param_hint="--filter")
    (text,) = texts
    if text.isascii() and text.isdigit():
        return int(text) * _NANO
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return time.time_ns() - Duration().convert(text, None, None)
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()) * _NANO
