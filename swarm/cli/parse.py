"""Forms that several commands take: durations, ``key=value`` pairs, ``--filter``."""

from __future__ import annotations

import re
from collections.abc import Iterable

import click

_UNITS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART = re.compile(r"(\d+(?:\.\d*)?)(ns|us|µs|ms|s|m|h)")


class Duration(click.ParamType[int]):
    """A duration in Go's form (``2160h0m0s``, ``1m30s``), as nanoseconds."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Return the nanoseconds that ``value`` means."""
        if isinstance(value, int):
            return value
        text = str(value)
        if text == "0":
            return 0
        parts = _PART.findall(text)
        if not parts or "".join(number + unit for number, unit in parts) != text:
            self.fail(f"{text!r} is not a duration such as 90s, 1h30m or 2160h", param, ctx)
        return int(sum(float(number) * _UNITS[unit] for number, unit in parts))


def pairs(texts: Iterable[str], *, what: str) -> dict[str, str]:
    """Return ``key=value`` texts as a mapping; a key alone has the empty value.

    Raises:
        click.BadParameter: a key is empty.
    """
    result = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise click.BadParameter(f"{text!r} has no key before the '='", param_hint=what)
        result[key] = value
    return result


def filters(texts: Iterable[str], *, known: Iterable[str]) -> dict[str, list[str]]:
    """Return ``--filter name=value`` texts by name; values of one name are alternatives.

    Raises:
        click.BadParameter: a filter is malformed or unknown.
    """
    result: dict[str, list[str]] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator:
            raise click.BadParameter(
                f"{text!r} is not of the form name=value", param_hint="--filter"
            )
        if name not in known:
            raise click.BadParameter(
                f"no filter {name!r} here: {', '.join(sorted(known))}", param_hint="--filter"
            )
        result.setdefault(name, []).append(value)
    return result


def label_match(labels: dict[str, str], wanted: Iterable[str]) -> bool:
    """Say whether the labels hold every ``key`` or ``key=value`` wanted."""
    for text in wanted:
        key, separator, value = text.partition("=")
        if key not in labels or (separator and labels[key] != value):
            return False
    return True


_PUBLISH = re.compile(
    r"(?:(?P<address>\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:.]+\]):(?=.*:))?"
    r"(?:(?P<host>\d+(?:-\d+)?)?:)?(?P<target>\d+(?:-\d+)?)(?:/(?P<protocol>tcp|udp|sctp))?"
)


def published(text: str) -> list[str]:
    """Read ``[[ADDRESS:]HOSTPORT:]PORT[/PROTOCOL]``, ranges included.

    Returns:
        ``[ADDRESS:]PUBLISHED:TARGET/PROTOCOL`` for each port.

    Raises:
        click.BadParameter: it is none, or its ranges differ in length.
    """
    found = _PUBLISH.fullmatch(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is not [[ADDRESS:]HOSTPORT:]PORT[/PROTOCOL]",
            param_hint="--publish",
        )
    targets = _ports(found["target"])
    hosts = _ports(found["host"]) if found["host"] else [0] * len(targets)
    if len(hosts) != len(targets):
        raise click.BadParameter(f"the ranges of {text!r} differ", param_hint="--publish")
    protocol = found["protocol"] or "tcp"
    place = f"{found['address']}:" if found["address"] else ""
    return [f"{place}{host}:{port}/{protocol}" for host, port in zip(hosts, targets, strict=True)]


def shown(text: str) -> str:
    """Return ``[ADDRESS:]PUBLISHED:TARGET/PROTOCOL`` as docker's lists show it."""
    place, _, target = text.rpartition(":")
    address, _, number = place.rpartition(":")
    return f"{address or '0.0.0.0'}:{number}->{target}"  # shown, not listened on


def _ports(text: str) -> list[int]:
    first, _, last = text.partition("-")
    numbers = range(int(first), int(last or first) + 1)
    if not numbers or numbers[0] < 1 or numbers[-1] > 0xFFFF:
        raise click.BadParameter(f"{text} are no ports", param_hint="--publish")
    return list(numbers)
