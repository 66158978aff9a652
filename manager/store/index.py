"""Index structures: ids in order, and many-to-many lookups. Both change one entry at a time."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Iterator

CHUNK = 512
"""Ids in one chunk before it splits; insertion moves at most this many references."""


class SortedIds:
    """Ids in order: O(sqrt n) insertion, prefix search in O(log n + result)."""

    __slots__ = ("_chunks", "_heads")

    def __init__(self) -> None:
        self._chunks: list[list[str]] = []
        self._heads: list[str] = []  # first id of each chunk

    def __iter__(self) -> Iterator[str]:
        for chunk in self._chunks:
            yield from chunk

    def add(self, key: str) -> None:
        """Insert an id that is not in the set."""
        if not self._chunks:
            self._chunks.append([key])
            self._heads.append(key)
            return
        where = max(bisect_right(self._heads, key) - 1, 0)
        chunk = self._chunks[where]
        insort(chunk, key)
        if len(chunk) > CHUNK:
            middle = len(chunk) // 2
            self._chunks.insert(where + 1, chunk[middle:])
            self._heads.insert(where + 1, chunk[middle])
            del chunk[middle:]
        self._heads[where] = chunk[0]

    def remove(self, key: str) -> None:
        """Take out an id that is in the set."""
        where = bisect_right(self._heads, key) - 1
        chunk = self._chunks[where]
        del chunk[bisect_left(chunk, key)]
        if chunk:
            self._heads[where] = chunk[0]
        else:
            del self._chunks[where], self._heads[where]

    def starting(self, prefix: str) -> Iterator[str]:
        """Yield the ids that start with ``prefix``, in order."""
        where = max(bisect_right(self._heads, prefix) - 1, 0)
        for chunk in self._chunks[where:]:
            for key in chunk[bisect_left(chunk, prefix) :]:
                if not key.startswith(prefix):
                    return
                yield key


class Lookup:
    """Keys to the ids of the objects that carry them."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[str, str | set[str]] = {}  # an id alone needs no set; most names are one's

    def ids(self, key: str) -> list[str]:
        """Return the ids under ``key``, in order."""
        found = self._ids.get(key, ())
        return [found] if isinstance(found, str) else sorted(found)

    def count(self, key: str) -> int:
        """Return how many objects carry ``key``."""
        found = self._ids.get(key, ())
        return 1 if isinstance(found, str) else len(found)

    def add(self, key: str, owner: str) -> None:
        """Let an object carry a key, if it does not yet."""
        found = self._ids.get(key)
        if found is None:
            self._ids[key] = owner
        elif isinstance(found, set):
            found.add(owner)
        elif found != owner:
            self._ids[key] = {found, owner}

    def remove(self, key: str, owner: str) -> None:
        """Let an object not carry a key any more; it did."""
        found = self._ids[key]
        if isinstance(found, str):
            del self._ids[key]
            return
        found.remove(owner)
        if len(found) == 1:
            self._ids[key] = found.pop()

    def swap(self, owner: str, old: Collection[str], new: Collection[str]) -> None:
        """Replace the keys of one object."""
        if not old:
            for key in new:
                self.add(key, owner)
            return
        before, after = frozenset(old), frozenset(new)
        if before == after:
            return
        for key in before - after:
            self.remove(key, owner)
        for key in after - before:
            self.add(key, owner)
