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

from agent.balancer.ruleset import SEED
from agent.balancer.table import Front
from agent.dataplane.names import EXIT_PREFIX, MESH_TABLE

TABLE: Final = MESH_TABLE
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
    "guard": "type filter hook prerouting priority -300",
    "leave": "type nat hook postrouting priority 99",
}
_PORT: Final = "meta l4proto . th dport"
_LOOPBACK: Final = {4: "ip daddr != 127.0.0.0/8", 6: "ip6 daddr != ::1"}
_KINDS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}
_PROTOCOLS: Final = {4: "ip", 6: "ip6"}
_LEGS: Final = f'"{EXIT_PREFIX}*"'


def table_name() -> str:
    """Return what the table is called."""
    return TABLE


def groups() -> tuple[str, ...]:
    """Return the groups of ports: IP versions, and each bound to an address or not."""
    return ("4at", "4", "6at", "6")


def skeleton() -> list[str]:
    """Return the commands that make everything but ``user`` anew, empty, atomically."""
    lines = [f"add table inet {TABLE}", f"add chain inet {TABLE} user"]
    for chain, hook in _CHAINS.items():
        lines.append(f"add chain inet {TABLE} {chain} {{ {hook}; }}")
        lines.append(f"flush chain inet {TABLE} {chain}")
    for group in groups():
        lines += _group(group)
    # A process here that asks a port bound to 127.0.0.1 is answered by the container as by the host;
    # the container itself must not reach what listens on the host's loopback.
    lines.append(f"{_rule('guard')} iifname {_LEGS} ip daddr 127.0.0.0/8 drop")
    lines.append(f"{_rule('leave')} oifname {_LEGS} ip saddr 127.0.0.0/8 masquerade")
    lines.append(f"{_rule('leave')} oifname {_LEGS} ip6 saddr ::1 masquerade")
    for chain in ("clean", "clean-output"):
        lines.append(f"{_rule(chain)} meta mark & 0xffff0000 == {MARK:#x} meta mark set 0")
    return lines


def _group(group: str) -> list[str]:
    """Return the sets and rules of one group."""
    version, bound = int(group[0]), group.endswith("at")
    kind, key = _KINDS[version], _key(group)
    types = f"{kind} . inet_proto . inet_service" if bound else "inet_proto . inet_service"
    lines = []
    for what, name, kinds in (
        ("set", "known", types),
        ("map", "vips", f"{types} : verdict"),
        ("map", "slots", f"{types} . mark : {kind} . inet_service"),
    ):
        lines.append(f"add {what} inet {TABLE} {name}{group} {{ type {kinds}; }}")
        lines.append(f"flush {what} inet {TABLE} {name}{group}")
    unserved = f"{_rule('input')} meta nfproto ipv{version} iif != lo ct state new"
    local = f"meta nfproto ipv{version} fib daddr type local"
    # What a process sends to this host's own loopback address leaves it only where that was asked for.
    out = local if bound else f"{local} {_LOOPBACK[version]}"
    return [
        *lines,
        f"{_rule('first')} {local} {key} @known{group} ct state new jump user",
        f"{_rule('prerouting')} {local} {key} vmap @vips{group}",
        f"{_rule('output')} {out} {key} vmap @vips{group}",
        f"{unserved} meta l4proto tcp {key} @known{group} reject with tcp reset",
        f"{unserved} {key} @known{group} reject with icmpx port-unreachable",
    ]


def _key(group: str) -> str:
    return f"{_PROTOCOLS[int(group[0])]} daddr . {_PORT}" if group.endswith("at") else _PORT


def destroy() -> str:
    """Return the commands that take all ports away; the user's chain stays."""
    return "\n".join(skeleton())


def remove() -> str:
    """Return the commands that remove the table, the user's chain with it."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}"


def chain_name(group: str, size: int, sticky: bool = False) -> str:  # a Size, spread
    """Return the chain for ports with ``size`` slots."""
    return f"{'hash' if sticky else 'pick'}{group}-{size}"


def chain(group: str, size: int, sticky: bool = False) -> list[str]:  # likewise
    """Return the commands that make such a chain."""
    name, ip = chain_name(group, size, sticky), _PROTOCOLS[int(group[0])]
    draw = f"jhash {ip} saddr mod {size} seed {SEED}" if sticky else f"numgen random mod {size}"
    return [
        f"add chain inet {TABLE} {name}",
        f"flush chain inet {TABLE} {name}",
        f"{_rule(name)} meta mark set {draw} offset {MARK:#x}",
        f"{_rule(name)} dnat {ip} to {_key(group)} . meta mark map @slots{group}",
    ]


def slot(front: Front, number: int) -> str:
    """Return the key of a slot in ``slots``."""
    return f"{front} . {MARK + number:#x}"


def elements(verb: str, name: str, group: str, texts: Sequence[str]) -> list[str]:
    """Return the commands that add or delete elements of a set or map."""
    return [
        f"{verb} element inet {TABLE} {name}{group} {{ {', '.join(texts[start : start + CHUNK])} }}"
        for start in range(0, len(texts), CHUNK)
    ]


def _rule(chain: str) -> str:
    return f"add rule inet {TABLE} {chain}"
