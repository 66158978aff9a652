"""Indexes against sorted lists and plain dictionaries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from manager.store import index
from manager.store.index import Lookup, SortedIds

IDS = st.text("ab01", min_size=1, max_size=6)


@given(st.lists(IDS, max_size=60), st.text("ab01", max_size=3), st.integers(2, 8))
def test_sorted_ids_behave_like_a_sorted_set(keys: list[str], prefix: str, chunk: int) -> None:
    """Adding what is absent and removing what is present keeps order and prefix search exact."""
    ids, oracle = SortedIds(), set[str]()
    present, index.CHUNK = index.CHUNK, chunk
    try:
        for key in keys:
            if key in oracle:
                ids.remove(key)
                oracle.remove(key)
            else:
                ids.add(key)
                oracle.add(key)
            assert list(ids) == sorted(oracle)
            assert list(ids.starting(prefix)) == [e for e in sorted(oracle) if e.startswith(prefix)]
    finally:
        index.CHUNK = present


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.sets(st.sampled_from("abc")))))
def test_lookup_follows_each_owners_keys(steps: list[tuple[str, set[str]]]) -> None:
    """A key finds exactly the owners that carry it now."""
    lookup, oracle = Lookup(), dict[str, set[str]]()
    for owner, keys in steps:
        lookup.swap(owner, oracle.get(owner, set()), keys)
        oracle[owner] = keys
        for key in "abc":
            owners = sorted(each for each, held in oracle.items() if key in held)
            assert lookup.ids(key) == owners
            assert lookup.count(key) == len(owners)
