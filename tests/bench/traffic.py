"""Throughput and latency of an overlay against a bare VXLAN that is made by hand.

Both join two namespaces over the same underlay (a veth), in turns. The hand-made one is what a person with
``ip`` would make: a VXLAN device in each namespace, its remote fixed, no router, no rules.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from netns.dataplane.conftest import World, network_of

from agent.dataplane.names import SERVICES_TABLE
from bench.table import Row, SkippedError, progress

ROUNDS = 7
SECONDS = 1.5
PINGS = 1500
DISCARD = 9
BRIDGED = "bridge, VXLAN and veth by hand"
PORT = 4795
"""UDP port of the hand-made tunnel; ours has its own."""


def run() -> Sequence[Row]:
    """Measure TCP, UDP and round trips, in turns."""
    require_tools()
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
        world = World(Path(folder))
        try:
            ours, bare, usual = overlay(world), by_hand(world), bridged(world)
            rows = [
                *compare("", ours, bare, "a VXLAN made by hand"),
                *compare("beside what engines make: ", ours, usual, BRIDGED),
            ]
            serve(world)
            return [*rows, *compare("with a service on the network: ", ours, usual, BRIDGED)]
        finally:
            world.close()


def require_tools() -> None:
    """Refuse where what measures is missing.

    Raises:
        SkippedError: and how to get it.
    """
    lacking = [name for name in ("iperf3",) if shutil.which(name) is None]
    if lacking:
        raise SkippedError(f"needs {' and '.join(lacking)}: apt-get install iperf3")


def overlay(world: World, **more: Any) -> tuple[Any, Any, str]:
    """Return two containers on our overlay, on two nodes, and the second one's address."""
    net = network_of(1, **more)
    one, two = world.pair()
    for node in (one, two):
        node.plane("put_network", net)
    first = world.plug(one, net, "10.0.1.2/24")
    second = world.plug(two, net, "10.0.1.3/24")
    world.gossip()
    return first, second, "10.0.1.3"


def serve(world: World) -> None:
    """Let the network have a service address, and connections tracked: no packet takes a shortcut."""
    net = network_of(1)
    for node in world.nodes[-2:]:
        node.plane("change_vips", net.id, (net.subnets[0].cidr[200],), ())
        node.sh(
            f"nsenter --net={node.settings.run_dir}/netns/{net.id[:12]} nft "
            f"'table inet {SERVICES_TABLE} {{ chain prerouting "
            "{ type nat hook prerouting priority -100; }; }'"
        )


def by_hand(world: World, mtu: int = 1450) -> tuple[Any, Any, str]:
    """Return two namespaces joined by VXLAN between the same nodes, and the second one's address."""
    nodes, boxes = world.nodes[-2:], (world.box(), world.box())
    for i, box in enumerate(boxes):
        here, there = nodes[i], nodes[1 - i]
        here.sh(
            f"ip link add vxb type vxlan id 99 dstport {PORT} local {here.vtep} "
            f"remote {there.vtep} nolearning; ip link set vxb address 02:00:00:00:00:0{i + 1} "
            f"mtu {mtu} netns {box.process.pid}"
        )
        box.sh(
            f"ip link set lo up; ip addr add 10.99.0.{i + 1}/24 dev vxb; ip link set vxb up; "
            f"ip neigh add 10.99.0.{2 - i} lladdr 02:00:00:00:00:0{2 - i} dev vxb"
        )
    return (*boxes, "10.99.0.2")


def bridged(world: World) -> tuple[Any, Any, str]:
    """Return two namespaces joined as engines do it: a veth each, a bridge, a VXLAN device on it."""
    nodes, boxes = world.nodes[-2:], (world.box(), world.box())
    for i, box in enumerate(boxes):
        here, there, bridge = nodes[i], nodes[1 - i], world.box()
        here.sh(
            f"ip link add vxc type vxlan id 98 dstport {PORT + 1} local {here.vtep} proxy; "
            f"ip link set vxc mtu 1450 netns {bridge.process.pid}"
        )
        bridge.sh(
            "ip link add br0 type bridge; ip link set vxc master br0 up; ip link set br0 up; "
            f"ip link add port type veth peer name eth0 address 02:42:0a:62:00:0{i + 1} "
            f"netns {box.process.pid}; ip link set port mtu 1450 master br0 up; "
            f"ip neigh add 10.98.0.{2 - i} lladdr 02:42:0a:62:00:0{2 - i} dev vxc; "
            f"bridge fdb add 02:42:0a:62:00:0{2 - i} dev vxc dst {there.vtep} self permanent"
        )
        box.sh(
            "ip link set lo up; ip link set eth0 mtu 1450 up; "
            f"ip addr add 10.98.0.{i + 1}/24 dev eth0"
        )
    return (*boxes, "10.98.0.2")


def compare(
    kind: str, ours: tuple[Any, Any, str], bare: tuple[Any, Any, str], floor_name: str
) -> list[Row]:
    """Measure both in turns and return the rows."""
    rows: list[Row] = []
    measures: tuple[tuple[str, str, Callable[..., float], bool], ...] = (
        ("TCP, one stream", "Gbit/s", tcp, True),
        ("UDP of 1400 bytes, received", "kpacket/s", udp, True),
        ("UDP of 1400 bytes, processor time of one", "us", datagram, False),
        ("round trip", "us", round_trip, False),
    )
    for what, unit, measure, more_is_better in measures:
        pairs: list[tuple[float, float]] = []
        for turn in range(ROUNDS):
            order = (ours, bare) if turn % 2 else (bare, ours)
            found = {id(one): measure(*one) for one in order}
            pairs.append((found[id(ours)], found[id(bare)]))
        mine, theirs = (sorted(values) for values in zip(*pairs, strict=True))
        share = statistics.median(
            (one / other if more_is_better else other / one) for one, other in pairs
        )
        progress(f"{kind}{what}: {statistics.median(mine):.2f} {unit}, {share:.3f} of the floor")
        rows += [
            Row(
                what=f"{kind}{what}",
                value=statistics.median(mine),
                best=mine[-1] if more_is_better else mine[0],
                worst=mine[0] if more_is_better else mine[-1],
                count=ROUNDS,
                unit=unit,
                floor=statistics.median(theirs),
                floor_name=floor_name,
            ),
            Row(
                what=f"{kind}{what}: median share of the floor, turn by turn",
                value=share,
                unit="",
                count=ROUNDS,
                goal=">= 0.97",
            ),
        ]
    return rows


def tcp(first: Any, second: Any, address: str) -> float:
    """Return Gbit/s that arrived in one TCP stream."""
    result = _iperf(first, second, address, "-t", str(SECONDS), "-O", "0.3")
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9


def udp(first: Any, second: Any, address: str) -> float:
    """Return thousands of datagrams a second that arrived of as many as could be sent."""
    end = _iperf(first, second, address, "-u", "-b", "0", "-l", "1400", "-t", str(SECONDS))["end"]
    whole = end["sum"]
    return float(whole["packets"] - whole["lost_packets"]) / float(whole["seconds"]) / 1000


def datagram(first: Any, second: Any, address: str) -> float:
    """Return the microseconds of a processor for one datagram; other load does not show in it."""
    second.call("hold_port", address, DISCARD)
    try:
        return 1e6 * float(first.call("timed_datagrams", address, DISCARD, PINGS // 5))
    finally:
        second.call("release_ports")


def round_trip(first: Any, _second: Any, address: str) -> float:
    """Return the round trip in microseconds; other load does not show in it."""
    return 1e6 * float(first.call("timed_pings", address, PINGS))


def _iperf(first: Any, second: Any, address: str, *words: str) -> dict[str, Any]:
    pid = second.call("start", ["iperf3", "-s", "-1", "--forceflush", "-B", address])
    try:
        text = first.call("patiently", ["iperf3", "-J", "-c", address, *words])
    finally:
        second.call("await_end", pid)
    found: dict[str, Any] = json.loads(text)
    return found
