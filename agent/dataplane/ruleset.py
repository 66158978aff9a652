"""The nftables tables of a router namespace, as nft's own text.

Every rule that a packet meets costs it some 50 ns, so each is where only those packets come by that it
is about.

``table netdev overswarm``: one ingress chain per VXLAN device. Sets ``local4`` and ``local6`` hold the
addresses that are on this node, which nobody outside may speak with. Docker's engines address frames to
the *endpoint's* MAC, which is not the device's, so the kernel takes them for another host's;
those to a MAC in set ``macs`` are taken in.

``table ip6 overswarm``: chain ``guard``, anti-spoofing before connection tracking. In IPv4 a strict
reverse path (``rp_filter``) at each port does the same, and costs less.

``table inet overswarm``: chain ``forward``.

``table inet overswarm-services`` is not made here: it is the place of VIP translation
(:data:`agent.dataplane.names.SERVICES_TABLE`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from agent.dataplane.model import IPAddress
from agent.dataplane.names import PORT_PREFIX, TABLE, VXLAN_PREFIX
from agent.dataplane.objects import Member, Ruleset

MACS, LOCAL4, LOCAL6 = "macs", "local4", "local6"
SETS = ((MACS, "ether_addr"), (LOCAL4, "ipv4_addr"), (LOCAL6, "ipv6_addr"))
"""Sets of the netdev table."""
Family = Literal["netdev", "ip6", "inet"]
FAMILIES: tuple[Family, ...] = ("netdev", "ip6", "inet")
CLAMP = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu"
_MARK = "layout-"
_VX, _EP = f'iifname "{VXLAN_PREFIX}*"', f'iifname "{PORT_PREFIX}*"'
_CHAINS: Mapping[tuple[Family, str], tuple[str, tuple[str, ...]]] = {
    ("ip6", "guard"): (
        "hook prerouting priority -300",
        # A container speaks with its own addresses only.
        (f"{_EP} ip6 saddr != fe80::/10 fib saddr . iif oif missing drop",),
    ),
    ("inet", "forward"): (
        "hook forward priority 0",
        # A peer's mistake about where an endpoint lives must not bounce between two nodes until
        # its TTL ends, nor may anybody use this node as a relay.
        (
            f'{_VX} oifname "{VXLAN_PREFIX}*" drop',
            # A connection that passes here takes no larger segments than either side of the router,
            # whatever a container has done to its interface's MTU.
            CLAMP,
        ),
    ),
}
_INGRESS = (
    f"ip saddr @{LOCAL4} drop",
    f"ip6 saddr @{LOCAL6} drop",
    f"ether daddr @{MACS} meta pkttype set host",
)


def wanted(devices: Iterable[str]) -> Ruleset:
    """Return the ruleset object for a router with these VXLAN devices."""
    text = repr((SETS, sorted(_CHAINS.items()), _INGRESS))
    return Ruleset(
        digest=hashlib.sha256(text.encode()).hexdigest()[:16], devices=frozenset(devices)
    )


def build(ruleset: Ruleset) -> str:
    """Return the commands that make the tables anew, sets empty, in one transaction with more."""
    lines = []
    for family in FAMILIES:
        # "add" first: deleting an absent table is an error, adding a present one is not.
        lines += [f"{verb} table {family} {TABLE}" for verb in ("add", "delete", "add")]
    lines += [f"add set netdev {TABLE} {name} {{ type {kind}; }}" for name, kind in SETS]
    for device in sorted(ruleset.devices):
        hook = f'hook ingress device "{device}" priority 0'
        lines.append(f"add chain netdev {TABLE} {device} {{ type filter {hook}; }}")
        lines += [f"add rule netdev {TABLE} {device} {rule}" for rule in _INGRESS]
    for (family, chain), (hook, rules) in _CHAINS.items():
        lines.append(f"add chain {family} {TABLE} {chain} {{ type filter {hook}; }}")
        lines += [f"add rule {family} {TABLE} {chain} {rule}" for rule in rules]
    lines.append(f"add chain inet {TABLE} {_MARK}{ruleset.digest}")
    return "\n".join(lines)


def destroy() -> str:
    """Return the commands that remove the tables."""
    return "\n".join(
        f"{verb} table {family} {TABLE}" for family in FAMILIES for verb in ("add", "delete")
    )


def element(member: Member, *, add: bool) -> str:
    """Return the command that adds or deletes one set element."""
    verb = "add" if add else "delete"
    return f"{verb} element netdev {TABLE} {member.set} {{ {member.value} }}"


def local(ip: IPAddress) -> Member:
    """Return the element that says ``ip`` is on this node."""
    return Member(set=LOCAL4 if ip.version == 4 else LOCAL6, value=str(ip))


def mac(address: str) -> Member:
    """Return the element that takes in frames to ``address``."""
    return Member(set=MACS, value=address)


def observed(
    listings: Mapping[Family, list[dict[str, Any]] | None],
) -> tuple[Ruleset | None, list[Member]]:
    """Return the ruleset and set elements in listings of the tables.

    A table in which a rule or chain is missing or added counts as none: it is then made anew,
    elements included, in one transaction.
    """
    members: list[Member] = []
    devices: set[str] = set()
    digest = ""
    rules: dict[tuple[str, str], int] = {}
    for family, listing in listings.items():
        if listing is None:
            return None, []
        for item in listing:
            if "set" in item:
                found = item["set"]
                members += [
                    Member(set=found["name"], value=str(value)) for value in found.get("elem", ())
                ]
            elif "rule" in item:
                where = (family, item["rule"]["chain"])
                rules[where] = rules.get(where, 0) + 1
            elif "chain" in item and family == "netdev":
                devices.add(item["chain"]["name"])
            elif "chain" in item and item["chain"]["name"].startswith(_MARK):
                digest = item["chain"]["name"].removeprefix(_MARK)
    expected: dict[tuple[str, str], int] = {
        place: len(texts) for place, (_, texts) in _CHAINS.items()
    }
    expected |= {("netdev", device): len(_INGRESS) for device in devices}
    if rules != expected:
        return None, []
    return Ruleset(digest=digest, devices=frozenset(devices)), members
