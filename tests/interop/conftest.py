"""Two clusters with real Docker engines: theirs in ours (m1, w1 and d1, d2), and ours in theirs (d1 and w1, w2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.cluster import Cluster
from support.mixed import Mixed, engine_lab, engines_in


@pytest.fixture(scope="session")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """Our manager m1 and worker w1, and two engines that joined them with ``docker swarm join``."""
    with engine_lab("hosts") as lab:
        lab.up(managers=1, workers=1)
        with engines_in(lab, ("d1", "d2"), tmp_path_factory.mktemp("engines")) as engines:
            token = lab.tokens("m1")["worker"]
            manager = lab.state.require("m1").address
            for engine in engines.values():
                engine.docker("swarm", "join", "--token", token, f"{manager}:2377")
            lab.await_ready("m1", 4)
            yield Mixed(Cluster(lab), engines)


@pytest.fixture
def mixed(joined: Mixed) -> Iterator[Mixed]:
    """The cluster of ours with engines in it; containers of the test are removed after it."""
    yield joined
    joined.clear()


@pytest.fixture
def network(mixed: Mixed, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a fresh attachable network; removed after the test with the containers on it."""
    name = f"net{abs(hash(request.node.nodeid)) % 1_000_000}"
    mixed.cluster.network(name)
    yield name
    mixed.clear()
    mixed.cluster.remove_network(name)


@pytest.fixture(scope="session")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    """An engine d1 that made a swarm of its own, and our daemons w1 and w2 that joined it as workers."""
    with engine_lab("guest") as lab:
        lab.build(["w1", "w2"])
        with engines_in(lab, ("d1",), tmp_path_factory.mktemp("guests")) as engines:
            mixed = Mixed(Cluster(lab), engines)
            boss = engines["d1"]
            boss.docker("swarm", "init", "--advertise-addr", boss.address)
            token = boss.docker("swarm", "join-token", "-q", "worker").strip()
            for host in ("w1", "w2"):
                lab.join(host, boss.address, token)
            yield mixed
