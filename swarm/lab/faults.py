"""Break the underlay: partitions and loss, as nftables rules on the bridge.

The whole rule set follows from the list of faults and is replaced in one transaction, so healing is
the same operation with an empty list.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from swarm.errors import InvalidArgumentError
from swarm.kernel.nft import Nft
from swarm.lab.hosts import inside, port_name
from swarm.lab.state import LabState

_TABLE: Final = {"family": "bridge", "name": "lab_faults"}
_PARTS: Final = 10_000
"""Resolution of a loss rate: one packet in so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """No frame passes from any of ``sources`` to any of ``targets``; the other way stays open."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """``percent`` of the frames from and to ``host`` are lost, each by a coin of its own."""

    host: str
    percent: float


Fault = Cut | Loss


def check_percent(percent: float) -> float:
    """Return a loss rate that can be applied.

    Raises:
        InvalidArgumentError: it is not between 0 and 100.
    """
    if not 0 <= percent <= 100:
        raise InvalidArgumentError(f"a loss of {percent:g} % is not possible: 0 to 100")
    return percent


def apply(lab: LabState, faults: Iterable[Fault]) -> None:
    """Make the underlay suffer from exactly these faults.

    Raises:
        HostError: libnftables is missing, or the kernel lacks the bridge family.
    """
    commands = _ruleset(faults)

    def run() -> None:
        with Nft() as nft:
            nft.run(commands)

    inside(lab.underlay_netns, run)


def _ruleset(faults: Iterable[Fault]) -> list[dict[str, Any]]:
    """Return the transaction: an empty table first, so that the delete in it always has something."""
    rules = [rule for fault in faults for rule in _rules(fault)]
    commands: list[dict[str, Any]] = [{"add": {"table": _TABLE}}, {"delete": {"table": _TABLE}}]
    if not rules:
        return commands
    table = {"family": _TABLE["family"], "table": _TABLE["name"]}
    chain = {"name": "forward", "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}
    commands += [{"add": {"table": _TABLE}}, {"add": {"chain": {**table, **chain}}}]
    commands += [{"add": {"rule": {**table, "chain": "forward", "expr": rule}}} for rule in rules]
    return commands


def _rules(fault: Fault) -> list[list[dict[str, Any]]]:
    if isinstance(fault, Cut):
        return [
            [_is("iifname", source), _is("oifname", target), {"drop": None}]
            for source in fault.sources
            for target in fault.targets
        ]
    coin = {"numgen": {"mode": "random", "mod": _PARTS, "offset": 0}}
    lost = {"match": {"op": "<", "left": coin, "right": round(fault.percent / 100 * _PARTS)}}
    return [[_is(side, fault.host), lost, {"drop": None}] for side in ("iifname", "oifname")]


def _is(side: str, host: str) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"meta": {"key": side}}, "right": port_name(host)}}
