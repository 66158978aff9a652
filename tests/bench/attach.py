"""Attach and detach on one node that fills up to 4000 containers of one network.

At the data plane: from the call until packets pass. The floor is what the kernel alone takes for the least
that any container network does: a veth pair with one end in the namespace, an address, both ends up.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from netns.dataplane.conftest import World, network_of
from netns.dataplane.test_scale import endpoints_of, raised_limits

from agent.dataplane import Wanted
from bench.table import Row, progress

STOPS = (10, 1000, 4000)
WINDOW = 100
"""Attaches measured around each stop."""


def run() -> Sequence[Row]:
    """Fill a node, restart its agent, empty it."""
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
        directory = Path(folder) / "world"
        directory.mkdir()
        world = World(directory)
        try:
            with raised_limits():
                return _measure(world, Path(folder))
        finally:
            world.close()


def _measure(world: World, folder: Path) -> list[Row]:
    net = network_of(1, "10.7.0.0/16")
    one, _ = world.pair(planes=1)
    one.plane("put_network", net)
    boxes = folder / "boxes"
    boxes.mkdir()
    progress(f"making {STOPS[-1] + WINDOW} namespaces")
    paths = one.call("namespaces", STOPS[-1] + WINDOW, str(boxes))
    rows: list[Row] = []
    try:
        endpoints = endpoints_of(net, paths)
        floor = statistics.median(one.call("bare_attaches", paths[:WINDOW]))
        empty = one.call("memory")
        rows.append(_memory("memory of the agent without containers", empty, 0))
        took: list[float] = []
        for stop in STOPS:
            upto = stop + (WINDOW if stop == STOPS[-1] else 0)
            took += one.call("timed_plugs", endpoints[len(took) : upto])
            part = took[max(0, stop - WINDOW) :][: 2 * WINDOW]
            rows += _attaches(stop, part, floor)
            held = one.call("memory")
            rows.append(_memory(f"memory of the agent with {stop} containers", held, empty))
            progress(f"{len(took)} attached, the last ones in {1000 * part[-1]:.1f} ms")
            if stop == 1000:
                rows += _restart(world, one, net, endpoints[: len(took)])
        gone = one.call("timed_unplugs", [one_.id for one_ in endpoints[-WINDOW:]])
        rows.append(_p("detach at 4000 containers, median", gone, 0.5, "<= 10 ms"))
        rows.append(_p("detach at 4000 containers, p99", gone, 0.99, ""))
        start = time.perf_counter()
        one.plane("destroy")
        rows.append(
            Row(
                what="remove everything at 4000 containers",
                value=time.perf_counter() - start,
                unit="s",
            )
        )
    finally:
        one.call("drop_namespaces", paths)
    return rows


def _attaches(stop: int, took: list[float], floor: float) -> list[Row]:
    return [
        Row(
            what=f"attach at {stop} containers, median",
            value=1000 * statistics.median(took),
            best=1000 * min(took),
            worst=1000 * max(took),
            count=len(took),
            unit="ms",
            floor=1000 * floor,
            floor_name="veth pair, address, up: the kernel alone",
            goal="<= 20 ms",
        ),
        _p(f"attach at {stop} containers, p99", took, 0.99, ""),
    ]


def _restart(world: World, one: Any, net: Any, endpoints: list[Any]) -> list[Row]:
    """Restart the agent while two of its containers talk."""
    wanted = Wanted(networks=(net,), endpoints=tuple(endpoints))
    one.call("ping_in", endpoints[0].netns.path, str(endpoints[-1].addresses[0].ip), 0.002)
    start = time.perf_counter()
    one.restart()
    report = one.plane("reconcile", wanted)
    took = time.perf_counter() - start
    sent, got = one.call("ping_stop")
    if len(report.adopted) != len(endpoints) or report.operations:
        raise RuntimeError(f"the restart was no adoption: {report}")
    return [
        Row(what="agent restart with 1000 containers until reconciled", value=took, unit="s"),
        Row(
            what=f"packets lost meanwhile, of {sent}",
            value=sent - got,
            unit="packets",
            goal="<= 0 packets",
        ),
    ]


def _p(what: str, took: list[float], part: float, goal: str) -> Row:
    value = sorted(took)[min(len(took) - 1, int(part * len(took)))]
    return Row(what=what, value=1000 * value, unit="ms", count=len(took), goal=goal)


def _memory(what: str, held: int, empty: int) -> Row:
    return Row(
        what=what,
        value=held / 2**20,
        unit="MiB",
        floor=empty / 2**20 if empty else None,
        floor_name="without containers" if empty else "",
    )
