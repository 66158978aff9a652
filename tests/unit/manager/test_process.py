"""The process as the agent starts it: readiness, signals, kill -9, words on failure."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from manager.notify import Notifier
from swarm.api.docker.swarmkit import control_pb2, control_pb2_grpc

pytestmark = pytest.mark.slow


class Process:
    """One ``python -m manager`` and the socket it notifies."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "s").mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{probe.getsockname()[1]}"
        self.configure()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.notify.bind(str(directory / "n"))
        self.process: asyncio.subprocess.Process | None = None

    def configure(self, **more: Any) -> None:
        config = {"listen_addr": self.address, "advertise_addr": self.address, **more}
        (self.directory / "s" / "manager.json").write_text(json.dumps(config))

    async def start(self, *arguments: str) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "manager",
            "--state-dir",
            str(self.directory / "s"),
            "--run-dir",
            str(self.directory / "r"),
            *arguments,
            env={**os.environ, "NOTIFY_SOCKET": str(self.directory / "n")},
            stdin=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def said(self) -> str:
        """Return the next notification."""
        async with asyncio.timeout(20):
            return (await asyncio.get_running_loop().sock_recv(self.notify, 8192)).decode()

    async def ended(self) -> tuple[int, str]:
        """Wait for the end; return exit code and what stood on standard error."""
        assert self.process is not None
        async with asyncio.timeout(20):
            _, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, errors.decode()

    async def networks(self) -> dict[str, str]:
        """Return ids of networks by name, over the local socket."""
        path = self.directory / "r" / "manager" / "control.sock"
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            answer = await stub.ListNetworks(control_pb2.ListNetworksRequest(), timeout=10)
        return {each.spec.annotations.name: each.id for each in answer.networks}

    async def worker_token(self) -> str:
        """Return the token workers join with."""
        path = self.directory / "r" / "manager" / "control.sock"
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            stub = control_pb2_grpc.ControlStub(channel)
            answer = await stub.ListClusters(control_pb2.ListClustersRequest(), timeout=10)
        return str(answer.clusters[0].root_ca.join_tokens.worker)

    async def create(self, name: str, *, attachable: bool = False) -> None:
        path = self.directory / "r" / "manager" / "control.sock"
        request = control_pb2.CreateNetworkRequest()
        request.spec.annotations.name = name
        request.spec.attachable = attachable
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            await control_pb2_grpc.ControlStub(channel).CreateNetwork(request, timeout=10)


@pytest.fixture
async def process(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Process]:
    """A process that is not started yet."""
    made = Process(tmp_path_factory.mktemp("p"))
    try:
        yield made
    finally:
        made.notify.close()
        if made.process is not None and made.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                made.process.kill()
            await made.process.communicate()


async def test_state_survives_kill_nine_and_sigterm_ends_well(process: Process) -> None:
    await process.start()
    assert (await process.said()).startswith("READY=1\nSTATUS=serving on ")
    await process.create("web")
    before = await process.networks()
    assert process.process is not None
    process.process.send_signal(signal.SIGKILL)
    assert (await process.ended())[0] == -signal.SIGKILL

    await process.start()
    assert (await process.said()).startswith("READY=1")
    assert await process.networks() == before
    assert before.keys() == {"ingress", "web"}
    process.process.send_signal(signal.SIGTERM)
    assert await process.said() == "STOPPING=1"
    code, errors = await process.ended()
    assert code == 0, errors
    assert "Traceback" not in errors


async def test_an_engine_outlives_a_killed_manager(
    process: Process, make_engine: Callable[[str], Any]
) -> None:
    """Join, attach, kill -9, register again: identity, task and address are still there."""
    await process.start()
    await process.said()
    await process.create("web", attachable=True)
    engine = await make_engine(process.address).join(await process.worker_token())
    session = await engine.register()
    task = await engine.attach("web")
    await session.assignments.until(lambda _: task in session.known())
    await engine.report(session.id, task, 512)
    address = session.known()[task].networks[0].addresses[0]
    assert process.process is not None
    process.process.kill()
    await process.ended()
    await session.session.until(lambda j: j.end)
    await session.close()

    await process.start()
    await process.said()
    again = await engine.register(session.id)
    assert again.id != session.id
    assert again.known()[task].networks[0].addresses[0] == address
    await engine.detach(task)
    await again.assignments.until(lambda _: not again.known())


async def test_the_sockets_are_for_root_alone(process: Process) -> None:
    await process.start()
    await process.said()
    directory = process.directory / "r" / "manager"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert (directory / "control.sock").stat().st_mode & 0o777 == 0o600


async def test_a_taken_port_is_said_before_anything_is_founded(process: Process) -> None:
    host, port = process.address.split(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        await process.start()
        said = await process.said()
        code, errors = await process.ended()
    assert code == 1
    assert said.removeprefix("STATUS=") == errors.strip().splitlines()[-1]
    assert f"cannot listen on {process.address}" in said
    assert not (process.directory / "s" / "raft" / "raft.db").exists()
    await process.start()
    assert (await process.said()).startswith("READY=1")


async def test_a_wrong_configuration_is_said_in_one_line(process: Process) -> None:
    process.configure(colour="blue")
    await process.start()
    assert await process.said() == "STATUS=unknown key in the manager configuration: colour"
    assert (await process.ended())[0] == 1


async def test_a_locked_manager_asks_for_its_key_by_exit_code(process: Process) -> None:
    from swarm.api.docker.swarmkit import ca_pb2, ca_pb2_grpc
    from swarm.identity.unlock import format_unlock_key

    process.configure(autolock=True)
    await process.start()
    await process.said()
    path = process.directory / "r" / "manager" / "control.sock"
    async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
        answer = await ca_pb2_grpc.CAStub(channel).GetUnlockKey(ca_pb2.GetUnlockKeyRequest())
    assert process.process is not None
    process.process.send_signal(signal.SIGTERM)
    await process.said()
    await process.ended()

    await process.start()
    assert "locked" in await process.said()
    assert (await process.ended())[0] == 3
    await process.start("--unlock")
    assert process.process.stdin is not None
    process.process.stdin.write(f"{format_unlock_key(answer.unlock_key)}\n".encode())
    assert (await process.said()).startswith("READY=1")


def test_nobody_to_notify_is_fine(tmp_path: Path) -> None:
    Notifier(None).ready("x")
    Notifier(str(tmp_path / "nobody")).ready("x")
    Notifier("@overswarm-test-nobody").stopping()


def test_a_status_is_one_line(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        Notifier(str(tmp_path / "n")).status("a\nREADY=1\nb")
        assert listener.recv(100) == b"STATUS=a READY=1 b"
