"""The nftables guards of encrypted networks, as nft's own text. Pure.

All are in the daemon's namespace, where the tunnels' UDP packets are. Set ``vnis`` holds the
encrypted VNIs, taken from the 24 bits at byte 12 behind the start of the UDP header.

``table inet overswarm-ipsec``: ``guard-in`` drops what came outside ESP, or inside somebody
else's, after reassembly and before any rule of an administrator could accept it;
``guard-forward`` drops what this host would forward; ``guard-out`` what is about to leave without
a transformation.

``table netdev overswarm-ipsec`` looks at the device under the tunnel, where a packet that IPsec
has taken is ESP already. It is a table of its own so that losing one table does not lose both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from agent.dataplane.names import IPSEC_REQID, IPSEC_TABLE
from agent.dataplane.objects import Cover, Guards

FAMILIES: tuple[Literal["inet"], Literal["netdev"]] = ("inet", "netdev")
SET = "vnis"
IN, FORWARD, OUT, EGRESS = "guard-in", "guard-forward", "guard-out", "egress"
_MARK = "layout-"
_VNI = f"@th,96,24 @{SET}"

Listing = list[dict[str, Any]] | None


def _chains(port: int) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    vxlan = f"udp dport {port} {_VNI}"
    return {
        IN: (
            "hook input priority -300",
            (
                f"{vxlan} meta ipsec missing counter drop",
                f"{vxlan} ipsec in reqid != {IPSEC_REQID} counter drop",
            ),
        ),
        # Translated to this host's address, what another's container sends would be encrypted.
        FORWARD: ("hook forward priority -300", (f"{vxlan} counter drop",)),
        # A packet that is about to be transformed still shows as UDP here.
        OUT: ("hook postrouting priority 300", (f"{vxlan} rt ipsec missing counter drop",)),
    }


def _egress(port: int) -> str:
    return f"udp dport {port} {_VNI} counter drop"


def wanted(port: int, devices: Iterable[tuple[int, str]]) -> Guards:
    """Return the guards object of a node whose tunnels run over ``devices``."""
    text = repr((sorted(_chains(port).items()), _egress(port)))
    return Guards(digest=hashlib.sha256(text.encode()).hexdigest()[:16], devices=frozenset(devices))


def build(guards: Guards, port: int) -> str:
    """Return the commands that make both tables anew, the set empty, in one transaction with more."""
    lines = []
    for family in FAMILIES:
        # "add" first: deleting an absent table is an error, adding a present one is not.
        lines += [f"{verb} table {family} {IPSEC_TABLE}" for verb in ("add", "delete", "add")]
        lines.append(f"add set {family} {IPSEC_TABLE} {SET} {{ typeof @th,96,24; }}")
        lines.append(f"add chain {family} {IPSEC_TABLE} {_MARK}{guards.digest}")
    for index, device in sorted(guards.devices):
        # Listings of some versions do not show the device, so the name tells it. The index, too:
        # the hook went with a device that has been made anew since.
        chain = f"{EGRESS}-{index}-{device.encode().hex()}"
        hook = f'hook egress device "{device}" priority 0'
        lines.append(f"add chain netdev {IPSEC_TABLE} {chain} {{ type filter {hook}; }}")
        lines.append(f"add rule netdev {IPSEC_TABLE} {chain} {_egress(port)}")
    for chain, (hook, rules) in _chains(port).items():
        lines.append(f"add chain inet {IPSEC_TABLE} {chain} {{ type filter {hook}; }}")
        lines += [f"add rule inet {IPSEC_TABLE} {chain} {rule}" for rule in rules]
    return "\n".join(lines)


def destroy() -> str:
    """Return the commands that remove the tables."""
    return "\n".join(
        f"{verb} table {family} {IPSEC_TABLE}" for family in FAMILIES for verb in ("add", "delete")
    )


def element(cover: Cover, *, add: bool) -> str:
    """Return the commands that put a VNI under guard, or take it from there."""
    # "add" before "delete": an absent element is then no error.
    verbs = ("add",) if add else ("add", "delete")
    return "\n".join(
        f"{verb} element {family} {IPSEC_TABLE} {SET} {{ {cover.vni:#x} }}"
        for family in FAMILIES
        for verb in verbs
    )


def observed(listings: Mapping[str, Listing], port: int) -> Iterator[Guards | Cover]:
    """Yield the guards and VNIs in the listings of both tables; nothing when there is neither.

    A VNI counts as under guard only where both tables have it. A table in which a chain or rule
    is missing or added makes the guards ones of no known layout: they are then made anew.
    """
    if all(listing is None for listing in listings.values()):
        return
    vnis: list[set[int]] = []
    digests: list[str] = []
    devices: set[tuple[int, str]] = set()
    chains: dict[str, int] = {}
    rules: dict[str, int] = {}
    for family in FAMILIES:
        found: set[int] = set()
        for item in listings[family] or ():
            if "set" in item:
                found |= {int(value) for value in item["set"].get("elem", ())}
            elif "rule" in item:
                rules[item["rule"]["chain"]] = rules.get(item["rule"]["chain"], 0) + 1
            elif "chain" in item and item["chain"]["name"].startswith(_MARK):
                digests.append(item["chain"]["name"].removeprefix(_MARK))
            elif "chain" in item and item["chain"].get("hook") == EGRESS:
                name = item["chain"]["name"]
                chains[name] = 1
                devices |= _device(name)
        vnis.append(found)
    expected = {chain: len(texts) for chain, (_, texts) in _chains(port).items()}
    expected |= chains
    whole = rules == expected and len(digests) == len(FAMILIES) and len(set(digests)) == 1
    yield Guards(digest=digests[0] if whole else "", devices=frozenset(devices))
    for vni in vnis[0] & vnis[1]:
        yield Cover(vni=vni)


def _device(chain: str) -> set[tuple[int, str]]:
    try:
        _, index, name = chain.split("-")
        return {(int(index), bytes.fromhex(name).decode())}
    except ValueError:
        return set()  # not a chain of ours, which makes the table one of no known layout


def dropped(listings: Mapping[str, Listing]) -> tuple[int, int]:
    """Return how many packets the guards have dropped: coming in, going out."""
    counts = {IN: 0, OUT: 0}
    for item in (item for listing in listings.values() for item in listing or ()):
        if "rule" in item:
            where = IN if item["rule"]["chain"] == IN else OUT
            counts[where] += sum(
                part["counter"]["packets"] for part in item["rule"]["expr"] if "counter" in part
            )
    return counts[IN], counts[OUT]
