"""A stock Docker engine and our daemons under a kernel with ESP and IPVS: what the ordinary kernel cannot show.

Two clusters on one underlay, made once: ours (m1) with the engine d1 in it, and the swarm that the engine d2 made,
with our w1 in it. Encrypted networks in both; services on both sides of the first, reached through Docker's IPVS.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import PROGRAM, Cluster
from support.mixed import Mixed, engine_lab, engines_in
from support.services import make

from swarm.api.docker.swarmkit import specs_pb2, types_pb2
from swarm.lab import processes
from swarm.lab.capture import Capture
from swarm.lab.engine import IMAGE
from swarm.lab.processes import wait_until

PATIENCE = 15.0
"""How many times slower than usual things may be under emulation."""
CGROUPS = Path("/sys/fs/cgroup")
PUBLISHED = 30288
PAGE = "hostname > /www/index.html && exec httpd -f -p 8080 -h /www"


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """The two clusters."""
    patch = pytest.MonkeyPatch()
    patch.setattr(processes, "PATIENCE", PATIENCE)
    patch.setenv("SWARM_LAB_PATIENCE", str(PATIENCE))
    if not (CGROUPS / "cgroup.controllers").exists():  # an emulated machine that nobody has set up
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(CGROUPS)], check=True)
    with engine_lab("kern") as lab:
        lab.build(["m1", "w1"])
        lab.form(["m1"])
        with engines_in(lab, ("d1", "d2"), tmp_path_factory.mktemp("engines")) as engines:
            target = f"{lab.state.require('m1').address}:2377"
            token = lab.tokens("m1")["worker"]
            engines["d1"].docker("swarm", "join", "--token", token, target)
            boss = engines["d2"]
            boss.docker("swarm", "init", "--advertise-addr", boss.address)
            token = boss.docker("swarm", "join-token", "-q", "worker").strip()
            lab.join("w1", boss.address, token)
            lab.await_ready("m1", 2)
            yield Mixed(Cluster(lab), engines)
    patch.undo()


def show(text: str) -> None:
    """Leave a trace of how far it is in the guest's output."""
    os.write(2, f"{text}\n".encode())


def both_ways(mixed: Mixed, ours: str, theirs: str, network: str) -> None:
    """Pages and pings by name between a host of ours and an engine; nothing but ESP on the cable."""
    mixed.serve(ours, "ours", network)
    mixed.serve(theirs, "theirs", network)
    for host, name, other in ((ours, "ours", "theirs"), (theirs, "theirs", "ours")):
        mixed.eventually_pings(host, name, other)
    show(f"{network}: reached")
    with Capture(mixed.cluster.lab.state, theirs) as capture:
        for host, name, other in ((ours, "ours", "theirs"), (theirs, "theirs", "ours")):
            assert mixed.page(host, name, f"http://{other}:8080/").startswith("hello from")
        # Full-size packets: 1500 less 50 of VXLAN, 26 of ESP, rounded down to 4; and one byte more is too much.
        address = mixed.address(theirs, "theirs", network)
        for size, passes in ((1396, True), (1397, False)):
            ping = mixed.execute(
                ours, "ours", "ping", "-c1", "-W5", "-M", "do", "-s", str(size), address
            )
            assert (ping.returncode == 0) is passes, ping.stdout
    assert capture.sight.esp > 8
    assert not capture.sight.vxlan
    assert not capture.sight.fragments
    assert len(capture.sight.spis) == 2, "one association each way"


def test_encrypted_with_an_engine_in_our_cluster(mixed: Mixed) -> None:
    """Our keys, Docker's key derivation: names, pages and full packets both ways inside ESP; keys rotate."""
    mixed.cluster.network("secret", "--opt", "encrypted")
    both_ways(mixed, "m1", "d1", "secret")
    target = mixed.address("m1", "ours", "secret")
    with (
        Capture(mixed.cluster.lab.state, "d1") as capture,
        mixed.steady_ping("d1", "theirs", target) as counts,
    ):
        for _ in range(2):
            wait_until(
                # Managers give nodes the time to take over one generation before the next.
                lambda: mixed.cluster.attempt("m1", "rotate-keys").returncode == 0,
                seconds=40,
                what=lambda: "the keys cannot be rotated",
                pause=1,
            )
            used = len(capture.sight.spis)
            wait_until(
                lambda used=used: len(capture.sight.spis) >= used + 2,  # type: ignore[misc]
                seconds=40,
                what=lambda: f"packets go under {capture.sight.spis} still",
            )
            show(f"rotated: {len(capture.sight.spis)} associations")
    assert counts[0] == counts[1], f"{counts[0]} pings sent, {counts[1]} answered"
    assert not capture.sight.vxlan
    for host, name in (("m1", "ours"), ("d1", "theirs")):
        mixed.remove(host, name)


def test_encrypted_on_an_engines_network(mixed: Mixed) -> None:
    """Docker's keys: our worker on an encrypted network of a swarm that an engine made."""
    mixed["d2"].docker(
        "network", "create", "-d", "overlay", "--attachable", "-o", "encrypted", "theirsecret"
    )
    both_ways(mixed, "w1", "d2", "theirsecret")
    for host, name in (("w1", "ours"), ("d2", "theirs")):
        mixed.remove(host, name)


def test_virtual_addresses_and_published_ports_on_an_engine(mixed: Mixed) -> None:
    """Docker's IPVS leads its containers and outside clients to our tasks, ours leads to its."""
    cluster, lab = mixed.cluster, mixed.cluster.lab
    cluster.network("mall")
    port = types_pb2.PortConfig(target_port=8080, published_port=PUBLISHED)
    bakery = make(cluster, "bakery", "mall", ports=(port,))
    (ours,) = bakery.place("m1")
    bakery.reach("RUNNING", ours, seconds=60)
    show("bakery runs")
    image = specs_pb2.TaskSpec()
    image.container.image = IMAGE
    image.container.command.extend(("sh", "-c", PAGE))
    port = types_pb2.PortConfig(target_port=8080, published_port=PUBLISHED + 1)
    shop = make(cluster, "shop", "mall", task=image, ports=(port,))
    (theirs,) = shop.place("d1")
    shop.reach("RUNNING", theirs, seconds=60)
    show("shop runs")
    mixed.idle("d1", "visitor", "mall")
    mixed.idle("m1", "guest", "mall")
    hostname = (
        mixed["d1"].docker("inspect", "-f", "{{.Config.Hostname}}", f"shop.1.{theirs}").strip()
    )
    for host, name in (("d1", "visitor"), ("m1", "guest")):
        for url, word in (("http://bakery:8080/", ours), ("http://shop:8080/", hostname)):
            wait_until(
                lambda h=host, n=name, u=url, w=word: w in mixed.page(h, n, u),  # type: ignore[misc]
                seconds=20,
                what=lambda h=host, n=name, u=url: f"{u} from {h}: {mixed.page(h, n, u)}",  # type: ignore[misc]
            )
            show(f"{url} from {host}")
    lab.add_bare("out")
    for host in ("m1", "d1"):
        address = lab.state.require(host).address
        for number, word in ((PUBLISHED, ours), (PUBLISHED + 1, hostname)):
            fetch = (*PROGRAM, "fetch", "--timeout", "20", f"http://{address}:{number}/")
            wait_until(
                lambda f=fetch, w=word: w in lab.run("out", *f).stdout,  # type: ignore[misc]
                seconds=20,
                what=lambda f=fetch: f"{f}: {lab.run('out', *f)}",  # type: ignore[misc]
            )
            show(f"port {number} of {host}")
