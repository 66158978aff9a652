"""``ca --rotate`` on a real manager: nodes with real certificates follow it over real TLS."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc.aio
import pytest

from swarm.api.docker.swarmkit import ca_pb2, ca_pb2_grpc, control_pb2, types_pb2
from swarm.identity import certs
from swarm.identity.certs import Credentials, new_root, verify_chain
from swarm.identity.keystore import KeyStore
from swarm.identity.token import JoinToken, matches_root

pytestmark = pytest.mark.slow

DEADLINE = 20.0


class Member:
    """A node's agent: describes its certificate, renews when asked, takes the root it is told."""

    def __init__(self, engine: Any, store: KeyStore | None = None) -> None:
        self.engine = engine
        self.store = store
        self.roots: list[bytes] = []
        self.serials: list[int] = []
        engine.description = self._describe
        self._plain = type(engine).description

    def _describe(self) -> types_pb2.NodeDescription:
        made: types_pb2.NodeDescription = self._plain(self.engine)
        info = certs.tls_info(self.engine.credentials, datetime.now(UTC))
        made.tls_info.trust_root = info.trust_root
        made.tls_info.cert_issuer_subject = info.issuer_subject
        made.tls_info.cert_issuer_public_key = info.issuer_public_key
        return made

    async def run(self) -> None:
        """Do what an agent does, until cancelled."""
        while True:
            self._note()
            session = await _insisting(self.engine.register)
            try:
                asked = await session.session.until(self._asked)
            except TimeoutError:
                continue
            finally:
                await session.close()
            if asked == "renew":
                await self._renew()
            elif asked == "root":
                old = self.engine.credentials
                root = session.session.messages[-1].root_ca
                verify_chain(old.cert_pem, root, datetime.now(UTC))
                self.engine.credentials = Credentials(
                    root_pem=root, cert_pem=old.cert_pem, key_pem=old.key_pem
                )

    def _note(self) -> None:
        credentials = self.engine.credentials
        self.roots.append(credentials.root_pem)
        self.serials.append(certs.certificates_untrusted(credentials.cert_pem)[0].serial_number)

    def _asked(self, journal: Any) -> str:
        if journal.end is not None:
            return "again"
        last = journal.messages[-1]
        if last.node.certificate.status.state == types_pb2.ISSUANCE_STATE_ROTATE:
            return "renew"
        return "root" if last.root_ca != self.engine.credentials.root_pem else ""

    async def _renew(self) -> None:
        if self.store is None:
            await _insisting(self.engine.renew)
            return
        async with asyncio.timeout(DEADLINE):
            while True:
                found = await asyncio.to_thread(self.store.load)
                if found is not None and found.cert_pem != self.engine.credentials.cert_pem:
                    self.engine.credentials = found
                    return
                await asyncio.sleep(0.02)


async def _insisting(call: Callable[[], Awaitable[Any]]) -> Any:
    """Call until the manager is there, as agents do."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.05)


class Fleet:
    """A swarm with a manager's agent, and workers that come and go."""

    def __init__(self, swarm: Any) -> None:
        self.swarm = swarm
        self._tasks: dict[Member, asyncio.Task[None]] = {}

    def start(self, member: Member) -> Member:
        """Let a node take part."""
        self._tasks[member] = asyncio.create_task(member.run())
        return member

    async def stop(self, member: Member) -> None:
        """Take a node away."""
        task = self._tasks.pop(member)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def own(self) -> Member:
        """The manager's own agent."""
        store = KeyStore(self.swarm.state_dir / "certificates")
        engine = self.swarm.engine("m1", ours=True)
        engine.credentials = store.load()
        engine.node_id = engine.credentials.identity.node_id
        return self.start(Member(engine, store))

    async def worker(self, name: str) -> Member:
        """A worker that joins with the token of now."""
        return self.start(Member(await self.swarm.worker(name)))

    async def rotate(self, **config: bytes | int) -> None:
        """Ask for another root."""
        shown = await self.shown()
        for key, value in config.items():
            setattr(shown.spec.ca_config, key, value)
        if not config:
            shown.spec.ca_config.force_rotate += 1
        await self.swarm.control.UpdateCluster(
            control_pb2.UpdateClusterRequest(
                cluster_id=shown.id, cluster_version=shown.meta.version, spec=shown.spec
            )
        )

    async def shown(self) -> Any:
        """The cluster as clients see it."""
        answer = await self.swarm.control.ListClusters(control_pb2.ListClustersRequest())
        return answer.clusters[0]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true of the store."""
        async with asyncio.timeout(DEADLINE):
            watch = self.swarm.manager.store.watch()
            while not condition():
                await anext(watch)

    def rotating(self) -> bool:
        """Whether a rotation is under way."""
        return self.swarm.cluster.root_ca.root_rotation is not None

    async def close(self) -> None:
        """Let all nodes go."""
        for member in list(self._tasks):
            await self.stop(member)


@pytest.fixture
async def fleet(swarm: Any) -> AsyncIterator[Fleet]:
    """A manager with its agent, and a worker."""
    made = Fleet(swarm)
    try:
        await made.own()
        await made.worker("w1")
        yield made
    finally:
        await made.close()


def spki(pem: bytes) -> bytes:
    return certs.issuer_id(pem)[1]


async def test_a_rotation_from_end_to_end(fleet: Fleet, code_of: Any) -> None:
    """New root, new certificates for all, new tokens; the old ones are worth nothing afterwards."""
    swarm = fleet.swarm
    before = swarm.cluster.root_ca
    stranger = await swarm.worker("never registered")
    await swarm.control.RemoveNode(
        control_pb2.RemoveNodeRequest(node_id=stranger.node_id, force=True)
    )
    members = list(fleet._tasks)
    await fleet.rotate()
    shown = await fleet.shown()
    assert shown.root_ca.ca_key == b""
    assert shown.root_ca.root_rotation.ca_key == b""
    await fleet.until(lambda: not fleet.rotating())
    after = swarm.cluster.root_ca
    assert after.ca_cert != before.ca_cert
    assert after.last_forced_rotation == 1
    async with asyncio.timeout(DEADLINE):
        while not all(m.roots[-1] == after.ca_cert for m in members):  # noqa: ASYNC110  # of the fakes
            await asyncio.sleep(0.02)
    now = datetime.now(UTC)
    for member in members:
        assert len(set(member.serials)) == 2, "one renewal each"
        assert verify_chain(member.engine.credentials.cert_pem, after.ca_cert, now)
    assert matches_root(JoinToken.parse(after.join_tokens.worker), after.ca_cert)
    late = swarm.engine("late")
    with pytest.raises(AssertionError):
        await late.fetch_root(before.join_tokens.worker)
    late.key, late.csr = certs.new_key_and_csr()
    stub = ca_pb2_grpc.NodeCAStub(
        late.channel(Credentials(root_pem=after.ca_cert), server_name=certs.ROOT_NAME)
    )
    for token in (before.join_tokens.worker, before.join_tokens.manager):
        code, text = await code_of(
            stub.IssueNodeCertificate(
                ca_pb2.IssueNodeCertificateRequest(csr=late.csr, token=token), timeout=DEADLINE
            )
        )
        assert (code, "another cluster's" in text) == ("INVALID_ARGUMENT", True)
    newcomer = await swarm.worker("new")
    chain = certs.certificates_untrusted(newcomer.credentials.cert_pem)
    assert len(chain) == 1, "no way to the old root comes along any more"
    # The old root's certificates are refused from the end on.
    old = certs.RootCA(cert_pem=before.ca_cert, key_pem=before.ca_key)
    pem = old.issue(
        newcomer.csr,
        node_id=newcomer.node_id,
        cluster_id=swarm.cluster.id,
        role=certs.Role.WORKER,
        now=now,
    )
    newcomer.credentials = Credentials(root_pem=after.ca_cert, cert_pem=pem, key_pem=newcomer.key)
    with pytest.raises(grpc.aio.AioRpcError):
        await newcomer.renew()


async def test_a_node_that_is_away_holds_it_open_and_gets_in(fleet: Fleet) -> None:
    """With the certificate of the old root, which is taken until the end; a removed one holds up nothing."""
    swarm = fleet.swarm
    away, gone = await fleet.worker("away"), await fleet.worker("gone")
    for member in (away, gone):
        await fleet.until(lambda m=member: _described(swarm, m))  # type: ignore[misc]
        await fleet.stop(member)
    old = swarm.cluster.root_ca.ca_cert
    await fleet.rotate()
    key = spki(swarm.cluster.root_ca.root_rotation.ca_cert)

    def left() -> set[str]:
        return {
            node.id
            for node in swarm.view.nodes.all()
            if node.description.tls_info.cert_issuer_public_key != key
        }

    await fleet.until(lambda: left() == {away.engine.node_id, gone.engine.node_id})
    newcomer = await fleet.worker("newcomer")
    await fleet.until(lambda: _described(swarm, newcomer))
    assert len(set(newcomer.serials)) == 1, "it came with a certificate of the new root"
    assert fleet.rotating()
    await swarm.control.RemoveNode(
        control_pb2.RemoveNodeRequest(node_id=gone.engine.node_id, force=True)
    )
    assert fleet.rotating()
    assert spki(away.engine.credentials.root_pem) == spki(old)
    fleet.start(away)
    await fleet.until(lambda: not fleet.rotating())
    assert len(set(away.serials)) == 2


async def test_a_manager_believes_the_root_to_come_and_workers_do_not_hear_of_it(
    fleet: Fleet,
) -> None:
    """One that misses the end must let in who was renewed after it; nodes trust the old root until then."""
    swarm = fleet.swarm
    away = await fleet.worker("away")
    await fleet.until(lambda: _described(swarm, away))
    await fleet.stop(away)
    await fleet.rotate()
    rotation = swarm.cluster.root_ca.root_rotation
    future = certs.RootCA(cert_pem=rotation.ca_cert, key_pem=rotation.ca_key)
    old = away.engine.credentials
    pem = future.issue(
        away.engine.csr,
        node_id=away.engine.node_id,
        cluster_id=swarm.cluster.id,
        role=certs.Role.WORKER,
        now=datetime.now(UTC),
    )
    away.engine.credentials = Credentials(
        root_pem=old.root_pem, cert_pem=pem, key_pem=away.engine.key
    )
    await _insisting(away.engine.renew)  # until the manager's own port has heard of it, too
    found = await away.engine.fetch_root(swarm.worker_token)
    assert found == old.root_pem
    chain = certs.certificates_untrusted(away.engine.credentials.cert_pem)
    assert len(chain) == 2, "a way to the old root comes along"


async def test_the_next_leader_goes_on(fleet: Fleet) -> None:
    """The manager is stopped in the middle, and started: with its certificate, and on to the end."""
    swarm = fleet.swarm
    away = await fleet.worker("away")
    await fleet.until(lambda: _described(swarm, away))
    await fleet.stop(away)
    await fleet.rotate()
    root = swarm.cluster.root_ca.root_rotation.ca_cert
    present = list(fleet._tasks)
    await fleet.until(lambda: all(_issuer(swarm, m.engine.node_id) == spki(root) for m in present))
    await swarm.stop()
    await swarm.start()
    assert fleet.rotating()
    fleet.start(away)
    await fleet.until(lambda: not fleet.rotating())
    assert swarm.cluster.root_ca.ca_cert == root
    await swarm.stop()
    serial = certs.certificates_untrusted(
        (KeyStore(swarm.state_dir / "certificates").load() or Credentials(root_pem=b"")).cert_pem
        or b""
    )[0].serial_number
    await swarm.start()
    found = KeyStore(swarm.state_dir / "certificates").load()
    assert found is not None
    assert found.root_pem == root
    assert certs.certificates_untrusted(found.cert_pem or b"")[0].serial_number == serial


async def test_a_manager_that_crashed_before_it_stored_the_new_root(fleet: Fleet) -> None:
    """Its certificate is of the new root; only the file that says what to trust is put right."""
    swarm = fleet.swarm
    store = KeyStore(swarm.state_dir / "certificates")
    old = swarm.cluster.root_ca.ca_cert
    await fleet.rotate()
    await fleet.until(lambda: not fleet.rotating())
    await swarm.stop()
    found = store.load()
    assert found is not None
    store.save(Credentials(root_pem=old, cert_pem=found.cert_pem, key_pem=found.key_pem))
    await swarm.start()
    again = store.load()
    assert again is not None
    assert (again.root_pem, again.cert_pem) == (swarm.cluster.root_ca.ca_cert, found.cert_pem)


async def test_a_second_rotation_replaces_the_first(fleet: Fleet) -> None:
    """Everybody ends under the second root, those too who had a certificate of the first."""
    swarm = fleet.swarm
    away = await fleet.worker("away")
    await fleet.until(lambda: _described(swarm, away))
    await fleet.stop(away)
    await fleet.rotate()
    first = swarm.cluster.root_ca.root_rotation.ca_cert
    worker = next(m for m in fleet._tasks if m.store is None)
    await fleet.until(
        lambda: _issuer(swarm, worker.engine.node_id) == spki(first),
    )
    mine = new_root(datetime.now(UTC))
    await fleet.rotate(signing_ca_cert=mine.cert_pem, signing_ca_key=mine.key_pem or b"")
    assert swarm.cluster.root_ca.root_rotation.ca_cert == mine.cert_pem
    assert swarm.cluster.spec.ca_config.signing_ca_key == b"", "the key is kept in one place"
    fleet.start(away)
    await fleet.until(lambda: not fleet.rotating())
    assert swarm.cluster.root_ca.ca_cert == mine.cert_pem


async def test_a_rotation_given_up(fleet: Fleet) -> None:
    """The present root and its key end it; everybody still gets in, whatever it had got meanwhile."""
    swarm = fleet.swarm
    away = await fleet.worker("away")
    await fleet.until(lambda: _described(swarm, away))
    await fleet.stop(away)
    before = swarm.cluster.root_ca
    await fleet.rotate()
    key = spki(swarm.cluster.root_ca.root_rotation.ca_cert)
    worker = next(m for m in fleet._tasks if m.store is None)
    await fleet.until(lambda: _issuer(swarm, worker.engine.node_id) == key)
    await fleet.rotate(signing_ca_cert=before.ca_cert, signing_ca_key=before.ca_key)
    assert not fleet.rotating()
    assert swarm.cluster.root_ca.join_tokens == before.join_tokens
    await worker.engine.renew()
    await away.engine.renew()
    assert verify_chain(worker.engine.credentials.cert_pem, before.ca_cert, datetime.now(UTC))


async def test_what_cannot_be_a_root_changes_nothing(fleet: Fleet, code_of: Any) -> None:
    """One clear refusal each, and the cluster object is as it was."""
    swarm = fleet.swarm
    mine, other = new_root(datetime.now(UTC)), new_root(datetime.now(UTC))
    aged = new_root(datetime.now(UTC) - timedelta(days=365 * 19))
    leaf = swarm.engines[0].credentials
    cases: list[tuple[dict[str, Any], str]] = [
        ({"signing_ca_cert": leaf.cert_pem, "signing_ca_key": leaf.key_pem}, "self-signed CA"),
        ({"signing_ca_cert": mine.cert_pem, "signing_ca_key": other.key_pem}, "does not belong"),
        ({"signing_ca_cert": mine.cert_pem}, "external certificate authorities"),
        ({"signing_ca_key": mine.key_pem}, "the signing CA cert must also be provided"),
        ({"signing_ca_cert": aged.cert_pem, "signing_ca_key": aged.key_pem}, "expires too soon"),
        ({"signing_ca_cert": b"junk", "signing_ca_key": mine.key_pem}, "certificates"),
    ]
    before = swarm.cluster
    for config, text in cases:
        code, details = await code_of(fleet.rotate(**config))
        assert (code, text in details) == ("INVALID_ARGUMENT", True), (details, text)
    assert swarm.cluster.root_ca == before.root_ca
    assert swarm.cluster.spec == before.spec


def _issuer(swarm: Any, node_id: str) -> bytes:
    info = swarm.view.nodes.require(node_id).description.tls_info
    return bytes(info.cert_issuer_public_key)


def _described(swarm: Any, member: Member) -> bool:
    node = swarm.view.nodes.get(member.engine.node_id)
    return node is not None and node.description is not None
