"""One cluster for every test that uses it as users do: m1, w1, w2, and w3 that belongs to nobody."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.cluster import Cluster
from support.labs import clean_lab


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster of three Ready nodes and one host that waits for a cluster; nothing stays after it."""
    with clean_lab("main") as lab:
        lab.build(["m1", "w1", "w2", "w3"])
        lab.form(["m1", "w1", "w2"])
        yield Cluster(lab)
