"""The data plane's small world, its nodes with a balancer on top."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import sys
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

    def service(self, vip: str, *backends: str, serving: bool = True, on: str = "") -> None:
        """Tell both nodes of backends; those on ``on`` (a node's name) are local there."""
        for node in (self.one, self.two):
            for text in backends:
                ip = ipaddress.ip_address(text)
                backend = Backend(vip=ipaddress.ip_address(vip), ip=ip, serving=serving)
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
