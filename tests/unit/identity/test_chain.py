"""Chain checks: links, dates, purposes, roots, and a root in the middle of a rotation."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from swarm.errors import PreconditionError
from swarm.identity.certs import (
    CertificateError,
    Credentials,
    Fault,
    Identity,
    Role,
    RootCA,
    new_key_and_csr,
    new_root,
    pem_of,
    roots_untrusted,
    tls_info,
    verify_chain,
)

NOW = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
ROOT = new_root(NOW)
OTHER = new_root(NOW)
IDENTITY = Identity(node_id="n" * 25, cluster_id="c" * 25, role=Role.MANAGER)


def leaf(root: RootCA, now: datetime = NOW) -> tuple[bytes, bytes]:
    """Issue (certificate, key) from a root."""
    key, csr = new_key_and_csr()
    pem = root.issue(
        csr,
        node_id=IDENTITY.node_id,
        cluster_id=IDENTITY.cluster_id,
        role=IDENTITY.role,
        now=now,
    )
    return pem, key


def cross_signed(by: RootCA, root: RootCA) -> bytes:
    """Return ``root``'s certificate signed by another root, as during a rotation."""
    assert by.key_pem is not None
    subject = x509.load_pem_x509_certificate(root.cert_pem)
    issuer = x509.load_pem_x509_certificate(by.cert_pem)
    signer = serialization.load_pem_private_key(by.key_pem, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = subject.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject.subject)
        .issuer_name(issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(minutes=5))
        .not_valid_after(NOW + timedelta(days=1))
    )
    for item in subject.extensions:
        builder = builder.add_extension(item.value, item.critical)
    return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def fault(leaf_pem: bytes, root_pem: bytes, now: datetime = NOW) -> Fault:
    """Return why a chain is refused."""
    with pytest.raises(CertificateError) as caught:
        verify_chain(leaf_pem, root_pem, now)
    return caught.value.fault


def test_a_good_chain_names_its_holder() -> None:
    """The identity comes back."""
    assert verify_chain(leaf(ROOT)[0], ROOT.cert_pem, NOW) == IDENTITY


def test_any_root_of_the_pool_will_do() -> None:
    """Roots of the same name are told apart by their keys."""
    assert verify_chain(leaf(ROOT)[0], OTHER.cert_pem + ROOT.cert_pem, NOW) == IDENTITY


def test_another_clusters_certificate() -> None:
    """The same name under another key is foreign."""
    assert fault(leaf(OTHER)[0], ROOT.cert_pem) is Fault.FOREIGN


def test_dates() -> None:
    """Before, within (with an hour for slow clocks) and after."""
    pem, _ = leaf(ROOT)
    assert verify_chain(pem, ROOT.cert_pem, NOW - timedelta(minutes=4)) == IDENTITY
    assert fault(pem, ROOT.cert_pem, NOW - timedelta(hours=2)) is Fault.NOT_YET_VALID
    assert fault(pem, ROOT.cert_pem, NOW + timedelta(days=91)) is Fault.EXPIRED


def test_an_expired_root_vouches_for_nobody() -> None:
    """The root's own dates count too."""
    late = NOW + timedelta(days=7301)
    pem, _ = leaf(ROOT, late)
    assert fault(pem, ROOT.cert_pem, late) is Fault.EXPIRED


def test_a_chain_through_a_cross_signed_root() -> None:
    """During a rotation the leaf of the new root reaches the old one over the intermediate."""
    between = cross_signed(ROOT, OTHER)
    rotating = replace(OTHER, intermediates_pem=between)
    pem, key = leaf(rotating)
    assert pem.count(b"BEGIN CERTIFICATE") == 2
    assert verify_chain(pem, ROOT.cert_pem, NOW) == IDENTITY
    assert fault(leaf(OTHER)[0], ROOT.cert_pem) is Fault.FOREIGN
    info = tls_info(Credentials(root_pem=ROOT.cert_pem, cert_pem=pem, key_pem=key), NOW)
    assert info.issuer_public_key == spki(OTHER)
    assert info.trust_root == ROOT.cert_pem


def test_a_chain_after_the_rotation() -> None:
    """The new root alone vouches for the leaf; the intermediate that led to the old one does no harm."""
    pem, key = leaf(replace(OTHER, intermediates_pem=cross_signed(ROOT, OTHER)))
    assert verify_chain(pem, OTHER.cert_pem, NOW) == IDENTITY
    info = tls_info(Credentials(root_pem=OTHER.cert_pem, cert_pem=pem, key_pem=key), NOW)
    assert info.issuer_public_key == spki(OTHER)
    assert fault(pem, new_root(NOW).cert_pem) is Fault.FOREIGN


def test_a_broken_link() -> None:
    """A next certificate that did not sign the one before breaks the chain."""
    between = cross_signed(ROOT, OTHER)
    assert fault(leaf(ROOT)[0] + between, ROOT.cert_pem) is Fault.FOREIGN


def test_a_node_certificate_signs_nothing() -> None:
    """A leaf signed by another node's key is refused although every signature is right."""
    pem, key = leaf(ROOT)
    rogue = RootCA(cert_pem=pem, key_pem=key)
    bad, _ = leaf(rogue)
    assert fault(bad + pem, ROOT.cert_pem) is Fault.FOREIGN


def test_the_server_purpose_is_required() -> None:
    """A certificate for clients alone, or for nothing, is refused."""
    assert ROOT.key_pem is not None
    signer = serialization.load_pem_private_key(ROOT.key_pem, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    for purposes in ([ExtendedKeyUsageOID.CLIENT_AUTH], []):
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n")]))
            .issuer_name(x509.load_pem_x509_certificate(ROOT.cert_pem).subject)
            .public_key(ec.generate_private_key(ec.SECP256R1()).public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + timedelta(hours=1))
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        pem = builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        assert fault(pem, ROOT.cert_pem) is Fault.PURPOSE


def spki(root: RootCA) -> bytes:
    """Return a root's public key as SubjectPublicKeyInfo."""
    return (
        x509.load_pem_x509_certificate(root.cert_pem)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def test_tls_info_describes_the_issuer() -> None:
    """Issuer subject and key as in the root, and the root as trusted."""
    pem, key = leaf(ROOT)
    info = tls_info(Credentials(root_pem=ROOT.cert_pem, cert_pem=pem, key_pem=key), NOW)
    root = x509.load_pem_x509_certificate(ROOT.cert_pem)
    assert info.issuer_subject == root.subject.public_bytes()
    # SEQUENCE { SET { SEQUENCE { OID 2.5.4.3, UTF8String "swarm-ca" } } }
    assert info.issuer_subject == bytes.fromhex("30133111300f06035504030c08") + b"swarm-ca"
    assert info.issuer_public_key == spki(ROOT)
    with pytest.raises(PreconditionError):
        tls_info(Credentials(root_pem=ROOT.cert_pem), NOW)


def test_roots_from_a_manager_are_checked() -> None:
    """Good bundles pass; a leaf, an expired root and a cross-signed one do not."""
    assert len(roots_untrusted(ROOT.cert_pem + OTHER.cert_pem, NOW)) == 2
    cases = [
        (leaf(ROOT)[0], NOW, Fault.FOREIGN),
        (cross_signed(ROOT, OTHER), NOW, Fault.FOREIGN),
        (ROOT.cert_pem, NOW + timedelta(days=7301), Fault.EXPIRED),
        (b"nothing", NOW, Fault.MALFORMED),
    ]
    for pem, now, wanted in cases:
        with pytest.raises(CertificateError) as caught:
            roots_untrusted(pem, now)
        assert caught.value.fault is wanted


def test_an_ed25519_root_is_too_new_for_engines() -> None:
    """Engines know RSA and ECDSA only; a root they would refuse is refused here."""
    key = ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca")])
    cert = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, None)
    )
    with pytest.raises(CertificateError) as caught:
        roots_untrusted(pem_of([cert]), NOW)
    assert caught.value.fault is Fault.WEAK
