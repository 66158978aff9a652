"""How replies find back to the node where a client came in: rules and links of the ingress router.

A client's packet is translated on the node it reached and travels on with the client's own address; the
backend's reply, addressed to that client anywhere in the world, has to leave where the packet came in.
The backend's router remembers, by the sender's MAC, through which node each flow came (``ct mark``),
marks replies with it, and a rule on the tunnel device writes that node's MAC on them. Two nodes may
carry the same client address and port at once: a conntrack zone per node keeps them apart. Towards an
engine, whose containers would answer by their own default route, the source is translated to this
node's address on the ingress network instead.

Between host and router there is one link. The number of a node is the end of its IPv4 ingress address:
nothing is agreed upon, and a restarted agent comes to the same. IPv6 is the same as IPv4 throughout,
where the ingress network has an IPv6 subnet.

Source: libnetwork ``service_linux.go`` (towards engines); ``docs/services.md``.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from agent.balancer.published import CHUNK
from agent.balancer.table import IPAddress
from agent.dataplane.names import MESH_DEVICE
from swarm.errors import HostError

TABLE: Final = "overswarm-mesh"
HOST_DEVICE: Final = MESH_DEVICE
ROUTER_DEVICE: Final = "host0"
NODE: Final = 0x10000
"""Bit of a packet mark that carries a node's number."""

NAMES: Final = {
    "inet": ("nodes", "zones", "foreign4", "foreign6", "targets4", "targets6"),
    "netdev": ("macs",),
}
"""Sets and maps of each family."""

_ROUTES: Final = 100
_PROTOCOL: Final = 84
"""Of our routes here: not the data plane's, which removes what it does not know."""
_KINDS: Final = {4: "ipv4_addr", 6: "ipv6_addr"}
_PROTOCOLS: Final = {4: "ip", 6: "ip6"}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_LINK_LOCAL: Final = "fe80::/10"
_HOP: Final = {4: "169.254.6.1", 6: "fe80::6:1"}
_HOP_MAC: Final = "02:00:00:00:00:01"
_HOST: Final = {4: "169.254.6.5", 6: "fe80::6:5"}
_ROUTER: Final = {4: "169.254.6.6", 6: "fe80::6:6"}
_PREFIX: Final = {4: 30, 6: 64}
_ANY: Final = {4: "0.0.0.0/0", 6: "::/0"}
_NODAD: Final = 0x02
_EXIST: Final = 17
_EXT_LEARNED: Final = 0x10
_INSIDE_TABLE: Final = 6007
_INSIDE_PRIORITY: Final = 6007

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """What the router's rules have to know. Sets and maps by their names, elements as nft writes them.

    Attributes:
        addresses: this node's on the ingress network, one of a family.
        subnets: theirs.
        devices: the router's tunnel devices.
        elements: ``nodes`` (MAC to mark), ``zones`` (MAC to zone), ``macs`` (mark to MAC), ``foreign4``
            (backends on engines), ``targets4`` (published port of a local backend to its target), and
            both of these for IPv6.
    """

    addresses: tuple[IPAddress, ...]
    subnets: tuple[IPNetwork, ...]
    devices: tuple[str, ...]
    elements: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def number_of(address: IPAddress) -> int:
    """Return a node's number: 1 to 65535, unique in an ingress network of at most 65536 addresses."""
    return int(address) & 0xFFFF


def node_elements(nodes: Mapping[str, IPAddress]) -> dict[str, dict[str, str]]:
    """Return the elements for other nodes of ours.

    Args:
        nodes: ingress address by the MAC of the node's tunnel device.
    """
    numbers = {mac: number_of(address) for mac, address in nodes.items()}
    return {
        "nodes": {mac: f"{NODE | number:#x}" for mac, number in numbers.items()},
        "zones": {mac: str(number) for mac, number in numbers.items()},
        "macs": {f"{NODE | number:#x}": mac for mac, number in numbers.items()},
    }


def build(steering: Steering) -> str:
    """Return the commands that make both tables anew, in one transaction."""
    return "\n".join(rules(steering) + changes({}, steering.elements))


def rules(steering: Steering) -> list[str]:
    """Return the commands that make both tables anew, without elements."""
    lines = []
    for family in ("inet", "netdev"):
        lines += [f"{verb} table {family} {TABLE}" for verb in ("add", "delete", "add")]
    lines += [
        f"add map inet {TABLE} nodes {{ type ether_addr : mark; }}",
        f"add map inet {TABLE} zones {{ typeof ether saddr : ct zone; }}",
        f"add map netdev {TABLE} macs {{ type mark : ether_addr; }}",
    ]
    for version, kind in _KINDS.items():
        target = f"{kind} . inet_proto . inet_service : {kind} . inet_service"
        lines += [
            f"add set inet {TABLE} foreign{version} {{ type {kind}; }}",
            f"add map inet {TABLE} targets{version} {{ type {target}; }}",
        ]
    for chain, hook in (
        ("in-zone", "type filter hook prerouting priority -290"),
        ("in-mark", "type filter hook prerouting priority -150"),
        ("in-target", "type nat hook prerouting priority -100"),
        # Also empty it lets the kernel move a port that clashes between two zones.
        ("out-source", "type nat hook postrouting priority 100"),
    ):
        lines.append(f"add chain inet {TABLE} {chain} {{ {hook}; }}")
    for subnet in steering.subnets:
        lines += _family(subnet, steering.addresses)
    reply = "ct mark != 0 ct direction reply"
    lines.append(f'add rule inet {TABLE} in-mark iifname != "vx-*" {reply} meta mark set ct mark')
    for device in steering.devices:
        hook = f'type filter hook egress device "{device}" priority 0'
        lines.append(f"add chain netdev {TABLE} {device} {{ {hook}; }}")
        lines.append(
            f"add rule netdev {TABLE} {device} meta mark & {NODE:#x} == {NODE:#x} "
            "ether daddr set meta mark map @macs"
        )
    return lines


def _family(subnet: IPNetwork, addresses: Collection[IPAddress]) -> list[str]:
    """Return the rules for one IP version."""
    version = subnet.version
    ip, tunnel = _PROTOCOLS[version], 'iifname "vx-*"'
    inside = f"{subnet}" if version == 4 else f"{{ {subnet}, {_LINK_LOCAL} }}"
    client = f"{ip} saddr != {inside}"
    target = f"dnat {ip} to {ip} daddr . meta l4proto . th dport map @targets{version}"
    lines = [
        f"in-zone {tunnel} {client} ct original zone set ether saddr map @zones",
        f"in-mark {tunnel} {client} ct state new ct mark set ether saddr map @nodes",
        f"in-target {tunnel} {ip} saddr {subnet} {target}",
    ]
    own = next((each for each in addresses if each.version == version), None)
    if own is not None:
        source = f"{ip} daddr @foreign{version} snat {ip} to {own}"
        lines.append(f'out-source oifname "vx-*" {client} {source}')
    return [f"add rule inet {TABLE} {line}" for line in lines]


def changes(
    before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """Return the commands that lead from some elements to others; deletions first."""
    gone: list[str] = []
    come: list[str] = []
    for name in sorted({*before, *after}):
        old, new = before.get(name, {}), after.get(name, {})
        family = "netdev" if name == "macs" else "inet"
        lost = [key for key, value in old.items() if new.get(key) != value]
        fresh = [f"{k} : {v}" if v else k for k, v in new.items() if old.get(k) != v]
        for lines, verb, texts in ((gone, "delete", lost), (come, "add", fresh)):
            for start in range(0, len(texts), CHUNK):
                part = ", ".join(texts[start : start + CHUNK])
                lines.append(f"{verb} element {family} {TABLE} {name} {{ {part} }}")
    return gone + come


# -- links; called within a namespace ------------------------------------------------------


def link_host(router: str, subnets: Collection[IPNetwork], mtu: int) -> None:
    """Make the link and the routes into the ingress network, from the daemon's namespace.

    Args:
        router: path of the ingress router's namespace.
        subnets: of the ingress network.
        mtu: of the network, bytes.

    Raises:
        HostError: the kernel refused.
    """
    fd = os.open(router, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with _netlink() as ip:
            if not ip.link_lookup(ifname=HOST_DEVICE):
                peer = {"ifname": ROUTER_DEVICE, "net_ns_fd": fd, "mtu": mtu}
                ip.link("add", ifname=HOST_DEVICE, kind="veth", mtu=mtu, peer=peer)
            versions = {subnet.version for subnet in subnets}
            index = _up(ip, HOST_DEVICE, mtu, _HOST, versions)
            for subnet in subnets:
                _route(
                    ip,
                    subnet.version,
                    dst=str(subnet),
                    gateway=_ROUTER[subnet.version],
                    oif=index,
                )
    finally:
        os.close(fd)


def link_router(device: str, mtu: int, versions: Collection[int] = (4,)) -> None:
    """Make the other end, and the way of steered replies, from within the ingress router.

    Args:
        device: the router's tunnel device.
        mtu: of the network, bytes.
        versions: of IP that the network has.
    """
    with _netlink() as ip:
        index = _up(ip, ROUTER_DEVICE, mtu, _ROUTER, versions)
        tunnel = ip.link_lookup(ifname=device)[0]
        for version in versions:
            _route(ip, version, dst=_ANY[version], gateway=_HOST[version], oif=index)
            ip.neigh(
                "replace",
                family=_FAMILIES[version],
                dst=_HOP[version],
                lladdr=_HOP_MAC,
                ifindex=tunnel,
                state=0x40,  # NUD_NOARP: written over on the way out; the data plane's are permanent
                flags=_EXT_LEARNED,
            )
            _route(
                ip,
                version,
                dst=_ANY[version],
                gateway=_HOP[version],
                oif=tunnel,
                table=_ROUTES,
                flags=["onlink"],
            )
            with _existing():
                ip.rule(
                    "add",
                    family=_FAMILIES[version],
                    table=_ROUTES,
                    fwmark=NODE,
                    fwmask=NODE,
                    priority=_ROUTES,
                )


def link_container(device: str, address: IPAddress, gateway: IPAddress) -> None:
    """Have a container answer from its ingress address by its ingress interface, whatever its default.

    From within the container's namespace.
    """
    version = address.version
    with _netlink() as ip:
        index = ip.link_lookup(ifname=device)[0]
        _route(
            ip,
            version,
            dst=_ANY[version],
            gateway=str(gateway),
            oif=index,
            table=_INSIDE_TABLE,
        )
        with _existing():
            ip.rule(
                "add",
                family=_FAMILIES[version],
                src=str(address),
                src_len=address.max_prefixlen,
                table=_INSIDE_TABLE,
                priority=_INSIDE_PRIORITY,
            )


def unlink_host() -> None:
    """Remove the link, from the daemon's namespace; an absent one is no error."""
    with _netlink() as ip:
        for index in ip.link_lookup(ifname=HOST_DEVICE):
            ip.link("del", index=index)


@contextlib.contextmanager
def _netlink() -> Iterator[Any]:
    try:
        with IPRoute() as ip:
            yield ip
    except (NetlinkError, OSError, IndexError) as error:
        raise HostError(f"the links of the routing mesh cannot be made: {error}") from error


@contextlib.contextmanager
def _existing() -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code != _EXIST:
            raise


def _up(
    ip: Any, device: str, mtu: int, addresses: Mapping[int, str], versions: Collection[int]
) -> int:
    index: int = ip.link_lookup(ifname=device)[0]
    ip.link("set", index=index, mtu=mtu, state="up")
    for version in versions:
        more = {"flags": _NODAD} if version == 6 else {}
        with _existing():
            ip.addr(
                "add",
                index=index,
                family=_FAMILIES[version],
                address=addresses[version],
                prefixlen=_PREFIX[version],
                **more,
            )
    return index


def _route(ip: Any, version: int, **fields: object) -> None:
    ip.route("replace", family=_FAMILIES[version], proto=_PROTOCOL, **fields)
