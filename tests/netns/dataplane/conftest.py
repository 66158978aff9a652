"""A small world for data plane tests: nodes on an underlay, containers, a Docker-like node."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.dataplane import Endpoint, NetnsRef, Network, Peer, Settings, Subnet

ROOT = Path(__file__).parents[3]
CHILD = Path(__file__).with_name("child.py")


class Child:
    """A process in a namespace of its own, called like an object."""

    def __init__(self, role: str) -> None:
        self.process = self.spawn(role)
        self.call("sh", "true")  # its namespace exists from here on

    @staticmethod
    def spawn(role: str) -> Any:
        """Start the process; a slow machine forks instead."""
        return subprocess.Popen(
            [sys.executable, str(CHILD), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    @property
    def netns(self) -> NetnsRef:
        """Its network namespace."""
        return NetnsRef.of_pid(self.process.pid)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a function of child.py and return (or raise) what it does."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        data = pickle.dumps((name, args, kwargs))
        self.process.stdin.write(struct.pack("!I", len(data)) + data)
        self.process.stdin.flush()
        head = self.process.stdout.read(4)
        assert head, f"the child process ended during {name}"
        good, value = pickle.loads(self.process.stdout.read(struct.unpack("!I", head)[0]))
        if not good:
            raise value
        return value

    def ping(self, address: object, **kwargs: Any) -> int:
        """Ping and return the number of answers."""
        got: int = self.call("ping", str(address), **kwargs)
        return got

    def sh(self, command: str) -> str:
        """Run a shell command in its namespace."""
        text: str = self.call("sh", command)
        return text

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.close()

    def close(self) -> None:
        """Let it end."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


class Node(Child):
    """A host on the underlay, with a run directory for a data plane."""

    def __init__(self, number: int, run_dir: Path, *, v6: bool) -> None:
        super().__init__("node")
        self.running = False
        text = f"2001:db8::{number}" if v6 else f"192.0.2.{number}"
        self.vtep = ipaddress.ip_address(text)
        self.settings = Settings(
            vtep=self.vtep, run_dir=run_dir, check_interval=3600, raise_limits=False
        )

    def start(self) -> None:
        """Start a data plane."""
        self.call("plane_start", self.settings)
        self.running = True

    def plane(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the data plane."""
        return self.call("plane", name, *args, **kwargs)

    def restart(self) -> None:
        """Stop the data plane and start another."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Stop the data plane in good order."""
        self.call("plane_stop")
        self.running = False


class World:
    """Makes nodes, containers and the records that connect them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.children: list[Child] = []
        self.nodes: list[Node] = []
        self.endpoints: dict[str, tuple[Node, Endpoint]] = {}
        self.serial = 0

    def pair(
        self, *, v6: bool = False, mtu: int = 1500, planes: int = 2, shortcuts: bool = True
    ) -> tuple[Node, Node]:
        """Return two nodes joined by a veth; the first ``planes`` of them run a data plane."""
        pair = []
        for number in (1, 2):
            run_dir = self.directory / f"node{len(self.nodes) + 1}"
            run_dir.mkdir()
            node = Node(number, run_dir, v6=v6)
            node.settings = replace(node.settings, shortcuts=shortcuts)
            self.nodes.append(node)
            self.children.append(node)
            pair.append(node)
        one, two = pair
        one.sh(f"ip link add eth0 mtu {mtu} type veth peer name eth0 netns {two.process.pid}")
        for node in pair:
            prefix = 64 if v6 else 24
            nodad = "nodad" if v6 else ""
            node.sh(
                f"ip link set eth0 mtu {mtu} up; ip addr add {node.vtep}/{prefix} dev eth0 {nodad}"
            )
        for node in pair[:planes]:
            node.start()
        return one, two

    def site(
        self, count: int = 2, *, v6: bool = False, port: int = 4789, planes: int = 2
    ) -> tuple[Child, list[Node]]:
        """Return a switch and ``count`` nodes on it, node n at port ``p<n>``."""
        hub = self.box()
        hub.sh("ip link add br0 type bridge; ip link set br0 up")
        found = []
        for number in range(1, count + 1):
            run_dir = self.directory / f"node{len(self.nodes) + 1}"
            run_dir.mkdir()
            node = Node(number, run_dir, v6=v6)
            node.settings = replace(node.settings, port=port)
            self.nodes.append(node)
            self.children.append(node)
            found.append(node)
            suffix = "/64 dev eth0 nodad" if v6 else "/24 dev eth0"
            hub.sh(
                f"ip link add p{number} type veth peer name eth0 netns {node.process.pid}; "
                f"ip link set p{number} master br0 up"
            )
            node.sh(f"ip link set eth0 up; ip addr add {node.vtep}{suffix}")
            if number <= planes:
                node.start()
        return hub, found

    def box(self) -> Child:
        """Return a container: a process in a namespace where not even lo is up."""
        child = Child("box")
        self.children.append(child)
        return child

    def endpoint(
        self, network: Network, box: Child, *addresses: str, ifname: str = "eth0"
    ) -> Endpoint:
        """Return an endpoint record, MAC made as Docker makes it."""
        self.serial += 1
        parsed = tuple(ipaddress.ip_interface(address) for address in addresses)
        tail = parsed[0].ip.packed[-4:]
        return Endpoint(
            id=f"{self.serial:012x}".ljust(64, "0"),
            network_id=network.id,
            container=f"c{self.serial}",
            netns=box.netns,
            ifname=ifname,
            mac="02:42:" + tail.hex(":"),
            addresses=parsed,
        )

    def plug(
        self, node: Node, network: Network, *addresses: str, box: Child | None = None, **kwargs: Any
    ) -> Child:
        """Plug a (new) container into a network on a node and return it."""
        box = box or self.box()
        endpoint = self.endpoint(network, box, *addresses, **kwargs)
        node.plane("plug", endpoint)
        self.endpoints[endpoint.id] = (node, endpoint)
        return box

    def gossip(self) -> None:
        """Tell every node with the network about every endpoint, as gossip would."""
        for owner, endpoint in self.endpoints.values():
            for node in self.nodes:
                if node is owner or not node.running:
                    continue
                for peer in self.peers_of(owner, endpoint):
                    node.plane("set_peer", peer)

    @staticmethod
    def peers_of(owner: Node, endpoint: Endpoint) -> list[Peer]:
        """Return the peer records another node gets about an endpoint."""
        return [
            Peer(
                network_id=endpoint.network_id,
                ip=address.ip,
                prefixlen=address.network.prefixlen,
                mac=endpoint.mac,
                vtep=owner.vtep,
            )
            for address in endpoint.addresses
        ]

    def successor(self, node: Node) -> Node:
        """Kill a node's process as a crash would; return another in the same namespace."""
        heir = Node(int(str(node.vtep)[-1]), node.settings.run_dir, v6=node.vtep.version == 6)
        heir.settings = node.settings
        heir.call("join", node.process.pid)
        node.kill()
        self.children.append(heir)
        self.nodes[self.nodes.index(node)] = heir
        for name, (owner, endpoint) in self.endpoints.items():
            if owner is node:
                self.endpoints[name] = (heir, endpoint)
        return heir

    def close(self) -> None:
        """Remove everything, also after a failed test."""
        with contextlib.ExitStack() as closing:
            for child in reversed(self.children):
                closing.callback(child.close)
                closing.callback(_destroy, child)
        for directory in self.directory.iterdir():
            kept = directory / "netns"
            if kept.exists():  # a test failed half-way
                for path in kept.iterdir():
                    subprocess.run(["umount", "-l", str(path)], check=False)
                subprocess.run(["umount", "-l", str(kept)], check=False)
        shutil.rmtree(self.directory)


def _destroy(child: Child) -> None:
    if child.process.poll() is None and isinstance(child, Node):
        # There may be no data plane, or the test may have killed it.
        with contextlib.suppress(IndexError, AssertionError):
            child.plane("destroy")


def network_of(number: int = 1, *cidrs: str, **kwargs: Any) -> Network:
    """Return a network; the i-th IPv4 range gets VNI 4096 + 16 * number + i."""
    subnets = []
    for i, cidr in enumerate(cidrs or (f"10.0.{number}.0/24",)):
        parsed = ipaddress.ip_network(cidr)
        vni = 4096 + 16 * number + i if parsed.version == 4 else None
        subnets.append(Subnet(cidr=parsed, gateway=parsed.network_address + 1, vni=vni))
    return Network(
        id=f"net{number}".ljust(25, "x"), name=f"net{number}", subnets=tuple(subnets), **kwargs
    )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty world; everything made in it is gone afterwards."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    directory = tmp_path / "w"
    directory.mkdir()
    made = World(directory)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def network() -> Any:
    """The maker of network records."""
    return network_of
