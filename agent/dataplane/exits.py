"""The way out of the overlay: a second leg from a container into the daemon's namespace.

An overlay has no default route of its own. A container with one gets interface ``gw0``: a veth
whose other end, ``gw<endpoint>``, is in the daemon's namespace, with an address out of a range
that only this node knows, translated to the host's on the way out (masquerade). A container with
an IPv6 address in the overlay has the same in IPv6, on the same leg: both addresses have one number.

``table inet overswarm`` in the daemon's namespace holds the rules. Containers do not reach each
other this way, and may not send VXLAN: their packets leave with this node's tunnel address, and
a plain overlay trusts that. Should the host not have been forwarding an IP version before, the
table lets nothing else of it through that our switching it on would (:mod:`~agent.dataplane.forwarding`).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agent.dataplane import forwarding, names
from agent.dataplane.model import Endpoint, IPAddress, IPNetwork, Settings, host_route
from agent.dataplane.names import EXIT_PREFIX, ROUTER_LINK_LOCAL, TABLE
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

_ANY: Final[Mapping[int, IPNetwork]] = {
    4: ipaddress.ip_network("0.0.0.0/0"),
    6: ipaddress.ip_network("::/0"),
}
_FAMILIES: Final = {4: "ip", 6: "ip6"}
_GATEWAY: Final = 1
"""Number of the host's address in both ranges."""

_MARKS: Final[Mapping[str, frozenset[int]]] = {
    "open-": frozenset(),
    "closed-": frozenset({4}),
    "closed6-": frozenset({6}),
    "closed46-": frozenset({4, 6}),
}
"""Beginnings of the chain whose name remembers which IP versions the host did not forward."""

_GW = f'"{EXIT_PREFIX}*"'


@dataclass(slots=True)
class Exits:
    """All ways out of this node.

    Attributes:
        settings: of the node; the range of addresses and the tunnel's port.
        endpoints: those that have one, by id.
        numbers: of their legs' addresses in the ranges, by endpoint id; kept over a restart, for they
            are in use.
        mtu: of the legs, bytes: the underlay's.
        closed: the IP versions that the host was not forwarding before us.
    """

    settings: Settings
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    mtu: int = 1500
    closed: frozenset[int] = frozenset()

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
        if endpoint.id not in self.numbers:
            taken = set(self.numbers.values())
            last = self.settings.exit_pool.num_addresses - 2  # behind it is the broadcast address
            free = (number for number in range(_GATEWAY + 1, last + 1) if number not in taken)
            number = next(free, None)
            if number is None:
                raise ExhaustedError(f"no address is left in {self.settings.exit_pool}")
            self.numbers[endpoint.id] = number
        self.endpoints[endpoint.id] = endpoint

    def discard(self, endpoint_id: str) -> None:
        """Take an endpoint's way out."""
        self.endpoints.pop(endpoint_id, None)
        self.numbers.pop(endpoint_id, None)

    def addresses(self, endpoint_id: str) -> tuple[IPAddress, ...]:
        """Return the addresses of an endpoint's leg, IPv4 first; none without one."""
        endpoint = self.endpoints.get(endpoint_id)
        if endpoint is None:
            return ()
        number = self.numbers[endpoint_id]
        return tuple(self._pool(version)[number] for version in versions(endpoint))

    def _pool(self, version: int) -> IPNetwork:
        return self.settings.exit_pool if version == 4 else self.settings.exit_pool6

    def recall(self, observed: State) -> None:
        """Take over the addresses that legs found in the kernel have."""
        owners = {
            item.name: item.endpoint_id for item in observed.values() if isinstance(item, Port)
        }
        for item in observed.values():
            if isinstance(item, Route) and item.ifname in owners and owners[item.ifname]:
                ip = item.target.network_address
                pool = self._pool(ip.version)
                if ip in pool:
                    self.numbers[owners[item.ifname]] = int(ip) - int(pool.network_address)
            elif isinstance(item, ExitTable):
                self.closed = item.closed

    def objects(self) -> dict[Key, Object]:
        """Return everything wanted in the daemon's namespace: nothing while nobody needs it."""
        if not self.endpoints:
            return {}
        found: list[Object] = [wanted_table(self.settings, closed=self.closed)]
        found += [
            Sysctl(path=forwarding.PATHS[each], value="1") for each in sorted(self.versions())
        ]
        for endpoint in self.endpoints.values():
            found += self._leg(endpoint)
        return {item.key: item for item in found}

    def versions(self) -> frozenset[int]:
        """Return the IP versions that any endpoint's way out has."""
        return frozenset(
            version for endpoint in self.endpoints.values() for version in versions(endpoint)
        )

    def _leg(self, endpoint: Endpoint) -> Iterator[Object]:
        name, own = names.exit_name(endpoint.id), self.addresses(endpoint.id)
        gateways = [self._pool(ip.version)[_GATEWAY] for ip in own]
        mac = names.leg_mac(endpoint.id)
        v6 = 6 in versions(endpoint)
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
            addresses=frozenset(
                ipaddress.ip_interface(f"{ip}/{self._pool(ip.version).prefixlen}") for ip in own
            ),
            routes=frozenset(
                (_ANY[gateway.version], ROUTER_LINK_LOCAL.ip if gateway.version == 6 else gateway)
                for gateway in gateways
            ),
            v6=v6,
            hop_mac=names.router_mac("exit"),
        )
        for path, value in (
            ("ipv4/conf/{}/rp_filter", "1"),
            ("ipv4/conf/{}/forwarding", "1"),
            ("ipv4/conf/{}/send_redirects", "0"),
            ("ipv6/conf/{}/disable_ipv6", str(int(not v6))),
            *((("ipv6/conf/{}/accept_ra", "0"),) if v6 else ()),
        ):
            yield Sysctl(path=f"net/{path.format(name)}", value=value, ifname=name)
        for ip, gateway in zip(own, gateways, strict=True):
            yield Address(ifname=name, address=ipaddress.ip_interface(gateway))
            yield Neighbour(ifname=name, ip=ip, mac=mac)
            yield Route(target=host_route(ip), kind="unicast", ifname=name)
        yield Label(ifname=name, text=endpoint.id)


def versions(endpoint: Endpoint) -> tuple[int, ...]:
    """Return the IP versions of an endpoint's way out: IPv4, and IPv6 if it has that in the overlay."""
    return (4, 6) if any(address.version == 6 for address in endpoint.addresses) else (4,)


def _chains(
    settings: Settings, *, closed: frozenset[int]
) -> Mapping[str, tuple[str, tuple[str, ...]]]:
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
    forward += [f"meta nfproto ipv{version} drop" for version in sorted(closed)]
    translated: list[str] = []
    for pool in (settings.exit_pool, settings.exit_pool6):
        ours = f"{_FAMILIES[pool.version]} saddr {pool}"
        translated += [
            f"{ours} oifname != {_GW} masquerade",
            # Legs do not know each other: the answer has to come back through here.
            f"{ours} oifname {_GW} ct status dnat masquerade",
        ]
    return {
        "exit-guard": (
            "type filter hook prerouting priority -300",
            (
                f"iifname {_GW} fib saddr . iif oif missing drop",
                f"iifname {_GW} udp dport {settings.port} drop",
            ),
        ),
        "exit-forward": ("type filter hook forward priority 0", tuple(forward)),
        "exit-nat": ("type nat hook postrouting priority 100", tuple(translated)),
    }


def wanted_table(settings: Settings, *, closed: frozenset[int]) -> ExitTable:
    """Return the table object for a node."""
    text = repr(sorted(_chains(settings, closed=closed).items()))
    return ExitTable(digest=hashlib.sha256(text.encode()).hexdigest()[:16], closed=closed)


def build(settings: Settings, table: ExitTable) -> str:
    """Return the commands that make the table anew in one transaction."""
    lines = [f"{verb} table inet {TABLE}" for verb in ("add", "delete", "add")]
    for chain, (hook, rules) in _chains(settings, closed=table.closed).items():
        lines.append(f"add chain inet {TABLE} {chain} {{ {hook}; }}")
        lines += [f"add rule inet {TABLE} {chain} {rule}" for rule in rules]
    mark = next(mark for mark, closed in _MARKS.items() if closed == table.closed)
    lines.append(f"add chain inet {TABLE} {mark}{table.digest}")
    return "\n".join(lines)


def closed_by(chains: Iterable[str]) -> frozenset[int]:
    """Return the IP versions that the host did not forward before us, by the names of our chains."""
    marks = [closed for name in chains for mark, closed in _MARKS.items() if name.startswith(mark)]
    return frozenset().union(*marks)


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
            for mark, closed in _MARKS.items():
                if name.startswith(mark):
                    table = ExitTable(digest=name.removeprefix(mark), closed=closed)
    if table is None:
        return None
    chains = _chains(settings, closed=table.closed)
    expected = {chain: len(rules) for chain, (_, rules) in chains.items()}
    return table if counts == expected else ExitTable(digest="", closed=table.closed)
