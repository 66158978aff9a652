"""How the cluster's root CA is replaced while everybody keeps working. Pure.

1. The cluster object gets a rotation: a new root with its key, and the new root's certificate signed by
   the old root. Nodes trust the old root still.
2. From then on certificates are signed by the new root; the cross-signed certificate comes with them and
   leads to the old one. Nodes are asked (``ROTATE``) for a renewal, a batch at a time, and then describe
   themselves with the new issuer.
3. When every node does, the new root takes the old one's place, join tokens are made anew, for they pin
   the root, and nodes are told the new root by their sessions. Their certificates lead to it directly.

A node that is away holds step 2 open: it gets in with its old certificate when it comes back. A second
rotation replaces the first; what the first has signed leads to the old root as well.

Source: SwarmKit ``ca/reconciler.go``, ``manager/controlapi/ca_rotation.go``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from manager.ca.authority import new_join_tokens
from manager.cluster import Entropy, root_hash
from swarm.errors import InvalidArgumentError, InvariantError
from swarm.identity.certs import (
    CertificateError,
    given_root_untrusted,
    issuer_id,
    new_root,
    same_key,
    signed_under,
)
from swarm.identity.certs import RootCA as SigningCA
from swarm.model import CAConfig, IssuanceState, JoinTokens, Node, RootCA, RootRotation

BATCH: Final = 30
"""Nodes asked for a renewal at once, as in Docker."""

ROUND: Final = 3_000_000_000
"""Nanoseconds between two batches."""

PATIENCE: Final = 10_000_000_000
"""Nanoseconds that a node has to show the certificate it was given, before it is asked again."""

_ASKED: Final = frozenset({IssuanceState.RENEW, IssuanceState.PENDING, IssuanceState.ROTATE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What a rotation needs now.

    Attributes:
        ask: nodes to ask for a renewal, at most :data:`BATCH`.
        more: there are others to ask after these.
        left: nodes that do not show a certificate of the new root yet.
        again: when to look again by itself, wall time in nanoseconds; None: when something changes.
    """

    ask: tuple[str, ...] = ()
    more: bool = False
    left: int = 0
    again: int | None = None

    @property
    def done(self) -> bool:
        """Every node has a certificate of the new root."""
        return self.left == 0


def next_step(root: RootCA, nodes: Iterable[Node], now: int) -> Step:
    """Say what a rotation needs.

    Args:
        root: with a rotation under way.
        nodes: all of the cluster.
        now: wall time, nanoseconds.
    """
    rotation = root.root_rotation
    if rotation is None:
        raise InvariantError("no root rotation is under way")
    issuer = issuer_id(rotation.ca_cert)
    left = [node for node in nodes if not _shows(node, issuer)]
    ask: list[str] = []
    again: list[int] = []
    for node in left:
        if node.certificate.status.state in _ASKED:
            continue
        patient = (node.meta.updated_at or 0) + PATIENCE
        if patient > now and _was_given(node, rotation.ca_cert):
            again.append(patient)
        else:
            ask.append(node.id)
    return Step(
        ask=tuple(ask[:BATCH]),
        more=len(ask) > BATCH,
        left=len(left),
        again=min(again, default=None),
    )


def _shows(node: Node, issuer: tuple[bytes, bytes]) -> bool:
    info = node.description.tls_info if node.description is not None else None
    return info is not None and (info.cert_issuer_subject, info.cert_issuer_public_key) == issuer


def _was_given(node: Node, root_pem: bytes) -> bool:
    """Tell whether the last certificate issued to a node is of the new root."""
    try:
        return bool(node.certificate.certificate) and signed_under(
            node.certificate.certificate, root_pem
        )
    except CertificateError:
        return False


def asked(node: Node) -> Node:
    """Ask a node for a renewal."""
    status = replace(node.certificate.status, state=IssuanceState.ROTATE)
    return replace(node, certificate=replace(node.certificate, status=status))


def finished(root: RootCA, entropy: Entropy, *, fips: bool = False) -> RootCA:
    """Put the new root in the old one's place; join tokens are made anew, for they pin the root."""
    rotation = root.root_rotation
    if rotation is None:
        raise InvariantError("no root rotation is under way")
    tokens = new_join_tokens(rotation.ca_cert, entropy, fips=fips)
    return RootCA(
        ca_key=rotation.ca_key,
        ca_cert=rotation.ca_cert,
        ca_cert_hash=root_hash(rotation.ca_cert),
        join_tokens=JoinTokens(worker=tokens.worker, manager=tokens.manager),
        last_forced_rotation=root.last_forced_rotation,
    )


def follow_config(
    root: RootCA,
    config: CAConfig,
    *,
    now: datetime,
    make_root: Callable[[datetime], SigningCA] = new_root,
) -> RootCA:
    """Begin, replace or give up a rotation, as the configuration wants it.

    Args:
        root: as it is.
        config: as it was asked for. A certificate and key become the new root; those of the present root
            give a rotation up. Without any, another number of ``force_rotate`` asks for a new root of ours.
        now: aware time.
        make_root: makes a new root.

    Returns:
        What the root is to be; ``root`` itself when nothing is asked for.

    Raises:
        CertificateError: the given certificate cannot be a root.
        InvalidArgumentError: the given key is missing, or another certificate's.
    """
    forced = config.force_rotate
    if not config.signing_ca_cert:
        if config.signing_ca_key:
            raise InvalidArgumentError(
                "if a signing CA key is provided, the signing CA cert must also be provided"
            )
        return root if forced == root.last_forced_rotation else _begun(root, make_root(now), forced)
    if not config.signing_ca_key:
        raise InvalidArgumentError(
            "the desired CA certificate needs its key: external certificate authorities are not offered"
        )
    wanted = given_root_untrusted(config.signing_ca_cert, config.signing_ca_key, now)
    if wanted.cert_pem == root.ca_cert:
        return replace(root, root_rotation=None, last_forced_rotation=forced)
    if same_key(wanted.cert_pem, root.ca_cert):
        raise InvalidArgumentError("Cannot update to a cert with an identical key")
    rotation = root.root_rotation
    if rotation is not None and rotation.ca_cert == wanted.cert_pem:
        return replace(root, last_forced_rotation=forced)
    return _begun(root, wanted, forced)


def _begun(root: RootCA, new: SigningCA, forced: int) -> RootCA:
    # By the present root, also where another rotation is under way: that is whom everybody trusts.
    present = SigningCA(cert_pem=root.ca_cert, key_pem=root.ca_key or None)
    rotation = RootRotation(
        ca_cert=new.cert_pem,
        ca_key=new.key_pem or b"",
        cross_signed_ca_cert=present.cross_sign(new.cert_pem),
    )
    return replace(root, root_rotation=rotation, last_forced_rotation=forced)
