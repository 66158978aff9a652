"""The cluster's certificates: the root CA, what it issues, and who a certificate names.

A node certificate says who a node is: O is the cluster, OU the role, CN the node id. The root signs only
what it decides itself: of a certificate request it takes the public key and nothing else.

Every PEM that comes from outside (a request, a root bundle, an issued chain) is hostile input: sizes, counts,
key kinds and signature algorithms are checked before anything is done with it.

Source: SwarmKit ``ca/certificates.go``, ``ca/renewer.go``.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import (
    ExtendedKeyUsageOID,
    NameOID,
    ObjectIdentifier,
    SignatureAlgorithmOID,
)

from swarm.errors import InvalidArgumentError, PreconditionError, WireError
from swarm.identity.token import root_digest

ROOT_NAME: Final = "swarm-ca"
"""Common name of a root; also the server name managers answer to while a node has no certificate."""

MANAGER_NAME: Final = "swarm-manager"
"""The server name managers answer to; equal to the manager role."""

ROOT_VALIDITY: Final = timedelta(seconds=630_720_000)
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What parsing of a certificate or of a request for one raises."""

MIN_ROOT_VALIDITY: Final = timedelta(days=365)
"""What a root that a person brings must still be good for, as in Docker."""

ROOT_BACKDATE: Final = timedelta(minutes=5)
NODE_BACKDATE: Final = timedelta(hours=1)
"""How far before now a certificate starts, for nodes whose clocks are behind."""

DEFAULT_VALIDITY: Final = timedelta(hours=2160)
MIN_VALIDITY: Final = timedelta(hours=1)

MAX_PEM: Final = 64 * 1024
"""Largest PEM bundle looked at, bytes; a real chain has two to four certificates of about 700 bytes."""

MAX_CHAIN: Final = 8
MAX_CSR: Final = 16 * 1024
MAX_RSA_BITS: Final = 8192
"""Largest RSA key accepted: checking one signature of a larger key costs too much CPU time."""

_MIN_RSA_BITS: Final = 2048
_CURVES: Final = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_SIGNATURES: Final = frozenset(
    {
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
    }
)
_CERTIFICATE_MARK: Final = b"-----BEGIN CERTIFICATE-----"
_CSR_MARK: Final = b"-----BEGIN CERTIFICATE REQUEST-----"


class Fault(StrEnum):
    """Why a certificate was refused."""

    MALFORMED = "malformed"
    WEAK = "weak"
    SUBJECT = "subject"
    FOREIGN = "foreign"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    PURPOSE = "purpose"


class CertificateError(WireError):
    """A certificate from outside cannot be used; :attr:`fault` says why, the text says it to a person."""

    def __init__(self, fault: Fault, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class CsrError(InvalidArgumentError):
    """A certificate request cannot be granted, whoever asks."""


class Role(StrEnum):
    """What a node may do, as its certificate's organisational unit says it."""

    WORKER = "swarm-worker"
    MANAGER = "swarm-manager"
    SCHEDULER = "swarm-scheduler"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who holds a verified certificate."""

    node_id: str
    cluster_id: str
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The other end of a connection.

    Attributes:
        address: ``ip:port``, IPv6 in brackets.
        identity: from the client certificate, verified; None when the client showed none.
    """

    address: str
    identity: Identity | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What one TLS end is made of, all PEM.

    Attributes:
        root_pem: the trusted roots, byte for byte as managers serve them.
        cert_pem: this node's certificate, then intermediates; None before it has one.
        key_pem: the certificate's private key, PKCS#8, not encrypted; None exactly when ``cert_pem`` is.
    """

    root_pem: bytes
    cert_pem: bytes | None = None
    key_pem: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if (self.cert_pem is None) != (self.key_pem is None):
            raise InvalidArgumentError("a certificate and its private key come together")

    @property
    def identity(self) -> Identity | None:
        """Who the certificate names; None without one.

        Raises:
            CertificateError: the certificate cannot be read or names nobody.
        """
        if self.cert_pem is None:
            return None
        return identity_of(certificates_untrusted(self.cert_pem)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsInfo:
    """What a node tells managers about its certificate (``NodeDescription.tls_info``).

    Attributes:
        trust_root: the root PEM the node trusts.
        issuer_subject: subject of the certificate that signed the node's, DER.
        issuer_public_key: SubjectPublicKeyInfo of that certificate, DER.
    """

    trust_root: bytes
    issuer_subject: bytes
    issuer_public_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RootCA:
    """A root certificate, with its private key where this process may sign.

    Attributes:
        cert_pem: the root as it is served to joiners; the digest covers exactly these bytes.
        key_pem: PKCS#8 or SEC1 private key, or None.
        intermediates_pem: appended to each issued certificate while the root is being replaced.
    """

    cert_pem: bytes
    key_pem: bytes | None = field(default=None, repr=False)
    intermediates_pem: bytes = b""

    @property
    def digest(self) -> str:
        """The digest join tokens pin this root with."""
        return root_digest(self.cert_pem)

    def issue(
        self,
        csr_pem: bytes,
        *,
        node_id: str,
        cluster_id: str,
        role: Role,
        validity: timedelta = DEFAULT_VALIDITY,
        now: datetime,
    ) -> bytes:
        """Sign a node certificate for the public key of a request; return it and intermediates, PEM.

        Args:
            csr_pem: the request, off the network.
            node_id: becomes the common name and a DNS name.
            cluster_id: becomes the organisation.
            role: becomes the organisational unit and a DNS name; a manager is also ``swarm-ca``.
            validity: counted from ``now``; below one hour the default of 2160 h is used instead.
            now: aware time of issue; the certificate starts one hour earlier.

        Raises:
            CsrError: the request is malformed, not signed by its own key, or its key is too weak.
            PreconditionError: this root has no private key here.
            InvalidArgumentError: the id or cluster cannot stand in a certificate.
        """
        public_key = request_key_untrusted(csr_pem)
        signer, issuer = self._signer()
        start = now.replace(microsecond=0) - NODE_BACKDATE
        names = [role.value, node_id, *([ROOT_NAME] if role is Role.MANAGER else [])]
        try:
            subject = x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster_id),
                    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
                    x509.NameAttribute(NameOID.COMMON_NAME, node_id),
                ]
            )
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        except ValueError as error:
            raise InvalidArgumentError(
                f"node id {node_id!r} or cluster id {cluster_id!r} cannot stand in a certificate"
            ) from error
        builder = _builder(subject, issuer.subject, public_key, start)
        for extension, critical in (
            (_key_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage(list(_PURPOSES)), False),
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (x509.SubjectKeyIdentifier.from_public_key(public_key), False),
            (_authority_key(issuer), False),
            (alternatives, False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        end = start + effective_validity(validity) + NODE_BACKDATE
        signed = builder.not_valid_after(end).sign(signer, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM) + self.intermediates_pem

    def cross_sign(self, other_pem: bytes) -> bytes:
        """Vouch for another root: return its certificate with this root's signature instead of its own, PEM.

        Name, key, dates and constraints are the other root's, so that what it has signed leads to either.
        The authority key id is this root's: without one, OpenSSL takes a certificate of one name on both
        sides for self-signed.

        Args:
            other_pem: one root certificate.

        Raises:
            CertificateError: it cannot be read, or is no CA.
            PreconditionError: this root has no private key here.

        Source:
            SwarmKit ``ca/certificates.go``, ``CrossSignCACertificate``.
        """
        other = certificates_untrusted(other_pem)[0]
        _check_strength(other)
        if not _is_ca(other):
            raise CertificateError(Fault.PURPOSE, "the certificate is not that of a CA")
        signer, issuer = self._signer()
        key = other.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)  # noqa: S101  # by the check
        constraints = other.extensions.get_extension_for_class(x509.BasicConstraints).value
        builder = _builder(other.subject, issuer.subject, key, other.not_valid_before_utc)
        for extension, critical in (
            (_key_usage(signs_certificates=True), True),
            (constraints, True),
            (_subject_key(other, key), False),
            (_authority_key(issuer), False),
        ):
            builder = builder.add_extension(extension, critical=critical)
        signed = builder.not_valid_after(other.not_valid_after_utc).sign(signer, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM)

    def _signer(self) -> tuple[ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, x509.Certificate]:
        if self.key_pem is None:
            raise PreconditionError("this process holds no signing key of the cluster's root CA")
        signer = _load_key(self.key_pem)
        wanted = _spki(signer.public_key())
        bundles = (self.cert_pem, self.intermediates_pem)
        for cert in (c for pem in bundles if pem for c in certificates_untrusted(pem)):
            if _spki(cert.public_key()) == wanted:
                return signer, cert
        raise PreconditionError("the signing key belongs to none of the root CA's certificates")


_PURPOSES: Final = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


def effective_validity(validity: timedelta) -> timedelta:
    """Return how long a node certificate is good for: as asked, or the default when under one hour."""
    return validity if validity >= MIN_VALIDITY else DEFAULT_VALIDITY


def new_root(now: datetime) -> RootCA:
    """Make a root CA with a new P-256 key: 20 years, from five minutes before ``now`` (aware)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ROOT_NAME)])
    start = now.replace(microsecond=0) - ROOT_BACKDATE
    cert = (
        _builder(name, name, key.public_key(), start)
        .not_valid_after(start + ROOT_VALIDITY)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return RootCA(cert_pem=cert.public_bytes(serialization.Encoding.PEM), key_pem=_key_pem(key))


def given_root_untrusted(cert_pem: bytes, key_pem: bytes, now: datetime) -> RootCA:
    """Take a root certificate and its private key from a person; return them in our own form.

    Args:
        cert_pem: one self-signed CA certificate, good for another year at least.
        key_pem: its private key, PKCS#8 or SEC1, not encrypted.
        now: aware time.

    Raises:
        CertificateError: the certificate cannot be a root; the text says why.
        InvalidArgumentError: the key cannot be read, or is another certificate's.
    """
    found = certificates_untrusted(cert_pem)
    if len(found) > 1:
        raise CertificateError(
            Fault.MALFORMED, "the desired CA certificate cannot contain multiple certificates"
        )
    (root,) = found
    _check_strength(root)
    if not _is_ca(root) or not _signed_by(root, root):
        raise CertificateError(
            Fault.PURPOSE, "the desired CA certificate is not that of a self-signed CA"
        )
    _check_dates(root, now, "the desired CA certificate")
    if root.not_valid_after_utc < now + MIN_ROOT_VALIDITY:
        raise CertificateError(Fault.EXPIRED, "CA certificate expires too soon")
    if len(key_pem) > MAX_PEM:
        raise InvalidArgumentError(f"the CA key is larger than {MAX_PEM} bytes")
    try:
        key = _load_key(key_pem)
    except ValueError as error:
        raise InvalidArgumentError(f"the CA key is of no use: {error}") from error
    if _spki(key.public_key()) != _spki(root.public_key()):
        raise InvalidArgumentError("the CA key does not belong to the CA certificate")
    return RootCA(cert_pem=pem_of(found), key_pem=_key_pem(key))


def same_key(one_pem: bytes, other_pem: bytes) -> bool:
    """Say whether the first certificates of two bundles have one public key.

    Raises:
        CertificateError: one cannot be read.
    """
    keys = [_spki(certificates_untrusted(pem)[0].public_key()) for pem in (one_pem, other_pem)]
    return keys[0] == keys[1]


def new_key_and_csr() -> tuple[bytes, bytes]:
    """Make a P-256 key and a request for it: (PKCS#8 PEM, CSR PEM with an empty subject)."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
    )
    return _key_pem(key), request.public_bytes(serialization.Encoding.PEM)


def request_key_untrusted(csr_pem: bytes) -> _PublicKey:
    """Return the public key of a certificate request that proves possession of its private key.

    Raises:
        CsrError: too large, not a request, its signature is wrong, or its key kind is not accepted.
    """
    if not csr_pem:
        raise CsrError("the certificate request is empty")
    if len(csr_pem) > MAX_CSR:
        raise CsrError(f"the certificate request is larger than {MAX_CSR} bytes")
    if not csr_pem.lstrip().startswith(_CSR_MARK):
        raise CsrError("the certificate request is not PEM of type CERTIFICATE REQUEST")
    try:
        request = x509.load_pem_x509_csr(csr_pem)
        key = request.public_key()
        algorithm = request.signature_algorithm_oid
    except _UNREADABLE as error:
        raise CsrError("the certificate request cannot be parsed") from error
    # The key is judged before its signature: a huge RSA key would make the check itself the attack.
    if (weakness := _weakness(key)) is not None:
        raise CsrError(f"the certificate request's key is not acceptable: {weakness}")
    if algorithm not in _SIGNATURES:
        raise CsrError("the certificate request is not signed with RSA or ECDSA over SHA-2")
    try:
        valid = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise CsrError("the certificate request's signature cannot be checked") from error
    if not valid:
        raise CsrError("the certificate request is not signed by its own key")
    assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)  # noqa: S101  # by _weakness
    return key


def certificates_untrusted(pem: bytes) -> list[x509.Certificate]:
    """Parse a PEM bundle: 1 to 8 certificates, in order.

    Raises:
        CertificateError: empty, too large, too many, or not certificates.
    """
    if len(pem) > MAX_PEM:
        raise CertificateError(Fault.MALFORMED, f"the certificates are larger than {MAX_PEM} bytes")
    if not 1 <= pem.count(_CERTIFICATE_MARK) <= MAX_CHAIN:
        raise CertificateError(Fault.MALFORMED, f"there are not 1 to {MAX_CHAIN} certificates")
    try:
        found = x509.load_pem_x509_certificates(pem)
        for each in found:
            _ = (
                each.extensions,
                each.subject,
                each.issuer,
            )  # read when asked for, and may be damaged, too
    except _UNREADABLE as error:
        raise CertificateError(Fault.MALFORMED, "a certificate cannot be parsed") from error
    return found


def roots_untrusted(pem: bytes, now: datetime) -> list[x509.Certificate]:
    """Parse a root bundle as a manager sent it: each root self-signed, in date, and strong enough.

    Raises:
        CertificateError: one of them is not.
    """
    roots = certificates_untrusted(pem)
    for root in roots:
        _check_dates(root, now, "the root certificate")
        _check_strength(root)
        if not _signed_by(root, root) or not _is_ca(root):
            raise CertificateError(Fault.FOREIGN, "a root certificate is not a self-signed CA")
    return roots


def identity_of(cert: x509.Certificate) -> Identity:
    """Read who a certificate names: first O, first OU, and CN.

    Says nothing about who signed it.

    Raises:
        CertificateError: one of them is missing, or the role is unknown.
    """
    try:
        values = [
            str(cert.subject.get_attributes_for_oid(oid)[0].value)
            for oid in (
                NameOID.ORGANIZATION_NAME,
                NameOID.ORGANIZATIONAL_UNIT_NAME,
                NameOID.COMMON_NAME,
            )
        ]
    except (IndexError, ValueError) as error:
        raise CertificateError(
            Fault.SUBJECT, "the certificate's subject lacks a cluster, role or node id"
        ) from error
    cluster_id, role, node_id = values
    if not cluster_id or not node_id:
        raise CertificateError(Fault.SUBJECT, "the certificate's cluster or node id is empty")
    if role not in {known.value for known in Role}:
        raise CertificateError(
            Fault.SUBJECT, f"the certificate has an unknown role ({role[:64]!r})"
        )
    return Identity(node_id=node_id, cluster_id=cluster_id, role=Role(role))


def verify_chain(leaf_pem: bytes, root_pem: bytes, now: datetime) -> Identity:
    """Check a node certificate against the roots, and return who it names.

    Args:
        leaf_pem: the leaf first, each next certificate signing the one before.
        root_pem: the trusted roots.
        now: aware time.

    Raises:
        CertificateError: a link is broken, something is out of date, no root is reached, or the leaf is
            not for servers.
    """
    chain = certificates_untrusted(leaf_pem)
    issuer_of(leaf_pem, root_pem, now)
    leaf = chain[0]
    try:
        purposes = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise CertificateError(Fault.PURPOSE, "the certificate names no purpose") from error
    if ExtendedKeyUsageOID.SERVER_AUTH not in purposes:
        raise CertificateError(Fault.PURPOSE, "the certificate is not for server authentication")
    return identity_of(leaf)


def issuer_of(leaf_pem: bytes, root_pem: bytes, now: datetime) -> x509.Certificate:
    """Walk a chain up to a root and return the certificate that signed the leaf.

    Raises:
        CertificateError: as :func:`verify_chain`, purpose and subject aside.
    """
    chain = certificates_untrusted(leaf_pem)
    roots = certificates_untrusted(root_pem)
    anchors: list[x509.Certificate] = []
    for depth, cert in enumerate(chain):
        what = "the certificate" if depth == 0 else "an intermediate certificate"
        _check_dates(cert, now, what)
        _check_strength(cert)
        if depth and not (_is_ca(cert) and _signed_by(chain[depth - 1], cert)):
            raise CertificateError(Fault.FOREIGN, "the certificate chain is broken")
        # Once a rotation is over, the new root vouches for the leaf itself; the intermediate that
        # led to the old root comes along until the next renewal and leads nowhere.
        anchors += [root for root in roots if _is_ca(root) and _signed_by(cert, root)]
    if not anchors:
        raise CertificateError(
            Fault.FOREIGN, "the certificate was not issued by this cluster's root CA"
        )
    anchor = _first_in_date(anchors, now)
    return chain[1] if len(chain) > 1 else anchor


def issuer_id(pem: bytes) -> tuple[bytes, bytes]:
    """Return what :class:`TlsInfo` says of a certificate as an issuer: subject and public key, DER.

    Raises:
        CertificateError: it cannot be read.
    """
    cert = certificates_untrusted(pem)[0]
    return cert.subject.public_bytes(), _spki(cert.public_key())


def signed_under(leaf_pem: bytes, root_pem: bytes) -> bool:
    """Say whether the first certificate of a bundle has the signature of a root, or of what has its key.

    Raises:
        CertificateError: one of them cannot be read.
    """
    leaf, root = certificates_untrusted(leaf_pem)[0], certificates_untrusted(root_pem)[0]
    return _signed_by(leaf, root)


def tls_info(credentials: Credentials, now: datetime) -> TlsInfo:
    """Describe a node's certificate to managers, so that they can follow a root rotation.

    Raises:
        CertificateError: the certificate does not belong to the roots.
        PreconditionError: there is no certificate yet.
    """
    if credentials.cert_pem is None:
        raise PreconditionError("this node has no certificate yet")
    issuer = issuer_of(credentials.cert_pem, credentials.root_pem, now)
    return TlsInfo(
        trust_root=credentials.root_pem,
        issuer_subject=issuer.subject.public_bytes(),
        issuer_public_key=_spki(issuer.public_key()),
    )


def renewal_time(cert_pem: bytes, rng: random.Random) -> datetime:
    """Choose when to renew: uniformly between 50 % and 80 % of the validity, so that nodes spread out.

    Raises:
        CertificateError: the certificate cannot be read.
    """
    leaf = certificates_untrusted(cert_pem)[0]
    validity = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return leaf.not_valid_before_utc + validity * rng.uniform(0.5, 0.8)


def key_matches(cert_pem: bytes, key_pem: bytes) -> bool:
    """Say whether a private key belongs to the first certificate of a PEM.

    Raises:
        CertificateError: the certificate cannot be read.
        ValueError: the key cannot be read.
    """
    leaf = certificates_untrusted(cert_pem)[0]
    return _spki(_load_key(key_pem).public_key()) == _spki(leaf.public_key())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: _PublicKey, start: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_encipherment=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        key = issuer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)  # noqa: S101  # it signs
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


def _subject_key(cert: x509.Certificate, key: _PublicKey) -> x509.SubjectKeyIdentifier:
    try:
        return cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(key)


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _load_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey:
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except TypeError as error:
        raise ValueError("the private key is encrypted") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ValueError("the private key cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("the private key is neither ECDSA nor RSA")  # noqa: TRY004  # content, not type
    return key


def _spki(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]  # every public key kind has it
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded


def _weakness(key: object) -> str | None:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if isinstance(key.curve, _CURVES) else "curves other than P-256, P-384, P-521"
    if isinstance(key, rsa.RSAPublicKey):
        if _MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            return None
        return f"RSA with {key.key_size} bits ({_MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted)"
    return "it is neither ECDSA nor RSA"


def _check_strength(cert: x509.Certificate) -> None:
    try:
        algorithm: ObjectIdentifier = cert.signature_algorithm_oid
        weakness = _weakness(cert.public_key())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(Fault.MALFORMED, "a certificate's key cannot be read") from error
    if algorithm not in _SIGNATURES:
        raise CertificateError(
            Fault.WEAK, "a certificate is not signed with RSA or ECDSA over SHA-2"
        )
    if weakness is not None:
        raise CertificateError(Fault.WEAK, f"a certificate's key is not acceptable: {weakness}")


def _check_dates(cert: x509.Certificate, now: datetime, what: str) -> None:
    start, end = cert.not_valid_before_utc, cert.not_valid_after_utc
    if now > end:
        raise CertificateError(Fault.EXPIRED, f"{what} expired at {_stamp(end)}")
    if now < start:
        raise CertificateError(
            Fault.NOT_YET_VALID,
            f"{what} is valid only from {_stamp(start)}, and this machine's clock says {_stamp(now)}",
        )


def _first_in_date(anchors: Sequence[x509.Certificate], now: datetime) -> x509.Certificate:
    for anchor in anchors:
        if anchor.not_valid_before_utc <= now <= anchor.not_valid_after_utc:
            return anchor
    _check_dates(anchors[0], now, "the root certificate")
    raise AssertionError  # pragma: no cover  # the line above raises


def _stamp(when: datetime) -> str:
    return when.astimezone(UTC).isoformat(timespec="seconds")


def _is_ca(cert: x509.Certificate) -> bool:
    try:
        constraints = cert.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    try:
        usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return constraints.ca
    return constraints.ca and usage.key_cert_sign


def _signed_by(cert: x509.Certificate, issuer: x509.Certificate) -> bool:
    if (
        _weakness(issuer.public_key()) is not None
        or cert.signature_algorithm_oid not in _SIGNATURES
    ):
        return False
    try:
        cert.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def pem_of(certs: Iterable[x509.Certificate]) -> bytes:
    """Write certificates as one PEM bundle."""
    return b"".join(cert.public_bytes(serialization.Encoding.PEM) for cert in certs)
