"""List filters: every given filter must match, any of its values does.

Source: SwarmKit ``manager/controlapi``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Protocol, TypeVar

from swarm.errors import InvalidArgumentError

MAX_VALUES: Final = 1024
"""Values in one filter; more is no question a person asks."""


class Named(Protocol):
    """The filters every list has in common."""

    @property
    def names(self) -> Sequence[str]:
        """Exact names."""

    @property
    def name_prefixes(self) -> Sequence[str]:
        """Beginnings of names."""

    @property
    def id_prefixes(self) -> Sequence[str]:
        """Beginnings of ids."""


class Identified(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str:
        """The id."""


T = TypeVar("T", bound=Identified)
V = TypeVar("V")


def by_name(items: Iterable[T], wanted: Named, name_of: Callable[[T], str]) -> list[T]:
    """Return the items whose name, name prefix and id prefix match.

    Raises:
        InvalidArgumentError: a filter has too many values.
    """
    names, name_prefixes, id_prefixes = (
        bounded(values) for values in (wanted.names, wanted.name_prefixes, wanted.id_prefixes)
    )
    exact = frozenset(names)
    return [
        item
        for item in items
        if (not exact or name_of(item) in exact)
        and (not name_prefixes or name_of(item).startswith(name_prefixes))
        and (not id_prefixes or item.id.startswith(id_prefixes))
    ]


def bounded(values: Iterable[V]) -> tuple[V, ...]:
    """Return a filter's values.

    Raises:
        InvalidArgumentError: there are too many.
    """
    taken = tuple(values)
    if len(taken) > MAX_VALUES:
        raise InvalidArgumentError(f"a filter has more than {MAX_VALUES} values")
    return taken


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Say whether every wanted label is there; an empty wanted value matches any."""
    return all(key in labels and value in {"", labels[key]} for key, value in wanted.items())


def one_of(value: V, wanted: Iterable[V]) -> bool:
    """Say whether a value is among the wanted ones; none wanted means all."""
    choices = bounded(wanted)
    return not choices or value in choices
