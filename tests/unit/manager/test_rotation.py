"""How a root is replaced: what each step is, for any cluster and any order of events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from manager.ca.rotation import (
    BATCH,
    PATIENCE,
    asked,
    finished,
    follow_config,
    next_step,
)
from manager.cluster import signing_ca, trusted_roots
from swarm.errors import InvalidArgumentError, InvariantError, SwarmError
from swarm.identity.certs import Role, issuer_id, new_key_and_csr, new_root, verify_chain
from swarm.identity.certs import RootCA as SigningCA
from swarm.identity.token import JoinToken, matches_root
from swarm.model import (
    CAConfig,
    Certificate,
    Cluster,
    IssuanceState,
    IssuanceStatus,
    JoinTokens,
    Meta,
    Node,
    NodeDescription,
    NodeTLSInfo,
    RootCA,
    Version,
)

NOW = datetime.now(UTC)
TIME = 1_000_000_000_000_000_000
CSR = new_key_and_csr()[1]


@cache
def a_root(number: int) -> SigningCA:
    """One of a few roots; making a key takes a while."""
    return new_root(NOW - timedelta(days=number))


def stored(number: int = 0) -> RootCA:
    """A cluster's root."""
    made = a_root(number)
    return RootCA(
        ca_key=made.key_pem or b"",
        ca_cert=made.cert_pem,
        join_tokens=JoinTokens(worker="w", manager="m"),
    )


def rotating(to: int = 1, root: RootCA | None = None, forced: int = 1) -> RootCA:
    """The same while another root takes its place."""
    return follow_config(
        root or stored(),
        CAConfig(force_rotate=forced),
        now=NOW,
        make_root=lambda _: a_root(to),
    )


def node(name: str, issuer: int | None = 0, *, given_by: int | None = None, since: int = 0) -> Node:
    """A node that shows a certificate of one root, and was given one of perhaps another."""
    info = None
    if issuer is not None:
        subject, key = issuer_id(a_root(issuer).cert_pem)
        info = NodeTLSInfo(cert_issuer_subject=subject, cert_issuer_public_key=key)
    pem = b""
    if given_by is not None:
        pem = a_root(given_by).issue(CSR, node_id=name, cluster_id="c", role=Role.WORKER, now=NOW)
    return Node(
        id=name,
        meta=Meta(version=Version(index=1), updated_at=TIME - since),
        description=NodeDescription(hostname=name, tls_info=info),
        certificate=Certificate(
            csr=CSR, certificate=pem, status=IssuanceStatus(state=IssuanceState.ISSUED)
        ),
    )


def test_a_rotation_begins_with_a_new_root_that_the_old_one_vouches_for() -> None:
    root = rotating()
    assert root.ca_cert == a_root(0).cert_pem, "what nodes trust stays"
    assert root.join_tokens == stored().join_tokens
    assert root.last_forced_rotation == 1
    cluster = Cluster(id="c", root_ca=root)
    pem = signing_ca(cluster).issue(CSR, node_id="n", cluster_id="c", role=Role.WORKER, now=NOW)
    for trust in (a_root(0).cert_pem, a_root(1).cert_pem, trusted_roots(cluster)):
        assert verify_chain(pem, trust, NOW).node_id == "n"
    done = finished(root, bytes)
    after = signing_ca(Cluster(id="c", root_ca=done)).issue(
        CSR, node_id="n", cluster_id="c", role=Role.WORKER, now=NOW
    )
    assert verify_chain(after, a_root(1).cert_pem, NOW).node_id == "n"
    with pytest.raises(SwarmError):
        verify_chain(after, a_root(0).cert_pem, NOW)


def test_the_end_replaces_root_and_tokens() -> None:
    """The new tokens pin the new root; nothing of the old one stays."""
    done = finished(rotating(), lambda count: bytes(range(count)))
    assert (done.ca_cert, done.ca_key) == (a_root(1).cert_pem, a_root(1).key_pem)
    assert done.root_rotation is None
    assert done.last_forced_rotation == 1
    for token in (done.join_tokens.worker, done.join_tokens.manager):
        assert matches_root(JoinToken.parse(token), a_root(1).cert_pem)
        assert not matches_root(JoinToken.parse(token), a_root(0).cert_pem)
    with pytest.raises(InvariantError):
        finished(done, bytes)
    with pytest.raises(InvariantError):
        next_step(done, (), TIME)


def test_nothing_is_asked_for_nothing_changes() -> None:
    root = stored()
    assert follow_config(root, CAConfig(), now=NOW) is root
    going = rotating()
    assert follow_config(going, CAConfig(force_rotate=1), now=NOW) is going


def test_a_second_rotation_replaces_the_first() -> None:
    """Signed by the root that everybody trusts, not by the one that was to come."""
    second = rotating(2, rotating(), forced=2)
    assert second.root_rotation is not None
    assert second.root_rotation.ca_cert == a_root(2).cert_pem
    pem = signing_ca(Cluster(id="c", root_ca=second)).issue(
        CSR, node_id="n", cluster_id="c", role=Role.WORKER, now=NOW
    )
    assert verify_chain(pem, a_root(0).cert_pem, NOW).node_id == "n"
    assert next_step(second, [node("a", 1)], TIME).ask == ("a",)


def test_a_given_root_is_taken_kept_or_given_up() -> None:
    """The same one again changes nothing, the present one ends the rotation, its key alone is refused."""

    def ask(root: RootCA, number: int, **more: bytes) -> RootCA:
        made = a_root(number)
        config = CAConfig(
            signing_ca_cert=more.get("cert", made.cert_pem),
            signing_ca_key=more.get("key", made.key_pem or b""),
        )
        return follow_config(root, config, now=NOW)

    going = ask(stored(), 3)
    assert going.root_rotation is not None
    assert going.root_rotation.ca_cert == a_root(3).cert_pem
    assert ask(going, 3) == going
    assert ask(going, 0) == stored()
    assert ask(stored(), 0) == stored()
    for root in (stored(), going):
        for refused in ({"cert": b""}, {"key": b""}, {"key": a_root(4).key_pem or b""}):
            with pytest.raises(SwarmError) as caught:
                ask(root, 3, **refused)
            assert caught.value.status == "INVALID_ARGUMENT"
    again = SigningCA(cert_pem=a_root(0).cross_sign(a_root(0).cert_pem), key_pem=a_root(0).key_pem)
    with pytest.raises(InvalidArgumentError, match="identical key"):
        ask(stored(), 0, cert=again.cert_pem)


def test_nodes_are_asked_a_batch_at_a_time() -> None:
    """Those asked already, and those who have just been given a certificate, are left alone for a while."""
    root = rotating()
    many = [node(f"n{number:02}") for number in range(BATCH + 5)]
    step = next_step(root, many, TIME)
    assert step.ask == tuple(each.id for each in many[:BATCH])
    assert (step.more, step.left, step.done) == (True, BATCH + 5, False)
    waiting = [asked(each) for each in many[:BATCH]]
    step = next_step(root, [*waiting, *many[BATCH:]], TIME)
    assert step.ask == tuple(each.id for each in many[BATCH:])
    fresh = node("fresh", 0, given_by=1)
    step = next_step(root, [fresh], TIME)
    assert (step.ask, step.again) == ((), TIME + PATIENCE)
    step = next_step(root, [fresh], TIME + PATIENCE)
    assert step.ask == ("fresh",), "it never showed it: it may have lost it"
    assert next_step(root, [node("old", 0, given_by=0)], TIME).ask == ("old",)
    assert next_step(root, [node("silent", None)], TIME).ask == ("silent",)
    assert next_step(root, [node("done", 1)], TIME).done
    assert next_step(root, [], TIME).done


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("step"), st.integers(0, 2)),
        st.tuples(st.just("renew"), st.integers(0, 5)),
        st.tuples(st.just("show"), st.integers(0, 5)),
        st.tuples(st.just("lose"), st.integers(0, 5)),
        st.tuples(st.just("join"), st.integers(0, 5)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("rotate"), st.integers(1, 3)),
        st.tuples(st.just("give up"), st.just(0)),
        st.tuples(st.just("wait"), st.integers(1, 40)),
    ),
    max_size=40,
)


class World:
    """A cluster and its nodes, each with the certificate that it holds."""

    def __init__(self) -> None:
        self.root = replace(stored(), ca_cert_hash="")
        self.nodes: dict[str, Node] = {}
        self.holds: dict[str, bytes] = {}
        self.trusts: dict[str, bytes] = {}
        self.now = TIME
        self.forced = 0
        for number in range(3):
            self.join(number)

    @property
    def cluster(self) -> Cluster:
        return Cluster(id="c", root_ca=self.root)

    def issue(self, name: str) -> bytes:
        ca = signing_ca(self.cluster)
        return ca.issue(CSR, node_id=name, cluster_id="c", role=Role.WORKER, now=NOW)

    def put(self, changed: Node) -> None:
        meta = replace(changed.meta, updated_at=self.now)
        self.nodes[changed.id] = replace(changed, meta=meta)

    def join(self, number: int) -> None:
        name = f"n{number}"
        if name not in self.nodes:
            self.holds[name] = pem = self.issue(name)
            self.trusts[name] = self.root.ca_cert
            certificate = Certificate(
                csr=CSR, certificate=pem, status=IssuanceStatus(state=IssuanceState.ISSUED)
            )
            self.put(Node(id=name, certificate=certificate))

    def leave(self, number: int) -> None:
        self.nodes.pop(f"n{number}", None)

    def renew(self, number: int) -> None:
        """A node that was asked gets a certificate, and holds it from then on."""
        found = self.nodes.get(f"n{number}")
        if found is not None and found.certificate.status.state is IssuanceState.ROTATE:
            pem = self.holds[found.id] = self.issue(found.id)
            self.put(
                replace(
                    found,
                    certificate=Certificate(
                        csr=CSR, certificate=pem, status=IssuanceStatus(state=IssuanceState.ISSUED)
                    ),
                )
            )

    def lose(self, number: int) -> None:
        """A node crashes before its new certificate is on disk: it is left with one of the old root."""
        found = self.nodes.get(f"n{number}")
        if found is not None and self.root.root_rotation is not None:
            self.holds[found.id] = SigningCA(
                cert_pem=self.root.ca_cert, key_pem=self.root.ca_key
            ).issue(CSR, node_id=found.id, cluster_id="c", role=Role.WORKER, now=NOW)
            self.show(number)

    def show(self, number: int) -> None:
        """A node opens a session: it describes itself, and hears what to trust."""
        found = self.nodes.get(f"n{number}")
        if found is None:
            return
        self.trusts[found.id] = self.root.ca_cert
        ca = next(
            each for each in map(a_root, range(4)) if _signed(self.holds[found.id], each.cert_pem)
        )
        subject, key = issuer_id(ca.cert_pem)
        info = NodeTLSInfo(cert_issuer_subject=subject, cert_issuer_public_key=key)
        self.put(replace(found, description=NodeDescription(hostname=found.id, tls_info=info)))

    def step(self, _: int) -> None:
        if self.root.root_rotation is None:
            return
        step = next_step(self.root, self.nodes.values(), self.now)
        if step.done:
            self.root = finished(self.root, bytes)
        for name in step.ask:
            self.put(asked(self.nodes[name]))

    def rotate(self, to: int) -> None:
        made = a_root(to)
        if made.cert_pem == self.root.ca_cert:
            return
        config = CAConfig(signing_ca_cert=made.cert_pem, signing_ca_key=made.key_pem or b"")
        self.root = follow_config(self.root, config, now=NOW)

    def give_up(self, _: int) -> None:
        config = CAConfig(signing_ca_cert=self.root.ca_cert, signing_ca_key=self.root.ca_key)
        self.root = follow_config(self.root, config, now=NOW)

    def wait(self, seconds: int) -> None:
        self.now += seconds * 1_000_000_000

    def check(self) -> None:
        """Every node gets in with what it holds, and every node believes what a manager would show."""
        shown = self.issue("manager")
        for name in self.nodes:
            verify_chain(self.holds[name], trusted_roots(self.cluster), NOW)
            if self.trusts[name] == self.root.ca_cert:
                verify_chain(shown, self.trusts[name], NOW)


def _signed(leaf: bytes, root: bytes) -> bool:
    from swarm.identity.certs import signed_under

    return signed_under(leaf, root)


@given(events=EVENTS)
@hypothesis_settings(max_examples=30, deadline=None)
def test_whatever_happens_every_node_gets_in_and_the_rotation_ends(
    events: list[tuple[str, int]],
) -> None:
    """Renewals, losses, joins, removals, second rotations and changes of mind in any order."""
    world = World()
    for what, number in events:
        getattr(world, what.replace(" ", "_"))(number)
        world.check()
    for _ in range(4):  # from here on everybody does what it is asked to
        world.wait(31)
        world.step(0)
        for number in range(6):
            world.renew(number)
            world.show(number)
            world.check()
    assert world.root.root_rotation is None
