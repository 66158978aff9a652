"""A root that vouches for its successor, and roots that a person brings."""

from __future__ import annotations

import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from swarm.errors import InvalidArgumentError, PreconditionError, SwarmError
from swarm.identity.certs import (
    CertificateError,
    Credentials,
    Role,
    RootCA,
    given_root_untrusted,
    issuer_id,
    new_key_and_csr,
    new_root,
    pem_of,
    same_key,
    signed_under,
    tls_info,
    verify_chain,
)
from swarm.identity.tls import client_context, server_context

NOW = datetime.now(UTC)
OLD = new_root(NOW - timedelta(days=400))
NEW = new_root(NOW)


def between(old: RootCA = OLD, new: RootCA = NEW) -> RootCA:
    """The signing CA while ``new`` replaces ``old``."""
    return RootCA(
        cert_pem=old.cert_pem,
        key_pem=new.key_pem,
        intermediates_pem=old.cross_sign(new.cert_pem),
    )


def member(ca: RootCA, trust: bytes, role: Role = Role.MANAGER) -> Credentials:
    """A node of the cluster."""
    key, csr = new_key_and_csr()
    pem = ca.issue(csr, node_id="n" * 25, cluster_id="c" * 25, role=role, now=NOW)
    return Credentials(root_pem=trust, cert_pem=pem, key_pem=key)


def handshake(server: Credentials, client: Credentials) -> bytes | None:
    """Connect in memory as nodes do; what the server saw of the client."""
    pipes = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client_context(client).wrap_bio(pipes[0], pipes[1], server_hostname="swarm-manager"),
        server_context(server).wrap_bio(pipes[1], pipes[0], server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends[1].getpeercert(binary_form=True)


@pytest.mark.parametrize("server_trust", ["old", "both", "new"])
@pytest.mark.parametrize("client_trust", ["old", "both", "new"])
@pytest.mark.parametrize("rsa_root", [False, True])
def test_openssl_takes_both_ends_whatever_stage_they_are_at(
    server_trust: str, client_trust: str, rsa_root: bool
) -> None:
    """A certificate of the rotation leads to the old root, and to the new one: ours needs no second look."""
    new = own_root(rsa.generate_private_key(65537, 2048)) if rsa_root else NEW
    trust = {
        "old": OLD.cert_pem,
        "both": OLD.cert_pem + new.cert_pem,
        "new": new.cert_pem,
    }
    ca = between(OLD, new)
    server, client = member(ca, trust[server_trust]), member(ca, trust[client_trust], Role.WORKER)
    assert handshake(server, client) is not None
    for each in (server, client):
        verify_chain(each.cert_pem or b"", each.root_pem, NOW)


def test_old_certificates_are_taken_until_the_end() -> None:
    """A node that was away comes with what it had; the managers' own lead it to what it trusts."""
    before = member(OLD, OLD.cert_pem, Role.WORKER)
    manager = member(between(), OLD.cert_pem + NEW.cert_pem)
    assert handshake(manager, before) is not None
    after = replace(manager, root_pem=NEW.cert_pem)
    with pytest.raises(ssl.SSLError):
        handshake(after, before)


def test_a_node_describes_the_new_root_as_its_issuer() -> None:
    """Byte for byte the subject and key of the new root, so that managers know when all are done."""
    for trust in (OLD.cert_pem, NEW.cert_pem):
        info = tls_info(member(between(), trust), NOW)
        assert (info.issuer_subject, info.issuer_public_key) == issuer_id(NEW.cert_pem)
    assert issuer_id(OLD.cert_pem) != issuer_id(NEW.cert_pem)
    assert signed_under(member(between(), OLD.cert_pem).cert_pem or b"", NEW.cert_pem)
    assert not signed_under(member(OLD, OLD.cert_pem).cert_pem or b"", NEW.cert_pem)


def test_a_chain_of_rotations_given_up_midway() -> None:
    """What the first new root has signed leads to the old one also while a second replaces it."""
    first, second = member(between(OLD, NEW), OLD.cert_pem), new_root(NOW)
    other = member(between(OLD, second), OLD.cert_pem + second.cert_pem)
    assert handshake(other, first) is not None
    assert handshake(first, other) is not None


def test_only_a_root_with_its_key_vouches_for_another() -> None:
    with pytest.raises(PreconditionError):
        replace(OLD, key_pem=None).cross_sign(NEW.cert_pem)
    leaf = member(OLD, OLD.cert_pem).cert_pem or b""
    with pytest.raises(CertificateError):
        OLD.cross_sign(leaf)


Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


def own_root(
    key: Key,
    *,
    ca: bool = True,
    days: int = 4000,
    start: int = -1,
    signer: Key | None = None,
    name: str = "our own",
) -> RootCA:
    """Make a root as a company's PKI would: another name, no key ids, perhaps some defect."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    cert = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + timedelta(days=start))
        .not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(signer or key, hashes.SHA256())
    )
    return RootCA(cert_pem=cert.public_bytes(serialization.Encoding.PEM), key_pem=pem(key))


def pem(key: Key, form: str = "TraditionalOpenSSL", password: bytes = b"") -> bytes:
    """Write a key in one of the usual forms."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        getattr(serialization.PrivateFormat, form),
        serialization.BestAvailableEncryption(password)
        if password
        else serialization.NoEncryption(),
    )


KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.mark.parametrize("form", ["TraditionalOpenSSL", "PKCS8"])
@pytest.mark.parametrize("curve", [True, False])
def test_a_root_of_ones_own_is_taken(form: str, curve: bool) -> None:
    """EC or RSA, in either PEM form, with words around it; it comes back in one canonical form."""
    key: Key = KEY if curve else rsa.generate_private_key(65537, 2048)
    root = own_root(key)
    untidy = b"Our root:\n" + root.cert_pem.replace(b"\n", b"\r\n") + b"\n\n"
    taken = given_root_untrusted(untidy, pem(key, form), NOW)
    assert taken.cert_pem == pem_of(x509.load_pem_x509_certificates(root.cert_pem))
    assert taken == given_root_untrusted(root.cert_pem, pem(key), NOW)
    assert handshake(member(taken, taken.cert_pem), member(taken, taken.cert_pem)) is not None
    assert same_key(taken.cert_pem, own_root(key, name="once more").cert_pem)


@pytest.mark.parametrize(
    ("cert", "key", "text"),
    [
        (own_root(KEY, ca=False).cert_pem, pem(KEY), "not that of a self-signed CA"),
        (
            own_root(KEY, signer=ec.generate_private_key(ec.SECP256R1())).cert_pem,
            pem(KEY),
            "self-signed CA",
        ),
        (own_root(KEY, start=-20, days=-10).cert_pem, pem(KEY), "expired"),
        (own_root(KEY, days=300).cert_pem, pem(KEY), "CA certificate expires too soon"),
        (own_root(KEY, start=2).cert_pem, pem(KEY), "valid only from"),
        (own_root(KEY).cert_pem * 2, pem(KEY), "multiple certificates"),
        (own_root(KEY).cert_pem, OLD.key_pem, "does not belong"),
        (own_root(KEY).cert_pem, pem(KEY, password=b"secret"), "encrypted"),
        (own_root(KEY).cert_pem, b"no key", "cannot be read"),
        (own_root(KEY).cert_pem, b"x" * 70_000, "larger than"),
        (b"no certificate", pem(KEY), "certificates"),
        (own_root(rsa.generate_private_key(65537, 1024)).cert_pem, pem(KEY), "not acceptable"),
    ],
)
def test_a_root_of_no_use_is_refused_with_the_reason(cert: bytes, key: bytes, text: str) -> None:
    with pytest.raises(SwarmError, match=text) as caught:
        given_root_untrusted(cert, key, NOW)
    assert isinstance(caught.value, CertificateError | InvalidArgumentError)
