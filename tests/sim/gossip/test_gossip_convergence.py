"""Clusters under faults end with the same tables everywhere, holding what their owners want."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from agent.gossip.config import Timing
from agent.gossip.swim.wire import State

Make = Callable[..., Any]
NETS = ("net-a", "net-b")


def cluster(simulate: Make, seed: int, size: int, timing: Timing, **options: Any) -> Any:
    """Start a cluster whose hosts are all on both networks, each with one entry on each."""
    sim = simulate(seed, timing=timing, **options)
    for index in range(size):
        host = sim.start(f"10.0.0.{index + 1}", seeds=["10.0.0.1", "10.0.0.2"])
        for net in NETS:
            sim.join(host, net)
            sim.put(host, net, f"{host.address}-first", b"v%d" % index)
    return sim


def hosts_of(sim: Any) -> list[Any]:
    """Return all hosts in order of their start."""
    return list(sim.hosts.values())


def test_quiet_cluster_converges_within_seconds(simulate: Make, brisk: Timing, seed: int) -> None:
    """Everybody sees everybody and every entry soon after the start."""
    sim = cluster(simulate, seed, 8, brisk)
    sim.settle(5.0)
    assert sim.largest <= brisk.packet_size


def test_own_change_reaches_a_small_cluster_at_once(
    simulate: Make, brisk: Timing, seed: int
) -> None:
    """An own change is sent directly: all of six hosts have it within a tenth of a second."""
    sim = cluster(simulate, seed, 6, brisk)
    sim.settle(5.0)
    sim.put(hosts_of(sim)[3], "net-a", "late", b"news")
    sim.run(0.1)
    assert not sim.complaints()


def test_loss_and_reordering_lose_nothing(simulate: Make, brisk: Timing, seed: int) -> None:
    """With a fifth of all datagrams lost nobody dies for good and every entry arrives."""
    sim = cluster(simulate, seed, 7, brisk, loss=0.2)
    sim.run(10.0)
    for round_ in range(20):
        host = sim.rng.choice(hosts_of(sim))
        sim.put(host, "net-a", f"{host.address}-{round_ % 5}", b"%d" % round_)
        if round_ % 4 == 3:
            sim.delete(host, "net-a", f"{host.address}-{round_ % 5}")
        sim.run(1.0)
    sim.loss = 0.0
    sim.settle(60.0)


def test_late_and_doubled_datagrams_confuse_nobody(
    simulate: Make, brisk: Timing, seed: int
) -> None:
    """A fifth comes seconds late, a fifth twice: old news stays old, and copies are counted and dropped."""
    sim = cluster(simulate, seed, 6, brisk, disorder=0.2, loss=0.05)
    sim.run(10.0)
    for round_ in range(30):
        host = sim.rng.choice(hosts_of(sim))
        sim.put(host, "net-a", f"{host.address}-{round_ % 3}", b"%d" % round_)
        if round_ % 3 == 2:
            sim.delete(host, "net-a", f"{host.address}-{round_ % 3}")
        if round_ % 7 == 6:
            sim.quit(host, "net-b")
            sim.join(host, "net-b")
            sim.put(host, "net-b", f"{host.address}-again", b"x")
        sim.run(0.5)
    sim.settle(30.0)
    sim.disorder = sim.loss = 0.0
    sim.run(30.0)
    assert not sim.complaints()
    assert all(host.node.swim.refusals.counts.get("replayed") for host in sim.living())


def test_ipv6_cluster_heals(simulate: Make, brisk: Timing, seed: int) -> None:
    """Sixteen-byte addresses in every message: a partition and a restart end as they do with four."""
    sim = simulate(seed, timing=brisk)
    for index in range(5):
        host = sim.start(f"fd00:6::{index + 1:x}", seeds=["fd00:6::1"])
        sim.join(host, "net-a")
        sim.put(host, "net-a", host.address, b"first")
    sim.settle(10.0)
    hosts = hosts_of(sim)
    sim.partition(hosts[:2], hosts[2:])
    sim.run(40.0)
    assert len(sim.seen(hosts[0], "net-a")) == 2
    sim.kill(hosts[4])
    sim.heal()
    fresh = sim.start(hosts[4].address, seeds=["fd00:6::1"])
    sim.join(fresh, "net-a")
    sim.put(fresh, "net-a", "fresh", b"x")
    sim.settle(60.0)


def test_partition_hides_and_heals(simulate: Make, brisk: Timing, seed: int) -> None:
    """Each side sees only its own half; what changed on both is merged when they meet again."""
    sim = cluster(simulate, seed, 6, brisk)
    sim.settle(10.0)
    one, other = hosts_of(sim)[:3], hosts_of(sim)[3:]
    sim.partition(one, other)
    sim.run(40.0)
    for host in one:
        assert sim.seen(host, "net-a").keys() == {f"{h.address}-first" for h in one}
    sim.put(one[0], "net-a", "born-apart", b"1")
    sim.delete(other[0], "net-a", f"{other[0].address}-first")
    sim.put(other[1], "net-b", f"{other[1].address}-first", b"changed apart")
    sim.run(5.0)
    sim.heal()
    sim.settle(60.0)


def test_long_partition_with_quits_and_deaths(simulate: Make, brisk: Timing, seed: int) -> None:
    """Whoever leaves a network or dies while apart is not brought back by the other side."""
    sim = cluster(simulate, seed, 6, brisk)
    sim.settle(10.0)
    one, other = hosts_of(sim)[:3], hosts_of(sim)[3:]
    sim.partition(one, other)
    sim.run(10.0)
    sim.quit(other[0], "net-a")
    sim.kill(other[1])
    sim.leave(one[2])
    sim.run(60.0)
    sim.heal()
    sim.settle(90.0)


def test_one_way_cut_kills_nobody(simulate: Make, brisk: Timing, seed: int) -> None:
    """While A cannot reach B, others relay the probes: both stay alive in every view, with all they have."""
    sim = cluster(simulate, seed, 6, brisk)
    sim.settle(10.0)
    a, b = hosts_of(sim)[2:4]
    sim.cut([a], [b])
    for _ in range(40):
        sim.run(1.0)
        for host in sim.living():
            assert all(m.state in {State.ALIVE, State.SUSPECT} for m in host.node.swim.members)
            assert sim.seen(host, "net-a").keys() == {f"{h.address}-first" for h in hosts_of(sim)}
    sim.put(a, "net-a", "over-others", b"x")
    sim.run(3.0)
    assert sim.seen(b, "net-a").keys() == sim.wanted("net-a").keys()
    sim.heal()
    sim.settle(30.0)


@pytest.mark.parametrize("deaf", [True, False])
def test_a_host_cut_off_one_way_is_given_up_and_returns(
    simulate: Make, brisk: Timing, seed: int, deaf: bool
) -> None:
    """Whoever hears nobody, or is heard by nobody, is as good as dead; healed, it is back with all it has."""
    sim = cluster(simulate, seed, 6, brisk)
    sim.settle(10.0)
    *others, cut = hosts_of(sim)
    if deaf:
        sim.cut(others, [cut])
    else:
        sim.cut([cut], others)
    sim.run(60.0)
    for host in others:
        assert cut.node.name not in {m.name for m in host.node.swim.members if not m.gone}
        assert f"{cut.address}-first" not in sim.seen(host, "net-a")
        assert {m.name for m in host.node.swim.members if not m.gone} == {
            each.node.name for each in others
        }
    sim.put(cut, "net-a", "meanwhile", b"x")
    sim.heal()
    sim.settle(30.0)


def test_killed_host_is_gone_in_time_and_its_entries_with_it(
    simulate: Make, brisk: Timing, seed: int
) -> None:
    """Six hosts find a death within 12 s and hide the entries; none comes back from anywhere."""
    sim = cluster(simulate, seed, 6, brisk)
    sim.settle(10.0)
    victim = hosts_of(sim)[4]
    sim.kill(victim)
    sim.settle(15.0)
    sim.run(60.0)
    assert not sim.complaints()


@pytest.mark.parametrize("kept_name", [False, True])
@pytest.mark.parametrize("moved", [False, True])
def test_restarted_host_takes_over(
    simulate: Make, brisk: Timing, seed: int, kept_name: bool, moved: bool
) -> None:
    """Back under its old or a new name and address, a process owns just the keys it still wants."""
    sim = cluster(simulate, seed, 5, brisk)
    sim.settle(10.0)
    old = hosts_of(sim)[4]
    for index in range(30):  # its clock is far ahead of a fresh one
        sim.put(old, "net-a", "kept", b"old %d" % index)
    sim.run(2.0)
    sim.kill(old)
    sim.run(20.0 if moved and kept_name else 3.0)
    if moved and kept_name:
        sim.run(60.0)  # engines accept a known name elsewhere only once they have forgotten it
    new = sim.start(
        "10.0.0.77" if moved else old.address,
        seeds=["10.0.0.1"],
        name=old.node.name if kept_name else None,
        incarnation=old.node.swim.me.incarnation + 1 if kept_name else 1,
    )
    sim.join(new, "net-a")
    sim.put(new, "net-a", "kept", b"new")
    sim.settle(60.0)
    sim.run(40.0)
    assert not sim.complaints()


def test_graceful_leave_is_final(simulate: Make, brisk: Timing, seed: int) -> None:
    """A host that says goodbye is dropped at once, and nobody dials it any more."""
    sim = cluster(simulate, seed, 5, brisk)
    sim.settle(10.0)
    leaver = hosts_of(sim)[3]
    sim.leave(leaver)
    assert not sim.complaints()
    sim.run(45.0)
    assert not sim.complaints()


def test_quick_leave_and_rejoin_of_a_network(simulate: Make, brisk: Timing, seed: int) -> None:
    """Entries of before the leave stay gone, entries of after it stay, whatever order it arrives in."""
    sim = cluster(simulate, seed, 6, brisk, loss=0.3)
    sim.run(15.0)
    host = hosts_of(sim)[2]
    for round_ in range(5):
        sim.quit(host, "net-a")
        sim.run(sim.rng.random() * 0.3)
        sim.join(host, "net-a")
        sim.put(host, "net-a", f"after-{round_}", b"x")
        sim.run(sim.rng.random())
    sim.loss = 0.0
    sim.settle(60.0)


def test_clock_jumps_and_stops_kill_nobody_else(simulate: Make, brisk: Timing, seed: int) -> None:
    """A host that sleeps for minutes, or whose clock leaps, declares nobody dead on waking."""
    sim = cluster(simulate, seed, 5, brisk)
    sim.settle(10.0)
    sleeper, leaper, backer = hosts_of(sim)[1:4]
    sleeper.paused = True
    sim.run(120.0)
    sim.resume(sleeper)
    leaper.clock += 3600.0
    backer.clock -= 3600.0
    for _ in range(300):
        sim.run(0.1)
        for host in (sleeper, leaper, backer):
            gone = {m.name for m in host.node.swim.members if m.gone}
            assert gone <= {sleeper.node.name}
    sim.settle(60.0)


def test_all_seeds_restart_at_once(simulate: Make, brisk: Timing, seed: int) -> None:
    """Two islands left by the simultaneous restart of every manager find each other again."""
    sim = cluster(simulate, seed, 5, brisk)
    sim.settle(10.0)
    for host in hosts_of(sim)[:2]:
        sim.kill(host)
    sim.run(45.0)
    for address, other in (("10.0.0.1", "10.0.0.2"), ("10.0.0.2", "10.0.0.1")):
        host = sim.start(address, seeds=[other])
        for net in NETS:
            sim.join(host, net)
            sim.put(host, net, f"{address}-second", b"again")
    sim.settle(60.0)


def test_random_churn(simulate: Make, brisk: Timing, seed: int) -> None:
    """Anything at any time, then peace: equal tables, nothing lost, nothing resurrected."""
    sim = cluster(simulate, seed, 7, brisk, loss=0.1)
    rng: random.Random = sim.rng
    sim.run(5.0)
    for _ in range(60):
        host = rng.choice(sim.living())
        net = rng.choice(NETS)
        match rng.randrange(12):
            case 0:
                sim.quit(host, net)
            case 1 | 2:
                sim.join(host, net)
            case 3 | 4 | 5 | 6:
                sim.join(host, net)
                key = f"{host.address}-{rng.randrange(4)}"
                sim.put(host, net, key, rng.randbytes(rng.randrange(1, 60)))
            case 7 | 8:
                for key in list(host.model.get(net, ()))[:1]:
                    sim.delete(host, net, key)
            case 9:
                some = rng.sample(sim.living(), 2)
                sim.partition(some, [h for h in sim.living() if h not in some])
            case 10:
                sim.heal()
            case 11:
                if host.address not in {"10.0.0.1", "10.0.0.2"}:
                    sim.kill(host)
                    fresh = sim.start(host.address, seeds=["10.0.0.1", "10.0.0.2"])
                    sim.join(fresh, net)
                    sim.put(fresh, net, f"{host.address}-0", b"restarted")
        sim.run(rng.random() * 2)
    sim.heal()
    sim.loss = 0.0
    sim.settle(120.0)
    sim.run(20.0)
    assert not sim.complaints()


def test_missed_rotations_are_caught_up_at_once(simulate: Make, brisk: Timing, seed: int) -> None:
    """A host two key generations behind is understood again as soon as it gets the newest set."""
    sim = cluster(simulate, seed, 4, brisk)
    sim.settle(10.0)
    *others, late = hosts_of(sim)
    from_tag = next(key.lamport - 100 for key in late.node.keyring._current)
    for generation in (from_tag + 1, from_tag + 2):
        for host in others:
            tags = range(generation, generation + 3)
            host.node.set_keys(_keys(tags))
            sim.run(0.5)
    late.node.set_keys(_keys(range(from_tag + 2, from_tag + 5)))
    sim.run(3.0)
    before = dict(late.node.swim.refusals.counts)
    sim.put(others[0], "net-a", "after-rotation", b"x")
    sim.run(2.0)
    assert late.node.swim.refusals.counts == before
    sim.settle(30.0)


def _keys(tags: range) -> list[Any]:
    from agent.gossip.swim.keyring import GossipKey

    return [
        GossipKey(lamport=100 + tag, key=random.Random(f"key {tag}").randbytes(16)) for tag in tags
    ]
