"""TLS contexts of both directions, and handshake failures put into words.

TLS 1.2 or later; ``h2`` is offered but not insisted on, since engines stop offering it after they renew a
certificate. No session is ever resumed: a resumed session would carry an identity checked against roots
that may have been replaced since.

Source: SwarmKit ``ca/config.go``, ``ca/transport.go``.
"""

from __future__ import annotations

import os
import socket
import ssl
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from cryptography import x509

from swarm.errors import HostError
from swarm.identity.certs import CertificateError, Credentials, Fault, pem_of, verify_chain

ALPN: Final = ("h2",)
_TLS12_CIPHERS: Final = (
    "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:"
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:"
    "ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)

# X509_V_ERR_* of OpenSSL's x509_vfy.h
_V_NOT_YET_VALID: Final = 9
_V_EXPIRED: Final = 10
_V_UNTRUSTED: Final = frozenset({2, 7, 18, 19, 20, 21, 24})
_V_PURPOSE: Final = 26
_V_HOSTNAME: Final = frozenset({62, 64})
_V_SELF_SIGNED: Final = 19
_V_OF_FAULT: Final = {
    Fault.EXPIRED: _V_EXPIRED,
    Fault.NOT_YET_VALID: _V_NOT_YET_VALID,
    Fault.PURPOSE: _V_PURPOSE,
}

_NOT_TLS: Final = frozenset(
    {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "HTTPS_PROXY_REQUEST", "UNKNOWN_PROTOCOL"}
    | {"RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "UNEXPECTED_MESSAGE"}
    | {"BAD_RECORD_TYPE", "NOT_SSLV3_RECORD", "INVALID_CCS_MESSAGE", "LENGTH_MISMATCH"}
)
_REJECTED: Final = frozenset(
    {"TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE", "TLSV1_ALERT_ACCESS_DENIED"}
    | {"SSLV3_ALERT_CERTIFICATE_EXPIRED", "SSLV3_ALERT_CERTIFICATE_REVOKED"}
    | {"SSLV3_ALERT_CERTIFICATE_UNKNOWN", "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE"}
    | {"TLSV13_ALERT_CERTIFICATE_REQUIRED", "TLSV1_ALERT_DECRYPT_ERROR"}
)
_EARLY_END: Final = frozenset({"UNEXPECTED_EOF_WHILE_READING"})


class TlsFault(StrEnum):
    """Why a connection did not come about, as counted and logged."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    UNRESOLVED = "unresolved"
    TIMEOUT = "timeout"
    RESET = "reset"
    NOT_TLS = "not_tls"
    FOREIGN = "foreign_certificate"
    EXPIRED = "expired_certificate"
    NOT_YET_VALID = "certificate_not_yet_valid"
    PURPOSE = "certificate_purpose"
    WRONG_NAME = "wrong_name"
    REJECTED = "rejected_by_peer"
    PROTOCOL = "tls_protocol"


def server_context(credentials: Credentials) -> ssl.SSLContext:
    """Build the context of port 2377: a client certificate is asked for, verified if given, never required.

    Raises:
        HostError: the credentials cannot be loaded (or hold no certificate).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    if credentials.cert_pem is None:
        raise HostError("a manager cannot serve without a certificate")
    context.num_tickets = 0
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    _fill(context, credentials)
    return context


def client_context(credentials: Credentials) -> ssl.SSLContext:
    """Build the context of a call to a manager: roots and server name are checked, our certificate shown.

    Raises:
        HostError: the credentials cannot be loaded.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.hostname_checks_common_name = False
    _fill(context, credentials)
    return context


def unverified_context() -> ssl.SSLContext:
    """Build the context that fetches a root nobody vouches for yet; the caller checks its digest."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _fill(context, None)
    return context


def deferred_context(credentials: Credentials) -> ssl.SSLContext:
    """Build a client context that leaves the server's certificate to :func:`check_server`.

    While an engine's root is being replaced, its managers show a new root signed by the old one, of the
    same name and without an authority key id. OpenSSL takes that for self-signed and looks no further.

    Raises:
        HostError: the credentials cannot be loaded.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _fill(context, credentials)
    return context


def is_self_signed(error: BaseException) -> bool:
    """Say whether OpenSSL stopped at an intermediate that it takes for a root."""
    return isinstance(error, ssl.SSLCertVerificationError) and error.verify_code == _V_SELF_SIGNED


def check_server(
    session: ssl.SSLObject, credentials: Credentials, server_name: str, now: datetime
) -> None:
    """Verify the server of a finished handshake: its chain leads to our roots, its name is right.

    Raises:
        ssl.SSLCertVerificationError: it is not one of our managers.
    """
    try:
        chain = _chain_untrusted(session)
        verify_chain(pem_of(chain), credentials.root_pem, now)
        names = chain[0].extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (CertificateError, ValueError, x509.ExtensionNotFound) as error:
        fault = error.fault if isinstance(error, CertificateError) else Fault.FOREIGN
        raise _verification_error(str(error), _V_OF_FAULT.get(fault, _V_SELF_SIGNED)) from error
    if server_name not in names.get_values_for_type(x509.DNSName):
        raise _verification_error(f"the certificate is not for {server_name}", min(_V_HOSTNAME))


def _chain_untrusted(session: ssl.SSLObject) -> list[x509.Certificate]:
    """Return what the peer sent, leaf first; the ssl module shows it by name from Python 3.13 only."""
    inner: Any = session
    if hasattr(inner, "get_unverified_chain"):
        found = inner.get_unverified_chain()
    else:
        found = [each.public_bytes(2) for each in inner._sslobj.get_unverified_chain() or ()]  # noqa: SLF001  # 2: DER
    return [x509.load_der_x509_certificate(each) for each in found]


def _verification_error(text: str, code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, text)
    # What OpenSSL's own errors carry, and the ssl module reads when it prints them.
    error.library, error.reason = "SSL", "CERTIFICATE_VERIFY_FAILED"
    error.verify_code, error.verify_message = code, text
    return error


def _fill(context: ssl.SSLContext, credentials: Credentials | None) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_CIPHERS)
    context.set_alpn_protocols(list(ALPN))
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_COMPRESSION
    if credentials is None:
        return
    try:
        context.load_verify_locations(cadata=credentials.root_pem.decode("ascii"))
        if credentials.cert_pem is not None and credentials.key_pem is not None:
            _load_pair(context, credentials.cert_pem, credentials.key_pem)
    except (OSError, ValueError) as error:
        raise HostError(f"the node's certificates cannot be loaded: {error}") from error


def _load_pair(context: ssl.SSLContext, cert_pem: bytes, key_pem: bytes) -> None:
    """Load certificate and key, which ``ssl`` takes only as a file: one that lives in memory."""
    fd = os.memfd_create("overswarm-credentials", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(key_pem.rstrip() + b"\n" + cert_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def classify(error: BaseException) -> TlsFault:
    """Sort a connection or handshake failure by cause."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _verification(error.verify_code)
    if isinstance(error, ssl.SSLError):
        return _by_reason(error.reason or "")
    if isinstance(error, ConnectionRefusedError):
        return TlsFault.REFUSED
    if isinstance(error, socket.gaierror):
        return TlsFault.UNRESOLVED
    if isinstance(error, TimeoutError):
        return TlsFault.TIMEOUT
    if isinstance(error, ConnectionError):
        return TlsFault.RESET
    return TlsFault.UNREACHABLE if isinstance(error, OSError) else TlsFault.PROTOCOL


def _verification(code: int) -> TlsFault:
    if code == _V_EXPIRED:
        return TlsFault.EXPIRED
    if code == _V_NOT_YET_VALID:
        return TlsFault.NOT_YET_VALID
    if code == _V_PURPOSE:
        return TlsFault.PURPOSE
    if code in _V_HOSTNAME:
        return TlsFault.WRONG_NAME
    return TlsFault.FOREIGN if code in _V_UNTRUSTED else TlsFault.PROTOCOL


def _by_reason(reason: str) -> TlsFault:
    if reason in _REJECTED:
        return TlsFault.REJECTED
    if reason in _NOT_TLS:
        return TlsFault.NOT_TLS
    return TlsFault.RESET if reason in _EARLY_END else TlsFault.PROTOCOL


def explain(fault: TlsFault, target: str, server_name: str | None, error: BaseException) -> str:
    """Say a failed dial to a person: one sentence, naming the manager and what to look at."""
    sentences = {
        TlsFault.REFUSED: f"connection refused by {target}: no manager listens there",
        TlsFault.UNREACHABLE: f"cannot reach {target}: {_text(error)}",
        TlsFault.UNRESOLVED: f"cannot resolve the name in {target}: {_text(error)}",
        TlsFault.TIMEOUT: f"no answer from {target}: is the address right, and 2377/tcp open?",
        TlsFault.RESET: f"{target} closed the connection before it was set up",
        TlsFault.NOT_TLS: f"{target} does not speak TLS: it is not a swarm manager",
        TlsFault.FOREIGN: f"{target} has a certificate of another cluster",
        TlsFault.EXPIRED: f"the certificate of {target} has expired (or this machine's clock is wrong)",
        TlsFault.NOT_YET_VALID: f"the certificate of {target} is not valid yet: compare the clocks",
        TlsFault.PURPOSE: f"the certificate of {target} is not for a server",
        TlsFault.WRONG_NAME: f"{target} is not a manager: its certificate is not for {server_name}",
        TlsFault.REJECTED: f"{target} does not accept this node's certificate "
        "(another cluster's, or expired)",
        TlsFault.PROTOCOL: f"the TLS handshake with {target} failed: {_text(error)}",
    }
    return sentences[fault]


def _text(error: BaseException) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
