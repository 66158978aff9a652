"""What has to change in a table of nftables for its services to be as wanted. Pure.

The same for virtual addresses in a router and for published ports on the host: what differs is the
text, which :class:`Rules` makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from agent.balancer.table import Back, Front, IPAddress

Slots = tuple[Back, ...]
K = TypeVar("K")
T = TypeVar("T")


class Rules(Protocol):
    """The text of one table; :mod:`agent.balancer.ruleset` and :mod:`~agent.balancer.published`."""

    def skeleton(self) -> list[str]:
        """Return the commands that make the table anew, without elements."""

    def destroy(self) -> str:
        """Return the commands that remove the table."""

    def chain_name(self, version: int, size: int) -> str:
        """Return the chain for services of ``size`` backends."""

    def chain(self, version: int, size: int) -> list[str]:
        """Return the commands that make it."""

    def slot(self, front: Front, number: int) -> str:
        """Return the key of a slot."""

    def elements(self, verb: str, name: str, version: int, texts: Sequence[str]) -> list[str]:
        """Return the commands that add or delete elements."""


@dataclass(slots=True)
class Applied:
    """What a router's table holds.

    Attributes:
        slots: backends of each virtual address.
        sizes: (IP version, number of backends) for which there is a chain.
        hairpins: local backends, each with the address it meets itself under.
    """

    slots: dict[Front, Slots] = field(default_factory=dict)
    sizes: set[tuple[int, int]] = field(default_factory=set)
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
    sizes: frozenset[tuple[int, int]]
    appeared: frozenset[Front]


class _Batch:
    """Elements by what is done to them; deletions take effect first."""

    def __init__(self) -> None:
        self._texts: dict[tuple[str, str, int], list[str]] = {}

    def add(self, name: str, version: int, text: str) -> None:
        self._texts.setdefault(("add", name, version), []).append(text)

    def delete(self, name: str, version: int, text: str) -> None:
        self._texts.setdefault(("delete", name, version), []).append(text)

    def lines(self, rules: Rules) -> list[str]:
        return [
            line
            for verb, name, version in sorted(self._texts, reverse=True)
            for line in rules.elements(verb, name, version, self._texts[verb, name, version])
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
    sizes = {(vip.version, len(each)) for vip, each in slots.items() if each} - before.sizes
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


def _move(rules: Rules, batch: _Batch, vip: Front, old: Slots | None, new: Slots | None) -> None:
    version = vip.version
    if (old is None) != (new is None):
        (batch.delete if new is None else batch.add)("known", version, str(vip))
    old, new = old or (), new or ()
    for slot in range(max(len(old), len(new))):
        was = old[slot] if slot < len(old) else None
        now = new[slot] if slot < len(new) else None
        if was == now:
            continue
        if was is not None:
            batch.delete("slots", version, rules.slot(vip, slot))
        if now is not None:
            batch.add("slots", version, f"{rules.slot(vip, slot)} : {now}")
    if len(old) != len(new):
        if old:
            batch.delete("vips", version, str(vip))
        if new:
            batch.add("vips", version, f"{vip} : goto {rules.chain_name(version, len(new))}")


def _hairpin(batch: _Batch, ip: IPAddress, old: IPAddress | None, new: IPAddress | None) -> None:
    if old == new:
        return
    if old is not None:
        batch.delete("self", ip.version, f"{ip} . {ip}")
    if new is not None:
        batch.add("self", ip.version, f"{ip} . {ip} : {new}")


def _take(held: dict[K, T], changed: Mapping[K, T | None]) -> None:
    for key, value in changed.items():
        if value is None:
            held.pop(key, None)
        else:
            held[key] = value
