"""Real manager processes on loopback, without agents, for measurements."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from swarm.api.docker.swarmkit import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
)
from swarm.identity.certs import ROOT_NAME, Credentials, new_key_and_csr
from swarm.identity.dialer import TlsDialer
from swarm.identity.keystore import KeyStore

READY_SECONDS = 60.0


@dataclass(slots=True, eq=False)
class Managed:
    """One manager process."""

    directory: Path
    address: str
    process: asyncio.subprocess.Process | None = None
    channel: grpc.aio.Channel | None = None
    control: Any = None

    async def start(self, **config: Any) -> None:
        """Start it and wait until it serves."""
        state, run = self.directory / "s", self.directory / "r"
        state.mkdir(parents=True, exist_ok=True)
        if config or not (state / "manager.json").exists():
            full = {"listen_addr": self.address, "advertise_addr": self.address, **config}
            (state / "manager.json").write_text(json.dumps(full))
        (self.directory / "n").unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notify:
            notify.bind(str(self.directory / "n"))
            with (self.directory / "log").open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "manager", "--log-level", "warning"),
                    *("--state-dir", str(state), "--run-dir", str(run)),
                    env={**os.environ, "NOTIFY_SOCKET": str(self.directory / "n")},
                    stderr=log,
                    stdout=log,
                )
            async with asyncio.timeout(READY_SECONDS):
                while not (await _received(notify)).startswith("READY=1"):
                    if self.process.returncode is not None:
                        raise RuntimeError((self.directory / "log").read_text())
        self.channel = grpc.aio.insecure_channel(f"unix:{run}/manager/control.sock")
        self.control = control_pb2_grpc.ControlStub(self.channel)

    async def end(self, *, kill: bool = False) -> None:
        """End it, in good order or not, and wait for that."""
        if self.process is None:
            return
        if self.process.returncode is None:
            self.process.kill() if kill else self.process.terminate()
            await self.process.wait()
        if self.channel is not None:
            await self.channel.close()
        self.process = self.channel = None


async def _received(notify: socket.socket) -> str:
    return (await asyncio.get_running_loop().sock_recv(notify, 8192)).decode()


@dataclass(slots=True)
class Group:
    """Managers that form one swarm."""

    directory: Path
    managers: list[Managed] = field(default_factory=list)

    async def grow(self, count: int) -> None:
        """Have ``count`` managers in all."""
        while len(self.managers) < count:
            made = Managed(self.directory / str(len(self.managers)), f"127.0.0.1:{_free_port()}")
            if self.managers:
                await self._admit(made)
                await made.start(mode="join", join_addrs=[self.managers[0].address])
            else:
                await made.start()
            self.managers.append(made)

    async def _admit(self, made: Managed) -> None:
        """Get a manager's certificate for another one."""
        first = self.managers[0]
        clusters = await first.control.ListClusters(control_pb2.ListClustersRequest())
        cluster = clusters.clusters[0]
        root = Credentials(root_pem=cluster.root_ca.ca_cert)
        dialer = TlsDialer(directory=made.directory / "d", credentials=root)
        dialing = asyncio.create_task(dialer.run())
        key, csr = new_key_and_csr()
        channel = dialer.channel(first.address, server_name=ROOT_NAME)
        stub = ca_pb2_grpc.NodeCAStub(channel)
        issued = await stub.IssueNodeCertificate(
            ca_pb2.IssueNodeCertificateRequest(csr=csr, token=cluster.root_ca.join_tokens.manager)
        )
        answer = await stub.NodeCertificateStatus(
            ca_pb2.NodeCertificateStatusRequest(node_id=issued.node_id)
        )
        await channel.close()
        dialing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await dialing
        KeyStore(made.directory / "s" / "certificates").save(
            Credentials(
                root_pem=root.root_pem, cert_pem=answer.certificate.certificate, key_pem=key
            )
        )

    @property
    def running(self) -> list[Managed]:
        """The managers that run."""
        return [each for each in self.managers if each.process is not None]

    async def leader(self) -> Managed:
        """Return the manager that leads."""
        answer = await self.running[0].control.ListNodes(control_pb2.ListNodesRequest(), timeout=20)
        addr = next(n.manager_status.addr for n in answer.nodes if n.manager_status.leader)
        return next(each for each in self.managers if each.address == addr)

    async def settled(self) -> None:
        """Wait until every manager is reachable."""
        async with asyncio.timeout(READY_SECONDS):
            while True:
                answer = await self.running[0].control.ListNodes(
                    control_pb2.ListNodesRequest(), timeout=20
                )
                states = [
                    n.manager_status.reachability
                    for n in answer.nodes
                    if n.HasField("manager_status")
                ]
                if len(states) == len(self.managers) and set(states) == {2}:
                    return
                await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def managers(count: int) -> AsyncIterator[Group]:
    """Run a swarm of so many managers while the block runs."""
    directory = Path(tempfile.mkdtemp(prefix="ob"))
    group = Group(directory)
    try:
        await group.grow(count)
        await group.settled()
        yield group
    finally:
        for each in group.managers:
            await each.end(kill=True)
        shutil.rmtree(directory)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
