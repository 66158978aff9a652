"""What attaching and peers cost as a node fills up."""

from __future__ import annotations

import ipaddress
import statistics
import time
from pathlib import Path
from typing import Any

import pytest

from agent.dataplane import Endpoint, NetnsRef, Peer

pytestmark = [pytest.mark.netns, pytest.mark.slow]

FEW, MANY, PEERS = 10, 300, 3000


def endpoints_of(net: Any, paths: list[str]) -> list[Endpoint]:
    """Return an endpoint for each namespace."""
    found = []
    for i, path in enumerate(paths):
        ip = net.subnets[0].cidr.network_address + 10 + i
        found.append(
            Endpoint(
                id=f"{i:012x}".ljust(64, "0"),
                network_id=net.id,
                container=f"c{i}",
                netns=NetnsRef(path=path),
                ifname="eth0",
                mac="02:42:" + ip.packed.hex(":"),
                addresses=(ipaddress.ip_interface(f"{ip}/16"),),
            )
        )
    return found


def test_attach_stays_flat_as_the_node_fills(
    world: Any, network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The 300th attach costs about what the 10th does; everything adopts and goes quickly."""
    net = network(1, "10.7.0.0/16")
    one, _ = world.pair(planes=1)
    one.plane("put_network", net)
    directory = tmp_path / "boxes"
    directory.mkdir()
    paths = one.call("namespaces", MANY, str(directory))
    try:
        endpoints = endpoints_of(net, paths)
        took = one.call("timed_plugs", endpoints)
        start = time.perf_counter()
        assert one.plane("check").drift == 0
        checked = time.perf_counter() - start
        peers = [
            Peer(
                network_id=net.id,
                ip=(ip := net.subnets[0].cidr.network_address + 20000 + i),
                prefixlen=16,
                mac="02:42:" + ip.packed.hex(":"),
                vtep=ipaddress.ip_address("192.0.2.2"),
            )
            for i in range(PEERS)
        ]
        start = time.perf_counter()
        one.plane("set_peers", net.id, peers)
        programmed = time.perf_counter() - start
        start = time.perf_counter()
        one.plane("destroy")
        gone = time.perf_counter() - start
    finally:
        one.call("drop_namespaces", paths)
    early = statistics.median(took[:FEW]) * 1000
    late = statistics.median(took[-FEW:]) * 1000
    with capsys.disabled():
        print(  # noqa: T201  # the figures are what this test is for
            f"\n  attach: {early:.1f} ms at {FEW}, {late:.1f} ms at {MANY}; check of {MANY}: "
            f"{checked * 1000:.0f} ms; {PEERS} peers: {programmed * 1e6 / PEERS:.0f} us each; "
            f"destroy: {gone * 1000:.0f} ms"
        )
    # Generous: the machine may be busy. A quadratic step shows as a factor of thirty.
    assert late < 5 * early + 20
