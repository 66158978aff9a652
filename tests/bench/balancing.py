"""Connections and bytes through a virtual address and through the routing mesh, against direct.

Two nodes of ours over one veth. Through a virtual address: a container asks a backend on the other node.
Through the mesh: a client outside of the cluster asks one node, and a backend on the other node answers it
by the way it came. The floor of the first is the same backend under its own address; that of the second a
program on the node itself, asked by the same client over the same link.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netns.balancer.conftest import Mesh, dataplane_world
from netns.balancer.test_mesh import Ingress

from bench.table import Row, progress
from bench.traffic import tcp

ROUNDS = 5
CONNECTIONS = 400
VIP, BACKEND, PORT, IPERF = "10.0.1.200", "10.0.1.12", 8000, 5201


def run() -> Sequence[Row]:
    """Measure both, in turns with their floors."""
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
        world = dataplane_world.World(Path(folder))
        try:
            mesh = Mesh(world, dataplane_world.network_of(1, "10.0.1.0/24", "fd00:1::/64"))
            return [*_virtual(mesh), *_published(Ingress(mesh))]
        finally:
            world.close()


def _virtual(mesh: Mesh) -> list[Row]:
    client = mesh.box(mesh.one, "10.0.1.2/24")
    backend = mesh.box(mesh.two, f"{BACKEND}/24")
    backend.call("answer", BACKEND, "b", PORT)
    mesh.service(VIP, BACKEND)
    floor = "the backend's own address"
    rows = [
        *_rates("virtual address", client, (VIP, PORT), client, (BACKEND, PORT), floor),
        _bytes("virtual address", client, backend, VIP, BACKEND, floor),
    ]
    mesh.gone(VIP, BACKEND)
    return rows


def _published(ingress: Ingress) -> list[Row]:
    address = "10.0.1.22"
    box = ingress.task(ingress.mesh.two, address, "b")
    box.call("steer", "eth0", address, "10.0.1.1")
    ingress.record(ingress.mesh.two, address)
    entry = "198.51.100.1"
    ingress.mesh.one.call("answer", entry, "host", 9000)
    floor = "a program on the node itself"
    return _rates(
        "routing mesh", ingress.client, (entry, 30080), ingress.client, (entry, 9000), floor
    )


def _rates(
    what: str, one: Any, ours: tuple[str, int], other: Any, bare: tuple[str, int], floor: str
) -> list[Row]:
    """Measure connections a second, one after the other: connect, one line, close."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            box, place = ((one, ours), (other, bare))[which]
            found[which].append(box.call("connections_per_second", *place, CONNECTIONS))
    mine, theirs = found
    progress(f"{what}: {statistics.median(mine):.0f} connections/s")
    return [
        Row(
            what=f"connections, {what}",
            value=statistics.median(mine),
            best=max(mine),
            worst=min(mine),
            count=ROUNDS,
            unit="/s",
            floor=statistics.median(theirs),
            floor_name=floor,
        )
    ]


def _bytes(what: str, client: Any, backend: Any, ours: str, bare: str, floor: str) -> Row:
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            # The server is bound to its own address in both cases.
            found[which].append(tcp(client, _Bound(backend, bare), (ours, bare)[which]))
    mine, theirs = found
    progress(f"{what}: {statistics.median(mine):.2f} Gbit/s")
    return Row(
        what=f"TCP, one stream, {what}",
        value=statistics.median(mine) * 1e9 / 8 / 2**20,
        best=max(mine) * 1e9 / 8 / 2**20,
        worst=min(mine) * 1e9 / 8 / 2**20,
        count=ROUNDS,
        unit="MiB/s",
        floor=statistics.median(theirs) * 1e9 / 8 / 2**20,
        floor_name=floor,
    )


class _Bound:
    """A box whose servers listen on one address, whatever address clients are to ask."""

    def __init__(self, box: Any, address: str) -> None:
        self._box, self._address = box, address

    def call(self, name: str, *args: Any) -> Any:
        """Call a function of the box."""
        if name == "start":
            words = list(args[0])
            words[words.index("-B") + 1] = self._address
            return self._box.call(name, words)
        return self._box.call(name, *args)
