"""Taking a lab down in the middle of everything."""

from __future__ import annotations

import pytest
from support.cluster import Cluster
from support.labs import clean_lab

from swarm.lab.traces import observe

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_running_containers_go_with_the_lab() -> None:
    """Their shims have namespaces and an environment of their own, and are found all the same."""
    with clean_lab("left") as lab:
        lab.up(managers=1, workers=0)
        cluster = Cluster(lab)
        cluster.network("net")
        cluster.serve("m1", "web", "net")
        assert any("shim" in name for name in observe(lab.state.name).processes)
