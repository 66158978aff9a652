"""What has to change in a table of nftables for its services to be as wanted. Pure.

The same for virtual addresses in a router and for published ports on the host: what differs is the
text, which :class:`Rules` makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from agent.balancer.audit import canonical
from agent.balancer.table import Front, IPAddress, Slots, group

Size = tuple[str, int, bool]
"""Group, number of slots, sticky: what a chain is for."""

NOTHING = Slots()
K = TypeVar("K")
T = TypeVar("T")


class Rules(Protocol):
    """The text of one table; :mod:`agent.balancer.ruleset` and :mod:`~agent.balancer.published`."""

    def table_name(self) -> str:
        """Return what the table is called."""

    def groups(self) -> tuple[str, ...]:
        """Return the groups of fronts it has."""

    def skeleton(self) -> list[str]:
        """Return the commands that make the table anew, without elements."""

    def destroy(self) -> str:
        """Return the commands that remove the table."""

    def chain_name(self, group: str, size: int, sticky: bool) -> str:  # a Size, spread
        """Return the chain for services of ``size`` slots."""

    def chain(self, group: str, size: int, sticky: bool) -> list[str]:  # likewise
        """Return the commands that make it."""

    def slot(self, front: Front, number: int) -> str:
        """Return the key of a slot."""

    def elements(self, verb: str, name: str, group: str, texts: Sequence[str]) -> list[str]:
        """Return the commands that add or delete elements."""


@dataclass(slots=True)
class Applied:
    """What a router's table holds.

    Attributes:
        slots: backends of each virtual address.
        sizes: for which there is a chain.
        hairpins: local backends, each with the address it meets itself under.
    """

    slots: dict[Front, Slots] = field(default_factory=dict)
    sizes: set[Size] = field(default_factory=set)
    hairpins: dict[IPAddress, IPAddress] = field(default_factory=dict)

    def take(self, change: Change) -> None:
        """Note that a change has been made."""
        _take(self.slots, change.slots)
        _take(self.hairpins, change.hairpins)
        self.sizes |= change.sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One transaction, and what holds after it.

    Attributes:
        commands: of nft; empty when nothing is to do.
        slots, hairpins: as they are then; None for what is gone.
        sizes: for which there is a chain then, too.
        appeared: virtual addresses the table did not know.
    """

    commands: str
    slots: Mapping[Front, Slots | None]
    hairpins: Mapping[IPAddress, IPAddress | None]
    sizes: frozenset[Size]
    appeared: frozenset[Front]


class _Batch:
    """Elements by what is done to them; deletions take effect first."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str, str], list[str]] = {}

    def add(self, name: str, group: str, text: str) -> None:
        self._texts.setdefault(("add", name, group), []).append(text)

    def delete(self, name: str, group: str, text: str) -> None:
        self._texts.setdefault(("delete", name, group), []).append(text)

    def texts(self, name: str, group: str) -> frozenset[str]:
        return frozenset(map(canonical, self._texts.get(("add", name, group), ())))

    def lines(self, rules: Rules) -> list[str]:
        return [
            line
            for verb, name, group in sorted(self._texts, reverse=True)
            for line in rules.elements(verb, name, group, self._texts[verb, name, group])
        ]


def plan(
    rules: Rules,
    applied: Applied | None,
    slots: Mapping[Front, Slots | None],
    hairpins: Mapping[IPAddress, IPAddress | None],
) -> Change:
    """Return what brings a table into the wanted state; its size does not depend on the rest of it.

    Args:
        rules: of the table.
        applied: what the table holds; None: it is to be made anew, and the rest is all there is.
        slots: backends of each virtual address that may have changed; None: no virtual address.
        hairpins: what each local backend that may have changed meets itself under.
    """
    before = applied or Applied()
    lines = rules.skeleton() if applied is None else []
    sizes = {
        (group(vip), len(each.backs), each.sticky)
        for vip, each in slots.items()
        if each is not None and each.backs
    } - before.sizes
    for size in sorted(sizes):
        lines += rules.chain(*size)
    batch = _Batch()
    for vip, new in slots.items():
        _move(rules, batch, vip, before.slots.get(vip), new)
    for ip, router in hairpins.items():
        _hairpin(batch, ip, before.hairpins.get(ip), router)
    return Change(
        commands="\n".join(lines + batch.lines(rules)),
        slots=slots,
        hairpins=hairpins,
        sizes=frozenset(sizes),
        appeared=frozenset(
            vip for vip, new in slots.items() if new is not None and vip not in before.slots
        ),
    )


def texts(rules: Rules, applied: Applied) -> tuple[list[str], dict[str, frozenset[str]]]:
    """Return the commands for the rules a table has, and its elements, to compare it with."""
    lines = rules.skeleton()
    for size in sorted(applied.sizes):
        lines += rules.chain(*size)
    batch = _Batch()
    for vip, slots in applied.slots.items():
        _move(rules, batch, vip, None, slots)
    for ip, router in applied.hairpins.items():
        _hairpin(batch, ip, None, router)
    names = [(name, group) for name in ("known", "vips", "slots") for group in rules.groups()]
    return lines, {f"{name}{where}": batch.texts(name, where) for name, where in names}


def _move(rules: Rules, batch: _Batch, vip: Front, old: Slots | None, new: Slots | None) -> None:
    where = group(vip)
    if (old is None) != (new is None):
        (batch.delete if new is None else batch.add)("known", where, str(vip))
    old, new = old or NOTHING, new or NOTHING
    for slot in range(max(len(old.backs), len(new.backs))):
        was = old.backs[slot] if slot < len(old.backs) else None
        now = new.backs[slot] if slot < len(new.backs) else None
        if was == now:
            continue
        if was is not None:
            batch.delete("slots", where, rules.slot(vip, slot))
        if now is not None:
            batch.add("slots", where, f"{rules.slot(vip, slot)} : {now}")
    if (len(old.backs), old.sticky) != (len(new.backs), new.sticky):
        if old.backs:
            batch.delete("vips", where, str(vip))
        if new.backs:
            chain = rules.chain_name(where, len(new.backs), new.sticky)
            batch.add("vips", where, f"{vip} : goto {chain}")


def _hairpin(batch: _Batch, ip: IPAddress, old: IPAddress | None, new: IPAddress | None) -> None:
    if old == new:
        return
    if old is not None:
        batch.delete("self", f"{ip.version}", f"{ip} . {ip}")
    if new is not None:
        batch.add("self", f"{ip.version}", f"{ip} . {ip} : {new}")


def _take(held: dict[K, T], changed: Mapping[K, T | None]) -> None:
    for key, value in changed.items():
        if value is None:
            held.pop(key, None)
        else:
            held[key] = value
