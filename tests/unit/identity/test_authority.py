"""The CA's decisions: what tokens are worth, and who may have which certificate."""

from __future__ import annotations

import hmac

import pytest

from manager.ca.authority import Authority, Grant, JoinTokens, new_join_tokens
from swarm.errors import InvalidArgumentError, NotFoundError
from swarm.identity.certs import Identity, Peer, Role
from swarm.identity.token import JoinToken

ROOT = b"root pem\n"
CLUSTER_ID = "c" * 25
NODE = "n" * 25
TOKENS = new_join_tokens(ROOT)
CA = Authority(cluster_id=CLUSTER_ID, root_pem=ROOT, tokens=TOKENS)
STRANGER = Peer(address="192.0.2.9:1234")


def member(role: Role = Role.WORKER, cluster_id: str = CLUSTER_ID) -> Peer:
    """A caller with a verified certificate."""
    return Peer(
        address="192.0.2.9:1",
        identity=Identity(node_id=NODE, cluster_id=cluster_id, role=role),
    )


def decide(
    peer: Peer, token: str, role: Role | None = Role.WORKER, removed: frozenset[str] = frozenset()
) -> Grant:
    """Decide with one stored node."""
    return CA.decide(
        peer,
        token,
        role_of=lambda node_id: role if node_id == NODE else None,
        removed=removed,
        make_id=lambda: "new",
    )


def test_tokens_give_their_roles() -> None:
    """The whole text decides."""
    assert CA.role_for_token(TOKENS.worker) is Role.WORKER
    assert CA.role_for_token(TOKENS.manager) is Role.MANAGER
    for other in (
        "",
        TOKENS.worker[:-1],
        TOKENS.worker + " ",
        TOKENS.worker.upper(),
        "é",
        "\ud800",
    ):
        assert CA.role_for_token(other) is None


def test_both_comparisons_run_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lookup is two constant-time comparisons, whichever matches."""
    calls = []

    def counted(left: bytes, right: bytes) -> bool:
        calls.append(right)
        return left == right

    monkeypatch.setattr(hmac, "compare_digest", counted)
    for token in (TOKENS.manager, TOKENS.worker, "x"):
        CA.role_for_token(token)
    assert len(calls) == 6


def test_new_tokens_share_a_digest_and_nothing_else() -> None:
    """Both pin the root; secrets differ, also from the pair before."""
    worker, manager = JoinToken.parse(TOKENS.worker), JoinToken.parse(TOKENS.manager)
    assert worker.digest == manager.digest
    assert worker.secret != manager.secret
    assert new_join_tokens(ROOT) != TOKENS
    assert JoinToken.parse(new_join_tokens(ROOT, fips=True).worker).fips


def test_a_stranger_joins_with_a_token() -> None:
    """A new id, and the role of the token."""
    assert decide(STRANGER, TOKENS.worker) == Grant(node_id="new", role=Role.WORKER, renewal=False)
    assert decide(STRANGER, TOKENS.manager).role is Role.MANAGER


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("", "is empty"),
        ("abc", "starts with"),
        (new_join_tokens(b"another root").worker, "another cluster's"),
        (new_join_tokens(ROOT).worker, "rotated away"),
    ],
)
def test_a_useless_token_is_explained(token: str, says: str) -> None:
    """The joiner's person reads why."""
    with pytest.raises(InvalidArgumentError, match=says):
        decide(STRANGER, token)


@pytest.mark.parametrize("stored", [Role.WORKER, Role.MANAGER])
@pytest.mark.parametrize("token", ["", TOKENS.manager])
def test_a_member_renews_in_the_stored_role(stored: Role, token: str) -> None:
    """The certificate counts and not the token; a promotion takes effect here."""
    assert decide(member(), token, stored) == Grant(node_id=NODE, role=stored, renewal=True)


def test_a_member_nobody_knows_is_not_found() -> None:
    """A node that was deleted cannot renew."""
    with pytest.raises(NotFoundError):
        decide(member(), "", None)


@pytest.mark.parametrize(
    ("peer", "removed"),
    [
        (member(cluster_id="d" * 25), frozenset[str]()),
        (member(), frozenset({NODE})),
        (member(Role.SCHEDULER), frozenset[str]()),
    ],
)
def test_others_with_certificates_need_a_token(peer: Peer, removed: frozenset[str]) -> None:
    """Another cluster's member, a removed node and a scheduler are as good as strangers."""
    with pytest.raises(InvalidArgumentError):
        decide(peer, "", removed=removed)
    assert decide(peer, TOKENS.worker, removed=removed).renewal is False


def test_tokens_stay_out_of_repr() -> None:
    """A logged authority gives nothing away."""
    assert TOKENS.worker not in repr(CA)
    assert TOKENS.manager not in repr(JoinTokens(worker="a", manager=TOKENS.manager))
