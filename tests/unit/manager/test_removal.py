"""Whether a manager may go, and patience with a leader that has not heard everybody yet."""

from __future__ import annotations

import pytest

from manager.api import removal
from manager.api.removal import QuorumError, check_removal, once_heard
from swarm.errors import PreconditionError
from swarm.model import ManagerStatus, Reachability

HERE, AWAY = Reachability.REACHABLE, Reachability.UNREACHABLE


def managers(*states: Reachability) -> dict[str, ManagerStatus]:
    """Managers named a, b, c, ..."""
    return {
        name: ManagerStatus(reachability=state)
        for name, state in zip("abcdefg", states, strict=False)
    }


@pytest.mark.parametrize(
    ("states", "allowed"),
    [
        ((HERE, HERE), True),
        ((HERE, AWAY), False),
        ((HERE, HERE, HERE), True),
        ((AWAY, HERE, HERE), True),
        ((HERE, HERE, AWAY), False),
        ((HERE, HERE, HERE, AWAY, AWAY), False),
        ((AWAY, HERE, HERE, HERE, AWAY), True),
    ],
)
def test_a_majority_of_the_others_must_answer(
    states: tuple[Reachability, ...], allowed: bool
) -> None:
    if allowed:
        check_removal("a", managers(*states), "last")
    else:
        with pytest.raises(QuorumError, match="loss of quorum"):
            check_removal("a", managers(*states), "last")


def test_the_last_manager_has_words_of_its_own() -> None:
    with pytest.raises(PreconditionError, match="last"):
        check_removal("a", managers(HERE), "last")


async def test_a_refusal_for_lack_of_hearing_is_not_the_last_word() -> None:
    heard = [AWAY, AWAY, HERE]
    asked = 0

    async def attempt() -> str:
        nonlocal asked
        asked += 1
        check_removal("a", managers(HERE, heard[min(asked, len(heard)) - 1]), "last")
        return "done"

    assert await once_heard(attempt) == "done"
    assert asked == 3


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "HEARING", 0.0)

    async def attempt() -> None:
        check_removal("a", managers(HERE, AWAY), "last")

    with pytest.raises(QuorumError):
        await once_heard(attempt)


async def test_other_refusals_are_told_at_once() -> None:
    asked = 0

    async def attempt() -> None:
        nonlocal asked
        asked += 1
        raise PreconditionError("no")

    with pytest.raises(PreconditionError, match="no"):
        await once_heard(attempt)
    assert asked == 1
