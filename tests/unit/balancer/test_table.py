"""Pools of backends, held against a model that starts from nothing each time."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.balancer.table import (
    BUCKETS,
    LINGER,
    MAX_SLOTS,
    MAX_WEIGHT,
    OTHERS,
    PREFERRED,
    SILENT,
    Back,
    Backend,
    IPAddress,
    Slots,
    Table,
    spread,
)

VIPS = [ipaddress.ip_address(f"10.0.1.{200 + i}") for i in range(3)]
IPS = [ipaddress.ip_address(f"10.0.1.{10 + i}") for i in range(5)]


def backend(vip: int = 0, ip: int = 0, *, serving: bool = True, tier: int = PREFERRED) -> Backend:
    return Backend(vip=VIPS[vip], ip=IPS[ip], serving=serving, tier=tier)


def picks(table: Table, vip: IPAddress = VIPS[0]) -> tuple[Back, ...] | None:
    """What new flows choose from; None for no virtual address."""
    slots = table.slots(vip)
    return None if slots is None else slots.backs


steps = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.one_of(
            st.none(),
            st.builds(backend, st.integers(0, 2), st.integers(0, 4), serving=st.booleans()),
        ),
    ),
    max_size=40,
)


@given(steps)
def test_slots_are_dense_and_hold_exactly_the_serving_backends(
    history: list[tuple[str, Backend | None]],
) -> None:
    """Whatever happened before; and a step moves at most one other backend to another slot."""
    table, model = Table(), dict[str, Backend]()
    for key, wanted in history:
        before = {vip: picks(table, vip) or () for vip in VIPS}
        if wanted is None:
            table.remove(key, 0.0)
            model.pop(key, None)
        else:
            table.put(key, wanted, 0.0)
            model[key] = wanted
        for vip in VIPS:
            expected = {each.ip for each in model.values() if each.vip == vip and each.serving}
            slots = picks(table, vip)
            assert set(slots or ()) == expected
            assert len(slots or ()) == len(expected)
            if slots is None:
                assert vip not in {each.vip for each in model.values()}
            moved = [
                ip
                for number, ip in enumerate(before[vip])
                if ip in expected and (slots or ())[number : number + 1] != (ip,)
            ]
            assert len(moved) <= 1
            if moved or set(before[vip]) != expected:
                assert vip in table.changed
        assert not table.dead & {each.ip for each in model.values()}


def test_two_records_of_one_address_are_one_backend() -> None:
    """It goes with the last of them, and only then it is dead."""
    table = Table()
    table.put("a", backend(), 0.0)
    table.put("b", backend(), 0.0)
    assert picks(table) == (IPS[0],)
    table.remove("a", 0.0)
    assert picks(table) == (IPS[0],)
    assert table.take_dead() == set()
    table.remove("b", 0.0)
    assert picks(table) == ()
    assert table.take_dead() == {IPS[0]}


def test_an_address_without_backends_refuses_for_a_while_then_is_none() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.remove("a", 5.0)
    assert table.deadline() == 5.0 + LINGER
    table.expire(4.9 + LINGER)
    assert picks(table) == ()
    table.changed.clear()
    table.expire(5.0 + LINGER)
    assert picks(table) is None
    assert table.changed == {VIPS[0]}
    assert table.deadline() is None


def test_a_service_that_comes_back_in_time_never_went() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.remove("a", 0.0)
    table.put("b", backend(ip=1), 1.0)
    table.expire(1.0 + 2 * LINGER)
    assert picks(table) == (IPS[1],)


def test_an_address_given_to_an_endpoint_is_no_virtual_one_any_more() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.reuse(VIPS[0])
    assert picks(table) == (IPS[0],), "in use: the records are to be believed"
    table.remove("a", 0.0)
    table.reuse(VIPS[0])
    assert picks(table) is None


def test_draining_is_not_dying() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.put("a", backend(serving=False), 0.0)
    assert picks(table) == ()
    assert table.deadline() is None
    assert table.take_dead() == set()


@pytest.mark.parametrize("extra", [0, 1, 10])
def test_a_service_has_a_bounded_number_of_slots(extra: int) -> None:
    table = Table()
    base = int(ipaddress.ip_address("10.1.0.0"))
    for number in range(MAX_SLOTS + extra):
        ip: IPAddress = ipaddress.ip_address(base + number)
        table.put(str(number), Backend(vip=VIPS[0], ip=ip), 0.0)
    assert len(picks(table) or ()) == MAX_SLOTS


tiered = st.lists(
    st.tuples(
        st.sampled_from("abcdef"),
        st.one_of(
            st.none(),
            st.builds(
                Backend,
                vip=st.just(VIPS[0]),
                ip=st.sampled_from(IPS),
                serving=st.booleans(),
                tier=st.sampled_from((PREFERRED, OTHERS, SILENT)),
                weight=st.integers(1, MAX_WEIGHT),
            ),
        ),
    ),
    max_size=40,
)


@given(tiered)
def test_only_the_best_tier_gets_flows_by_weight(history: list[tuple[str, Backend | None]]) -> None:
    """Against a model made anew: several records of one address count by their best and heaviest."""
    table, model = Table(), dict[str, Backend]()
    for key, wanted in history:
        if wanted is None:
            table.remove(key, 0.0)
            model.pop(key, None)
        else:
            table.put(key, wanted, 0.0)
            model[key] = wanted
        serving = [each for each in model.values() if each.serving]
        home = {
            ip: min(each.tier for each in serving if each.ip == ip)
            for ip in {each.ip for each in serving}
        }
        best = min(home.values(), default=None)
        expected = {
            ip: max(each.weight for each in serving if each.ip == ip)
            for ip, tier in home.items()
            if tier == best
        }
        slots = picks(table) or ()
        assert {ip: slots.count(ip) for ip in set(slots)} == expected


def test_a_weight_beyond_the_bound_counts_as_the_bound() -> None:
    table = Table()
    table.put("a", Backend(vip=VIPS[0], ip=IPS[0], weight=10**6), 0.0)
    assert picks(table) == (IPS[0],) * MAX_WEIGHT


def test_a_sticky_service_has_one_table_on_every_node() -> None:
    """Whatever the order in which a node heard of the backends."""
    tables = []
    for order in ((0, 1, 2), (2, 0, 1)):
        table = Table()
        for number in order:
            sticky = Backend(vip=VIPS[0], ip=IPS[number], sticky=True)
            table.put(str(number), sticky, 0.0)
        tables.append(table.slots(VIPS[0]))
    assert tables[0] == tables[1]
    assert tables[0] is not None
    assert tables[0].sticky
    assert len(tables[0].backs) == BUCKETS


@given(st.sets(st.integers(1, 200), min_size=2, max_size=40), st.data())
def test_a_backend_that_goes_moves_few_clients_of_the_others(
    numbers: set[int], data: st.DataObject
) -> None:
    """Shares are even to a few percent; of the others' buckets at most a tenth change hands."""
    backs = [ipaddress.ip_address(f"10.0.1.{number}") for number in sorted(numbers)]
    gone = data.draw(st.sampled_from(backs))
    before, after = spread(backs), spread([each for each in backs if each != gone])
    shares = [before.count(each) for each in backs]
    assert max(shares) - min(shares) <= 1
    kept = [(old, new) for old, new in zip(before, after, strict=True) if old != gone]
    assert sum(old != new for old, new in kept) <= BUCKETS / 10
    assert gone not in after


def test_turns_in_the_sticky_table_follow_weights() -> None:
    table = spread([IPS[0], IPS[1], IPS[1], IPS[1]])
    assert abs(table.count(IPS[1]) - 3 * table.count(IPS[0])) <= 3


def test_slots_of_nothing_are_nothing() -> None:
    table = Table()
    table.put("a", Backend(vip=VIPS[0], ip=IPS[0], sticky=True, serving=False), 0.0)
    assert table.slots(VIPS[0]) == Slots()
