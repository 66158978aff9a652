"""The subnet index against a linear search."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from manager.store.subnets import Subnets

POOL = IPv4Network("10.0.0.0/24")
ANY = st.builds(
    lambda length, place: list(POOL.supernet().subnets(new_prefix=length))[
        place % (1 << (length - 23))
    ],
    st.integers(23, 28),
    st.integers(0, 63),
)


@given(st.lists(ANY, max_size=25), st.integers(24, 28))
def test_subnets_behave_like_a_linear_search(steps: list[IPv4Network], length: int) -> None:
    """Overlap and lowest free are those of the obvious search, whatever was added and removed."""
    subnets, oracle = Subnets(), set[IPv4Network]()
    for step in steps:
        overlap = [each for each in oracle if each.overlaps(step)]
        found = subnets.overlap(step)
        assert (found is not None) == bool(overlap)
        if found is not None:
            assert found.subnet(4) in overlap
        if step in oracle:
            assert subnets.overlap(step, but=str(step)) is None
            subnets.remove(step, str(step))
            oracle.remove(step)
        elif not overlap:
            subnets.add(step, str(step))
            oracle.add(step)
        assert len(subnets) == len(oracle)
        for wanted in (length, 26):
            free = (
                each
                for each in POOL.subnets(new_prefix=wanted)
                if not any(each.overlaps(other) for other in oracle)
            )
            assert subnets.lowest_free(POOL, wanted) == next(free, None)


def test_families_do_not_meet() -> None:
    """An IPv6 subnet whose number is small is never confused with an IPv4 one."""
    subnets = Subnets()
    small = IPv6Network("::a00:0/120")
    subnets.add(small, "six")
    assert subnets.overlap(IPv4Network("10.0.0.0/24")) is None
    found = subnets.overlap(IPv6Network("::a00:0/128"))
    assert found is not None
    assert found.subnet(6) == small
    assert subnets.lowest_free(IPv6Network("::a00:0/112"), 120) == IPv6Network("::a00:100/120")
