"""Seeds that went with a goodbye and come back under another name are found again soon."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.gossip.config import LAN

Make = Callable[..., Any]
SEED = "10.0.0.1"
PORT = 7946


@pytest.mark.parametrize("late", [0.0, 2.5], ids=["at once", "late"])
def test_the_only_seed_leaves_and_returns(simulate: Make, seed: int, late: float) -> None:
    """An engine that is the only manager dials nobody: after its restart the others must call it.

    They are told that the manager is back (the same seeds are set again) possibly before its gossip is.
    """
    sim = simulate(seed, timing=LAN)
    first = sim.start(SEED)
    others = [sim.start(f"10.0.0.{n}", seeds=[SEED]) for n in (2, 3)]
    for host in (first, *others):
        sim.join(host, "net")
        sim.put(host, "net", f"of-{host.address}", b"x")
    sim.settle(10.0)
    sim.leave(first)
    sim.run(20.0)

    for host in others:
        host.node.set_seeds([(SEED, PORT)])
        sim._after_event(host)
    sim.run(late)
    back = sim.start(SEED)
    sim.join(back, "net")
    sim.put(back, "net", "anew", b"y")
    sim.settle(8.0)
    assert {member.name for member in others[0].node.swim.members if not member.gone} == {
        host.node.name for host in (back, *others)
    }


def test_a_seed_that_stays_away_is_not_pestered(simulate: Make, seed: int) -> None:
    """Looking for a missing seed slows down to the ordinary pace of a minute."""
    sim = simulate(seed, timing=LAN)
    hosts = [sim.start(f"10.0.0.{n}", seeds=["10.0.0.9"]) for n in (2, 3)]
    hosts[1].node.set_seeds([("10.0.0.2", PORT)])
    sim._after_event(hosts[1])
    sim.run(300.0)
    dialled: list[float] = []
    host = hosts[0]
    join = host.node.swim.join
    host.node.swim.join = lambda address, port: (dialled.append(sim.now), join(address, port))
    sim.run(300.0)
    assert 4 <= len(dialled) <= 7


def test_a_restarted_process_does_not_hear_of_its_former_self(simulate: Make, seed: int) -> None:
    """Killed and back at once under a new name, it is not told that its old name lives at its address.

    An engine would wait half a minute for that name's bulk sync, and no container could start meanwhile.
    """
    sim = simulate(seed, timing=LAN)
    first = sim.start(SEED)
    others = [sim.start(f"10.0.0.{n}", seeds=[SEED]) for n in (2, 3)]
    sim.settle(10.0)
    sim.run(10.0)  # what was gossiped of the first start is no more
    sim.kill(others[0])
    back = sim.start(others[0].address, seeds=[SEED])
    sim.run(1.0)
    assert {member.name for member in back.node.swim.members} == {
        host.node.name for host in (first, back, others[1])
    }
    sim.run(20.0)
    for host in (first, back, others[1]):
        assert {member.name for member in host.node.swim.members if not member.gone} == {
            each.node.name for each in (first, back, others[1])
        }


def test_a_seed_that_is_a_member_is_not_called(simulate: Make, seed: int) -> None:
    """Only missing seeds are joined: with all of them there, nobody exchanges everything each minute."""
    sim = simulate(seed, timing=LAN)
    hosts = [sim.start(f"10.0.0.{n}", seeds=["10.0.0.1", "10.0.0.2"]) for n in (1, 2, 3)]
    sim.settle(10.0)
    joined: list[str] = []
    for host in hosts:
        host.node.swim.join = lambda address, port: joined.append(address)
    sim.run(200.0)
    assert joined == []
    sim.kill(hosts[0])
    sim.run(100.0)
    assert set(joined) == {"10.0.0.1"}
