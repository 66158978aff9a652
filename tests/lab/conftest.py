"""One cluster for every test that uses it as users do: m1, w1, w2, and w3 that belongs to nobody."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.cluster import Cluster

from swarm.lab.cluster import Lab
from swarm.lab.traces import observe


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of three Ready nodes and one host that waits for a cluster; nothing stays after it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    name = "pytest"
    Lab(name).down()
    before = observe(name)
    lab = Lab(name)
    try:
        lab.build(["m1", "w1", "w2", "w3"])
        lab.form(["m1", "w1", "w2"])
        yield Cluster(lab)
    finally:
        lab.down()
    assert before.left_behind(observe(name)) == []
