"""Pools of backends, held against a model that starts from nothing each time."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.balancer.table import LINGER, MAX_SLOTS, Backend, IPAddress, Table

VIPS = [ipaddress.ip_address(f"10.0.1.{200 + i}") for i in range(3)]
IPS = [ipaddress.ip_address(f"10.0.1.{10 + i}") for i in range(5)]


def backend(vip: int = 0, ip: int = 0, *, serving: bool = True) -> Backend:
    return Backend(vip=VIPS[vip], ip=IPS[ip], serving=serving)


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
        before = {vip: table.slots(vip) or () for vip in VIPS}
        if wanted is None:
            table.remove(key, 0.0)
            model.pop(key, None)
        else:
            table.put(key, wanted, 0.0)
            model[key] = wanted
        for vip in VIPS:
            expected = {each.ip for each in model.values() if each.vip == vip and each.serving}
            slots = table.slots(vip)
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
    assert table.slots(VIPS[0]) == (IPS[0],)
    table.remove("a", 0.0)
    assert table.slots(VIPS[0]) == (IPS[0],)
    assert table.take_dead() == set()
    table.remove("b", 0.0)
    assert table.slots(VIPS[0]) == ()
    assert table.take_dead() == {IPS[0]}


def test_an_address_without_backends_refuses_for_a_while_then_is_none() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.remove("a", 5.0)
    assert table.deadline() == 5.0 + LINGER
    table.expire(4.9 + LINGER)
    assert table.slots(VIPS[0]) == ()
    table.changed.clear()
    table.expire(5.0 + LINGER)
    assert table.slots(VIPS[0]) is None
    assert table.changed == {VIPS[0]}
    assert table.deadline() is None


def test_a_service_that_comes_back_in_time_never_went() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.remove("a", 0.0)
    table.put("b", backend(ip=1), 1.0)
    table.expire(1.0 + 2 * LINGER)
    assert table.slots(VIPS[0]) == (IPS[1],)


def test_an_address_given_to_an_endpoint_is_no_virtual_one_any_more() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.reuse(VIPS[0])
    assert table.slots(VIPS[0]) == (IPS[0],), "in use: the records are to be believed"
    table.remove("a", 0.0)
    table.reuse(VIPS[0])
    assert table.slots(VIPS[0]) is None


def test_draining_is_not_dying() -> None:
    table = Table()
    table.put("a", backend(), 0.0)
    table.put("a", backend(serving=False), 0.0)
    assert table.slots(VIPS[0]) == ()
    assert table.deadline() is None
    assert table.take_dead() == set()


@pytest.mark.parametrize("extra", [0, 1, 10])
def test_a_service_has_a_bounded_number_of_slots(extra: int) -> None:
    table = Table()
    base = int(ipaddress.ip_address("10.1.0.0"))
    for number in range(MAX_SLOTS + extra):
        ip: IPAddress = ipaddress.ip_address(base + number)
        table.put(str(number), Backend(vip=VIPS[0], ip=ip), 0.0)
    assert len(table.slots(VIPS[0]) or ()) == MAX_SLOTS
