"""A full node: what attaching costs as it fills, that everybody is reached, and that it restarts."""

from __future__ import annotations

import ipaddress
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.dataplane import Endpoint, NetnsRef, Peer, Wanted, preflight

pytestmark = [pytest.mark.netns, pytest.mark.slow]

FEW, MANY, PEERS = 20, 1500, 5000


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


def peers_of(net: Any, count: int, vtep: str) -> list[Peer]:
    """Return records of containers that nobody has."""
    first = net.subnets[0].cidr.network_address + 20000
    return [
        Peer(
            network_id=net.id,
            ip=first + i,
            prefixlen=16,
            mac="02:42:" + (first + i).packed.hex(":"),
            vtep=ipaddress.ip_address(vtep),
        )
        for i in range(count)
    ]


@contextmanager
def raised_limits() -> Iterator[None]:
    """Do to this host what an agent's preflight does, and take it back.

    Every namespace's neighbours count against one limit, 1024 by default.
    """
    files = [preflight._PROC / path for path, _ in preflight.LIMITS]
    before = [(file, file.read_text("ascii")) for file in files if file.exists()]
    try:
        assert {one.level for one in preflight._limits(raise_them=True)} <= {"ok", "raised"}
        yield
    finally:
        for file, text in before:
            file.write_text(text, "ascii")


@pytest.fixture
def large_host() -> Iterator[None]:
    """A host whose limits are raised."""
    with raised_limits():
        yield


@pytest.mark.usefixtures("large_host")
def test_fifteen_hundred_containers_on_one_network_and_host(
    world: Any, network: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All reach their neighbour and a container on another host, and it them; a restart loses nothing.

    Attaching costs about the same from the first to the last.
    """
    net = network(1, "10.7.0.0/16")
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", net)
    far = world.plug(two, net, "10.7.0.3/16")
    directory = tmp_path / "boxes"
    directory.mkdir()
    paths = one.call("namespaces", MANY, str(directory))
    try:
        endpoints = endpoints_of(net, paths)
        took = one.call("timed_plugs", endpoints)
        strangers = peers_of(net, PEERS, "192.0.2.9")
        known = [*world.peers_of(two, world.endpoints[next(iter(world.endpoints))][1]), *strangers]
        start = time.perf_counter()
        assert one.plane("set_peers", net.id, known) == ()
        programmed = time.perf_counter() - start
        mine = [peer for endpoint in endpoints for peer in world.peers_of(one, endpoint)]
        assert two.plane("set_peers", net.id, mine) == ()
        addresses = [str(endpoint.addresses[0].ip) for endpoint in endpoints]
        ring = list(zip(paths, [*addresses[1:], addresses[0]], strict=True))
        assert one.call("reach", ring) == []
        assert one.call("reach", [(path, "10.7.0.3") for path in paths]) == []
        assert all(far.ping(addresses[i]) for i in (0, MANY // 2, MANY - 1))
        far.call("ping_start", addresses[MANY // 2])
        start = time.perf_counter()
        one.restart()
        report = one.plane(
            "reconcile", Wanted(networks=(net,), endpoints=tuple(endpoints), peers=tuple(known))
        )
        again = time.perf_counter() - start
        sent, got = far.call("ping_stop")
        assert (len(report.adopted), report.operations, report.failed) == (MANY, 0, ())
        assert sent == got > 0
        start = time.perf_counter()
        assert one.plane("check").drift == 0
        checked = time.perf_counter() - start
        start = time.perf_counter()
        one.plane("destroy")
        gone = time.perf_counter() - start
    finally:
        one.call("drop_namespaces", paths)
    early = statistics.median(took[:FEW]) * 1000
    late = statistics.median(took[-FEW:]) * 1000
    with capsys.disabled():
        print(  # noqa: T201  # the figures are what this test is for
            f"\n  attach: {early:.1f} ms at {FEW}, {late:.1f} ms at {MANY}; {PEERS} peers: "
            f"{programmed * 1e6 / PEERS:.0f} us each; restart and reconcile: {again:.1f} s, "
            f"{sent - got} of {sent} packets lost; check: {checked:.1f} s; destroy: {gone:.1f} s"
        )
    # Generous: the machine may be busy. A quadratic step shows as a factor of a hundred.
    assert late < 5 * early + 20
