"""``swarm ca``: what is refused before anybody is asked, and how the progress is counted."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from swarm.cli.authority import progress
from swarm.cli.main import invoke
from swarm.identity.certs import issuer_id, new_root
from swarm.model import Cluster, Node, NodeDescription, NodeTLSInfo, RootCA, RootRotation

OLD, NEW = (new_root(datetime.now(UTC)) for _ in range(2))


def cluster(*, rotating: bool) -> Cluster:
    """A cluster whose wanted root is the new one."""
    if rotating:
        rotation = RootRotation(ca_cert=NEW.cert_pem)
        return Cluster(id="c", root_ca=RootCA(ca_cert=OLD.cert_pem, root_rotation=rotation))
    return Cluster(id="c", root_ca=RootCA(ca_cert=NEW.cert_pem))


def node(issuer: bytes, root: bytes) -> Node:
    """A node that shows a certificate of one root and trusts one."""
    subject, key = issuer_id(issuer)
    info = NodeTLSInfo(trust_root=root, cert_issuer_subject=subject, cert_issuer_public_key=key)
    return Node(id="n", description=NodeDescription(tls_info=info))


def test_the_progress_of_a_rotation() -> None:
    """Certificates first; roots count once all have one and the managers are done."""
    old, half = node(OLD.cert_pem, OLD.cert_pem), node(NEW.cert_pem, OLD.cert_pem)
    done = node(NEW.cert_pem, NEW.cert_pem)
    cases = [
        (True, [old, half, Node(id="silent")], (1, 0, 3), False),
        (True, [half, half], (2, 0, 2), False),
        (False, [half, done], (2, 1, 2), False),
        (False, [done, done], (2, 2, 2), True),
        (False, [done, old], (1, 0, 2), False),
    ]
    for rotating, nodes, counts, ended in cases:
        found = progress(cluster(rotating=rotating), nodes)
        assert (found.certificates, found.roots, found.nodes) == counts
        assert found.done is ended
        assert found.digest == "sha256:" + hashlib.sha256(NEW.cert_pem).hexdigest()
    assert found.lines()[1:] == (
        "  rotated TLS certificates:  1/2 nodes",
        "  rotated CA certificates:   0/2 nodes",
    )


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--cert-expiry", "2h"], "`--cert-expiry` flag requires the `--rotate` flag"),
        (["--ca-cert", "FILE"], "`--ca-cert` flag requires the `--rotate` flag"),
        (["--rotate", "--ca-cert", "FILE"], "come together"),
        (["--rotate", "--ca-key", "FILE"], "come together"),
        (["--rotate", "--external-ca", "protocol=cfssl,url=https://x"], "not offered"),
        (["--rotate", "--ca-cert", "/none"], "No such file"),
        (["--rotate", "--cert-expiry", "soon"], "not a duration"),
        ([], "cannot connect to the Swarm daemon"),
        (["--rotate"], "cannot connect to the Swarm daemon"),
    ],
)
def test_one_line_says_what_is_wrong(
    words: list[str], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "some.pem"
    file.write_bytes(NEW.cert_pem)
    given = [str(file) if word == "FILE" else word for word in words]
    assert invoke(["--host", f"unix://{tmp_path}/none.sock", "ca", *given]) != 0
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
