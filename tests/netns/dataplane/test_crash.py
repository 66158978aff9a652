"""The agent dies by SIGKILL at every step of every change; the next one leaves no trace of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.dataplane import Wanted

pytestmark = [pytest.mark.netns, pytest.mark.slow]

ENOUGH = 80
"""Operations that no single call has."""


def inventory(node: Any) -> str:
    """Return everything the node's namespaces hold of ours, as text."""
    text: str = node.sh(
        f"for n in {node.settings.run_dir}/netns/*; do for c in 'ip -d link' 'ip addr' 'ip route' "
        "'ip -6 route' 'ip neigh show nud permanent' 'bridge fdb' 'nft -s list ruleset'; do "
        "nsenter --net=$n $c | sed 's/valid_lft.*//; s/^[0-9]*: //; s/ep[0-9a-f]*@if[0-9]*/port/; "
        "s/link-netns.*//; s/openvswitch.*//'; done; done; ip link; ip route; nft -s list ruleset"
    )
    return text


class Site:
    """One node with a network that has a container and a peer, and one more container to come."""

    def __init__(self, world: Any, network: Any) -> None:
        self.net = network(1, "10.0.1.0/24", "fd00:1::/64")
        self.node, _ = world.pair(planes=0)
        self.box = world.box()
        self.old = world.endpoint(self.net, world.box(), "10.0.1.2/24", "fd00:1::2/64")
        self.new = replace(
            world.endpoint(self.net, self.box, "10.0.1.3/24", "fd00:1::3/64"), default_route=True
        )
        self.without = Wanted(networks=(self.net,), endpoints=(self.old,))
        self.with_it = replace(self.without, endpoints=(self.old, self.new))

    def crash(self, before: Wanted, step: int, name: str, *args: Any) -> bool:
        """Die in a call; see child.py."""
        died: bool = self.node.call("crash", self.node.settings, before, step, name, *args)
        return died

    def settle(self, wanted: Wanted) -> None:
        """Take over; the second look finds nothing to do."""
        first, second, check = self.node.call("succeed", self.node.settings, wanted)
        assert first.failed == second.failed == check.failures == ()
        assert (second.operations, check.drift) == (0, 0)
        assert set(first.adopted + first.attached) == {one.id for one in wanted.endpoints}


@pytest.mark.parametrize("again", ["wanted", "forgotten"])
def test_dying_at_each_step_of_an_attach(world: Any, network: Any, again: str) -> None:
    """The next agent completes the attach if it is wanted, and else removes every trace."""
    site = Site(world, network)
    site.settle(site.without)
    clean = inventory(site.node)
    assert "gw0" not in site.box.sh("ip -o link")
    for step in range(ENOUGH):
        died = site.crash(site.without, step, "plug", site.new)
        if again == "wanted":
            site.settle(site.with_it)
            assert (
                site.box.ping("10.0.1.2", timeout=2) == site.box.ping("fd00:1::2", timeout=2) == 1
            )
            assert "default via" in site.box.sh("ip route")
        site.settle(site.without)
        assert inventory(site.node) == clean, f"after step {step}"
        assert site.box.sh("ip -o link | grep -v 'lo:' || true") == "", f"after step {step}"
        if not died:
            break
    assert 15 < step < ENOUGH, "every operation was a point to die at"


def test_dying_at_each_step_of_a_detach(world: Any, network: Any) -> None:
    """The next agent, told that the endpoint is gone, removes what was left of it."""
    site = Site(world, network)
    site.settle(site.without)
    clean = inventory(site.node)
    for step in range(ENOUGH):
        site.settle(site.with_it)
        died = site.crash(site.with_it, step, "unplug", site.new.id)
        if step % 2:  # the caller had not got so far as to forget it: it works again
            site.settle(site.with_it)
            assert site.box.ping("10.0.1.2", timeout=2) == 1
        site.settle(site.without)
        assert inventory(site.node) == clean, f"after step {step}"
        if not died:
            break
    assert 0 < step < ENOUGH


@pytest.mark.parametrize("again", ["wanted", "forgotten"])
def test_dying_at_each_step_of_making_a_network(world: Any, network: Any, again: str) -> None:
    """A router that is half there is completed, or goes."""
    site = Site(world, network)
    other = network(2, "10.0.2.0/24", "10.1.2.0/24", "fd00:2::/64")
    site.settle(site.without)
    clean = inventory(site.node)
    both = replace(site.without, networks=(site.net, other))
    for step in range(ENOUGH):
        died = site.crash(site.without, step, "put_network", other)
        if again == "wanted":
            site.settle(both)
        site.settle(site.without)
        assert inventory(site.node) == clean, f"after step {step}"
        if not died:
            break
    assert 15 < step < ENOUGH
