"""Taking a lab down in the middle of everything."""

from __future__ import annotations

import pytest
from support.cluster import Cluster

from swarm.lab.cluster import Lab
from swarm.lab.traces import observe

pytestmark = [pytest.mark.lab, pytest.mark.slow]


def test_running_containers_go_with_the_lab() -> None:
    """Their shims have namespaces and an environment of their own, and are found all the same."""
    lab = Lab("pyleft")
    lab.down()
    before = observe("pyleft")
    try:
        lab.up(managers=1, workers=0)
        cluster = Cluster(lab)
        cluster.network("net")
        cluster.serve("m1", "web", "net")
        assert any("shim" in name for name in observe("pyleft").processes)
    finally:
        lab.down()
    assert before.left_behind(observe("pyleft")) == []
