"""What the cluster's CA decides: which role a join token gives, and which certificate a caller may have.

Pure: the stored root, tokens and nodes come in, decisions go out. The gRPC service around it stores and signs.

Source: SwarmKit ``ca/server.go``.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from typing import Final

from swarm.errors import InvalidArgumentError, NotFoundError
from swarm.identity.certs import Peer, Role
from swarm.identity.ids import new_id
from swarm.identity.token import JoinToken, TokenError, matches_root, new_token

_MEMBERS: Final = frozenset({Role.WORKER, Role.MANAGER})


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinTokens:
    """The two tokens of a cluster, as text; whoever knows one may join in that role."""

    worker: str = field(repr=False)
    manager: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A certificate that may be issued.

    Attributes:
        node_id: the common name to put in.
        role: the role to put in.
        renewal: the node exists already; false for one that joins.
    """

    node_id: str
    role: Role
    renewal: bool


def new_join_tokens(
    root_pem: bytes, entropy: Callable[[int], bytes] = secrets.token_bytes, *, fips: bool = False
) -> JoinTokens:
    """Make both join tokens anew; nodes that have joined already are not affected."""
    return JoinTokens(
        worker=str(new_token(root_pem, entropy, fips=fips)),
        manager=str(new_token(root_pem, entropy, fips=fips)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The CA's view of the stored cluster.

    Attributes:
        cluster_id: the organisation in every certificate.
        root_pem: the root as served to joiners.
        tokens: the join tokens in force.
    """

    cluster_id: str
    root_pem: bytes
    tokens: JoinTokens

    def role_for_token(self, token: str) -> Role | None:
        """Return the role a join token gives; None when it is not one of ours.

        Both comparisons always run, in time that does not depend on where the texts differ.
        """
        shown = token.encode("utf-8", "surrogatepass")
        manager = hmac.compare_digest(shown, self.tokens.manager.encode())
        worker = hmac.compare_digest(shown, self.tokens.worker.encode())
        if manager:
            return Role.MANAGER
        return Role.WORKER if worker else None

    def decide(
        self,
        peer: Peer,
        token: str,
        *,
        role_of: Callable[[str], Role | None],
        removed: Container[str],
        make_id: Callable[[], str] = new_id,
    ) -> Grant:
        """Decide about a request for a certificate.

        A member's certificate renews that member, whatever the token says; the role is the stored one, so
        that this is also how a promotion takes effect. Everybody else, a removed node included, needs a token.

        Args:
            peer: the caller.
            token: the join token sent, possibly empty.
            role_of: the stored role of a node; None for an unknown one.
            removed: ids of nodes that were removed from the cluster.
            make_id: makes the id of a node that joins.

        Raises:
            NotFoundError: a renewal for a node that is not stored.
            InvalidArgumentError: no certificate and no valid token; the text says what is wrong with it.
        """
        who = peer.identity
        if (
            who is not None
            and who.cluster_id == self.cluster_id
            and who.role in _MEMBERS
            and who.node_id not in removed
        ):
            role = role_of(who.node_id)
            if role is None:
                raise NotFoundError(f"node {who.node_id} is not a member of this cluster")
            return Grant(node_id=who.node_id, role=role, renewal=True)
        role = self.role_for_token(token)
        if role is None:
            raise InvalidArgumentError(self._why_not(token))
        return Grant(node_id=make_id(), role=role, renewal=False)

    def _why_not(self, token: str) -> str:
        try:
            parsed = JoinToken.parse(token)
        except TokenError as error:
            return f"a valid join token is necessary to join this cluster: {error}"
        if not matches_root(parsed, self.root_pem):
            return "a valid join token is necessary to join this cluster: this one is another cluster's"
        return "a valid join token is necessary to join this cluster: this one was rotated away"
