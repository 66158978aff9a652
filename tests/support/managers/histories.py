"""Linearisability of one object's history, from nothing but what clients saw.

Every call must seem to happen at one moment between its begin and its end, in an order that the
object's rules allow; a call whose end nobody saw may happen at any time after its begin, or never.
The search keeps every state the object could be in, with the calls under way that have happened
already. Source: Wing and Gong, "Testing and Verifying Concurrent Objects" (1993), in the
just-in-time order of Lowe, "Testing for linearizability" (2017).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

MAX_CONFIGURATIONS = 200_000
"""A history with more possibilities at once than this is left undecided."""

Step = Callable[[Any], Iterable[Hashable]]
"""The states an object can be in after the call, if it was in a given one; none if it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a client saw of one call; ``end`` is None when it never heard."""

    start: int
    end: int | None
    text: str
    step: Step


class UndecidedError(Exception):
    """Too many calls at once: the possibilities cannot all be looked at."""


class NotLinearisableError(AssertionError):
    """No order of the calls explains what clients saw."""


def check(what: object, calls: Sequence[Call], initial: Hashable) -> None:
    """Check one object's history.

    Raises:
        NotLinearisableError: it has no explanation; the text holds the calls up to there.
        UndecidedError: it cannot be said.
    """
    moments = [(call.start, 0, number) for number, call in enumerate(calls)]
    moments += [(call.end, 1, number) for number, call in enumerate(calls) if call.end is not None]
    # At the same moment begins come first: such calls overlap.
    moments.sort()
    under_way: set[int] = set()
    configurations: set[tuple[Hashable, frozenset[int]]] = {(initial, frozenset())}
    for moment, ending, number in moments:
        if not ending:
            under_way.add(number)
            continue
        configurations = _after(number, calls, under_way, configurations)
        under_way.discard(number)
        if not configurations:
            raise NotLinearisableError(_story(what, calls, number, moment))


def _after(
    ending: int,
    calls: Sequence[Call],
    under_way: set[int],
    configurations: set[tuple[Hashable, frozenset[int]]],
) -> set[tuple[Hashable, frozenset[int]]]:
    """Return where the object can be once the ending call has happened."""
    result: set[tuple[Hashable, frozenset[int]]] = set()
    seen = _Seen({number for number in under_way if calls[number].end is None})
    stack = [each for each in configurations if seen.take(*each)]
    while stack:
        state, happened = stack.pop()
        if ending in happened:
            result.add((state, happened - {ending}))
            continue
        for number in under_way - happened:
            then = happened | {number}
            stack += [(now, then) for now in calls[number].step(state) if seen.take(now, then)]
        if seen.count > MAX_CONFIGURATIONS:
            raise UndecidedError
    return result


class _Seen:
    """The possibilities looked at; one that can do all that another can makes the other needless.

    Args:
        optional: calls that nobody saw end: where such a call has not happened yet, it still may, or
            never does, so this possibility covers the one in the same state in which it has.
    """

    def __init__(self, optional: set[int]) -> None:
        self.count = 0
        self._optional = optional
        self._found: dict[tuple[Hashable, frozenset[int]], list[frozenset[int]]] = {}

    def take(self, state: Hashable, happened: frozenset[int]) -> bool:
        """Note a possibility; say whether it is worth a look."""
        spent = happened & self._optional
        known = self._found.setdefault((state, happened - self._optional), [])
        if any(each <= spent for each in known):
            return False
        known.append(spent)
        self.count += 1
        return True


def _story(what: object, calls: Sequence[Call], ending: int, moment: int) -> str:
    lines = [
        f"{call.start:>7} {'' if call.end is None else call.end:>7} {call.text}"
        + (" <- cannot be" if number == ending else "")
        for number, call in sorted(enumerate(calls), key=lambda each: each[1].start)
        if call.start <= moment
    ]
    return f"{what} is not linearisable at {moment}:\n" + "\n".join(lines)
