"""From rows of netlink dumps to kernel objects. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.dataplane import netlink
from agent.dataplane.names import ROUTE_PROTOCOL
from agent.dataplane.objects import Address, Label, Neighbour, Object, Port, Route, Vxlan

KINDS = {
    "unicast": netlink.RTN_UNICAST,
    "local": netlink.RTN_LOCAL,
    "unreachable": netlink.RTN_UNREACHABLE,
}
KIND_NAMES = {number: name for name, number in KINDS.items()}


def link_objects(link: netlink.Link) -> Iterator[Object]:
    """Yield what a link of ours is."""
    # A link that is down counts as one with a wrong MTU: putting it sets both right.
    mtu = link.mtu if link.up else 0
    if link.kind == "vxlan" and link.local is not None:
        yield Vxlan(
            name=link.name,
            vni=link.vni,
            port=link.port,
            local=link.local,
            mac=link.mac,
            mtu=mtu,
            sources=link.sources,
        )
    elif link.kind == "veth":
        yield Port(name=link.name, endpoint_id=link.alias, mac=link.mac, mtu=mtu)
        if link.alias:
            yield Label(ifname=link.name, text=link.alias)


def address_objects(bodies: Iterable[bytes], known: dict[int, str]) -> Iterator[Object]:
    """Yield the addresses on known interfaces (index to name)."""
    for index, value in map(netlink.parse_address, bodies):
        if index in known and not value.ip.is_loopback:
            yield Address(ifname=known[index], address=value)


def neighbour_objects(bodies: Iterable[bytes], known: dict[int, str]) -> Iterator[Object]:
    """Yield the permanent neighbours on known interfaces."""
    for entry in map(netlink.parse_entry, bodies):
        if entry.state & netlink.NUD_PERMANENT and entry.ip is not None and entry.device in known:
            yield Neighbour(ifname=known[entry.device], ip=entry.ip, mac=entry.mac)


def route_objects(bodies: Iterable[bytes], known: dict[int, str]) -> Iterator[Object]:
    """Yield the routes of ours: on known interfaces, local, or to nowhere."""
    for row in map(netlink.parse_route, bodies):
        if row.protocol != ROUTE_PROTOCOL or row.kind not in KIND_NAMES:
            continue
        ifname = known.get(row.device) if row.kind == netlink.RTN_UNICAST else None
        match row.kind:
            case netlink.RTN_UNICAST if ifname is None:
                pass  # of another's interface
            case netlink.RTN_UNICAST:
                yield Route(target=row.target, kind="unicast", ifname=ifname)
            case netlink.RTN_LOCAL:
                yield Route(target=row.target, kind="local")
            case _:
                yield Route(target=row.target, kind="unreachable")
