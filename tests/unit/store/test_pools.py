"""Order, rest and exhaustion of one subnet's addresses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.store.pools import REST_NS, Journal, Pool, parse_address, parse_subnet
from manager.store.state import State
from swarm.errors import InvalidArgumentError
from swarm.model import IPAMConfig


def small() -> Pool:
    """.1 is the gateway, .2 to .6 are free."""
    return Pool("net", IPAMConfig(subnet="10.0.0.0/29", gateway="10.0.0.1"))


def last(pool: Pool) -> list[int]:
    """Hand out all that is free at time 0; last octets in order."""
    octets = []
    while (number := pool.next_free(0)) is not None:
        pool.take(number, "task", [], in_order=True)
        octets.append(number & 0xFF)
    return octets


def test_addresses_come_in_order_and_end() -> None:
    """Network, broadcast and gateway are never handed out; then there is nothing left."""
    pool = small()
    assert last(pool) == [2, 3, 4, 5, 6]
    assert pool.next_free(0) is None
    assert pool.used == pool.size == 6


def test_next_is_behind_the_last_one_not_the_lowest() -> None:
    """A freed address is passed over while the order has not come around."""
    pool = small()
    base = int(pool.subnet.network_address)
    for octet in (2, 3):
        pool.take(base + octet, "task", [], in_order=True)
    pool.release(base + 2, 0, [])
    assert pool.next_free(10 * REST_NS) == base + 4


def test_an_asked_address_does_not_move_the_order() -> None:
    """After .5 was asked for, the next one is still .2."""
    pool = small()
    base = int(pool.subnet.network_address)
    pool.take(base + 5, "task", [], in_order=False)
    assert pool.next_free(0) == base + 2


def test_freed_addresses_rest_and_the_oldest_goes_first() -> None:
    """With only resting ones left the one freed first is given; a rested one is as good as new."""
    pool = small()
    base = int(pool.subnet.network_address)
    last(pool)
    pool.release(base + 4, 100, [])
    pool.release(base + 2, 200, [])
    assert pool.next_free(300) == base + 4
    pool.release(base + 6, 90 + REST_NS, [])
    # .4 has rested, .2 and .6 have not: order alone would say .2.
    assert pool.next_free(150 + REST_NS) == base + 4
    assert pool.next_free(250 + REST_NS) == base + 2


def test_range_bounds_what_is_handed_out_but_not_what_may_be_asked() -> None:
    """Range 10.0.0.128/30 gives .128 to .131 although the subnet is a /24."""
    config = IPAMConfig(subnet="10.0.0.0/24", range="10.0.0.128/30", gateway="10.0.0.1")
    pool = Pool("net", config)
    base = int(pool.subnet.network_address)
    pool.take(base + 7, "task", [], in_order=False)
    assert last(pool) == [128, 129, 130, 131]


def test_reserved_addresses_are_held() -> None:
    """Auxiliary addresses are never handed out."""
    config = IPAMConfig(
        subnet="10.0.0.0/29", gateway="10.0.0.1", reserved={"router": "10.0.0.3", "b": "10.0.0.2"}
    )
    assert last(Pool("net", config)) == [4, 5, 6]


def test_ipv6_has_no_broadcast_address() -> None:
    """The last address of an IPv6 subnet is an ordinary one, the first is the routers' anycast."""
    pool = Pool("net", IPAMConfig(subnet="fd00::/126", gateway="fd00::1"))
    assert last(pool) == [2, 3]


def test_resting_queue_stays_short() -> None:
    """Rested addresses leave the queue as others enter."""
    pool = Pool("net", IPAMConfig(subnet="10.0.0.0/16", gateway="10.0.0.1"))
    for step in range(1000):
        number = pool.next_free(step * REST_NS // 10)
        assert number is not None
        pool.take(number, "task", [], in_order=True)
        pool.release(number, step * REST_NS // 10, [])
    assert len(pool.resting) <= 12


@given(st.lists(st.tuples(st.integers(0, 7), st.booleans(), st.integers(0, 3)), max_size=40))
def test_every_step_can_be_taken_back(steps: list[tuple[int, bool, int]]) -> None:
    """Undoing the journal restores holders, counts, order and rest exactly."""
    pool, journal, now = small(), Journal(), 0
    base = int(pool.subnet.network_address)

    def all_of() -> object:
        return dict(pool.holders), pool.held, pool.used, pool.cursor, pool.resting

    marks = [(0, all_of())]
    for octet, in_order, pause in steps:
        now += pause * REST_NS // 2
        number = base + octet
        if pool.holders.get(number) == "task":
            pool.release(number, now, journal)
        elif number not in pool.holders:
            pool.take(number, "task", journal, in_order=in_order)
        marks.append((len(journal), all_of()))
        assert pool.used == len([n for n in pool.holders if pool.low <= n <= pool.high])
    for length, expected in reversed(marks):
        State.undo(journal, length)
        assert all_of() == expected


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0", "10.0.0.1/33", "10.0.0.1/", "10.0.0.1/x", "fe80::1%eth0", "::1/129", "a/1"],
)
def test_malformed_addresses_are_refused(text: str) -> None:
    """Only an address, bare or with a prefix length, is one."""
    with pytest.raises(InvalidArgumentError):
        parse_address(text)


@pytest.mark.parametrize(
    "text", ["", "10.0.0.0", "10.0.0.1/24", "10.0.0.0/33", "x/24", "fd00::/129"]
)
def test_malformed_subnets_are_refused(text: str) -> None:
    """A subnet has a prefix length and no bits beyond it."""
    with pytest.raises(InvalidArgumentError):
        parse_subnet(text)
