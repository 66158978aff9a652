"""The way out of the overlay: a second leg from a container into the daemon's namespace.

An overlay has no default route of its own. A container with one gets interface ``gw0``: a veth
whose other end, ``gw<endpoint>``, is in the daemon's namespace, with an address out of a range
that only this node knows, translated to the host's on the way out (masquerade).

``table inet overswarm`` in the daemon's namespace holds the rules. Containers do not reach each
other this way, and may not send VXLAN: their packets leave with this node's tunnel address, and
a plain overlay trusts that. Should the host not have been forwarding before, the table lets
nothing else through that our switching it on would.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from agent.dataplane import names
from agent.dataplane.model import Endpoint, Settings, host_route
from agent.dataplane.names import EXIT_PREFIX, TABLE
from agent.dataplane.objects import (
    Address,
    ExitTable,
    Inside,
    Key,
    Label,
    Neighbour,
    Object,
    Port,
    Route,
    State,
    Sysctl,
)
from agent.dataplane.ruleset import CLAMP
from swarm.errors import ConflictError, ExhaustedError

HOME = ""
"""The daemon's own namespace, where a router's name is asked for."""

IFNAME = "gw0"
"""Name of the leg inside a container; never one that an endpoint would be given."""

_CLOSED, _OPEN = "closed-", "open-"
_GW = f'"{EXIT_PREFIX}*"'


@dataclass(slots=True)
class Exits:
    """All ways out of this node.

    Attributes:
        settings: of the node; the range of addresses and the tunnel's port.
        endpoints: those that have one, by id.
        addresses: of their legs, by endpoint id; kept over a restart, for they are in use.
        mtu: of the legs, bytes: the underlay's.
        closed: whether the host was not forwarding before us.
    """

    settings: Settings
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    addresses: dict[str, IPv4Address] = field(default_factory=dict)
    mtu: int = 1500
    closed: bool = False

    def add(self, endpoint: Endpoint) -> None:
        """Give an endpoint a way out.

        Raises:
            ConflictError: its container has one through another endpoint.
            ExhaustedError: the range is used up.
        """
        for other in self.endpoints.values():
            if other.netns == endpoint.netns and other.id != endpoint.id:
                raise ConflictError(
                    f"container {endpoint.container} has its way out through another network"
                )
        if endpoint.id not in self.addresses:
            taken = set(self.addresses.values())
            pool = iter(self.settings.exit_pool.hosts())
            next(pool)  # the gateway's
            address = next((ip for ip in pool if ip not in taken), None)
            if address is None:
                raise ExhaustedError(f"no address is left in {self.settings.exit_pool}")
            self.addresses[endpoint.id] = address
        self.endpoints[endpoint.id] = endpoint

    def discard(self, endpoint_id: str) -> None:
        """Take an endpoint's way out."""
        self.endpoints.pop(endpoint_id, None)
        self.addresses.pop(endpoint_id, None)

    def recall(self, observed: State) -> None:
        """Take over the addresses that legs found in the kernel have."""
        owners = {
            item.name: item.endpoint_id for item in observed.values() if isinstance(item, Port)
        }
        for item in observed.values():
            if isinstance(item, Route) and item.ifname in owners and owners[item.ifname]:
                ip = item.target.network_address
                if isinstance(ip, IPv4Address) and ip in self.settings.exit_pool:
                    self.addresses[owners[item.ifname]] = ip
            elif isinstance(item, ExitTable):
                self.closed = item.closed

    def objects(self) -> dict[Key, Object]:
        """Return everything wanted in the daemon's namespace: nothing while nobody needs it."""
        if not self.endpoints:
            return {}
        found: list[Object] = [
            Sysctl(path="net/ipv4/ip_forward", value="1"),
            wanted_table(self.settings, closed=self.closed),
        ]
        for endpoint in self.endpoints.values():
            found += self._leg(endpoint)
        return {item.key: item for item in found}

    def _leg(self, endpoint: Endpoint) -> Iterator[Object]:
        name, ip = names.exit_name(endpoint.id), self.addresses[endpoint.id]
        pool = self.settings.exit_pool
        gateway = pool.network_address + 1
        mac = names.leg_mac(endpoint.id)
        yield Port(
            name=name,
            endpoint_id=endpoint.id,
            mac=names.router_mac("exit"),
            mtu=self.mtu,
            netns=endpoint.netns,
            inside_ifname=IFNAME,
            inside_mac=mac,
        )
        yield Inside(
            ifname=name,
            netns=endpoint.netns,
            name=IFNAME,
            mac=mac,
            mtu=self.mtu,
            addresses=frozenset({ipaddress.ip_interface(f"{ip}/{pool.prefixlen}")}),
            routes=frozenset({(ipaddress.ip_network("0.0.0.0/0"), gateway)}),
            v6=False,
        )
        for path, value in (
            ("ipv4/conf/{}/rp_filter", "1"),
            ("ipv4/conf/{}/forwarding", "1"),
            ("ipv4/conf/{}/send_redirects", "0"),
            ("ipv6/conf/{}/disable_ipv6", "1"),
        ):
            yield Sysctl(path=f"net/{path.format(name)}", value=value, ifname=name)
        yield Address(ifname=name, address=ipaddress.ip_interface(gateway))
        yield Neighbour(ifname=name, ip=ip, mac=mac)
        yield Route(target=host_route(ip), kind="unicast", ifname=name)
        yield Label(ifname=name, text=endpoint.id)


def _chains(settings: Settings, *, closed: bool) -> Mapping[str, tuple[str, tuple[str, ...]]]:
    forward = [
        # The world may take less than the first hop does.
        f"iifname {_GW} {CLAMP}",
        f"oifname {_GW} {CLAMP}",
        # What the routing mesh forwards is judged where it is translated.
        f'iifname "{names.MESH_DEVICE}" accept',
        f'oifname "{names.MESH_DEVICE}" accept',
        # To a published port, by way of this host's own address.
        f"oifname {_GW} ct status dnat accept",
        f"iifname {_GW} oifname {_GW} drop",
        f"iifname {_GW} accept",
        f"oifname {_GW} ct state established,related accept",
        f"oifname {_GW} drop",
    ]
    if closed:
        forward.append("drop")
    return {
        "exit-guard": (
            "type filter hook prerouting priority -300",
            (
                f"iifname {_GW} fib saddr . iif oif missing drop",
                f"iifname {_GW} udp dport {settings.port} drop",
            ),
        ),
        "exit-forward": ("type filter hook forward priority 0", tuple(forward)),
        "exit-nat": (
            "type nat hook postrouting priority 100",
            (
                f"ip saddr {settings.exit_pool} oifname != {_GW} masquerade",
                # Legs do not know each other: the answer has to come back through here.
                f"ip saddr {settings.exit_pool} oifname {_GW} ct status dnat masquerade",
            ),
        ),
    }


def wanted_table(settings: Settings, *, closed: bool) -> ExitTable:
    """Return the table object for a node."""
    text = repr(sorted(_chains(settings, closed=closed).items()))
    return ExitTable(digest=hashlib.sha256(text.encode()).hexdigest()[:16], closed=closed)


def build(settings: Settings, table: ExitTable) -> str:
    """Return the commands that make the table anew in one transaction."""
    lines = [f"{verb} table inet {TABLE}" for verb in ("add", "delete", "add")]
    for chain, (hook, rules) in _chains(settings, closed=table.closed).items():
        lines.append(f"add chain inet {TABLE} {chain} {{ {hook}; }}")
        lines += [f"add rule inet {TABLE} {chain} {rule}" for rule in rules]
    lines.append(f"add chain inet {TABLE} {_CLOSED if table.closed else _OPEN}{table.digest}")
    return "\n".join(lines)


def destroy() -> str:
    """Return the commands that remove the table."""
    return f"add table inet {TABLE}\ndelete table inet {TABLE}"


def observed(settings: Settings, listing: list[dict[str, Any]] | None) -> ExitTable | None:
    """Return the table in a listing; one in which a rule is missing or added counts as none."""
    counts: dict[str, int] = {}
    table = None
    for item in listing or ():
        if "rule" in item:
            chain = item["rule"]["chain"]
            counts[chain] = counts.get(chain, 0) + 1
        elif "chain" in item:
            name = item["chain"]["name"]
            for mark in (_CLOSED, _OPEN):
                if name.startswith(mark):
                    table = ExitTable(digest=name.removeprefix(mark), closed=mark == _CLOSED)
    if table is None:
        return None
    chains = _chains(settings, closed=table.closed)
    expected = {chain: len(rules) for chain, (_, rules) in chains.items()}
    return table if counts == expected else ExitTable(digest="", closed=table.closed)
