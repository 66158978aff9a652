"""Whether a table of nftables still is what was put there: somebody else may have changed it.

Rules are compared with those of a scratch table, made and removed in the same namespace for the purpose:
the kernel's own listing of what our text means. Elements are compared with the text itself.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from agent.dataplane.nft import Nft

SCRATCH: Final = "overswarm-scratch"

_HOOK: Final = ("type", "hook", "prio", "policy")
_UNHOOKED: Final = json.dumps(dict.fromkeys(_HOOK))

Elements = Mapping[str, frozenset[str]]
"""Elements of each set and map, as :func:`canonical` writes them."""


def differs(
    nft: Nft, table: str, *, rules: Iterable[str], elements: Elements, family: str = "inet"
) -> str:
    """Return what is wrong with a table; empty when nothing is.

    Args:
        nft: of the namespace.
        table: its name.
        rules: the commands that make it, without elements.
        elements: of each of its sets and maps; others are not looked at.
        family: of the table.

    Raises:
        HostError: the kernel does not tell.
    """
    listing = nft.table(family, table)
    if listing is None:
        return "the table is gone"
    held = _elements(listing)
    for name, wanted in elements.items():
        if held.get(name, frozenset()) != wanted:
            return f"elements of {name}"
    wanted_chains = _expected(nft, family, table, rules)
    chains = _chains(listing)
    for name, content in wanted_chains.items():
        if content == [_UNHOOKED] and name in chains:
            continue  # made empty for somebody else to fill
        if chains.get(name) != content:
            return f"rules of {name}"
    return ""


def canonical(text: str) -> str:
    """Return an element as nft takes it in the form in which its listing is compared."""
    key, _, value = text.partition(" : ")
    sides = (key, value) if value else (key,)
    return " : ".join(" . ".join(_word(word) for word in side.split(" . ")) for side in sides)


def _expected(nft: Nft, family: str, table: str, rules: Iterable[str]) -> dict[str, list[str]]:
    remove = f"add table {family} {SCRATCH}\ndelete table {family} {SCRATCH}"
    try:
        nft.run("\n".join([remove, *(_in_scratch(line, family, table) for line in rules)]))
        return _chains(nft.table(family, SCRATCH) or [])
    finally:
        nft.run(remove)


def _in_scratch(line: str, family: str, table: str) -> str:
    return line.replace(f"{family} {table}", f"{family} {SCRATCH}")


def _chains(listing: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return chains by name: their hook, then their rules, as text."""
    found: dict[str, list[str]] = {}
    for item in listing:
        if "chain" in item:
            about = {key: item["chain"].get(key) for key in _HOOK}
            found.setdefault(item["chain"]["name"], []).insert(0, json.dumps(about))
        elif "rule" in item:
            rule = item["rule"]
            found.setdefault(rule["chain"], []).append(json.dumps(rule["expr"], sort_keys=True))
    return found


def _elements(listing: list[dict[str, Any]]) -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for item in listing:
        about = item.get("set") or item.get("map")
        if about is not None:
            found[about["name"]] = frozenset(map(_text, about.get("elem", ())))
    return found


def _text(element: Any) -> str:
    match element:
        case [key, value]:
            return f"{_text(key)} : {_text(value)}"
        case {"concat": parts}:
            return " . ".join(map(_text, parts))
        case {"goto": {"target": target}}:
            return f"goto {target}"
        case {"elem": {"val": value}}:
            return _text(value)
        case _:
            return _word(str(element))


def _word(text: str) -> str:
    if text.startswith("0x"):
        return str(int(text, 16))
    if ":" in text:
        try:
            return str(ipaddress.ip_address(text))
        except ValueError:
            return text
    return text
