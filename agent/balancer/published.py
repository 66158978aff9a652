"""The text of the rules in ``table inet overswarm-ports`` of the daemon's namespace. Pure.

``prerouting`` and ``output`` look protocol and port of what is addressed to this host up in ``vips4``
(``vips6``), whose verdicts lead to ``pick4-N``: a chain that draws a slot below N and translates to
address and port out of ``slots4``. Translation keeps the client's address. The packet mark carries the
slot, in a range of its own, and is cleared behind it.

``user`` is the user's: made empty, never changed. What comes to a published port passes it first, with
the addresses and ports that the client used: a drop there holds.

Source: nft(8); priorities are numbers, since older nft refuses names for output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.balancer.table import Front

TABLE: Final = "overswarm-ports"
CHUNK: Final = 64
"""Elements in one command: nft takes longer per element the more there are."""

MARK: Final = 0x6F760000
"""Slots as packet marks: this and above, below the next 65536."""

_CHAINS: Final = {
    "first": "type filter hook prerouting priority -101",
    "prerouting": "type nat hook prerouting priority -100",
    "output": "type nat hook output priority -100",
    "clean": "type filter hook prerouting priority -99",
    "clean-output": "type filter hook output priority -99",
    "input": "type filter hook input priority 0",
}
_PORT: Final = "meta l4proto . th dport"
_LOOPBACK: Final = {4: "ip daddr != 127.0.0.0/8", 6: "ip6 daddr != ::1"}
_KINDS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}


def skeleton() -> list[str]:
    """Return the commands that make everything but ``user`` anew, empty, atomically."""
    lines = [f"add table inet {TABLE}", f"add chain inet {TABLE} user"]
    for chain, hook in _CHAINS.items():
        lines.append(f"add chain inet {TABLE} {chain} {{ {hook}; }}")
        lines.append(f"flush chain inet {TABLE} {chain}")
    for version, kind in _KINDS.items():
        for what, name, types in (
            ("set", "known", "inet_proto . inet_service"),
            ("map", "vips", "inet_proto . inet_service : verdict"),
            ("map", "slots", f"inet_proto . inet_service . mark : {kind} . inet_service"),
        ):
            lines.append(f"add {what} inet {TABLE} {name}{version} {{ type {types}; }}")
            lines.append(f"flush {what} inet {TABLE} {name}{version}")
        unserved = f"{_rule('input')} meta nfproto ipv{version} iif != lo ct state new"
        local = f"meta nfproto ipv{version} fib daddr type local"
        lines += [
            f"{_rule('first')} {local} {_PORT} @known{version} ct state new jump user",
            f"{_rule('prerouting')} {local} {_PORT} vmap @vips{version}",
            # What a process sends to this host's own loopback address never leaves it.
            f"{_rule('output')} {local} {_LOOPBACK[version]} {_PORT} vmap @vips{version}",
            f"{unserved} meta l4proto tcp {_PORT} @known{version} reject with tcp reset",
            f"{unserved} {_PORT} @known{version} reject with icmpx port-unreachable",
        ]
    for chain in ("clean", "clean-output"):
        lines.append(f"{_rule(chain)} meta mark & 0xffff0000 == {MARK:#x} meta mark set 0")
    return lines


def destroy() -> str:
    """Return the commands that take all ports away; the user's chain stays."""
    return "\n".join(skeleton())


def remove() -> str:
    """Return the commands that remove the table, the user's chain with it."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}"


def chain_name(version: int, size: int) -> str:
    """Return the chain for ports with ``size`` targets."""
    return f"pick{version}-{size}"


def chain(version: int, size: int) -> list[str]:
    """Return the commands that make such a chain."""
    name, ip = chain_name(version, size), "ip" if version == 4 else "ip6"
    return [
        f"add chain inet {TABLE} {name}",
        f"flush chain inet {TABLE} {name}",
        f"{_rule(name)} meta mark set numgen random mod {size} offset {MARK:#x}",
        f"{_rule(name)} dnat {ip} to {_PORT} . meta mark map @slots{version}",
    ]


def slot(front: Front, number: int) -> str:
    """Return the key of a slot in ``slots``."""
    return f"{front} . {MARK + number:#x}"


def elements(verb: str, name: str, version: int, texts: Sequence[str]) -> list[str]:
    """Return the commands that add or delete elements of a set or map."""
    return [
        f"{verb} element inet {TABLE} {name}{version} {{ {', '.join(texts[start : start + CHUNK])} }}"
        for start in range(0, len(texts), CHUNK)
    ]


def _rule(chain: str) -> str:
    return f"add rule inet {TABLE} {chain}"
