"""Suspicion arithmetic, awareness, the broadcast queue, timers, membership."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.gossip.swim import suspicion
from agent.gossip.swim.awareness import Awareness
from agent.gossip.swim.membership import VERSIONS, Member, Membership, compatible, usable
from agent.gossip.swim.queue import BroadcastQueue, retransmit_limit
from agent.gossip.swim.wire import State
from agent.gossip.timers import MAX_STEP, Timers


def limits(nodes: int) -> suspicion.Bounds:
    """Return the bounds of a suspicion with engine timing."""
    return suspicion.bounds(nodes=nodes, probe_interval=1.0, mult=4, max_mult=6)


@pytest.mark.parametrize(
    ("nodes", "spans"),
    [
        (1, [4.0]),
        (2, [4.0]),
        (3, [4.0]),
        (4, [24.0, 11.38, 4.0]),
        (10, [24.0, 11.38, 4.0]),
        (100, [48.0, 22.76, 8.0]),
        (1000, [72.0, 34.14, 12.0]),
    ],
)
def test_suspicion_times(nodes: int, spans: list[float]) -> None:
    """Seconds until a suspect counts as dead, after 0, 1 and 2 confirmations."""
    running = suspicion.Suspicion(since=100.0, limits=limits(nodes), accusers={"a"})
    got = [running.deadline() - 100.0]
    for accuser in "bc"[: running.limits.confirmations]:
        assert running.confirm(accuser)
        got.append(running.deadline() - 100.0)
    assert got == [pytest.approx(span, abs=0.01) for span in spans]


def test_only_new_and_needed_accusers_count() -> None:
    """The first accuser again, any accuser twice, and accusers beyond enough change nothing."""
    running = suspicion.Suspicion(since=0.0, limits=limits(10), accusers={"a"})
    assert [running.confirm(x) for x in "abbcd"] == [False, True, False, True, False]
    alone = suspicion.Suspicion(since=0.0, limits=limits(3), accusers={"a"})
    assert not alone.confirm("b")


def test_awareness_stays_within_its_limits() -> None:
    """0 is well, 7 is the worst, and time-outs stretch by it."""
    health = Awareness(limit=8)
    health.apply(-1)
    assert (health.score, health.stretch(0.5)) == (0, 0.5)
    health.apply(99)
    assert (health.score, health.stretch(0.5)) == (7, 4.0)
    health.apply(-1)
    assert health.score == 6


@pytest.mark.parametrize(
    ("nodes", "times"), [(1, 4), (9, 4), (10, 8), (99, 8), (100, 12), (999, 12)]
)
def test_retransmit_limit(nodes: int, times: int) -> None:
    """How often a broadcast is sent in clusters of several sizes."""
    assert retransmit_limit(4, nodes) == times


def test_queue_order_is_fewest_transmits_then_longest_then_newest() -> None:
    """The order in which messages are taken."""
    queue = BroadcastQueue(limit=100)
    for name, message in (("a", b"11"), ("b", b"22"), ("c", b"333")):
        queue.put(name, message)
    assert queue.take(room=4, overhead=1, limit=9) == [b"333"]
    assert queue.take(room=9, overhead=1, limit=9) == [b"22", b"11"]
    queue.put("d", b"4")
    assert queue.take(room=4, overhead=1, limit=9) == [b"4"]
    assert queue.take(room=5, overhead=1, limit=9) == [b"333"]


def test_queue_replaces_by_name_and_retires() -> None:
    """A newer message about the same thing starts afresh; a spent one is gone."""
    queue = BroadcastQueue(limit=100)
    queue.put("a", b"old")
    queue.put("a", b"new")
    assert [queue.take(room=99, overhead=0, limit=2) for _ in range(3)] == [[b"new"], [b"new"], []]
    assert "a" not in queue
    assert not len(queue)


def test_full_queue_drops_what_was_sent_most() -> None:
    """The bound costs the message that has had most of its chances."""
    queue = BroadcastQueue(limit=2)
    queue.put("sent", b"s")
    queue.take(room=9, overhead=0, limit=9)
    queue.put("waits", b"w")
    queue.put("new", b"n")
    assert ("sent" in queue, "waits" in queue, "new" in queue) == (False, True, True)
    assert queue.dropped == 1


def slow_take(items: list[list[object]], room: int, overhead: int) -> list[str]:
    """Say in the plainest way which messages are to be taken."""
    taken = []
    for item in sorted(items, key=lambda i: (i[2], -len(i[1]), -i[3])):  # type: ignore[arg-type,operator]
        if len(item[1]) + overhead <= room:  # type: ignore[arg-type]
            room -= len(item[1]) + overhead  # type: ignore[arg-type]
            item[2] += 1  # type: ignore[operator]
            taken.append(item)
    return [item[0] for item in taken]  # type: ignore[misc]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 9)) | st.integers(0, 40), max_size=30
    )
)
def test_queue_agrees_with_the_plain_rule(steps: list[tuple[str, int] | int]) -> None:
    """Greedy in order: everything that still fits goes, tier by tier."""
    queue = BroadcastQueue(limit=1000)
    items: list[list[object]] = []
    for serial, step in enumerate(steps):
        if isinstance(step, tuple):
            name, size = step
            message = name.encode() * size
            queue.put(name, message)
            items = [item for item in items if item[0] != name]
            items.append([name, message, 0, serial])
        else:
            got = queue.take(room=step, overhead=2, limit=1000)
            wanted = slow_take(items, step, 2)
            by_name = {item[0]: item[1] for item in items}
            assert got == [by_name[name] for name in wanted]


def test_timers_run_in_order_and_cancelled_ones_never() -> None:
    """Same instant: as they were set."""
    timers, ran = Timers(0.0), []
    timers.after(1.0, lambda: ran.append("b"))
    timers.after(0.5, lambda: ran.append("a"))
    timers.after(1.0, lambda: ran.append("c"))
    timers.after(0.1, lambda: ran.append("never")).cancel()
    assert timers.next_deadline() == 0.5
    timers.advance(1.0)
    timers.run_due()
    assert ran == ["a", "b", "c"]
    assert timers.next_deadline() is None


def test_time_neither_leaps_nor_runs_backwards() -> None:
    """After a long stop, and after a step back, deadlines keep their distance."""
    timers, ran = Timers(100.0), []
    timers.after(10.0, lambda: ran.append(1))
    timers.advance(5000.0)
    timers.run_due()
    assert not ran
    assert timers.stalled == pytest.approx(4900.0 - MAX_STEP)
    assert timers.next_deadline() == pytest.approx(5000.0 + 10.0 - MAX_STEP)
    timers.advance(50.0)
    assert timers.next_deadline() == pytest.approx(50.0 + 10.0 - MAX_STEP)
    for second in range(9):
        timers.advance(51.0 + second)
        timers.run_due()
    assert ran == [1]


def test_a_deadline_lost_to_rounding_is_due_all_the_same() -> None:
    """Waking exactly when told to always finds the work: sums of fractions do not prevent it."""
    timers, ran = Timers(1085.1234567), []
    for step in (0.1, 0.7, 0.3, 1e-3, 0.2):
        timers.after(step, lambda: ran.append(1))
        wake = timers.next_deadline()
        assert wake is not None
        timers.advance(wake)
        timers.run_due()
    assert len(ran) == 5


def member(name: str, state: State = State.ALIVE) -> Member:
    """Return a member of that name and state."""
    return Member(
        name=name, addr=b"\x0a\x00\x00\x01", port=1, meta=b"", versions=VERSIONS,
        incarnation=1, state=state, changed=0.0,
    )  # fmt: skip


def test_every_member_is_probed_once_per_round() -> None:
    """In a new order each time, without the dead and without oneself."""
    rng, members = random.Random(1), Membership()
    for name in ("me", "a", "b", "c", "d"):
        members.add(member(name), rng)
    members.add(member("dead", State.DEAD), rng)

    def keep(_: Member) -> bool:
        return False

    rounds = []
    for _ in range(20):
        found = [members.next_probe(rng, skip="me", forget=keep) for _ in range(4)]
        names = [m.name for m in found if m]
        rounds.append(tuple(names))
    assert all(sorted(names) == ["a", "b", "c", "d"] for names in rounds[1:])
    assert len(set(rounds)) > 5


def test_alone_there_is_nobody_to_probe() -> None:
    """No endless search, and the forgotten are gone."""
    rng, members = random.Random(1), Membership()
    members.add(member("me"), rng)
    members.add(member("gone", State.LEFT), rng)
    for _ in range(3):
        assert members.next_probe(rng, skip="me", forget=lambda m: m.gone) is None
    assert [m.name for m in members] == ["me"]


@pytest.mark.parametrize(
    ("versions", "fits"),
    [
        ((1, 5, 2, 0, 0, 0), True),
        ((2, 2, 2, 0, 0, 0), True),
        ((1, 9, 4, 0, 3, 0), True),
        ((0, 5, 2, 0, 0, 0), False),
        ((3, 5, 3, 0, 0, 0), False),
        ((1, 9, 6, 0, 0, 0), False),
        ((1, 5, 0, 0, 0, 0), False),
        ((1, 5, 2, 1, 1, 1), False),
        ((1, 5, 2, 0, 1, 1), False),
        ((1, 5, 2, 0, 0), False),
        ((), False),
    ],
)
def test_version_vectors(versions: tuple[int, ...], fits: bool) -> None:
    """A node fits if each side speaks what the other does now."""
    assert compatible(bytes(versions)) is fits


@pytest.mark.parametrize(
    ("addr", "port", "good"),
    [
        (b"\x0a\x00\x00\x01", 7946, True),
        (b"\xfd" + bytes(14) + b"\x01", 1, True),
        (b"\x0a\x00\x00\x01", 0, False),
        (bytes(4), 7946, False),
        (b"", 7946, False),
        (b"\x0a\x00\x00", 7946, False),
        (bytes(5), 7946, False),
    ],
)
def test_usable_addresses(addr: bytes, port: int, good: bool) -> None:
    """Four or sixteen bytes that are not all zero, and a port."""
    assert usable(addr, port) is good
