"""The session table in virtual time."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher.sessions import (
    GRACE,
    MISSED,
    ORPHAN_AFTER,
    RATE_LIMIT,
    RATE_WINDOW,
    SECOND,
    Lapse,
    Phase,
    Sessions,
)
from swarm.errors import InvalidArgumentError, NotFoundError, UnavailableError


def table(seed: int = 7, period: int = 5 * SECOND) -> Sessions:
    numbers = itertools.count(1)
    return Sessions(random.Random(seed), lambda: f"session-{next(numbers)}", period=period)


class TestHeartbeat:
    def test_period_is_five_seconds_give_or_take_half(self) -> None:
        sessions = table()
        session = sessions.open("a", "", 0)
        periods = {sessions.beat("a", session, i) for i in range(200)}
        assert min(periods) >= 4.5 * SECOND
        assert max(periods) <= 5.5 * SECOND
        assert len(periods) > 100

    def test_three_missed_periods_make_a_node_down_once(self) -> None:
        sessions = table()
        session = sessions.open("a", "", 0)
        period = sessions.beat("a", session, 10)
        deadline = 10 + MISSED * period
        assert sessions.lapse(deadline - 1) == []
        assert sessions.next_deadline() == deadline
        assert sessions.lapse(deadline) == [("a", Lapse.DOWN)]
        assert sessions.lapse(deadline + 1) == []
        assert sessions.phase("a") is Phase.DOWN

    def test_a_beating_node_never_lapses(self) -> None:
        sessions = table()
        session = sessions.open("a", "", 0)
        now = 0
        for _ in range(2000):
            now += sessions.beat("a", session, now)
            assert sessions.lapse(now) == []

    def test_a_down_node_must_register_again(self) -> None:
        sessions = table()
        session = sessions.open("a", "", 0)
        sessions.lapse(100 * SECOND)
        with pytest.raises(NotFoundError):
            sessions.beat("a", session, 100 * SECOND)
        assert sessions.open("a", session, 101 * SECOND) != session
        assert sessions.phase("a") is Phase.REGISTERED

    def test_a_day_down_gives_up_the_tasks_once(self) -> None:
        sessions = table()
        sessions.open("a", "", 0)
        deadline = sessions.next_deadline()
        assert deadline is not None
        sessions.lapse(deadline)
        assert sessions.next_deadline() == deadline + ORPHAN_AFTER
        assert sessions.lapse(deadline + ORPHAN_AFTER) == [("a", Lapse.ORPHAN)]
        assert sessions.next_deadline() is None
        assert sessions.lapse(deadline + 3 * ORPHAN_AFTER) == []

    def test_unknown_and_wrong_sessions_are_told_apart(self) -> None:
        sessions = table()
        with pytest.raises(NotFoundError):
            sessions.beat("a", "x", 0)
        sessions.open("a", "", 0)
        with pytest.raises(InvalidArgumentError):
            sessions.beat("a", "x", 0)
        with pytest.raises(InvalidArgumentError):
            sessions.require("a", "")


class TestRegistration:
    def test_a_valid_session_goes_on(self) -> None:
        sessions = table()
        first = sessions.open("a", "", 0)
        for moment in range(20):
            assert sessions.open("a", first, moment) == first

    def test_an_unknown_session_gets_a_new_one(self) -> None:
        sessions = table()
        assert sessions.open("a", "left over from another manager", 0) == "session-1"

    def test_more_than_three_new_sessions_in_eight_seconds_are_refused(self) -> None:
        sessions = table()
        for _ in range(RATE_LIMIT):
            sessions.open("a", "", 0)
        with pytest.raises(UnavailableError):
            sessions.open("a", "", RATE_WINDOW - 1)
        sessions.open("b", "", RATE_WINDOW - 1)
        sessions.open("a", "", RATE_WINDOW)

    def test_refused_tries_do_not_prolong_the_wait(self) -> None:
        sessions = table()
        for _ in range(RATE_LIMIT):
            sessions.open("a", "", 0)
        for moment in range(1, RATE_WINDOW, SECOND // 3):
            with pytest.raises(UnavailableError):
                sessions.open("a", "", moment)
        sessions.open("a", "", RATE_WINDOW)


class TestTakeover:
    def test_expected_nodes_have_six_periods(self) -> None:
        sessions = table()
        sessions.expect(["a", "b"], 0)
        assert sessions.lapse(GRACE * 5 * SECOND - 1) == []
        sessions.open("a", "old", GRACE * 5 * SECOND - 1)
        assert sessions.lapse(GRACE * 5 * SECOND) == [("b", Lapse.DOWN)]

    def test_a_node_that_came_back_first_is_not_expected_again(self) -> None:
        sessions = table()
        session = sessions.open("a", "", 0)
        sessions.expect(["a"], 1)
        sessions.beat("a", session, 2)

    def test_nodes_found_down_are_given_up_after_a_day(self) -> None:
        sessions = table()
        sessions.presume_down(["a"], 0)
        assert sessions.lapse(ORPHAN_AFTER) == [("a", Lapse.ORPHAN)]

    def test_a_removed_node_is_forgotten(self) -> None:
        sessions = table()
        session = sessions.open("a", "", 0)
        sessions.forget("a")
        assert sessions.next_deadline() is None
        with pytest.raises(NotFoundError):
            sessions.require("a", session)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "beat", "forget", "wait"]),
            st.sampled_from("abc"),
            st.integers(0, 20),
        ),
        max_size=60,
    )
)
def test_a_node_is_down_exactly_when_its_last_sign_of_life_is_too_old(
    steps: list[tuple[str, str, int]],
) -> None:
    """Against the obvious slow table: one deadline a node, looked through whole each time."""
    sessions = table(period=5 * SECOND)
    held: dict[str, str] = {}
    deadlines: dict[str, int] = {}
    now = 0
    for kind, node, seconds in steps:
        now += seconds * SECOND
        expected = {each for each, when in deadlines.items() if when <= now}
        assert {each for each, lapse in sessions.lapse(now) if lapse is Lapse.DOWN} == expected
        for each in expected:
            del deadlines[each], held[each]
        if kind == "open":
            try:
                held[node] = sessions.open(node, held.get(node, ""), now)
            except UnavailableError:
                continue
        elif kind == "forget":
            sessions.forget(node)
            held.pop(node, None)
            deadlines.pop(node, None)
            continue
        elif node not in held:
            continue
        deadlines[node] = now + MISSED * sessions.beat(node, held[node], now)
    due = sessions.next_deadline()
    if deadlines:
        assert due is not None
        assert due <= min(deadlines.values())


def test_the_heap_of_deadlines_stays_small() -> None:
    sessions = table()
    session = sessions.open("a", "", 0)
    for moment in range(5000):
        sessions.beat("a", session, moment)
    assert len(sessions._due) < 100
