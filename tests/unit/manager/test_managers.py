"""Several managers in one process: forwarding, membership, roles, locks, addresses."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from manager.api.membership import NEWCOMER, RAFT_KEY
from manager.api.server import REQUEST_ID
from manager.causes import first_cause
from manager.clock import Clock
from manager.raft.errors import RemovedError, StateLostError, StorageError
from manager.raft.keys import is_locked
from manager.refusal import refuse_for_good
from swarm.api.docker.swarmkit import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    membership_pb2,
    membership_pb2_grpc,
    types_pb2,
)
from swarm.errors import UnavailableError
from swarm.identity.certs import certificates_untrusted
from swarm.identity.keystore import KeyStore, LockedError
from swarm.model import NodeRole, NodeState, Reachability

pytestmark = pytest.mark.slow

Code = Callable[[Awaitable[Any]], Awaitable[tuple[str, str]]]
SwarmMaker = Callable[[Path], Any]
DEADLINE = 15.0


async def until(condition: Callable[[], Any]) -> Any:
    """Wait until something is true; return it."""
    async with asyncio.timeout(DEADLINE):
        while not (found := condition()):  # noqa: ASYNC110  # several processes' worth of events
            await asyncio.sleep(0.02)
    return found


class Group:
    """Managers by number, the first one the founder."""

    def __init__(self, directory: Path, make: SwarmMaker) -> None:
        self.managers: list[Any] = []
        self._directory = directory
        self._make = make

    async def found(self) -> Any:
        """Start the first."""
        first = self._make(self._directory / "m0")
        self.managers.append(first)
        await first.start()
        return first

    async def admit(self) -> Any:
        """Give another manager its certificate and its settings; not started yet."""
        first = self.managers[0]
        made = self._make(self._directory / f"m{len(self.managers)}")
        engine = first.engine(f"m{len(self.managers)}", ours=True)
        await engine.join(first.cluster.root_ca.join_tokens.manager)
        KeyStore(made.state_dir / "certificates").save(engine.credentials)
        made.engines.append(engine)
        made.settings = {"mode": "join", "join_addrs": [each.target for each in self.managers]}
        self.managers.append(made)
        return made

    async def add(self) -> Any:
        """Admit another manager and start it; it votes when this returns."""
        made = await self.admit()
        await made.start()
        return made

    def leader(self) -> Any:
        """The manager that leads."""
        return next(m for m in self.running if status(m).leader_id == status(m).id)

    @property
    def running(self) -> list[Any]:
        """Managers that run."""
        return [each for each in self.managers if each._task is not None]

    @property
    def followers(self) -> list[Any]:
        """Managers that follow."""
        leader = self.leader()
        return [each for each in self.running if each is not leader]

    async def close(self) -> None:
        """Take everything down."""
        for each in self.managers:
            await each.close()


def status(manager: Any) -> Any:
    """What raft says on one manager."""
    return manager.manager._require_raft().status


def node_id(manager: Any) -> str:
    """The node of a manager."""
    mine = status(manager)
    return str(mine.members[mine.id].node_id)


@pytest.fixture
async def group(short_dir: Path, make_swarm: SwarmMaker) -> AsyncIterator[Group]:
    """A group with its founder running."""
    made = Group(short_dir, make_swarm)
    try:
        await made.found()
        yield made
    finally:
        await made.close()


@pytest.fixture
async def three(group: Group) -> Group:
    """Three voting managers."""
    await group.add()
    await group.add()
    return group


async def names(manager: Any) -> set[str]:
    """Networks as one manager answers."""
    answer = await manager.control.ListNetworks(control_pb2.ListNetworksRequest(), timeout=DEADLINE)
    return {each.spec.annotations.name for each in answer.networks}


async def set_role(manager: Any, node: str, role: NodeRole) -> None:
    """Change a node's role through some manager."""
    shown = (await manager.control.GetNode(control_pb2.GetNodeRequest(node_id=node))).node
    shown.spec.desired_role = int(role)
    await manager.control.UpdateNode(
        control_pb2.UpdateNodeRequest(
            node_id=node, node_version=shown.meta.version, spec=shown.spec
        ),
        timeout=DEADLINE,
    )


async def test_every_manager_answers_every_call(three: Group) -> None:
    """Written on one, read at once on the others: reads show all that was answered before."""
    for number, manager in enumerate(three.running):
        await manager.network(f"n{number}")
        for other in three.running:
            assert f"n{number}" in await names(other)
    for manager in three.running:
        shown = (await manager.control.ListNodes(control_pb2.ListNodesRequest())).nodes
        statuses = {each.id: each.manager_status for each in shown}
        assert sum(each.leader for each in statuses.values()) == 1
        reachable = int(Reachability.REACHABLE)
        assert {each.reachability for each in statuses.values()} == {reachable}


async def test_a_worker_joins_and_lives_at_a_follower(three: Group) -> None:
    """Certificate, session, heartbeat and attachment pass on in the worker's own name."""
    follower = three.followers[0]
    network = await three.leader().network("web")
    engine = follower.engine("w1", ours=True)
    await engine.join(follower.cluster.root_ca.join_tokens.worker)
    session = await engine.register()
    task = await engine.attach("web")
    await session.assignments.until(lambda _: task in session.known())
    assert session.known()[task].networks[0].network.id == network.id
    stored = three.leader().view.nodes.require(engine.node_id)
    assert stored.status.state is NodeState.READY
    assert stored.status.addr == "127.0.0.1"
    told = {peer.peer.addr for peer in session.session.messages[-1].managers}
    assert told == {each.target for each in three.managers}
    await engine.detach(task)
    await session.close()


async def back(engine: Any, session_id: str) -> Any:
    """Register again as agents do: as often as it takes until there is a leader."""
    async with asyncio.timeout(DEADLINE):
        while True:
            try:
                return await engine.register(session_id)
            except grpc.aio.AioRpcError as error:
                if error.code().name not in {"ABORTED", "UNAVAILABLE"}:
                    raise
                await asyncio.sleep(0.05)


async def test_a_session_moves_when_its_leader_goes(three: Group) -> None:
    """The leader's last word on a session names the managers; the next one is told what was assigned."""
    leader, follower = three.leader(), three.followers[0]
    await leader.network("web")
    engine = follower.engine("w1", ours=True)
    await engine.join(follower.cluster.root_ca.join_tokens.worker)
    session = await engine.register()
    task = await engine.attach("web")
    await leader.stop()
    await session.session.until(lambda j: j.end)
    assert session.session.end.code().name in {"ABORTED", "UNAVAILABLE"}
    again = await back(engine, session.id)
    await again.assignments.until(lambda _: task in again.known())
    await again.close()
    await session.close()


async def test_calls_go_on_while_leadership_is_handed_over(three: Group) -> None:
    """A writer at a follower meets no error when the leader is stopped in good order, and loses nothing."""
    leader, follower = three.leader(), three.followers[0]
    stopping = asyncio.create_task(leader.stop())
    for number in range(30):
        await follower.network(f"n{number}")
    await stopping
    assert {f"n{number}" for number in range(30)} <= await names(follower)


async def test_without_a_majority_every_answer_says_so(three: Group, code_of: Code) -> None:
    """Bounded in time, in docker's words; and it works again when the majority is back."""
    last, *others = three.running
    for other in others:
        await other.stop()
    began = time.monotonic()
    code, text = await code_of(last.network("web"))
    assert code == "UNAVAILABLE"
    assert text.startswith("The swarm does not have a leader.")
    code, text = await code_of(last.control.ListNodes(control_pb2.ListNodesRequest()))
    assert (code, "does not have a leader" in text) == ("UNAVAILABLE", True)
    assert time.monotonic() - began < 25
    await others[0].start()
    await last.network("after")  # what was refused above may take effect now, too


async def test_a_request_made_twice_is_carried_out_once(three: Group) -> None:
    """As after a lost answer: the same request id gives the same network, on any manager."""
    request = control_pb2.CreateNetworkRequest()
    request.spec.annotations.name = "web"
    made = set()
    for manager in three.running:
        answer = await manager.control.CreateNetwork(request, metadata=((REQUEST_ID, "one"),))
        # Each manager's root is a caller of its own; the first one's request, however it is retried:
        made.add(answer.network.id)
        again = await manager.control.CreateNetwork(request, metadata=((REQUEST_ID, "one"),))
        assert again.network.id == answer.network.id
        await manager.control.RemoveNetwork(
            control_pb2.RemoveNetworkRequest(network_id=answer.network.id),
            metadata=((REQUEST_ID, "two"),),
        )
        await manager.control.RemoveNetwork(
            control_pb2.RemoveNetworkRequest(network_id=answer.network.id),
            metadata=((REQUEST_ID, "two"),),
        )
    assert len(made) == 3


class TestRoles:
    """Promotion and demotion as the managers see them."""

    async def test_a_demoted_manager_leaves_the_group_and_ends(self, three: Group) -> None:
        demoted = three.followers[0]
        node = node_id(demoted)
        await set_role(three.followers[1], node, NodeRole.WORKER)
        assert isinstance(await demoted.failure(), RemovedError)
        leader = three.leader()
        await until(lambda: leader.view.nodes.require(node).role is NodeRole.WORKER)
        assert node not in leader.manager.managers()

    async def test_a_demoted_leader_hands_over_first(self, three: Group) -> None:
        leader = three.leader()
        node = node_id(leader)
        await set_role(leader, node, NodeRole.WORKER)
        assert isinstance(await leader.failure(), RemovedError)
        rest = three.running[0]
        await until(lambda: rest.view.nodes.require(node).role is NodeRole.WORKER)
        await rest.network("web")

    async def test_a_worker_is_promoted_at_once(self, group: Group) -> None:
        """The stored role changes; with it the node's next certificate is a manager's."""
        first = group.managers[0]
        engine = await first.worker("w1", ours=True)
        session = await engine.register()
        await set_role(first, engine.node_id, NodeRole.MANAGER)
        await until(lambda: first.view.nodes.require(engine.node_id).role is NodeRole.MANAGER)
        await session.session.until(
            lambda j: j.messages[-1].node.spec.desired_role == types_pb2.NODE_ROLE_MANAGER
        )
        await engine.renew()
        assert engine.credentials.identity.role.value == "swarm-manager"
        await session.close()

    async def test_a_demotion_that_loses_the_quorum_is_refused(
        self, three: Group, code_of: Code
    ) -> None:
        gone, kept = three.followers
        leader = three.leader()
        await gone.stop()
        unreachable = lambda: (  # noqa: E731
            leader.manager.managers()[kept_id].reachability is Reachability.REACHABLE
            and leader.manager.managers()[gone_id].reachability is Reachability.UNREACHABLE
        )
        kept_id, gone_id = (
            node_id(kept),
            next(
                each
                for each in leader.manager.managers()
                if each not in {node_id(kept), node_id(leader)}
            ),
        )
        await until(unreachable)
        code, text = await code_of(set_role(leader, kept_id, NodeRole.WORKER))
        assert (code, "loss of quorum" in text) == ("FAILED_PRECONDITION", True)
        await set_role(leader, gone_id, NodeRole.WORKER)
        await until(lambda: gone_id not in leader.manager.managers())

    async def test_a_manager_cannot_be_removed_as_a_node(self, three: Group, code_of: Code) -> None:
        request = control_pb2.RemoveNodeRequest(node_id=node_id(three.followers[0]), force=True)
        code, text = await code_of(three.leader().control.RemoveNode(request))
        assert (code, "demoted to worker" in text) == ("FAILED_PRECONDITION", True)


class TestMembership:
    """Join and Leave."""

    async def test_a_manager_leaves_and_a_leader_hands_over_first(self, three: Group) -> None:
        for leaving in (three.leader(), three.followers[0]):
            stub = membership_pb2_grpc.RaftMembershipStub(leaving.local)
            await stub.Leave(membership_pb2.LeaveRequest(), timeout=DEADLINE)
            assert isinstance(await leaving.failure(), RemovedError)
        last = three.running[0]
        assert len(last.manager.managers()) == 1
        await last.network("web")

    async def test_no_manager_removes_another(self, three: Group, code_of: Code) -> None:
        one, other = three.running[:2]
        stub = membership_pb2_grpc.RaftMembershipStub(one.local)
        request = membership_pb2.LeaveRequest(
            node=membership_pb2.RaftMember(raft_id=status(other).id)
        )
        assert (await code_of(stub.Leave(request)))[0] == "PERMISSION_DENIED"

    async def test_a_manager_that_lost_its_disk_comes_back_as_another_member(
        self, three: Group
    ) -> None:
        """It may have confirmed what it does not know any more, so its old id never votes again."""
        lost = three.followers[0]
        old = status(lost).id
        await lost.stop()
        for file in (lost.state_dir / "raft").iterdir():
            file.unlink()
        await lost.start()
        assert status(lost).id != old
        members = status(three.leader()).members
        assert old not in members
        assert len(members) == 3

    async def test_who_cannot_be_reached_is_not_taken_in(self, group: Group, code_of: Code) -> None:
        made = await group.admit()
        first = group.managers[0]
        stub = membership_pb2_grpc.RaftMembershipStub(made.engines[0].connect())
        join = stub.Join(
            membership_pb2.JoinRequest(addr=made.target), metadata=((RAFT_KEY, NEWCOMER),)
        )
        code, text = await code_of(join)
        assert (code, made.target in text) == ("FAILED_PRECONDITION", True)
        assert len(first.manager.managers()) == 1

    async def test_another_engines_manager_is_refused(self, group: Group, code_of: Code) -> None:
        made = await group.admit()
        stub = membership_pb2_grpc.RaftMembershipStub(made.engines[0].connect())
        code, text = await code_of(stub.Join(membership_pb2.JoinRequest(addr=made.target)))
        assert (code, "worker token" in text) == ("FAILED_PRECONDITION", True)

    @pytest.mark.parametrize(
        ("addr", "claim", "wanted"),
        [
            ("somewhere", NEWCOMER, "INVALID_ARGUMENT"),
            ("name:2377", NEWCOMER, "INVALID_ARGUMENT"),
            ("x" * 4096 + ":1", NEWCOMER, "INVALID_ARGUMENT"),
            ("192.0.2.1:2377", "zzz", "INVALID_ARGUMENT"),
            ("192.0.2.1:2377", "1234", "NOT_FOUND"),
        ],
    )
    async def test_bad_requests_change_nothing(
        self, group: Group, code_of: Code, addr: str, claim: str, wanted: str
    ) -> None:
        made = await group.admit()
        stub = membership_pb2_grpc.RaftMembershipStub(made.engines[0].connect())
        call = stub.Join(membership_pb2.JoinRequest(addr=addr), metadata=((RAFT_KEY, claim),))
        assert (await code_of(call))[0] == wanted
        assert len(group.managers[0].manager.managers()) == 1

    async def test_a_manager_may_come_back_under_another_address(
        self, three: Group, other_port: Callable[[], int]
    ) -> None:
        """It tells the others, and nodes are told with their next session message."""
        moved = three.followers[0]
        await moved.stop()
        moved.port = other_port()
        await moved.start()
        mine = status(moved).id
        for manager in three.running:
            await until(lambda m=manager: status(m).members[mine].addr == moved.target)
        await moved.network("web")


class TestLock:
    """Autolock with several managers."""

    async def test_switching_on_locks_every_manager_under_new_data_keys(self, three: Group) -> None:
        """The old data keys once stood in clear on disk, so nothing stays sealed under them."""
        before = {m: data_keys(m) for m in three.running}
        assert all(before.values())
        key = await autolock(three.followers[0], True)
        for manager in three.running:
            await until(lambda m=manager: is_locked(m.state_dir / "raft" / "raft.key"))
            store = manager.manager._require_raft()._storage
            await until(lambda s=store: len(s._sealer.keys.keys) == 1)
            assert before[manager].isdisjoint(store._sealer.keys.keys.values())
            await until(lambda m=manager: certificate_locked(m))
        restarted = three.followers[0]
        await restarted.stop()
        await restarted.start(unlock_key=key)
        await restarted.network("web")

    async def test_a_manager_joins_a_locked_swarm_locked(self, group: Group) -> None:
        key = await autolock(group.managers[0], True)
        made = await group.add()
        assert is_locked(made.state_dir / "raft" / "raft.key")
        assert certificate_locked(made)
        await made.stop()
        await made.start(unlock_key=key)


def data_keys(manager: Any) -> set[bytes]:
    """The data keys in use."""
    return set(manager.manager._require_raft()._storage._sealer.keys.keys.values())


def certificate_locked(manager: Any) -> bool:
    """Say whether the private key needs the unlock key."""
    try:
        KeyStore(manager.state_dir / "certificates").load()
    except LockedError:
        return True
    return False


async def autolock(manager: Any, wanted: bool) -> bytes:
    """Switch autolock; return the unlock key."""
    shown = (await manager.control.ListClusters(control_pb2.ListClustersRequest())).clusters[0]
    shown.spec.encryption_config.auto_lock_managers = wanted
    await manager.control.UpdateCluster(
        control_pb2.UpdateClusterRequest(
            cluster_id=shown.id, cluster_version=shown.meta.version, spec=shown.spec
        )
    )
    stub = ca_pb2_grpc.CAStub(manager.local)
    return bytes((await stub.GetUnlockKey(ca_pb2.GetUnlockKeyRequest())).unlock_key)


async def test_a_follower_renews_its_certificate_at_the_leader(three: Group) -> None:
    follower = three.followers[0]
    node = node_id(follower)
    before = three.leader().view.nodes.require(node).certificate.certificate
    await follower.stop()
    # Not beyond its end: only then it would help itself first.
    follower.clock = Clock(wall=lambda: time.time_ns() + 80 * 86400 * 10**9)
    await follower.start()
    stored = lambda: three.leader().view.nodes.require(node).certificate.certificate  # noqa: E731
    await until(lambda: stored() != before)
    kept = KeyStore(follower.state_dir / "certificates").load
    await until(lambda: kept().cert_pem == stored())
    assert certificates_untrusted(stored())


async def test_recovery_goes_on_alone_with_everything(three: Group) -> None:
    """``--force-new-cluster``: one manager's state lives on; the others are none any more."""
    await three.leader().network("web")
    last, *others = three.running
    gone = [node_id(other) for other in others]
    for other in others:
        await other.stop()
    await last.stop()
    last.settings = {**last.settings, "force_new_cluster": True}
    await last.start()
    assert "web" in await names(last)
    assert len(last.manager.managers()) == 1
    await until(lambda: {last.view.nodes.require(n).role for n in gone} == {NodeRole.WORKER})
    last.settings = {**last.settings, "force_new_cluster": False}
    await last.stop()
    await last.start()
    await last.network("after")
    three.managers[1:] = [m for m in three.managers[1:] if m is last or m._task is not None]


def test_a_manager_ends_with_the_cause_and_not_with_what_it_led_to() -> None:
    cause = StorageError("the disk is full")
    later = [UnavailableError("raft does not run"), asyncio.CancelledError(), cause]
    for order in itertools.permutations(later):
        group = BaseExceptionGroup("", [order[0], BaseExceptionGroup("", list(order[1:]))])
        assert first_cause(group) is cause
    assert first_cause(BaseExceptionGroup("", later[:2])) is later[0]


async def test_a_refused_state_stays_refused(stopped_swarm: Any) -> None:
    """Restarts must not wear the recognition of an old copy down."""
    await stopped_swarm.start()
    await stopped_swarm.stop()
    refuse_for_good(stopped_swarm.state_dir / "raft", "restored from an old copy")
    for _ in range(2):
        with pytest.raises(StateLostError, match="old copy"):
            await stopped_swarm.start()
        stopped_swarm._task = None


async def test_an_empty_follower_has_nothing_to_say(group: Group, code_of: Code) -> None:
    """A manager with a raft state and no log yet starts, waits for a leader, and says so."""
    made = await group.admit()
    config = {"listen_addr": made.target, "advertise_addr": made.target, "mode": "join"}
    (made.state_dir / "manager.json").write_text(json.dumps({**config, "join_addrs": ["x:1"]}))
    from manager.raft.storage import Identity, SqliteStorage

    identity = Identity(
        cluster_id=group.managers[0].cluster.id, raft_id=77, node_id=made.engines[0].node_id
    )
    SqliteStorage.create(made.state_dir / "raft", identity).close()
    await made.start()
    channel = grpc.aio.insecure_channel(f"unix:{made.run_dir}/manager/control.sock")
    code, text = await code_of(
        control_pb2_grpc.ControlStub(channel).ListNodes(control_pb2.ListNodesRequest())
    )
    assert (code, "does not have a leader" in text) == ("UNAVAILABLE", True)
    key = ca_pb2_grpc.CAStub(channel).GetUnlockKey(ca_pb2.GetUnlockKeyRequest())
    assert (await code_of(key))[0] == "UNAVAILABLE"
    await channel.close()
