"""The local API over its real socket, on a node that is in no cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from agent.api.server import ApiServer
from agent.api.workloads import Wish, Workloads
from agent.daemon import _alone
from agent.discovery.names import NameTable
from agent.discovery.service import Discovery
from agent.node.node import Node
from agent.node.options import NodeSettings
from agent.workload.runtime import Runtime
from swarm.api.docker.swarmkit import control_pb2, control_pb2_grpc
from swarm.api.overswarm.v1 import local_pb2, local_pb2_grpc
from swarm.errors import PreconditionError


@contextlib.asynccontextmanager
async def _serving(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    discovery = Discovery(NameTable(), rng=random.Random(1))
    runtime = Runtime(tmp_path / "run")
    (tmp_path / "run").mkdir()
    node = Node(
        NodeSettings(state_dir=tmp_path / "state", run_dir=tmp_path / "run", hostname="h1"),
        discovery=discovery,
        runtime=runtime,
    )
    workloads = Workloads(runtime, node, random.Random(1))
    path = tmp_path / "s.sock"
    api = ApiServer(path, node=node, workloads=workloads, run_dir=tmp_path / "run")
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        tasks = [group.create_task(node.run())]
        await node.started()
        tasks.append(group.create_task(api.run()))
        await api.ready.wait()
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            yield channel
        for task in tasks:
            task.cancel()


async def test_info_of_a_node_outside(tmp_path: Path) -> None:
    """Inactive, nothing wrong, and the socket is nobody else's."""
    async with _serving(tmp_path) as channel:
        info = await local_pb2_grpc.LocalStub(channel).Info(local_pb2.InfoRequest())
        mode = stat.S_IMODE((tmp_path / "s.sock").stat().st_mode)
    assert info.lifecycle == local_pb2.NODE_LIFECYCLE_INACTIVE
    assert (info.hostname, info.error, info.node_id) == ("h1", "", "")
    assert mode == 0o660
    assert not (tmp_path / "s.sock").exists()


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        (
            "Init",
            local_pb2.InitRequest(advertise_addr="203.0.113.77"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "203.0.113.77 is not an address of this host",
        ),
        (
            "Init",
            local_pb2.InitRequest(advertise_addr="127.0.0.1", data_path_port=80),
            grpc.StatusCode.INVALID_ARGUMENT,
            "data path port 80",
        ),
        (
            "Init",
            local_pb2.InitRequest(advertise_addr="127.0.0.1", default_addr_pools=["10.0.0.1/8"]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "10.0.0.1/8",
        ),
        (
            "Join",
            local_pb2.JoinRequest(remote_addrs=["127.0.0.1"], token="nonsense"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "SWMTKN",
        ),
        ("Join", local_pb2.JoinRequest(), grpc.StatusCode.INVALID_ARGUMENT, "manager address"),
        (
            "Leave",
            local_pb2.LeaveRequest(),
            grpc.StatusCode.FAILED_PRECONDITION,
            "not part of a swarm",
        ),
        (
            "CreateContainer",
            local_pb2.CreateContainerRequest(
                argv=["true"], networks=[local_pb2.NetworkWish(network="n")]
            ),
            grpc.StatusCode.FAILED_PRECONDITION,
            "not a swarm manager",
        ),
        (
            "CreateContainer",
            local_pb2.CreateContainerRequest(argv=["true"], env=["novalue"]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "novalue",
        ),
        (
            "StartContainer",
            local_pb2.StartContainerRequest(container="nope"),
            grpc.StatusCode.NOT_FOUND,
            "nope",
        ),
        (
            "AttachNamespace",
            local_pb2.AttachNamespaceRequest(netns_path="relative"),
            grpc.StatusCode.INVALID_ARGUMENT,
            "absolute path",
        ),
        (
            "GossipStatus",
            local_pb2.GossipStatusRequest(),
            grpc.StatusCode.FAILED_PRECONDITION,
            "gossip is not running",
        ),
    ],
)
async def test_refusals_are_one_clear_sentence_and_leave_nothing(
    tmp_path: Path, method: str, request_: object, code: grpc.StatusCode, words: str
) -> None:
    """A mistake never harms the daemon, and a failed init or join leaves no file."""
    async with _serving(tmp_path) as channel:
        stub = local_pb2_grpc.LocalStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await getattr(stub, method)(request_)
        info = await stub.Info(local_pb2.InfoRequest())
    assert error.value.code() is code
    assert words in (error.value.details() or "")
    assert info.lifecycle == local_pb2.NODE_LIFECYCLE_INACTIVE
    assert not (tmp_path / "state").exists() or not list((tmp_path / "state").iterdir())


async def test_a_failed_join_does_not_touch_foreign_files(tmp_path: Path) -> None:
    """A state directory that holds something else is refused, not emptied."""
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "precious").write_text("x")
    async with _serving(tmp_path) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await local_pb2_grpc.LocalStub(channel).Join(
                local_pb2.JoinRequest(remote_addrs=["127.0.0.1"], token="SWMTKN-1-x-y")
            )
    assert "precious" in (error.value.details() or "")
    assert (tmp_path / "state" / "precious").read_text() == "x"


async def test_control_is_refused_in_the_words_people_know(tmp_path: Path) -> None:
    """Outside of a cluster."""
    async with _serving(tmp_path) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await control_pb2_grpc.ControlStub(channel).ListNodes(control_pb2.ListNodesRequest())
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert 'Use "swarm init" or "swarm join"' in (error.value.details() or "")


def test_wishes_survive_in_the_workloads_spec() -> None:
    """Everything a start needs is in it."""
    wish = Wish(network="n", aliases=("a", "b"), ipv4="10.0.0.5", upstreams=("192.0.2.53",))
    assert Wish.decode(wish.encode()) == wish


def test_two_daemons_on_one_directory(tmp_path: Path) -> None:
    """The second is told who the first is."""
    with (
        _alone(tmp_path),
        pytest.raises(PreconditionError, match=f"process {os.getpid()}"),
        _alone(tmp_path),
    ):
        pass  # pragma: no cover  # never reached
    with _alone(tmp_path):
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o711


def test_without_root_the_daemon_says_why(tmp_path: Path) -> None:
    """One line, exit code 1; in a process of its own, since the daemon sets up logging for good."""
    code = (
        "import os, sys; os.geteuid = lambda: 1000; from agent.daemon import main;"
        f"sys.exit(main(['--state-dir', '{tmp_path}/s', '--run-dir', '{tmp_path}/r']))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "needs root" in ended.stderr
    assert not (tmp_path / "r").exists()
