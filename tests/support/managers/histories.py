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
"""More than this many possibilities at once are a badly built history."""

Step = Callable[[Any], Iterable[Hashable]]
"""The states an object can be in after the call, if it was in a given one; none if it cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a client saw of one call; ``end`` is None when it never heard."""

    start: int
    end: int | None
    text: str
    step: Step


class NotLinearisableError(AssertionError):
    """No order of the calls explains what clients saw."""


def check(what: object, calls: Sequence[Call], initial: Hashable) -> None:
    """Check one object's history.

    Raises:
        NotLinearisableError: it has no explanation; the text holds the calls up to there.
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
    stack, seen = list(configurations), set(configurations)
    while stack:
        state, happened = stack.pop()
        if ending in happened:
            result.add((state, happened - {ending}))
            continue
        for number in under_way - happened:
            for following in calls[number].step(state):
                configuration = following, happened | {number}
                if configuration not in seen:
                    seen.add(configuration)
                    stack.append(configuration)
        assert len(seen) < MAX_CONFIGURATIONS, "too many calls at once to check"
    return result


def _story(what: object, calls: Sequence[Call], ending: int, moment: int) -> str:
    lines = [
        f"{call.start:>7} {'' if call.end is None else call.end:>7} {call.text}"
        + (" <- cannot be" if number == ending else "")
        for number, call in sorted(enumerate(calls), key=lambda each: each[1].start)
        if call.start <= moment
    ]
    return f"{what} is not linearisable at {moment}:\n" + "\n".join(lines)
