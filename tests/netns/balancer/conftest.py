"""The data plane's small world, its nodes with a balancer on top."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from agent.balancer import Backend

HERE = Path(__file__).parent
CHILD = HERE / "child.py"


def _load(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look here
    spec.loader.exec_module(module)
    return module


dataplane_world = _load(HERE.parent / "dataplane" / "conftest.py", "dataplane_world")
dataplane_world.CHILD = CHILD


class Mesh:
    """Two nodes on one network with their balancers, containers, and records as gossip tells them.

    Args:
        world: to live in.
        net: the network.
    """

    def __init__(self, world: Any, net: Any) -> None:
        self.world = world
        self.net = net
        self.one, self.two = world.pair()
        for node in (self.one, self.two):
            node.plane("put_network", net)
            node.call("balancer_start")
            self.balance(node, "open", net.id)

    def balance(self, node: Any, name: str, *args: Any) -> Any:
        """Call a method of a node's balancer, and wait until it has applied what it knows."""
        return node.call("balance", name, *args)

    def box(self, node: Any, *addresses: str) -> Any:
        """Return a container on a node."""
        made = self.world.plug(node, self.net, *addresses)
        self.world.gossip()
        return made

    def service(self, vip: str, *backends: str, serving: bool = True, **more: Any) -> None:
        """Tell both nodes of backends, with further fields of :class:`Backend`."""
        for node in (self.one, self.two):
            for text in backends:
                ip = ipaddress.ip_address(text)
                front = ipaddress.ip_address(vip)
                backend = Backend(vip=front, ip=ip, serving=serving, **more)
                self.balance(node, "put", self.net.id, f"{vip} {text}", backend)

    def local(self, node: Any, *backends: str) -> None:
        """Say which backends are on a node."""
        for text in backends:
            ip = ipaddress.ip_address(text)
            gateway = self.net.subnet_of(ip).gateway
            self.balance(node, "set_local", self.net.id, ip, gateway)

    def gone(self, vip: str, *backends: str) -> None:
        """Tell both nodes that backends are gone."""
        for node in (self.one, self.two):
            for text in backends:
                self.balance(node, "remove", self.net.id, f"{vip} {text}")

    def await_no_flows(self, backend: str) -> None:
        """Wait until no connection leads to a backend: its ends take a moment to close."""
        ips = [ipaddress.ip_address(backend)]
        for _ in range(300):
            nodes = (self.one, self.two)
            if not any(self.balance(node, "flows", self.net.id, ips) for node in nodes):
                return
            time.sleep(0.01)
        pytest.fail(f"flows to {backend} do not end")

    def await_drift(self, node: Any, which: int, count: int = 1) -> None:
        """Wait until a node's balancer (0) or mesh (1) has found and mended a foreign change."""
        for _ in range(500):
            if node.call("drifts")[which] >= count:
                break
            time.sleep(0.01)
        else:
            pytest.fail("nobody notices")
        self.balance(node, "vips", self.net.id)

    def inside(self, node: Any, command: str) -> str:
        """Run a command in the network's router."""
        path = node.settings.run_dir / "netns" / self.net.id[:12]
        text: str = node.sh(f"nsenter --net={path} sh -ec {command!r}")
        return text


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    """Two nodes, one network with 10.0.1.0/24 and fd00:1::/64."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    directory = tmp_path / "w"
    directory.mkdir()
    world = dataplane_world.World(directory)
    try:
        yield Mesh(world, dataplane_world.network_of(1, "10.0.1.0/24", "fd00:1::/64"))
    finally:
        world.close()
