"""The text of the rules in ``table inet overswarm-services`` of a router. Pure.

``prerouting`` looks the destination up in ``vips4`` (``vips6``), whose verdicts lead to ``pick4-N``:
a chain that draws a slot below N and translates to what ``slots4`` holds for (virtual address, slot).
The chain for N serves every service with N slots; ``hash4-N`` is the same for sticky services, where
the client's address chooses. The packet mark carries the slot for those two
rules and is 0 before and after.

``input`` sees what no rule has translated: an address without backends, refused at once. ``hairpin``:
a backend that reaches itself through its service gets the router's address as source, for a packet
with its own would not be taken in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.balancer.table import Front
from agent.dataplane.names import SERVICES_TABLE as TABLE

CHUNK: Final = 64
"""Elements in one command: nft takes longer per element the more there are."""

SEED: Final = 0x6F76
"""Of the hash of a sticky service's clients; all nodes take the same, and so choose the same backend."""

_KINDS = {"4": "ipv4_addr", "6": "ipv6_addr"}
_PROTOCOLS = {"4": "ip", "6": "ip6"}
_UNREACHABLE = {
    # An application that uses UDP hears of a closed port at once, of a host out of reach never.
    "4": {"udp": "icmp port-unreachable", "": "icmp host-unreachable"},
    "6": {"udp": "icmpv6 port-unreachable", "": "icmpv6 addr-unreachable"},
}


def table_name() -> str:
    """Return what the table is called."""
    return TABLE


def groups() -> tuple[str, ...]:
    """Return the groups of virtual addresses: IP versions."""
    return tuple(_KINDS)


def skeleton() -> list[str]:
    """Return the commands that make the table anew, empty, atomically with what follows."""
    lines = [f"{verb} table inet {TABLE}" for verb in ("add", "delete", "add")]
    for chain, hook in (
        ("prerouting", "type nat hook prerouting priority -100"),
        ("postrouting", "type nat hook postrouting priority 100"),
        ("input", "type filter hook input priority 0"),
    ):
        lines.append(f"add chain inet {TABLE} {chain} {{ {hook}; }}")
    post, inside = (f"add rule inet {TABLE} {chain}" for chain in ("postrouting", "input"))
    for group, kind in _KINDS.items():
        ip = _PROTOCOLS[group]
        lines += [
            f"add set inet {TABLE} known{group} {{ type {kind}; }}",
            f"add map inet {TABLE} vips{group} {{ type {kind} : verdict; }}",
            f"add map inet {TABLE} slots{group} {{ type {kind} . mark : {kind}; }}",
            f"add map inet {TABLE} self{group} {{ type {kind} . {kind} : {kind}; }}",
            f"add rule inet {TABLE} prerouting {ip} daddr vmap @vips{group}",
            f"{post} ct status dnat snat {ip} to {ip} saddr . {ip} daddr map @self{group}",
            f"{inside} {ip} daddr @known{group} meta l4proto tcp reject with tcp reset",
            *(
                f"{inside} {ip} daddr @known{group} "
                f"{f'meta l4proto {protocol} ' if protocol else ''}reject with {answer}"
                for protocol, answer in _UNREACHABLE[group].items()
            ),
        ]
    return lines


def destroy() -> str:
    """Return the commands that remove the table, also when there is none."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}"


def chain_name(group: str, size: int, sticky: bool = False) -> str:  # a Size, spread
    """Return the chain for services of ``size`` slots."""
    return f"{'hash' if sticky else 'pick'}{group}-{size}"


def chain(group: str, size: int, sticky: bool = False) -> list[str]:  # likewise
    """Return the commands that make such a chain."""
    name, ip = chain_name(group, size, sticky), _PROTOCOLS[group]
    draw = f"jhash {ip} saddr mod {size} seed {SEED}" if sticky else f"numgen random mod {size}"
    return [
        f"add chain inet {TABLE} {name}",
        f"add rule inet {TABLE} {name} meta mark set {draw}",
        f"add rule inet {TABLE} {name} dnat {ip} to {ip} daddr . meta mark map @slots{group}",
    ]


def slot(front: Front, number: int) -> str:
    """Return the key of a slot in ``slots``."""
    return f"{front} . {number}"


def elements(verb: str, name: str, group: str, texts: Sequence[str]) -> list[str]:
    """Return the commands that add or delete elements of a set or map."""
    return [
        f"{verb} element inet {TABLE} {name}{group} {{ {', '.join(texts[start : start + CHUNK])} }}"
        for start in range(0, len(texts), CHUNK)
    ]
