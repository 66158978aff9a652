"""Published ports as docker writes them, short (``8080:80/tcp``) and long (``published=8080,target=80``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

import click

from swarm.model import PortConfig, PortProtocol, PublishMode

MAX_RANGE: Final = 1024
"""Ports in one range."""

_SHORT: Final = re.compile(
    r"(?:(?P<address>\[[0-9a-fA-F:.]+\]|\d+(?:\.\d+){3}):)?"
    r"(?:(?P<published>\d*(?:-\d+)?):)?"
    r"(?P<target>\d+(?:-\d+)?)"
    r"(?:/(?P<protocol>\w+))?"
)
_LONG: Final = frozenset({"target", "published", "protocol", "mode"})


def service_ports(texts: Iterable[str]) -> tuple[PortConfig, ...]:
    """Return the ports that ``--publish`` texts of a service mean; a range is as many ports.

    Raises:
        click.BadParameter: one is malformed, or names a host address.
    """
    return tuple(port for text in texts for port in _service_port(text))


def _service_port(text: str) -> Iterator[PortConfig]:
    if "=" in text:
        yield _long(text)
        return
    found = _SHORT.fullmatch(text)
    if found is None:
        raise _bad(f"{text!r} is not of the form [PUBLISHED:]TARGET[/PROTOCOL]")
    if found["address"] is not None:
        raise _bad(f"{text!r}: a service's ports are published on every node, not on one address")
    protocol = _protocol(found["protocol"] or "tcp")
    targets = _range(found["target"])
    published = _range(found["published"]) if found["published"] else None
    if published is not None and len(published) != len(targets):
        raise _bad(f"{text!r}: the two ranges are of different length")
    for number, target in enumerate(targets):
        yield PortConfig(
            protocol=protocol,
            target_port=target,
            published_port=published[number] if published is not None else 0,
        )


def _long(text: str) -> PortConfig:
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if key not in _LONG or not equals or key in fields:
            raise _bad(f"{text!r}: {part!r} is not one of {', '.join(sorted(_LONG))}, each once")
        fields[key] = value
    if "target" not in fields:
        raise _bad(f"{text!r} names no target")
    mode = fields.get("mode", "ingress")
    if mode not in {"ingress", "host"}:
        raise _bad(f"{text!r}: the mode is ingress or host")
    return PortConfig(
        protocol=_protocol(fields.get("protocol", "tcp")),
        target_port=_port(fields["target"]),
        published_port=_port(fields["published"]) if fields.get("published") else 0,
        publish_mode=PublishMode[mode.upper()],
    )


def matches(port: PortConfig, text: str) -> bool:
    """Say whether ``--publish-rm TARGET[/PROTOCOL]`` means a port.

    Raises:
        click.BadParameter: the text is malformed.
    """
    target, _, protocol = text.partition("/")
    return (port.target_port, port.protocol) == (_port(target), _protocol(protocol or "tcp"))


def shown(ports: Iterable[PortConfig], mode: PublishMode) -> str:
    """Return ports as docker's lists show them: ``*:8080->80/tcp``; neighbours as one range."""
    runs: list[list[PortConfig]] = []
    ordered = sorted(
        (port for port in ports if port.publish_mode is mode),
        key=lambda port: (port.protocol, port.published_port, port.target_port),
    )
    for port in ordered:
        last = runs[-1][-1] if runs else None
        if (
            last is not None
            and last.protocol is port.protocol
            and last.published_port + 1 == port.published_port
            and last.target_port + 1 == port.target_port
        ):
            runs[-1].append(port)
        else:
            runs.append([port])
    return ",".join(
        f"*:{_span([each.published_port for each in run])}->"
        f"{_span([each.target_port for each in run])}/{run[0].protocol.name.lower()}"
        for run in runs
    )


def _span(numbers: list[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    low, high = _port(first), _port(last or first)
    if not low <= high < low + MAX_RANGE:
        raise _bad(f"{text} is not a range of up to {MAX_RANGE} ports")
    return range(low, high + 1)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535:
        raise _bad(f"{text!r} is no port")
    return int(text)


def _protocol(text: str) -> PortProtocol:
    try:
        return PortProtocol[text.upper()]
    except KeyError:
        raise _bad(f"{text!r} is not tcp, udp or sctp") from None


def _bad(text: str) -> click.BadParameter:
    return click.BadParameter(text, param_hint="--publish")
