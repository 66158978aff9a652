"""The nftables table that leads 127.0.0.11:53 to the ports where the server really listens.

All functions act on the network namespace in which their :class:`~swarm.kernel.nft.Nft` was made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from swarm.kernel.nft import Nft, NftError

ADDRESS: Final = "127.0.0.11"
PORT: Final = 53
TABLE: Final = "overswarm_dns"

_TABLE: Final = {"family": "ip", "name": TABLE}
_CHAIN: Final = {
    "family": "ip",
    "table": TABLE,
    "name": "output",
    "type": "nat",
    "hook": "output",
    "prio": -100,  # dstnat, where the kernel expects address translation
    "policy": "accept",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The ports of 127.0.0.11 where one container's server listens."""

    udp: int
    tcp: int


def install(nft: Nft, ports: Ports) -> None:
    """Lead port 53 to ``ports``, replacing an older redirect in one transaction.

    Raises:
        NftError: the kernel refused (no NAT support, or the privilege is missing).
    """
    nft.run(
        [
            # Deleting a table that is not there fails, adding one that is there does not.
            {"add": {"table": _TABLE}},
            {"delete": {"table": _TABLE}},
            {"add": {"table": _TABLE}},
            {"add": {"chain": _CHAIN}},
            {"add": {"rule": _rule("udp", ports.udp)}},
            {"add": {"rule": _rule("tcp", ports.tcp)}},
        ]
    )


def installed(nft: Nft) -> Ports | None:
    """Return where port 53 leads now, or None if there is no redirect (or one that is not ours)."""
    try:
        objects = nft.run([{"list": {"table": _TABLE}}])
    except NftError:
        return None
    ports = dict(_targets(objects))
    if ports.keys() != {"udp", "tcp"}:
        return None
    return Ports(udp=ports["udp"], tcp=ports["tcp"])


def uninstall(nft: Nft) -> None:
    """Take the redirect away, if there is one."""
    nft.run([{"add": {"table": _TABLE}}, {"delete": {"table": _TABLE}}])


def _rule(protocol: str, port: int) -> dict[str, Any]:
    return {
        "family": "ip",
        "table": TABLE,
        "chain": _CHAIN["name"],
        "expr": [
            _equals({"protocol": "ip", "field": "daddr"}, ADDRESS),
            _equals({"protocol": protocol, "field": "dport"}, PORT),
            {"dnat": {"addr": ADDRESS, "port": port}},
        ],
    }


def _equals(payload: dict[str, str], value: str | int) -> dict[str, Any]:
    return {"match": {"op": "==", "left": {"payload": payload}, "right": value}}


def _targets(objects: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    for item in objects:
        protocol = port = None
        for expression in item.get("rule", {}).get("expr", ()):
            match expression:
                case {"match": {"left": {"payload": {"protocol": str(name), "field": "dport"}}}}:
                    protocol = name
                case {"dnat": {"port": int(number)}}:
                    port = number
        if protocol is not None and port is not None:
            yield protocol, port
