"""Who may call what: the access matrix read from the contracts, and the one decision about a call.

Every RPC declares beside itself (``proto/overswarm/v1/options.proto``) whether strangers may call
it and which certificate roles may; an RPC without a declaration keeps the server from starting.
Pure: the verified peer, the call's metadata and the cluster's state come in, a caller or a refusal
goes out.

Source: SwarmKit ``ca/auth.go`` and the authorisation options in ``api/*.proto``.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from swarm.api.overswarm.v1 import options_pb2
from swarm.errors import InvariantError, PermissionDeniedError
from swarm.identity.certs import Identity, Peer, Role

FORWARDED_MARK: Final = "forwarded_cert"
FORWARDED_NODE: Final = "forwarded_cert_cn"
FORWARDED_CLUSTER: Final = "forwarded_cert_org"
FORWARDED_ROLE: Final = "forwarded_cert_ou"
FORWARDED_ADDRESS: Final = "remote_addr"
MAX_FORWARDED_TEXT: Final = 256
"""Longest forwarded value looked at, characters."""

_ROLES: Final = frozenset(role.value for role in Role)

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What one RPC declares: the roles that may call, or everybody; ``leader``: only the leader answers."""

    roles: frozenset[Role]
    open: bool
    leader: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a call, as far as it matters to a handler.

    Attributes:
        peer: the certificate's identity when it belongs to this cluster in good standing, and the
            address (``ip:port``; for a local caller, this manager's). ``identity`` is None for
            strangers, which only open RPCs ever see.
        local: the call came over this host's private socket, from root.
        forwarded: another manager passed the call on.
        request_id: name of the request, the same in every attempt to carry it out; empty when nobody
            repeats it. Callers cannot use each other's.
    """

    peer: Peer
    local: bool = False
    forwarded: bool = False
    request_id: str = ""

    @property
    def node_id(self) -> str:
        """The calling node.

        Raises:
            InvariantError: a stranger's call reached a handler that needs a member.
        """
        if self.peer.identity is None:
            raise InvariantError("a handler for members was called by a stranger")
        return self.peer.identity.node_id

    @property
    def role(self) -> Role | None:
        """The caller's certificate role; None for a stranger."""
        return None if self.peer.identity is None else self.peer.identity.role

    @property
    def address(self) -> str:
        """The caller's address without port."""
        return self.peer.address.rpartition(":")[0].removeprefix("[").removesuffix("]")


def access_of(method: MethodDescriptor) -> Access:
    """Read what an RPC declares.

    Raises:
        InvariantError: nothing, or something that makes no sense.
    """
    options = method.GetOptions()
    if not options.HasExtension(options_pb2.access):
        raise InvariantError(f"{method.full_name} does not declare who may call it")
    declared = options.Extensions[options_pb2.access]
    unknown = set(declared.roles) - _ROLES
    if unknown or bool(declared.roles) == declared.open:
        raise InvariantError(
            f"{method.full_name} must name roles or be open, and not both: {sorted(declared.roles)}"
        )
    return Access(
        roles=frozenset(map(Role, declared.roles)), open=declared.open, leader=declared.leader
    )


def matrix(services: Sequence[ServiceDescriptor]) -> dict[str, Access]:
    """Return the access of every RPC of some services, by full path (``/package.Service/Method``).

    Raises:
        InvariantError: one of them declares nothing.
    """
    return {
        f"/{service.full_name}/{method.name}": access_of(method)
        for service in services
        for method in service.methods
    }


def admit(
    access: Access,
    peer: Peer,
    metadata: Metadata,
    *,
    cluster_id: str,
    removed: Container[str],
) -> Caller:
    """Decide about one call.

    Args:
        access: what the RPC declares.
        peer: the direct peer, its certificate verified against the root.
        metadata: the call's metadata; what a follower forwards stands there.
        cluster_id: this cluster; a certificate's organisation must be it.
        removed: ids of nodes that were removed and whose certificates may not have expired yet.

    Raises:
        PermissionDeniedError: the caller may not make this call.
    """
    standing = _standing(peer.identity, cluster_id, removed)
    forwarded = _forwarded(metadata)
    if forwarded is not None:
        if standing is None or standing.role is not Role.MANAGER:
            raise PermissionDeniedError("only managers of this cluster may forward calls")
        peer = forwarded
        standing = _standing(peer.identity, cluster_id, removed)
    passed_on = forwarded is not None
    if access.open:
        return Caller(peer=Peer(address=peer.address, identity=standing), forwarded=passed_on)
    if standing is None:
        raise PermissionDeniedError(_why_no_standing(peer.identity, cluster_id))
    if standing.role not in access.roles:
        allowed = ", ".join(sorted(access.roles))
        raise PermissionDeniedError(
            f"role {standing.role} may not make this call; allowed are: {allowed}"
        )
    return Caller(peer=peer, forwarded=passed_on)


def forwarding(caller: Caller) -> tuple[tuple[str, str], ...]:
    """Return the metadata with which a manager passes a call on in the caller's name."""
    who = caller.peer.identity
    return (
        (FORWARDED_MARK, "true"),
        (FORWARDED_NODE, "" if who is None else who.node_id),
        (FORWARDED_CLUSTER, "" if who is None else who.cluster_id),
        (FORWARDED_ROLE, "" if who is None else who.role.value),
        (FORWARDED_ADDRESS, caller.peer.address),
    )


def _standing(
    identity: Identity | None, cluster_id: str, removed: Container[str]
) -> Identity | None:
    """Return the identity if it is one of this cluster in good standing."""
    if identity is None or identity.cluster_id != cluster_id or identity.node_id in removed:
        return None
    return identity


def _why_no_standing(identity: Identity | None, cluster_id: str) -> str:
    if identity is None:
        return "this call needs a client certificate of this cluster"
    if identity.cluster_id != cluster_id:
        return f"the client certificate is of cluster {identity.cluster_id}, not of this one"
    if identity.role is Role.SCHEDULER:
        return f"client certificate {identity.node_id} was revoked"
    return f"node {identity.node_id} was removed from this cluster"


def _forwarded(metadata: Metadata) -> Peer | None:
    """Read the original caller out of what a follower added; None when the call was not forwarded.

    Exactly one mark counts as forwarded; empty values mean that the caller had no certificate.

    Raises:
        PermissionDeniedError: the values are not what a manager would send.
    """
    values: dict[str, list[str]] = {}
    for key, value in metadata:
        if key in {
            FORWARDED_MARK,
            FORWARDED_NODE,
            FORWARDED_CLUSTER,
            FORWARDED_ROLE,
            FORWARDED_ADDRESS,
        }:
            text = value if isinstance(value, str) else value.decode("utf-8", "replace")
            if len(text) > MAX_FORWARDED_TEXT:
                raise PermissionDeniedError(f"the forwarded value of {key} is too long")
            values.setdefault(key, []).append(text)
    if FORWARDED_MARK not in values:
        return None
    if values[FORWARDED_MARK] != ["true"]:
        raise PermissionDeniedError("the call is marked as forwarded in a way nobody sends")
    node, cluster, role, address = (
        values.get(key, [""])[0]
        for key in (FORWARDED_NODE, FORWARDED_CLUSTER, FORWARDED_ROLE, FORWARDED_ADDRESS)
    )
    if not node or not cluster or role not in _ROLES:
        return Peer(address=address)
    return Peer(
        address=address, identity=Identity(node_id=node, cluster_id=cluster, role=Role(role))
    )
