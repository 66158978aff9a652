"""Docker's managers make new keys every twelve hours: our workers follow.

Nobody waits so long: the engines here are this machine's with that one number changed in a copy of the program.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.mixed import Mixed, engine_lab, engines_in

from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

EVERY = ("w1", "d1", "d2")
NANOSECONDS = 10**9
PERIOD = 12 * 3600 * NANOSECONDS
"""Between two generations of keys, in every engine."""
HURRY = 6 * NANOSECONDS
"""Between two generations here, where no session ends meanwhile."""


def hurried(folder: Path) -> Path:
    """Return a copy of the engine's program whose managers rotate keys every few seconds."""
    original = Path(shutil.which("dockerd") or "dockerd").read_bytes()
    number = struct.pack("<q", PERIOD)
    if original.count(number) != 1:
        pytest.skip("the period of key rotation is not found in this engine's program")
    copy = folder / "dockerd"
    copy.write_bytes(original.replace(number, struct.pack("<q", HURRY)))
    copy.chmod(0o755)
    return copy


@pytest.fixture(scope="module")
def restless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """The engine d1 with a swarm that changes its keys all the time, the engine d2 and our w1 in it."""
    with engine_lab("keys") as lab:
        lab.build(["w1"])
        folder = tmp_path_factory.mktemp("keys")
        with engines_in(lab, ("d1", "d2"), folder, str(hurried(folder))) as engines:
            boss = engines["d1"]
            boss.docker("swarm", "init", "--advertise-addr", boss.address)
            token = boss.docker("swarm", "join-token", "-q", "worker").strip()
            engines["d2"].docker("swarm", "join", "--token", token, f"{boss.address}:2377")
            lab.join("w1", boss.address, token)
            yield Mixed(Cluster(lab), engines)


def fingerprints(mixed: Mixed) -> list[str]:
    """The keys in use on our host."""
    return list(json.loads(mixed.cluster.swarm("w1", "gossip", "--format", "json"))[0]["Keys"])


def test_our_worker_follows_the_keys_of_an_engines_swarm(restless: Mixed) -> None:
    """Four generations, so that no key of the first is left: each time new rows cross, and all tables are equal."""
    boss = restless["d1"]
    boss.docker("network", "create", "-d", "overlay", "--attachable", "moving")
    (shown,) = json.loads(boss.docker("network", "inspect", "moving"))
    names = set()
    for host in EVERY:
        restless.idle(host, f"base-{host}", "moving")
        names.add(f"base-{host}")
    restless.await_equal_tables(shown["Id"], EVERY, names)
    first = fingerprints(restless)
    assert len(first) == 3
    for number in range(4):
        held = fingerprints(restless)
        wait_until(
            lambda held=held: fingerprints(restless) != held,  # type: ignore[misc]
            seconds=30,
            what=lambda: "the keys do not change",
            pause=0.2,
        )
        host = EVERY[number % 3]
        restless.idle(host, f"new-{number}", "moving")
        names.add(f"new-{number}")
        restless.await_equal_tables(shown["Id"], EVERY, names)
    assert not set(first) & set(fingerprints(restless))
    for host in EVERY:
        for name in sorted(names):
            restless.eventually_pings(host, f"base-{host}", name)
    for host in restless.engines:
        text = restless[host].log.read_text()
        assert "No installed keys could decrypt" not in text
    restless.clear()
