"""Certificates as issued: every field engines look at, and requests as untrusted input."""

from __future__ import annotations

import base64
import contextlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, SignatureAlgorithmOID
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm.errors import InvalidArgumentError, PreconditionError
from swarm.identity.certs import (
    MAX_CSR,
    CertificateError,
    Credentials,
    CsrError,
    Fault,
    Identity,
    Role,
    RootCA,
    certificates_untrusted,
    effective_validity,
    identity_of,
    issuer_of,
    new_key_and_csr,
    new_root,
    renewal_time,
    request_key_untrusted,
)

NOW = datetime(2026, 3, 4, 5, 6, 7, 890, tzinfo=UTC)
SECOND = NOW.replace(microsecond=0)
NODE = "n" * 25
CLUSTER_ID = "c" * 25
ROOT = new_root(NOW)


def issued(role: Role = Role.WORKER, **changes: object) -> x509.Certificate:
    """Issue one certificate from ROOT."""
    arguments: dict[str, object] = {
        "node_id": NODE,
        "cluster_id": CLUSTER_ID,
        "role": role,
        "now": NOW,
    }
    arguments |= changes
    _, csr = new_key_and_csr()
    pem = ROOT.issue(csr, **arguments)  # type: ignore[arg-type]  # a table of keyword arguments
    return x509.load_pem_x509_certificate(pem)


def extension(cert: x509.Certificate, kind: type[x509.ExtensionType]) -> tuple[bool, object]:
    """Return (critical, value) of an extension."""
    found = cert.extensions.get_extension_for_class(kind)
    return found.critical, found.value


def test_root_has_the_engines_shape() -> None:
    """CN swarm-ca alone, CA without path length, certSign+crlSign, SKI and no AKI, 20 years from now-5min."""
    root = x509.load_pem_x509_certificate(ROOT.cert_pem)
    assert [(a.oid, a.value) for a in root.subject] == [(NameOID.COMMON_NAME, "swarm-ca")]
    assert root.issuer == root.subject
    assert extension(root, x509.BasicConstraints) == (
        True,
        x509.BasicConstraints(ca=True, path_length=None),
    )
    critical, usage = extension(root, x509.KeyUsage)
    assert isinstance(usage, x509.KeyUsage)
    assert critical
    assert (usage.key_cert_sign, usage.crl_sign) == (True, True)
    assert (usage.digital_signature, usage.key_encipherment) == (False, False)
    assert len(root.extensions) == 3
    extension(root, x509.SubjectKeyIdentifier)
    assert root.not_valid_before_utc == SECOND - timedelta(minutes=5)
    assert root.not_valid_after_utc - root.not_valid_before_utc == timedelta(seconds=630_720_000)
    assert root.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256
    key = root.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (Role.WORKER, ["swarm-worker", NODE]),
        (Role.MANAGER, ["swarm-manager", NODE, "swarm-ca"]),
        (Role.SCHEDULER, ["swarm-scheduler", NODE]),
    ],
)
def test_node_certificate_has_the_engines_shape(role: Role, names: list[str]) -> None:
    """O, OU, CN in that order; the role's names; usages; both purposes; not a CA; SKI and AKI."""
    cert = issued(role)
    assert [(a.oid, a.value) for a in cert.subject] == [
        (NameOID.ORGANIZATION_NAME, CLUSTER_ID),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
        (NameOID.COMMON_NAME, NODE),
    ]
    assert extension(cert, x509.SubjectAlternativeName) == (
        False,
        x509.SubjectAlternativeName([x509.DNSName(name) for name in names]),
    )
    critical, usage = extension(cert, x509.KeyUsage)
    assert isinstance(usage, x509.KeyUsage)
    assert critical
    assert (usage.digital_signature, usage.key_encipherment) == (True, True)
    assert (usage.key_cert_sign, usage.crl_sign) == (False, False)
    assert extension(cert, x509.ExtendedKeyUsage) == (
        False,
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
    )
    assert extension(cert, x509.BasicConstraints) == (
        True,
        x509.BasicConstraints(ca=False, path_length=None),
    )
    root = x509.load_pem_x509_certificate(ROOT.cert_pem)
    own = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    _, authority = extension(cert, x509.AuthorityKeyIdentifier)
    assert isinstance(authority, x509.AuthorityKeyIdentifier)
    assert authority.key_identifier == own.digest
    extension(cert, x509.SubjectKeyIdentifier)
    assert cert.issuer == root.subject
    assert 0 < cert.serial_number < 1 << 160
    cert.verify_directly_issued_by(root)


@pytest.mark.parametrize(
    ("asked", "given_"),
    [
        (timedelta(hours=2160), timedelta(hours=2160)),
        (timedelta(hours=1), timedelta(hours=1)),
        (timedelta(minutes=59), timedelta(hours=2160)),
        (timedelta(0), timedelta(hours=2160)),
        (timedelta(hours=-5), timedelta(hours=2160)),
        (timedelta(days=400), timedelta(days=400)),
    ],
)
def test_validity_rules(asked: timedelta, given_: timedelta) -> None:
    """One hour back, then the asked time from now; under an hour means the default."""
    cert = issued(validity=asked)
    assert cert.not_valid_before_utc == SECOND - timedelta(hours=1)
    assert cert.not_valid_after_utc == SECOND + given_
    assert effective_validity(asked) == given_


def test_serials_differ() -> None:
    """No two certificates share a serial."""
    assert len({issued().serial_number for _ in range(5)}) == 5


def test_request_has_an_empty_subject_and_a_pkcs8_key() -> None:
    """As engines make them, so that managers other than ours accept ours."""
    key_pem, csr_pem = new_key_and_csr()
    assert key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert csr_pem.startswith(b"-----BEGIN CERTIFICATE REQUEST-----")
    csr = x509.load_pem_x509_csr(csr_pem)
    assert list(csr.subject) == []
    assert csr.signature_algorithm_oid == SignatureAlgorithmOID.ECDSA_WITH_SHA256


def test_subject_and_names_of_a_request_are_ignored() -> None:
    """A request that asks to be a manager of another node gets what the CA decided."""
    key = ec.generate_private_key(ec.SECP256R1())
    wish = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager"),
            x509.NameAttribute(NameOID.COMMON_NAME, "somebody-else"),
        ]
    )
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(wish)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("swarm-ca")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    pem = ROOT.issue(csr, node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER, now=NOW)
    cert = x509.load_pem_x509_certificate(pem)
    assert identity_of(cert) == Identity(node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER)
    assert extension(cert, x509.BasicConstraints)[1] == x509.BasicConstraints(
        ca=False, path_length=None
    )
    _, names = extension(cert, x509.SubjectAlternativeName)
    assert isinstance(names, x509.SubjectAlternativeName)
    assert "swarm-ca" not in names.get_values_for_type(x509.DNSName)
    assert cert.public_key() == key.public_key()


def request(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey,
) -> bytes:
    """Make a request with a given key."""
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def broken_signature() -> bytes:
    """Make a request whose last signature byte is wrong."""
    _, pem = new_key_and_csr()
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: b"", "empty"),
        (lambda: b"A" * (MAX_CSR + 1), "larger than"),
        (lambda: b"hello", "not PEM"),
        (lambda: ROOT.cert_pem, "not PEM of type CERTIFICATE REQUEST"),
        (lambda: new_key_and_csr()[1][:200], "cannot be parsed"),
        (broken_signature, "not signed by its own key"),
        (lambda: request(ec.generate_private_key(ec.SECP224R1())), "curves other than"),
        (lambda: request(ec.generate_private_key(ec.SECP256K1())), "curves other than"),
        (lambda: request(ed25519.Ed25519PrivateKey.generate()), "neither ECDSA nor RSA"),
        (lambda: request(rsa.generate_private_key(65537, 1024)), "RSA with 1024 bits"),
    ],
)
def test_bad_requests_are_refused(make: object, says: str) -> None:
    """Each refusal says what is wrong with the request."""
    assert callable(make)
    with pytest.raises(CsrError, match=says):
        ROOT.issue(make(), node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER, now=NOW)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_other_accepted_curves(curve: ec.EllipticCurve) -> None:
    """P-384 and P-521 are as good as P-256."""
    csr = request(ec.generate_private_key(curve))
    ROOT.issue(csr, node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER, now=NOW)


def test_rsa_requests_are_accepted() -> None:
    """RSA from 2048 bits on."""
    csr = request(rsa.generate_private_key(65537, 2048))
    ROOT.issue(csr, node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER, now=NOW)


_, _SAMPLE_CSR = new_key_and_csr()


@settings(deadline=None)
@given(st.integers(0, len(_SAMPLE_CSR) - 1), st.integers(0, 255))
def test_a_damaged_request_is_refused_or_still_signed(at: int, byte: int) -> None:
    """One changed byte parses and verifies, or raises CsrError; nothing else comes out."""
    damaged = bytearray(_SAMPLE_CSR)
    damaged[at] = byte
    try:
        request_key_untrusted(bytes(damaged))
    except CsrError:
        return


def changed(pem: bytes) -> Iterator[bytes]:
    """Each byte of what a PEM text holds, changed in some ways."""
    mark, *body, end = pem.decode().strip().splitlines()
    der = base64.b64decode("".join(body))
    for at, byte in enumerate(der):
        for other in {0, 1, 5, 0x7F, 0xFF, byte ^ 1, byte ^ 0x80} - {byte}:
            damaged = der[:at] + bytes((other,)) + der[at + 1 :]
            yield f"{mark}\n{base64.b64encode(damaged).decode()}\n{end}\n".encode()


def test_every_changed_byte_of_a_request_is_borne() -> None:
    """It parses and verifies, or raises CsrError: an unknown version, too."""
    borne = 0
    for damaged in changed(_SAMPLE_CSR):
        with contextlib.suppress(CsrError):
            request_key_untrusted(damaged)
        borne += 1
    assert borne > 1000


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_changed_byte_of_a_certificate_is_borne() -> None:
    """It is refused as a link of a chain with CertificateError, or does no harm: doubled extensions, too."""
    borne = 0
    for damaged in changed(ROOT.cert_pem):
        with contextlib.suppress(CertificateError):
            issuer_of(damaged, ROOT.cert_pem, NOW)
        borne += 1
    assert borne > 1000


@given(st.binary(max_size=300))
def test_any_bytes_as_certificates(data: bytes) -> None:
    """Garbage inside PEM marks raises CertificateError alone."""
    with pytest.raises(CertificateError):
        certificates_untrusted(
            b"-----BEGIN CERTIFICATE-----\n" + data + b"\n-----END CERTIFICATE-----\n"
        )


def test_certificate_bundles_are_bounded() -> None:
    """Nine certificates, none, or too many bytes are refused."""
    for bad in (ROOT.cert_pem * 9, b"", b"-" * (64 * 1024 + 1)):
        with pytest.raises(CertificateError) as caught:
            certificates_untrusted(bad)
        assert caught.value.fault is Fault.MALFORMED


def test_ids_that_cannot_stand_in_a_certificate() -> None:
    """The subject's length limit is an error of the caller."""
    with pytest.raises(InvalidArgumentError, match="cannot stand"):
        issued(node_id="x" * 65)


def test_a_root_without_key_cannot_sign() -> None:
    """Followers hold the certificate alone."""
    _, csr = new_key_and_csr()
    with pytest.raises(PreconditionError, match="no signing key"):
        RootCA(cert_pem=ROOT.cert_pem).issue(
            csr, node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER, now=NOW
        )


def test_a_root_with_another_key_cannot_sign() -> None:
    """A key that belongs to no certificate of the bundle is noticed."""
    _, csr = new_key_and_csr()
    with pytest.raises(PreconditionError, match="belongs to none"):
        RootCA(cert_pem=ROOT.cert_pem, key_pem=new_root(NOW).key_pem).issue(
            csr, node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER, now=NOW
        )


def test_renewal_times_spread_over_half_to_four_fifths() -> None:
    """Many draws stay within, and fill, 50 to 80 % of the validity."""
    _, csr = new_key_and_csr()
    pem = ROOT.issue(csr, node_id=NODE, cluster_id=CLUSTER_ID, role=Role.WORKER, now=NOW)
    cert = x509.load_pem_x509_certificate(pem)
    whole = cert.not_valid_after_utc - cert.not_valid_before_utc
    rng = random.Random(7)
    parts = [(renewal_time(pem, rng) - cert.not_valid_before_utc) / whole for _ in range(500)]
    assert 0.5 <= min(parts) < 0.51
    assert 0.79 < max(parts) <= 0.8


@pytest.mark.parametrize(
    "attributes",
    [
        [(NameOID.ORGANIZATION_NAME, "c"), (NameOID.COMMON_NAME, "n")],
        [(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-worker"), (NameOID.COMMON_NAME, "n")],
        [(NameOID.ORGANIZATION_NAME, "c"), (NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-worker")],
        [
            (NameOID.ORGANIZATION_NAME, "c"),
            (NameOID.ORGANIZATIONAL_UNIT_NAME, "root"),
            (NameOID.COMMON_NAME, "n"),
        ],
    ],
)
def test_a_subject_that_names_nobody(attributes: list[tuple[x509.ObjectIdentifier, str]]) -> None:
    """Cluster, known role and node id must all be there."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .sign(key, hashes.SHA256())
    )
    with pytest.raises(CertificateError) as caught:
        identity_of(cert)
    assert caught.value.fault is Fault.SUBJECT


def test_credentials_need_both_halves_and_hide_the_key() -> None:
    """A certificate without its key is no credential; keys stay out of repr."""
    with pytest.raises(InvalidArgumentError, match="come together"):
        Credentials(root_pem=ROOT.cert_pem, cert_pem=ROOT.cert_pem)
    assert ROOT.key_pem is not None
    assert "PRIVATE" not in repr(ROOT)
    assert "PRIVATE" not in repr(
        Credentials(root_pem=ROOT.cert_pem, cert_pem=ROOT.cert_pem, key_pem=ROOT.key_pem)
    )
    assert Credentials(root_pem=ROOT.cert_pem).identity is None
