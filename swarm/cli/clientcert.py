"""``swarm client-cert``: certificates with which schedulers on any host talk to the managers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import click

from swarm.api.overswarm.v1 import scheduler_pb2
from swarm.cli.listing import Listing, listing
from swarm.cli.output import rfc3339, since
from swarm.cli.parse import Duration
from swarm.cli.several import for_each
from swarm.client import Client, connect
from swarm.errors import HostError
from swarm.identity.certs import new_key_and_csr

_CALL_SECONDS = 30
_COLUMNS = {"Name": "NAME", "ID": "ID", "Created": "CREATED", "Expires": "EXPIRES"}


@click.group("client-cert")
def client_cert() -> None:
    """Manage the certificates of schedulers (on a manager).

    A scheduler may make and change services, place tasks, and read nodes and networks; nothing else.
    """


@client_cert.command()
@click.argument("name")
@click.option(
    "-o",
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Directory for ca.pem, cert.pem, key.pem and the list of managers; ./NAME by default.",
)
@click.option(
    "--expiry",
    type=Duration(),
    default=0,
    metavar="DURATION",
    help="Validity, such as 720h; the cluster's --cert-expiry by default.",
)
@click.pass_obj
def create(host: str | None, name: str, out: Path | None, expiry: int) -> None:
    """Make a key and have a certificate issued for it; the key does not leave this host."""
    directory = out or Path(name)
    if directory.exists() and any(directory.iterdir()):
        raise HostError(f"{directory} exists and is not empty; choose another with --out")
    key, csr = new_key_and_csr()
    with connect(host) as client:
        answer = client.clients.CreateClientCertificate(
            scheduler_pb2.CreateClientCertificateRequest(name=name, csr=csr, validity_ns=expiry),
            timeout=_CALL_SECONDS,
        )
    directory.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    _write(directory / "key.pem", key, stat.S_IRUSR | stat.S_IWUSR)
    for file, content in (
        ("cert.pem", answer.certificate),
        ("ca.pem", answer.root),
        ("managers", "".join(f"{each}\n" for each in answer.managers).encode()),
    ):
        _write(directory / file, content, 0o644)
    click.echo(str(directory))


@client_cert.command("ls")
@listing(quiet="Only print names.")
@click.pass_obj
def ls(host: str | None, asked: Listing) -> None:
    """List the certificates that were not revoked."""
    with connect(host) as client:
        answer = client.clients.ListClientCertificates(
            scheduler_pb2.ListClientCertificatesRequest(), timeout=_CALL_SECONDS
        )
    rows = [
        {
            "Name": each.name,
            "ID": each.cn,
            "Created": f"{since(each.issued_at.ToNanoseconds())} ago",
            "Expires": rfc3339(each.expiry.ToNanoseconds()),
        }
        for each in sorted(answer.clients, key=lambda each: each.name)
    ]
    asked.show(rows, _COLUMNS, key="Name")


@client_cert.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.pass_obj
def revoke(host: str | None, names: tuple[str, ...]) -> int:
    """Refuse certificates from now on; running connections are cut."""

    def act(client: Client, name: str) -> None:
        request = scheduler_pb2.RevokeClientCertificateRequest(name=name)
        client.clients.RevokeClientCertificate(request, timeout=_CALL_SECONDS)

    return for_each(host, names, act)


def _write(path: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
