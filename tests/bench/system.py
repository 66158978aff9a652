"""Attach, first packet and traffic of the whole system, with stock Docker engines beside it.

A cluster of three daemons and, on the same machine, two Docker engines in a swarm of their own (where
``docker.io`` is installed). An attach is the call of the API, managers and gossip included. The first
packet is a ping to a container on another host, which must have heard of the newcomer to answer.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netns.dataplane.conftest import Child

from bench import traffic
from bench.table import Row, progress
from swarm.api.overswarm.v1 import local_pb2
from swarm.lab.cluster import Lab
from swarm.lab.engine import IMAGE, Engine, missing

TURNS = 30
ENGINE_TURNS = 10
RATES = 3
TCP = "TCP between two containers on two hosts"
ENGINE = "dockerd 20.10, same machine"
FIRST = "attach call to the first answer across hosts"


def run() -> Sequence[Row]:
    """Measure ours, then theirs where there is one."""
    lab = Lab(f"bsys{os.getpid() % 10_000_000}")
    with tempfile.TemporaryDirectory(prefix="swarm-bench-") as folder:
        try:
            lab.up()
            ours = _ours(lab)
            theirs = _theirs(lab, Path(folder)) if not missing() else {}
        finally:
            lab.down()
    goals = {"attach": "<= 20 ms", FIRST: "<= 60 ms", "detach": "<= 10 ms"}
    rates = ours.pop(TCP), theirs.pop(TCP, [])
    speed = Row(
        what=TCP,
        value=statistics.median(rates[0]),
        best=max(rates[0]),
        worst=min(rates[0]),
        count=len(rates[0]),
        unit="Gbit/s",
        floor=statistics.median(rates[1]) if rates[1] else None,
        floor_name=ENGINE if rates[1] else "",
    )
    return [
        speed,
        *(
            Row(
                what=what,
                value=1000 * statistics.median(took),
                best=1000 * min(took),
                worst=1000 * max(took),
                count=len(took),
                unit="ms",
                floor=1000 * statistics.median(theirs[what]) if what in theirs else None,
                floor_name=ENGINE if what in theirs else "",
                goal=goals.get(what, ""),
            )
            for what, took in ours.items()
        ),
    ]


def _ours(lab: Lab) -> dict[str, list[float]]:
    lab.run("m1", "swarm", "network", "create", "--attachable", "net1")
    found: dict[str, list[float]] = {"attach": [], FIRST: [], "detach": []}
    with _box() as far, lab.client("w1") as near, lab.client("w2") as other:
        address = _attach(other, far).addresses[0].split("/")[0]
        with _box() as keeper:
            _attach(near, keeper)  # as with the engines: the network is there already
            _ping(keeper, address)
            found[TCP] = [traffic.tcp(keeper, far, address) for _ in range(RATES)]
            for _ in range(TURNS):
                with _box() as box:
                    began = time.perf_counter()
                    endpoint = _attach(near, box)
                    found["attach"].append(time.perf_counter() - began)
                    _ping(box, address)
                    found[FIRST].append(time.perf_counter() - began)
                    began = time.perf_counter()
                    near.local.DetachNamespace(
                        local_pb2.DetachNamespaceRequest(endpoint=endpoint.endpoint_id), timeout=30
                    )
                    found["detach"].append(time.perf_counter() - began)
    progress(f"ours: {_shown(found)}")
    return found


@contextmanager
def _box() -> Iterator[Child]:
    box = Child("box")
    try:
        box.sh("ip link set lo up")
        yield box
    finally:
        box.close()


def _attach(client: Any, box: Child) -> Any:
    request = local_pb2.AttachNamespaceRequest(
        netns_path=box.netns.path, network=local_pb2.NetworkWish(network="net1")
    )
    return client.local.AttachNamespace(request, timeout=30).endpoint


def _ping(box: Child, address: str) -> None:
    if not box.call("ping_until", address, 20.0):
        raise RuntimeError(f"{address} never answers")


def _theirs(lab: Lab, folder: Path) -> dict[str, list[float]]:
    """The same with two engines; a container that runs is connected to the network."""
    engines = [Engine(lab, lab.add_bare(name).name, folder / name) for name in ("d1", "d2")]
    one, two = engines
    try:
        for engine in engines:
            engine.launch()
        for engine in engines:
            engine.await_ready()
        one.docker("swarm", "init", "--advertise-addr", one.address)
        token = one.docker("swarm", "join-token", "-q", "worker").strip()
        two.docker(
            "swarm",
            "join",
            "--token",
            token,
            "--advertise-addr",
            two.address,
            f"{one.address}:2377",
        )
        one.docker("network", "create", "-d", "overlay", "--attachable", "net1")
        two.docker("run", "-d", "--name", "far", "--network", "net1", IMAGE, "sleep", "600")
        shown = json.loads(two.docker("inspect", "far"))[0]
        address = shown["NetworkSettings"]["Networks"]["net1"]["IPAddress"]
        one.docker("run", "-d", "--name", "keeper", "--network", "net1", IMAGE, "sleep", "600")
        one.docker("run", "-d", "--name", "near", "--network", "none", IMAGE, "sleep", "600")
        one.docker("network", "disconnect", "none", "near")
        return _engine_turns(one, two, address)
    finally:
        for engine in engines:
            engine.destroy()


def _engine_turns(engine: Engine, other: Engine, address: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"attach": [], FIRST: [], "detach": [], TCP: []}
    for _ in range(RATES):
        other.run_in("far", "iperf3", "-s", "-1", "-D", "-B", address)
        words = ("iperf3", "-J", "-c", address, "-t", str(traffic.SECONDS), "-O", "0.3")
        result = json.loads(engine.run_in("keeper", *words).stdout)
        found[TCP].append(result["end"]["sum_received"]["bits_per_second"] / 1e9)
    for _ in range(ENGINE_TURNS):
        began, wall = time.perf_counter(), time.time()
        _post(engine, "/networks/net1/connect", {"Container": "near"})
        found["attach"].append(time.perf_counter() - began)
        # Each answer comes with its time of day, so the start of the program does not count.
        said = engine.run_in("near", "ping", "-n", "-D", "-i", "0.01", "-c", "300", address).stdout
        first = next(line for line in said.splitlines() if "bytes from" in line)
        found[FIRST].append(float(first[1 : first.index("]")]) - wall)
        began = time.perf_counter()
        _post(engine, "/networks/net1/disconnect", {"Container": "near"})
        found["detach"].append(time.perf_counter() - began)
    progress(f"dockerd: {_shown(found)}")
    return found


def _shown(found: dict[str, list[float]]) -> dict[str, float]:
    return {key: round(statistics.median(values), 4) for key, values in found.items()}


def _post(engine: Engine, path: str, content: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.sock.connect(str(engine.socket))
    connection.request("POST", path, json.dumps(content), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    if answer.status >= 300:
        raise RuntimeError(f"{path}: {text.decode(errors='replace')}")
