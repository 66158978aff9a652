"""Elements as nft takes them and as it lists them are told to be the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from agent.balancer import audit


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("10.0.1.200", "10.0.1.200"),
        ("fd00:1::200", "fd00:1::200"),
        ("10.0.1.200 : goto pick4-3", ["10.0.1.200", {"goto": {"target": "pick4-3"}}]),
        ("10.0.1.200 . 2 : 10.0.1.11", [{"concat": ["10.0.1.200", 2]}, "10.0.1.11"]),
        (
            "tcp . 80 . 0x6f760001 : 10.0.1.11 . 8080",
            [{"concat": ["tcp", 80, 0x6F760001]}, {"concat": ["10.0.1.11", 8080]}],
        ),
        (
            "127.0.0.1 . udp . 53 : goto pick4at-1",
            [{"concat": ["127.0.0.1", "udp", 53]}, {"goto": {"target": "pick4at-1"}}],
        ),
        ("6e:00:00:00:00:01 : 0x10104", ["6e:00:00:00:00:01", 0x10104]),
        ("fd00:0001::11 . sctp . 9", {"concat": ["fd00:1::11", "sctp", 9]}),
    ],
)
def test_the_two_forms_agree(text: str, listed: Any) -> None:
    listing = [{"map": {"name": "m", "elem": [listed]}}]
    assert audit._elements(json.loads(json.dumps(listing))) == {
        "m": frozenset({audit.canonical(text)})
    }


class Listing:
    """An nft that lists what it is given."""

    def __init__(self, table: list[dict[str, Any]] | None, scratch: list[dict[str, Any]]) -> None:
        self.tables = {"t": table, audit.SCRATCH: scratch}

    def table(self, _family: str, name: str) -> list[dict[str, Any]] | None:
        return self.tables[name]

    def run(self, commands: str) -> None:
        assert "inet t" not in commands, "only the scratch table is touched"


def chain(name: str, hook: str | None = None) -> dict[str, Any]:
    return {"chain": {"name": name, "handle": 7, **({"hook": hook} if hook else {})}}


def rule(where: str, text: str) -> dict[str, Any]:
    return {"rule": {"chain": where, "handle": 9, "expr": [text]}}


RULES = [chain("in", "input"), rule("in", "a"), rule("in", "b"), chain("user")]


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        (RULES, ""),
        ([*RULES, rule("user", "theirs"), chain("more")], ""),
        (None, "the table is gone"),
        (RULES[:2] + RULES[3:], "rules of in"),
        ([RULES[0], RULES[2], RULES[1], RULES[3]], "rules of in"),
        ([*RULES, rule("in", "c")], "rules of in"),
        ([chain("in", "output"), *RULES[1:]], "rules of in"),
        (RULES[:3], "rules of user"),
        ([*RULES, {"set": {"name": "known", "elem": ["1.2.3.4"]}}], "elements of known"),
    ],
)
def test_what_differs_is_named(table: list[dict[str, Any]] | None, wrong: str) -> None:
    """A chain that is made empty is for somebody else to fill; one that is not ours is not looked at."""
    found = audit.differs(
        Listing(table, RULES),  # type: ignore[arg-type]  # what it needs of one
        "t",
        rules=["add chain inet t in"],
        elements={"known": frozenset()},
    )
    assert found == wrong
