"""Throughput and latency of an encrypted overlay against ESP and VXLAN that are made by hand.

Where this kernel has no ESP it runs in an emulated machine under Debian's stock kernel: only the shares of
the floor mean anything there, the figures themselves are those of an emulator.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # in the guest this is the program

from kernel import machine
from netns.dataplane.conftest import Child, World

from agent.dataplane import IpsecKey
from bench import traffic
from bench.table import Row, SkippedError
from swarm.errors import HostError

KEYS = [IpsecKey(lamport=number, key=bytes([number]) * 16) for number in (1, 2, 3)]
AEAD = "'rfc4106(gcm(aes))' 0x000102030405060708090a0b0c0d0e0f10111213 64"
"""As ours: AES-128-GCM, 64-bit ICV."""
GUEST_ROUNDS, GUEST_SECONDS, GUEST_PINGS = 5, 4.0, 300
TIMEOUT = 900


def run() -> Sequence[Row]:
    """Measure here, or in the emulated machine where this kernel lacks ESP."""
    traffic.require_tools()
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
        try:
            return measure(Path(folder) / "here")
        except HostError:
            return _in_guest(Path(folder))


def measure(directory: Path) -> list[Row]:
    """Measure with this kernel.

    Raises:
        HostError: it has no ESP.
    """
    directory.mkdir()
    world = World(directory)
    try:
        ours = _overlay(world)
        bare = _by_hand(world)
        return traffic.compare("encrypted: ", ours, bare, "ESP and VXLAN made by hand")
    finally:
        world.close()


def _overlay(world: World) -> tuple[Any, Any, str]:
    net = traffic.network_of(1, encrypted=True)
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", net)
        node.plane("set_keys", KEYS)
    first = world.plug(one, net, "10.0.1.2/24")
    second = world.plug(two, net, "10.0.1.3/24")
    world.gossip()
    return first, second, "10.0.1.3"


def _by_hand(world: World) -> tuple[Any, Any, str]:
    """The hand-made VXLAN, its UDP port sent through one association each way."""
    one, two = world.nodes[-2:]
    for node in (one, two):
        for source, target, spi in ((one, two, 0x101), (two, one, 0x102)):
            node.sh(
                f"ip xfrm state add src {source.vtep} dst {target.vtep} proto esp spi {spi} "
                f"mode transport aead {AEAD}"
            )
        there = two if node is one else one
        spi = 0x101 if node is one else 0x102
        node.sh(
            f"ip xfrm policy add dir out src {node.vtep} dst {there.vtep} proto udp "
            f"dport {traffic.PORT} tmpl src {node.vtep} dst {there.vtep} proto esp spi {spi} "
            "mode transport"
        )
    return traffic.by_hand(world, mtu=1424)


def _in_guest(folder: Path) -> list[Row]:
    try:
        cache = machine.prepare()
    except machine.UnavailableError as error:
        raise SkippedError(f"this kernel has no ESP, and no other can be had: {error}") from error
    share = folder / "share"
    share.mkdir()
    done = machine.run(
        [sys.executable, str(Path(__file__)), "/run/out/rows.json"],
        cache=cache,
        share=share,
        environment={
            "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin",
            "HOME": "/run",
            "PYTHONPATH": f"{machine.ROOT}:{machine.ROOT / 'tests'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        keep=(Path(sys.prefix),),
        timeout=TIMEOUT,
    )
    report = share / "rows.json"
    if not report.exists():
        raise RuntimeError(
            f"the guest left no result: {done.console[-500:]}\n{done.output[-3000:]}"
        )
    return [Row(**row) for row in json.loads(report.read_text(encoding="utf-8"))]


def main() -> None:
    """Measure in the guest and leave the rows in a file."""
    from kernel.conftest import Forked

    Child.spawn = staticmethod(Forked)  # type: ignore[assignment]  # starting Python anew takes seconds here
    traffic.ROUNDS, traffic.SECONDS, traffic.PINGS = GUEST_ROUNDS, GUEST_SECONDS, GUEST_PINGS
    rows = measure(Path("/run/bench"))
    Path(sys.argv[1]).write_text(json.dumps([asdict(row) for row in rows]), encoding="utf-8")


if __name__ == "__main__":
    main()
