"""``swarm ca``: the root certificate, and its replacement."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import time
from collections.abc import Sequence
from typing import Final

import click

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2, types_pb2
from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.cli.lookup import the_cluster
from swarm.cli.node import all_nodes
from swarm.cli.parse import Duration
from swarm.client import Client, connect, translated
from swarm.errors import SwarmError
from swarm.identity.certs import issuer_id
from swarm.model import Cluster, Node

_CALL_SECONDS: Final = 30
PAUSE: Final = 0.2
"""Seconds between two looks at how far a rotation is."""

PATIENCE: Final = 30.0
"""Seconds to go on looking while no manager answers."""

_ONLY_WITH_ROTATE: Final = ("ca-cert", "ca-key", "cert-expiry", "external-ca")


@click.command()
@click.option("--ca-cert", type=click.File("rb"), metavar="FILE", help="New root certificate, PEM.")
@click.option("--ca-key", type=click.File("rb"), metavar="FILE", help="Its private key, PEM.")
@click.option(
    "--cert-expiry",
    type=Duration(),
    help="Validity of node certificates from now on (at first 2160h0m0s).",
)
@click.option("-d", "--detach", is_flag=True, help="Do not wait until every node has followed.")
@click.option("--external-ca", metavar="SPEC", help="Refused: managers sign themselves.")
@click.option("-q", "--quiet", is_flag=True, help="Wait without a word.")
@click.option(
    "--rotate", is_flag=True, help="Replace the root; without a certificate, by a new one of ours."
)
@click.pass_context
def ca(ctx: click.Context, /, **flags: object) -> None:
    """Show the root certificate of the cluster, or replace it."""
    given = [name for name in _ONLY_WITH_ROTATE if flags[name.replace("-", "_")] is not None]
    with connect(ctx.obj) as client:
        if not flags["rotate"]:
            if given:
                raise click.UsageError(
                    f"`--{given[0]}` flag requires the `--rotate` flag to update the CA", ctx
                )
            _show(the_cluster(client))
            return
        if flags["external_ca"] is not None:
            raise click.UsageError(
                "external certificate authorities are not offered: a manager signs within the"
                " transaction that admits a node",
                ctx,
            )
        if (flags["ca_cert"] is None) != (flags["ca_key"] is None):
            raise click.UsageError("the --ca-cert and --ca-key flags come together", ctx)
        _rotate(client, flags)
        if flags["detach"]:
            return
        if _follow(client, quiet=bool(flags["quiet"])) and not flags["quiet"]:
            _show(the_cluster(client))


def _show(cluster: Cluster) -> None:
    click.echo(cluster.root_ca.ca_cert.decode().strip())


def _rotate(client: Client, flags: dict[str, object]) -> None:
    cluster = the_cluster(client)
    config = cluster.spec.ca_config
    if flags["cert_expiry"] is not None:
        config = dataclasses.replace(config, node_cert_expiry=flags["cert_expiry"])  # type: ignore[arg-type]  # Duration's
    if flags["ca_cert"] is None:
        config = dataclasses.replace(config, force_rotate=config.force_rotate + 1)
    else:
        config = dataclasses.replace(
            config,
            signing_ca_cert=flags["ca_cert"].read(),  # type: ignore[attr-defined]  # click.File's
            signing_ca_key=flags["ca_key"].read(),  # type: ignore[attr-defined]
        )
    spec = dataclasses.replace(cluster.spec, ca_config=config)
    request = control_pb2.UpdateClusterRequest(
        cluster_id=cluster.id,
        cluster_version=types_pb2.Version(index=cluster.meta.version.index),
        spec=codec.encode(spec),  # type: ignore[arg-type]  # the codec returns this very message
    )
    client.control.UpdateCluster(request, timeout=_CALL_SECONDS)
    issued = client.clients.ListClientCertificates(
        scheduler_pb2.ListClientCertificatesRequest(), timeout=_CALL_SECONDS
    ).clients
    if issued:
        names = ", ".join(sorted(each.name for each in issued))
        click.echo(
            f"Client certificates of the present root end with it; make them anew: {names}",
            err=True,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a rotation is.

    Attributes:
        digest: of the root that is wanted.
        certificates: nodes whose certificate is of that root.
        roots: nodes that trust it; they are told at the end.
        nodes: all.
        rotating: the managers are at it.
    """

    digest: str
    certificates: int
    roots: int
    nodes: int
    rotating: bool

    @property
    def done(self) -> bool:
        """Every node has followed."""
        return not self.rotating and self.certificates == self.roots == self.nodes

    def lines(self) -> tuple[str, ...]:
        """As docker shows it."""
        return (
            f"desired root digest: {self.digest}",
            f"  rotated TLS certificates:  {self.certificates}/{self.nodes} nodes",
            f"  rotated CA certificates:   {self.roots}/{self.nodes} nodes",
        )


def progress(cluster: Cluster, nodes: Sequence[Node]) -> Progress:
    """Say how far a rotation is; without one, whether everybody has taken the root there is."""
    rotation = cluster.root_ca.root_rotation
    root = cluster.root_ca.ca_cert if rotation is None else rotation.ca_cert
    found = [each.description.tls_info for each in nodes if each.description is not None]
    infos = [info for info in found if info is not None]
    issuers = [(info.cert_issuer_subject, info.cert_issuer_public_key) for info in infos]
    certificates = issuers.count(issuer_id(root))
    ready = rotation is None and certificates == len(nodes)
    return Progress(
        digest="sha256:" + hashlib.sha256(root).hexdigest(),
        certificates=certificates,
        roots=sum(info.trust_root == root for info in infos) if ready else 0,
        nodes=len(nodes),
        rotating=rotation is not None,
    )


def _follow(client: Client, *, quiet: bool) -> bool:
    """Show the progress until every node has followed; False when the person went away."""
    shown: tuple[str, ...] = ()
    live = sys.stdout.isatty()
    until = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                with translated(client.path):
                    found = progress(the_cluster(client), all_nodes(client))
                until = time.monotonic() + PATIENCE
            except SwarmError as error:  # a leader may go away in the middle: the next one goes on
                if not error.retryable or time.monotonic() > until:
                    raise
                time.sleep(PAUSE)
                continue
            if not quiet and found.lines() != shown:
                _draw(shown, found.lines(), live=live)
                shown = found.lines()
            if found.done:
                return True
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        if not quiet:
            click.echo("Operation continuing in background.")
            click.echo(
                "Use `swarm node ls --format '{{.Hostname}} {{.TLSStatus}}'` to check progress."
            )
        return False


def _draw(old: tuple[str, ...], new: tuple[str, ...], *, live: bool) -> None:
    """Write the lines over those before on a terminal; elsewhere only those that changed."""
    if live:
        click.echo(f"\x1b[{len(old)}A" if old else "", nl=False)
        for line in new:
            click.echo(f"\x1b[2K{line}")
        return
    for line in new:
        if line not in old:
            click.echo(line)
