"""The router's nftables text and what is read back."""

from __future__ import annotations

import ipaddress
from typing import Any

from agent.dataplane import ruleset


def listing(built: ruleset.Ruleset) -> dict[Any, Any]:
    """Return what libnftables lists right after :func:`ruleset.build`."""
    tables: dict[Any, list[dict[str, Any]]] = {family: [] for family in ruleset.FAMILIES}
    tables["netdev"].append({"set": {"name": "local4", "elem": ["10.0.1.1"]}})
    for line in ruleset.build(built).splitlines():
        words = line.split()
        where = tables[words[2]]
        if words[:2] == ["add", "chain"]:
            where.append({"chain": {"name": words[4]}})
        elif words[:2] == ["add", "rule"]:
            where.append({"rule": {"chain": words[4]}})
    return tables


def test_what_is_built_is_recognised() -> None:
    """Digest, devices and elements come back."""
    built = ruleset.wanted(["vx-001000", "vx-001001"])
    found, members = ruleset.observed(listing(built))
    assert found == built
    assert members == [ruleset.local(ipaddress.ip_address("10.0.1.1"))]


def test_any_missing_or_added_rule_makes_it_unrecognised() -> None:
    """Then the whole is built anew in one transaction."""
    built = ruleset.wanted(["vx-001000"])
    for family in ruleset.FAMILIES:
        whole = listing(built)
        for i, item in enumerate(whole[family]):
            if "rule" in item:
                damaged = {**whole, family: whole[family][:i] + whole[family][i + 1 :]}
                assert ruleset.observed(damaged) == (None, [])
                grown = {**whole, family: [*whole[family], item]}
                assert ruleset.observed(grown) == (None, [])
        assert ruleset.observed({**whole, family: None}) == (None, [])


def test_the_build_starts_from_nothing() -> None:
    """Tables are deleted and made in the same transaction, so no packet meets half of it."""
    lines = ruleset.build(ruleset.wanted(["vx-001000"])).splitlines()
    for family in ruleset.FAMILIES:
        table = f"table {family} overswarm"
        assert [line for line in lines if line.endswith(table)] == [
            f"add {table}",
            f"delete {table}",
            f"add {table}",
        ]
