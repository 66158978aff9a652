"""Partitions heal in seconds, and what only shows in a cluster: seeds, stalls, refutations, reassertions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from agent.gossip.config import LAN, Timing
from agent.gossip.swim.wire import State

Make = Callable[..., Any]


def cluster(simulate: Make, seed: int, size: int, seeds: list[str], **options: Any) -> Any:
    """Start hosts on one network with an entry each, and let them settle."""
    sim = simulate(seed, **options)
    for index in range(size):
        host = sim.start(f"10.0.0.{index + 1}", seeds=seeds)
        sim.join(host, "net")
        sim.put(host, "net", host.address, b"first")
    sim.settle(30.0)
    return sim


@pytest.mark.parametrize("size", [4, 5, 12])
def test_half_cut_off_for_a_minute_heals_within_ten_seconds(
    simulate: Make, seed: int, size: int
) -> None:
    """With ordinary timing, both halves show everything ten seconds after they meet again."""
    sim = cluster(simulate, seed, size, ["10.0.0.1"], timing=LAN)
    hosts = list(sim.hosts.values())
    sim.partition(hosts[: size // 2], hosts[size // 2 :])
    sim.run(60.0)
    assert len(sim.seen(hosts[0], "net")) < size
    sim.heal()
    sim.settle(10.0)


def test_five_minutes_apart_heal_within_ten_seconds(simulate: Make, seed: int) -> None:
    """However long a cut lasts, the few nodes of a small cluster go on looking for each other."""
    sim = cluster(simulate, seed, 5, ["10.0.0.1"], timing=LAN)
    hosts = list(sim.hosts.values())
    sim.partition(hosts[:2], hosts[2:])
    sim.run(300.0)
    sim.heal()
    sim.settle(10.0)


def test_every_seed_is_joined_and_not_the_first_alone(
    simulate: Make, brisk: Timing, seed: int
) -> None:
    """Two islands, each around its own manager, become one through a node that has both as seeds."""
    sim = simulate(seed, timing=brisk)
    one = [sim.start(f"10.0.1.{n}", seeds=["10.0.1.1"]) for n in (1, 2)]
    other = [sim.start(f"10.0.2.{n}", seeds=["10.0.2.1"]) for n in (1, 2)]
    sim.run(5.0)
    assert {len(host.node.swim.members) for host in (*one, *other)} == {2}
    bridge = sim.start("10.0.3.1", seeds=["10.0.1.1", "10.0.2.1"])
    for host in (*one, *other, bridge):
        sim.join(host, "net")
        sim.put(host, "net", host.address, b"x")
    sim.settle(10.0)


def test_a_dead_seed_does_not_keep_from_the_living_one(
    simulate: Make, brisk: Timing, seed: int
) -> None:
    """The first seed in order is down: the second one serves."""
    sim = simulate(seed, timing=brisk)
    sim.start("10.0.0.2")
    late = sim.start("10.0.0.3", seeds=["10.0.0.1", "10.0.0.2"])
    sim.run(3.0)
    assert {member.host for member in late.node.swim.members} == {"10.0.0.2", "10.0.0.3"}


def test_suspects_refute_before_they_die(simulate: Make, brisk: Timing, seed: int) -> None:
    """Under loss that breaks every third probe many are suspected, refute, and nobody is lost."""
    sim = cluster(simulate, seed, 8, ["10.0.0.1"], timing=brisk)
    sim.loss = 0.4
    sim.run(90.0)
    traces = [trace for host in sim.hosts.values() for trace in host.traces]
    assert any(trace.event == "gossip.member.suspected" for trace in traces)
    refuted = [trace for trace in traces if trace.event == "gossip.accusation.refuted"]
    assert any(not trace.data["dead"] for trace in refuted)
    sim.loss = 0.0
    sim.settle(60.0)
    assert all(
        host.node.swim.me.incarnation > 1
        for host in sim.hosts.values()
        if any(t in refuted for t in host.traces)
    )


def test_a_stopped_process_accuses_nobody_on_waking(
    simulate: Make, brisk: Timing, seed: int
) -> None:
    """Ten minutes asleep count as two seconds: no suspicion and no probe of before ends at once."""
    sim = cluster(simulate, seed, 5, ["10.0.0.1"], timing=brisk)
    sleeper, victim = list(sim.hosts.values())[2:4]
    sim.cut([victim], [sleeper])
    sim.cut([sleeper], [victim])
    sim.run(
        3.0
    )  # long enough for a probe of the victim to be under way, through others it is answered
    sleeper.paused = True
    sim.run(600.0)
    sim.heal()
    before = len(sleeper.traces)
    sim.resume(sleeper)
    assert sleeper.node.timers.stalled > 500.0
    woken = {trace.event for trace in sleeper.traces[before:]}
    assert "gossip.member.down" not in woken
    states = {member.name: member.state for member in sleeper.node.swim.members}
    assert State.DEAD not in states.values()
    sim.settle(60.0)


def test_a_key_two_nodes_want_goes_to_the_living_one_at_once(
    simulate: Make, brisk: Timing, seed: int
) -> None:
    """An entry overwritten by a node that then dies or leaves is asserted again by whoever still wants it."""
    for leaves in (True, False):
        sim = cluster(simulate, seed, 5, ["10.0.0.1"], timing=brisk)
        first, second, watcher = list(sim.hosts.values())[1:4]
        sim.put(first, "net", "shared", b"mine")
        sim.run(2.0)
        second.node.db.put("endpoint_table", "net", "shared", b"other")
        sim._after_event(second)
        sim.run(2.0)
        assert sim.seen(watcher, "net")["shared"] == b"other"
        if leaves:
            sim.leave(second)
        else:
            sim.kill(second)
        sim.run(2.0 if leaves else 20.0)
        assert sim.seen(watcher, "net").get("shared") == b"mine"


@pytest.mark.slow
def test_a_thousand_quick_leaves_and_rejoins(simulate: Make, brisk: Timing, seed: int) -> None:
    """After a thousand of them, some within one gossip round, the tables are equal and hold no ghost."""
    sim = cluster(simulate, seed, 5, ["10.0.0.1"], timing=brisk, loss=0.05)
    hosts = list(sim.hosts.values())
    for round_ in range(1000):
        host = sim.rng.choice(hosts)
        sim.quit(host, "net")
        sim.run(sim.rng.choice((0.0, 0.02, 0.2)))
        sim.join(host, "net")
        sim.put(host, "net", f"{host.address}-{round_ % 7}", b"%d" % round_)
        sim.run(sim.rng.choice((0.0, 0.05, 0.3)))
    sim.loss = 0.0
    sim.settle(60.0)
    assert all(len(host.model["net"]) == 1 for host in hosts)
