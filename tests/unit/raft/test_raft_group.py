"""Three managers with real disks, over real gRPC streams on unix sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from manager.raft import transport as transport_module
from manager.raft.codec import to_wire
from manager.raft.config import RaftConfig
from manager.raft.errors import NotLeaderError, QuorumLostError, RemovedError
from manager.raft.events import Role
from manager.raft.membership import Member
from manager.raft.messages import Heartbeat, Message
from manager.raft.node import RaftNode
from manager.raft.storage import Identity, SqliteStorage
from manager.raft.transport import GrpcTransport, RaftServicer
from swarm.api.overswarm.v1 import raft_pb2, raft_pb2_grpc
from swarm.errors import WireError

CONFIG = RaftConfig(
    cluster_id="c1",
    raft_id=1,
    node_id="n",
    addr="",
    tick_seconds=0.02,
    snapshot_entries=20,
    trailing_entries=2,
)


class _Words:
    """Every word ever applied."""

    def __init__(self) -> None:
        self.words: list[bytes] = []

    def apply(self, index: int, data: bytes) -> int:
        """Add a word."""
        self.words.append(data)
        return index

    def snapshot(self) -> bytes:
        """Return all words."""
        return b",".join(self.words)

    def restore(self, index: int, data: bytes) -> None:
        """Take all words."""
        self.words = data.split(b",") if data else []


async def _dial(addr: str) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(addr)


class _Manager:
    """One manager that can be started and stopped."""

    def __init__(self, number: int, directory: Path) -> None:
        self.number = number
        self.directory = directory / f"m{number}"
        self.addr = f"unix:{directory}/m{number}.sock"
        self.machine = _Words()
        self.node: RaftNode
        self.stop: Callable[[], Awaitable[BaseException | None]]

    async def start(self, *, bootstrap: bool = False) -> None:
        """Serve, run, and wait until it is ready."""
        identity = Identity(cluster_id="c1", raft_id=self.number, node_id=f"n{self.number}")
        if SqliteStorage.exists(self.directory):
            storage = SqliteStorage.open(self.directory)
        else:
            storage = SqliteStorage.create(self.directory, identity)
        self.machine = _Words()
        config = replace(
            CONFIG,
            raft_id=self.number,
            node_id=identity.node_id,
            addr=self.addr,
            bootstrap=bootstrap,
        )
        transport = GrpcTransport(raft_id=self.number, addr=self.addr, channel=_dial)
        self.node = RaftNode(
            config=config,
            storage=storage,
            machine=self.machine,
            transport=transport,
            rng=random.Random(self.number),
        )
        server = grpc.aio.server()
        raft_pb2_grpc.add_RaftServicer_to_server(RaftServicer(transport), server)
        server.add_insecure_port(self.addr)
        await server.start()
        task = asyncio.ensure_future(self.node.run())

        async def stop() -> BaseException | None:
            task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            await server.stop(None)
            return result

        self.task = task
        self.stop = stop
        await self.node.ready()


@asynccontextmanager
async def _group(directory: Path, size: int = 3) -> AsyncIterator[list[_Manager]]:
    managers = [_Manager(number, directory) for number in range(1, size + 1)]
    started: list[_Manager] = []
    async with asyncio.timeout(30):
        try:
            for manager in managers:
                await manager.start(bootstrap=manager.number == 1)
                started.append(manager)
                if manager.number > 1:
                    await _join(managers[0], manager)
            yield managers
        finally:
            for manager in started:
                await manager.stop()


async def _join(leader: _Manager, manager: _Manager) -> None:
    await leader.node.add_learner(
        raft_id=manager.number, node_id=f"n{manager.number}", addr=manager.addr
    )
    await leader.node.promote(manager.number)


async def _until(condition: Callable[[], bool], managers: list[_Manager]) -> None:
    """Wait for a tick after tick; the group's time-out bounds it."""
    while not condition():
        await managers[0].node._next_tick()


def _leader(managers: list[_Manager]) -> _Manager | None:
    return next((m for m in managers if m.node.status.role is Role.LEADER), None)


@pytest.mark.slow
async def test_three_managers_outlive_their_leader(tmp_path: Path) -> None:
    """Nothing acknowledged is lost, reads are fresh on every member, the old leader returns."""
    async with _group(tmp_path) as managers:
        first, second, third = managers
        await first.node.propose(b"one")
        assert await third.node.read_barrier() >= 1
        assert third.machine.words == [b"one"]
        with pytest.raises(NotLeaderError) as caught:
            await second.node.propose(b"two")
        assert (caught.value.leader_id, caught.value.leader_addr) == (1, first.addr)
        await first.stop()
        rest = [second, third]
        await _until(lambda: _leader(rest) is not None, rest)
        leader = _leader(rest)
        assert leader is not None
        await leader.node.propose(b"two")
        await first.start()
        await first.node.read_barrier()
        assert first.machine.words == [b"one", b"two"]
        assert set(first.node.status.members) == {1, 2, 3}


@pytest.mark.slow
async def test_a_late_manager_gets_a_snapshot(tmp_path: Path) -> None:
    """With more entries than the log keeps."""
    async with _group(tmp_path, 2) as managers:
        words = [b"w%d" % number for number in range(60)]
        for word in words:
            await managers[0].node.propose(word)
        late = _Manager(3, tmp_path)
        await late.start()
        try:
            await _join(managers[0], late)
            await late.node.read_barrier()
            assert late.machine.words == words
        finally:
            await late.stop()


@pytest.mark.slow
async def test_leadership_moves_on_request(tmp_path: Path) -> None:
    """To the wanted member, and away from one that stops."""
    async with _group(tmp_path) as managers:
        assert await managers[0].node.transfer_leadership(3) == 3
        await managers[2].node.propose(b"x")
        await managers[2].node.stop_gracefully()
        assert managers[2].node.status.role is Role.FOLLOWER
        await _until(lambda: _leader(managers) is not None, managers)


@pytest.mark.slow
async def test_without_a_majority_nothing_is_confirmed(tmp_path: Path) -> None:
    """Proposals and reads end with an error in bounded time."""
    async with _group(tmp_path) as managers:
        await managers[1].stop()
        await managers[2].stop()
        with pytest.raises(QuorumLostError):
            await managers[0].node.propose(b"x")
        with pytest.raises(QuorumLostError):
            await managers[0].node.read_barrier()
        with pytest.raises(NotLeaderError):
            await managers[0].node.propose(b"y")
        await managers[1].start()
        await managers[2].start()


@pytest.mark.slow
async def test_a_removed_manager_is_told_and_stops(tmp_path: Path) -> None:
    """Also one that was away when it happened."""
    async with _group(tmp_path) as managers:
        await managers[2].stop()
        await managers[0].node.remove(3)
        await managers[2].start()
        with pytest.raises(RemovedError):
            await managers[2].task
        assert set(managers[0].node.status.members) == {1, 2}


@pytest.mark.slow
async def test_a_leader_can_remove_itself(tmp_path: Path) -> None:
    """The call returns, the rest goes on."""
    async with _group(tmp_path) as managers:
        await managers[0].node.remove(1)
        with pytest.raises(RemovedError):
            await managers[0].task
        rest = managers[1:]
        await _until(lambda: _leader(rest) is not None, rest)
        leader = _leader(rest)
        assert leader is not None
        await leader.node.propose(b"x")
        assert set(leader.node.status.members) == {2, 3}


def _heartbeat() -> raft_pb2.RaftMessage:
    message: Message[Any] = Message(
        cluster="c1", sender=2, to=1, term=1, incarnation=1, body=Heartbeat(commit=0)
    )
    return to_wire(message)


def test_nobody_speaks_in_another_managers_name() -> None:
    """A stream's certificate must belong to the member that its messages name."""
    transport = GrpcTransport(raft_id=1, addr="unix:none", channel=_dial)
    transport.update_members({2: Member(raft_id=2, node_id="n2", addr="unix:m2")})
    assert not transport.receive(_heartbeat(), "n2")
    with pytest.raises(WireError, match="speaks for"):
        transport.receive(_heartbeat(), "n3")


class _Tells:
    """Remembers what a transport reports."""

    def __init__(self) -> None:
        self.lost: list[int] = []

    def ignore(self, _: object) -> None:
        """Not of interest."""


async def test_a_member_whose_stream_ends_is_reported_unless_it_speaks_on_a_later_one() -> None:
    """A stream that took the place of another says that its member lives."""
    transport, tells = GrpcTransport(raft_id=1, addr="unix:none", channel=_dial), _Tells()
    transport.update_members({2: Member(raft_id=2, node_id="n2", addr="unix:m2")})
    running = asyncio.create_task(transport.run(tells.ignore, tells.ignore, lost=tells.lost.append))
    await asyncio.sleep(0)
    first, second = object(), object()
    transport.receive(_heartbeat(), "n2", first)
    transport.receive(_heartbeat(), "n2", second)
    transport.ended(first)
    assert tells.lost == []
    transport.ended(second)
    transport.ended(second)
    assert tells.lost == [2]
    running.cancel()
    await asyncio.wait([running])


async def test_the_first_word_after_a_long_silence_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other end was restarted meanwhile; nobody said anything that would have shown it."""
    monkeypatch.setattr(transport_module, "STEADY_SECONDS", 0.0)
    ended, heard = asyncio.Event(), asyncio.Queue[Message[Any]]()

    def hang_up(peer: Any, stream: Any) -> None:
        usual(peer, stream)
        ended.set()

    usual = transport_module.Peer.hang_up
    monkeypatch.setattr(transport_module.Peer, "hang_up", hang_up)
    tells, addr = _Tells(), f"unix:{tmp_path}/there.sock"
    here = GrpcTransport(raft_id=1, addr="unix:none", channel=_dial)
    there = GrpcTransport(raft_id=2, addr=addr, channel=_dial)
    here.update_members({2: Member(raft_id=2, node_id="n2", addr=addr)})
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        running = [
            tasks.create_task(here.run(tells.ignore, tells.ignore, tells.ignore)),
            tasks.create_task(there.run(heard.put_nowait, tells.ignore, tells.ignore)),
        ]
        for term in (1, 2, 3):
            server = grpc.aio.server()
            raft_pb2_grpc.add_RaftServicer_to_server(RaftServicer(there), server)
            server.add_insecure_port(addr)
            await server.start()
            await asyncio.sleep(0)
            word = Heartbeat(commit=0)
            here.send([Message(cluster="c1", sender=1, to=2, term=term, incarnation=1, body=word)])
            assert (await heard.get()).term == term
            ended.clear()
            await server.stop(None)
            await ended.wait()
        for task in running:
            task.cancel()


@pytest.mark.slow
async def test_a_leader_that_dies_is_replaced_before_an_election_time_is_over(
    tmp_path: Path,
) -> None:
    """The others notice the end of its streams."""
    async with _group(tmp_path) as managers:
        rest = managers[1:]
        started = max(each.node._running().ticks for each in rest)
        await managers[0].stop()
        await _until(lambda: _leader(rest) is not None, rest)
        assert max(each.node._running().ticks for each in rest) - started < CONFIG.election_ticks


@pytest.mark.slow
async def test_malformed_streams_are_ended_with_a_reason(tmp_path: Path) -> None:
    """The manager itself is not impressed."""
    async with _group(tmp_path, 1) as managers:
        async with grpc.aio.insecure_channel(managers[0].addr) as channel:
            call = raft_pb2_grpc.RaftStub(channel).Messages(iter([raft_pb2.RaftMessage()]))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await managers[0].node.propose(b"still here")
