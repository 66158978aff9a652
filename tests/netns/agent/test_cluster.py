"""One manager and one worker, real daemons in two network namespaces on one bridge."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2, control_pb2_grpc
from swarm.api.overswarm.v1 import local_pb2, local_pb2_grpc
from swarm.model import Annotations, Driver, NetworkSpec

pytestmark = [pytest.mark.netns, pytest.mark.lab, pytest.mark.slow]

PATIENCE = 25.0
TAG = f"a{os.getpid() % 100000:x}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)


@dataclass
class Host:
    """A namespace with a daemon in it."""

    name: str
    address: str
    home: Path
    process: subprocess.Popen[bytes] | None = None
    channel: grpc.Channel | None = None
    extra: list[str] = field(default_factory=list)

    @property
    def netns(self) -> str:
        """Name of the namespace."""
        return f"{TAG}{self.name}"

    def start(self) -> None:
        """Start the daemon, and wait for its socket."""
        self.home.mkdir(exist_ok=True)
        argv = [sys.executable, "-m", "agent", "--state-dir", f"{self.home}/state"]
        argv += [
            "--run-dir",
            f"{self.home}/run",
            "--hostname",
            self.name,
            "--gossip-timing",
            "local",
        ]
        with (self.home / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.netns}", *argv],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.channel = grpc.insecure_channel(f"unix:{self.home}/run/swarm.sock")
        self.info(wait=True)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the daemon."""
        if self.channel is not None:
            self.channel.close()
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE)
            self.process = None

    @property
    def local(self) -> local_pb2_grpc.LocalStub:
        """The local API."""
        assert self.channel is not None
        return local_pb2_grpc.LocalStub(self.channel)

    @property
    def control(self) -> control_pb2_grpc.ControlStub:
        """The cluster's API."""
        assert self.channel is not None
        return control_pb2_grpc.ControlStub(self.channel)

    def info(self, *, wait: bool = False) -> local_pb2.InfoResponse:
        """Ask the daemon."""
        return self.local.Info(local_pb2.InfoRequest(), wait_for_ready=wait, timeout=PATIENCE)

    def active(self) -> bool:
        """Whether the node has its session and its gossip."""
        if self.info().lifecycle != local_pb2.NODE_LIFECYCLE_ACTIVE:
            return False
        try:
            self.local.GossipStatus(local_pb2.GossipStatusRequest())
        except grpc.RpcError:
            return False
        return True

    def namespace(self, name: str) -> str:
        """Make a namespace for a foreign workload; return its path."""
        full = f"{self.netns}{name}"
        _ip("netns", "add", full)
        self.extra.append(full)
        return f"/run/netns/{full}"

    def attach(self, name: str, network: str = "backend") -> local_pb2.LocalEndpoint:
        """Make a namespace and put it on a network."""
        return self.local.AttachNamespace(
            local_pb2.AttachNamespaceRequest(
                netns_path=self.namespace(name),
                network=local_pb2.NetworkWish(network=network),
                name=name,
            )
        ).endpoint

    def clean(self) -> None:
        """Remove everything."""
        try:
            self.stop()
        finally:
            try:
                pid = json.loads((self.home / "run" / "manager.pid").read_bytes())["pid"]
                os.kill(pid, signal.SIGKILL)
            except (OSError, ValueError, KeyError):
                pass
            store = str(self.home / "run" / "netns")
            subprocess.run(["umount", "-R", store], check=False, capture_output=True)
            for netns in (*self.extra, self.netns):
                subprocess.run(["ip", "netns", "del", netns], check=False, capture_output=True)


def _inside(netns_path: str, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nsenter", f"--net={netns_path}", *argv], capture_output=True, text=True, check=False
    )


def _resolve(netns_path: str, name: str) -> str:
    """Ask the name server of a namespace, as its own resolver would."""
    code = (
        "import dns.resolver; r = dns.resolver.Resolver(configure=False);"
        "r.nameservers = ['127.0.0.11']; r.lifetime = 3;"
        f"print(r.resolve({name!r}, 'A')[0])"
    )
    return _inside(netns_path, sys.executable, "-c", code).stdout.strip()


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """A manager-to-be and a worker-to-be."""
    bridge = f"{TAG}br"
    with tempfile.TemporaryDirectory(prefix="sw") as directory:  # socket paths must stay short
        made = [
            Host(name="m", address="192.0.2.1", home=Path(directory) / "m"),
            Host(name="w", address="192.0.2.2", home=Path(directory) / "w"),
        ]
        _ip("link", "add", bridge, "type", "bridge")
        try:
            _ip("link", "set", bridge, "up")
            for host in made:
                _ip("netns", "add", host.netns)
                veth = f"{TAG}v{host.name}"
                _ip(
                    "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", host.netns
                )
                _ip("link", "set", veth, "master", bridge, "up")
                _ip("-n", host.netns, "addr", "add", f"{host.address}/24", "dev", "eth0")
                _ip("-n", host.netns, "link", "set", "eth0", "up")
                _ip("-n", host.netns, "link", "set", "lo", "up")
                host.start()
            yield made[0], made[1]
        finally:
            for host in made:
                host.clean()
            subprocess.run(["ip", "link", "del", bridge], check=False, capture_output=True)


def test_life_of_a_cluster(hosts: tuple[Host, Host]) -> None:
    """Init, join, network, attach, ping, names, a killed agent without a lost packet, leave."""
    manager, worker = hosts
    assert manager.local.Init(local_pb2.InitRequest()).node_id
    (cluster,) = manager.control.ListClusters(control_pb2.ListClustersRequest()).clusters
    worker.local.Join(
        local_pb2.JoinRequest(
            remote_addrs=[manager.address], token=cluster.root_ca.join_tokens.worker
        )
    )
    spec = NetworkSpec(
        annotations=Annotations(name="backend"),
        attachable=True,
        driver_config=Driver(name="overlay"),
    )
    request = control_pb2.CreateNetworkRequest()
    request.spec.MergeFromString(codec.dumps(spec))
    manager.control.CreateNetwork(request)

    one, two = manager.attach("one"), worker.attach("two")
    ip_one, ip_two = (each.addresses[0].partition("/")[0] for each in (one, two))
    _until(lambda: _resolve(one.netns, "two") == ip_two, "the name of the other host's container")
    assert _inside(two.netns, "ping", "-c", "1", "-W", "2", ip_one).returncode == 0
    assert _resolve(two.netns, "one.backend") == ip_one

    for host in (worker, manager):
        ping = subprocess.Popen(
            ["nsenter", f"--net={one.netns}", "ping", "-q", "-i", "0.05", "-w", "4", ip_two],
            stdout=subprocess.PIPE,
            text=True,
        )
        host.stop(signal.SIGKILL)
        host.start()
        _until(host.active, "the node's return")
        output, _ = ping.communicate()
        assert " 0% packet loss" in output, f"while {host.name} was killed: {output}"
        endpoints = host.local.ListEndpoints(local_pb2.ListEndpointsRequest()).local
        assert [each.endpoint_id for each in endpoints] == [
            (one if host is manager else two).endpoint_id
        ]
    _until(lambda: _resolve(two.netns, "one") == ip_one, "names after the restarts")

    # No manager anywhere: a restarted worker goes on with what it has on record.
    manager.stop(signal.SIGKILL)
    os.kill(json.loads((manager.home / "run" / "manager.pid").read_bytes())["pid"], signal.SIGKILL)
    worker.stop(signal.SIGKILL)
    worker.start()
    _until(lambda: _resolve(two.netns, "one") == ip_one, "names without a manager")
    assert _inside(two.netns, "ping", "-c", "1", "-W", "2", ip_one).returncode == 0
    assert worker.info().lifecycle == local_pb2.NODE_LIFECYCLE_PENDING
    assert f"{manager.address}:2377" in worker.info().error
    third = worker.namespace("three")
    with pytest.raises(grpc.RpcError) as error:
        worker.local.AttachNamespace(
            local_pb2.AttachNamespaceRequest(
                netns_path=third, network=local_pb2.NetworkWish(network="backend"), name="three"
            )
        )
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    manager.start()
    _until(worker.active, "the worker's return to its manager")

    with pytest.raises(grpc.RpcError) as error:
        worker.control.ListNodes(control_pb2.ListNodesRequest())
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    worker.local.Leave(local_pb2.LeaveRequest())
    assert worker.info().lifecycle == local_pb2.NODE_LIFECYCLE_INACTIVE
    assert list((worker.home / "state").iterdir()) == []
    assert "eth0" not in _inside(two.netns, "ip", "link").stdout
    (task,) = manager.control.ListTasks(control_pb2.ListTasksRequest()).tasks
    assert task.id == one.attachment_id

    with pytest.raises(grpc.RpcError) as error:
        manager.local.Leave(local_pb2.LeaveRequest())
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    manager.local.Leave(local_pb2.LeaveRequest(force=True))
    assert list((manager.home / "state").iterdir()) == []
    assert list((manager.home / "run" / "netns").glob("*")) == []
