"""A packed encoder and decoder for the route netlink messages the data plane sends.

Pure bytes in, bytes out. General-purpose libraries spend about 98 % of a request on building
Python objects; at thousands of peers that is seconds. One message here costs about 5 us.

Source:
    Linux ``include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,neighbour,veth}.h``; all integers
    are in host order but for the VXLAN port.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from agent.dataplane.model import IPAddress, IPInterface, IPNetwork, Peer
from agent.dataplane.names import ROUTE_PROTOCOL
from swarm.errors import WireError

NLMSG_NOOP, NLMSG_ERROR, NLMSG_DONE = 1, 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x2, 0x4, 0x10
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_DUMP = 0x100, 0x200, 0x400, 0x300
PUT = NLM_F_CREATE | NLM_F_REPLACE
NEW = NLM_F_CREATE | NLM_F_EXCL
NLM_F_APPEND = 0x800
MESH_PROTOCOL = 84
"""``rtm_protocol`` of routes that belong to published ports, not to the data plane."""

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTM_SETNEIGHTBL = 67

AF_UNSPEC, AF_INET, AF_INET6, AF_BRIDGE = 0, 2, 10, 7
FAMILY = {4: AF_INET, 6: AF_INET6}

IFF_UP = 1
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO = 1, 3, 4, 5, 18
IFLA_IFALIAS, IFLA_STATS64, IFLA_GROUP, IFLA_NET_NS_FD, IFLA_EXT_MASK = 20, 23, 27, 28, 29
IFLA_CARRIER = 33
IFLA_AF_SPEC, IFLA_INET6_CONF, DEVCONF_DISABLE_IPV6 = 26, 2, 26
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_VXLAN_ID, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 4, 7
IFLA_VXLAN_PORT_RANGE, IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 10, 15, 17
RTEXT_FILTER_SKIP_STATS = 8

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_TABLE = 1, 4, 5, 15
RT_TABLE_MAIN, RT_TABLE_LOCAL = 254, 255
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST, RT_SCOPE_NOWHERE = 0, 253, 254, 255
RTN_UNICAST, RTN_LOCAL, RTN_UNREACHABLE = 1, 2, 7

NDA_DST, NDA_LLADDR = 1, 2
NDTA_NAME, NDTA_PARMS = 1, 6
NDTPA_IFINDEX, NDTPA_RETRANS_TIME, NDTPA_MCAST_PROBES = 1, 5, 11
TCA_KIND, TCA_OPTIONS, TCA_INGRESS_BLOCK = 1, 2, 13
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS = 6, 7, 8
TCA_BPF_FLAG_ACT_DIRECT = 1
TC_H_INGRESS, TCM_IFINDEX_MAGIC_BLOCK = 0xFFFFFFF1, -1
NUD_PERMANENT = 0x80
NTF_SELF = 0x02

_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBi")
_RTMSG = struct.Struct("=BBBBBBBBI")
_NDMSG = struct.Struct("=BxxxiHBB")
_TCMSG = struct.Struct("=BxxxiIII")
_ATTR = struct.Struct("=HH")
# Of those that are sent by the thousand: the header and one or two attributes at once.
_NDMSG_DST = {length: struct.Struct(f"=BxxxiHBBHH{length}s") for length in (4, 16)}
_LLADDR = struct.Struct("=HH6sxx")
_U32 = struct.Struct("=I")
_STATS = struct.Struct("=4Q")
_PORTS = struct.Struct("!HH")


class Message(NamedTuple):
    """One request: its type, its flags beside REQUEST and ACK, its body."""

    kind: int
    flags: int
    body: bytes


def attr(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to 4 bytes."""
    length = len(payload) + 4
    return _ATTR.pack(length, kind) + payload + b"\0" * (-length & 3)


def mac_bytes(mac: str) -> bytes:
    """Return the 6 bytes of a colon-form MAC."""
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(raw: bytes) -> str:
    """Return the colon form of 6 bytes."""
    return raw.hex(":")


def pack(message: Message, sequence: int, flags: int = NLM_F_REQUEST | NLM_F_ACK) -> bytes:
    """Return a message ready for the socket."""
    kind, extra, body = message
    return _HEADER.pack(16 + len(body), kind, flags | extra, sequence, 0) + body


def _text(kind: int, value: str) -> bytes:
    return attr(kind, value.encode() + b"\0")


def _u32(kind: int, value: int) -> bytes:
    return attr(kind, _U32.pack(value))


def veth(  # one message makes both ends with all they have
    *, name: str, mac: str, mtu: int, group: int, peer: str, peer_mac: str, peer_netns: int
) -> Message:
    """Make a veth pair: ``name`` here, ``peer`` at once in another namespace, both down."""
    other = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + b"".join(
        (
            _text(IFLA_IFNAME, peer),
            attr(IFLA_ADDRESS, mac_bytes(peer_mac)),
            _u32(IFLA_MTU, mtu),
            _u32(IFLA_NET_NS_FD, peer_netns),
        )
    )
    info = _text(IFLA_INFO_KIND, "veth") + attr(IFLA_INFO_DATA, attr(VETH_INFO_PEER, other))
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + b"".join(
        (
            _text(IFLA_IFNAME, name),
            attr(IFLA_ADDRESS, mac_bytes(mac)),
            _u32(IFLA_MTU, mtu),
            _u32(IFLA_GROUP, group),
            attr(IFLA_LINKINFO, info),
        )
    )
    return Message(RTM_NEWLINK, NEW, body)


def set_link(
    index: int,
    *,
    up: bool = False,
    mtu: int | None = None,
    mac: str | None = None,
    alias: str | None = None,
) -> Message:
    """Change a link: bring it up, set its MTU, MAC or alias."""
    flags = IFF_UP if up else 0
    body = _IFINFO.pack(AF_UNSPEC, 0, index, flags, flags)
    if mtu is not None:
        body += _u32(IFLA_MTU, mtu)
    if mac is not None:
        body += attr(IFLA_ADDRESS, mac_bytes(mac))
    if alias is not None:
        body += _text(IFLA_IFALIAS, alias)
    return Message(RTM_SETLINK, 0, body)


def no_link_local(index: int) -> Message:
    """Have a link that is down make itself no IPv6 address when it comes up."""
    mode = attr(IFLA_INET6_ADDR_GEN_MODE, bytes([IN6_ADDR_GEN_MODE_NONE]))
    body = _IFINFO.pack(AF_UNSPEC, 0, index, 0, 0) + attr(IFLA_AF_SPEC, attr(AF_INET6, mode))
    return Message(RTM_SETLINK, 0, body)


def delete_link(name: str) -> Message:
    """Remove a link by name."""
    return Message(RTM_DELLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, name))


def delete_group(group: int) -> Message:
    """Remove all links of a group at once."""
    return Message(RTM_DELLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _u32(IFLA_GROUP, group))


def get_link(name: str) -> Message:
    """Ask for one link by name."""
    return Message(RTM_GETLINK, 0, _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _text(IFLA_IFNAME, name))


def all_links() -> Message:
    """Ask for all links, without their counters."""
    body = _IFINFO.pack(AF_UNSPEC, 0, 0, 0, 0) + _u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS)
    return Message(RTM_GETLINK, NLM_F_DUMP, body)


def address(index: int, value: IPInterface, *, add: bool, prefix_route: bool = True) -> Message:
    """Put or remove an address. IPv6 addresses skip duplicate detection: we give them out."""
    flags = 0 if value.version == 4 else IFA_F_NODAD
    if not prefix_route:
        flags |= IFA_F_NOPREFIXROUTE
    packed = value.ip.packed
    body = _IFADDR.pack(
        FAMILY[value.version], value.network.prefixlen, 0, RT_SCOPE_UNIVERSE, index
    ) + attr(IFA_LOCAL, packed)
    body += attr(IFA_ADDRESS, packed) + _u32(IFA_FLAGS, flags)
    return Message(RTM_NEWADDR if add else RTM_DELADDR, PUT if add else 0, body)


def all_addresses() -> Message:
    """Ask for all addresses."""
    return Message(RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(AF_UNSPEC, 0, 0, 0, 0))


def route(
    target: IPNetwork, *, index: int | None, via: IPAddress | None = None, kind: int, add: bool
) -> Message:
    """Put or remove a route of ours, of type ``kind`` (RTN_*)."""
    table = RT_TABLE_LOCAL if kind == RTN_LOCAL else RT_TABLE_MAIN
    scope = RT_SCOPE_UNIVERSE
    if not add:
        scope = RT_SCOPE_NOWHERE  # a removal matches any scope
    elif kind == RTN_LOCAL:
        scope = RT_SCOPE_HOST
    elif index is not None and via is None:
        scope = RT_SCOPE_LINK
    body = _RTMSG.pack(
        FAMILY[target.version], target.prefixlen, 0, 0, table, ROUTE_PROTOCOL, scope, kind, 0
    ) + attr(RTA_DST, target.network_address.packed)
    if index is not None:
        body += _u32(RTA_OIF, index)
    if via is not None:
        body += attr(RTA_GATEWAY, via.packed)
    return Message(RTM_NEWROUTE if add else RTM_DELROUTE, PUT if add else 0, body)


def loopback_route(index: int) -> Message:
    """Take ``::1`` for this host's also where it comes, translated, from this link; behind ``lo``'s own route.

    The kernel looks for that address on the device that a packet came by. What is addressed to it on the
    wire is dropped long before. It is no object of the data plane's, and goes with its link.

    Source: Linux ``net/ipv6/route.c`` (``ip6_route_input_lookup``, ``rt6_need_strict``), ``ip6_input.c``.
    """
    body = _RTMSG.pack(
        AF_INET6, 128, 0, 0, RT_TABLE_LOCAL, MESH_PROTOCOL, RT_SCOPE_HOST, RTN_LOCAL, 0
    )
    body += attr(RTA_DST, bytes(15) + b"\1") + _u32(RTA_OIF, index)
    return Message(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, body)


def all_routes(version: int) -> Message:
    """Ask for all routes of IP ``version``."""
    body = _RTMSG.pack(FAMILY[version], 0, 0, 0, 0, 0, 0, 0, 0)
    return Message(RTM_GETROUTE, NLM_F_DUMP, body)


def neighbour(index: int, ip: IPAddress, mac: str, *, add: bool) -> Message:
    """Put or remove a permanent neighbour entry."""
    packed = ip.packed
    body = _NDMSG_DST[len(packed)].pack(
        FAMILY[ip.version], index, NUD_PERMANENT, 0, 0, 4 + len(packed), NDA_DST, packed
    )
    if not add:
        return Message(RTM_DELNEIGH, 0, body)
    return Message(RTM_NEWNEIGH, PUT, body + _LLADDR.pack(10, NDA_LLADDR, mac_bytes(mac)))


def fdb(index: int, mac: str, vtep: IPAddress, *, add: bool) -> Message:
    """Put or remove a VXLAN device's forwarding entry."""
    packed = vtep.packed
    body = _NDMSG_DST[len(packed)].pack(
        AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF, 0, 4 + len(packed), NDA_DST, packed
    ) + _LLADDR.pack(10, NDA_LLADDR, mac_bytes(mac))
    return Message(RTM_NEWNEIGH if add else RTM_DELNEIGH, PUT if add else 0, body)


def remotes(index: int, peers: Sequence[Peer], *, add: bool) -> list[bytes]:
    """Return, ready to send, for each remote endpoint its neighbour, forwarding entry and route.

    All in one IP version. What differs from one to the next is cut out of the first one's messages.
    """
    if not peers:
        return []
    sample = peers[0]
    texts = [
        pack(message, 0, NLM_F_REQUEST)
        for message in (
            neighbour(index, sample.ip, sample.mac, add=add),
            fdb(index, sample.mac, sample.vtep, add=add),
            route(ipaddress.ip_network(sample.ip), index=index, kind=RTN_UNICAST, add=add),
        )
    ]
    own, tunnel = len(sample.ip.packed), len(sample.vtep.packed)
    at = 16 + _NDMSG.size + 4
    first, second, third = texts
    between = first[at + own :]
    if add:
        between, after = between[:4], between[10:]
    to_vtep = second[:at]
    to_mac, last = second[at + tunnel : at + tunnel + 4], second[at + tunnel + 10 :]
    begin, last = first[:at], last + third[: 16 + _RTMSG.size + 4]
    end = third[16 + _RTMSG.size + 4 + own :]
    found: list[bytes] = []
    vtep, behind = sample.vtep, to_vtep + sample.vtep.packed + to_mac
    for peer in peers:
        if peer.vtep is not vtep:
            vtep, behind = peer.vtep, to_vtep + peer.vtep.packed + to_mac
        ip, mac = peer.ip.packed, mac_bytes(peer.mac)
        middle = (between, mac, after) if add else (between,)
        found.append(b"".join((begin, ip, *middle, behind, mac, last, ip, end)))
    return found


def resolution(index: int, *, again: int, times: int) -> Message:
    """Set how often a device asks for an IPv4 address, every ``again`` ms, and how many times."""
    parameters = (
        _u32(NDTPA_IFINDEX, index)
        + attr(NDTPA_RETRANS_TIME, struct.pack("=Q", again))
        + _u32(NDTPA_MCAST_PROBES, times)
    )
    body = struct.pack("=Bxxx", AF_INET) + _text(NDTA_NAME, "arp_cache")
    return Message(RTM_SETNEIGHTBL, NLM_F_REPLACE, body + attr(NDTA_PARMS, parameters))


def all_neighbours() -> Message:
    """Ask for all neighbour entries of both families."""
    return Message(RTM_GETNEIGH, NLM_F_DUMP, _NDMSG.pack(AF_UNSPEC, 0, 0, 0, 0))


def all_fdb(index: int) -> Message:
    """Ask for the forwarding entries of one device."""
    # The old request header: an ifinfomsg with the index is the only filter old kernels know.
    return Message(RTM_GETNEIGH, NLM_F_DUMP, _IFINFO.pack(AF_BRIDGE, 0, index, 0, 0))


def tap(index: int, block: int, *, add: bool) -> Message:
    """Let filters of a shared block see what a device receives, or no longer."""
    body = _TCMSG.pack(AF_UNSPEC, index, TC_H_INGRESS & 0xFFFF0000, TC_H_INGRESS, 0)
    body += _text(TCA_KIND, "ingress")
    if not add:
        return Message(RTM_DELQDISC, 0, body)
    return Message(RTM_NEWQDISC, PUT, body + _u32(TCA_INGRESS_BLOCK, block))


def all_taps() -> Message:
    """Ask for all queueing disciplines."""
    return Message(RTM_GETQDISC, NLM_F_DUMP, _TCMSG.pack(AF_UNSPEC, 0, 0, 0, 0))


def classifier(block: int, name: str, program: int) -> Message:
    """Put a loaded program, by descriptor, as the one filter of a block."""
    options = (
        _u32(TCA_BPF_FD, program)
        + _text(TCA_BPF_NAME, name)
        + _u32(TCA_BPF_FLAGS, TCA_BPF_FLAG_ACT_DIRECT)
    )
    body = _TCMSG.pack(AF_UNSPEC, TCM_IFINDEX_MAGIC_BLOCK, 1, block, _FILTER)
    return Message(RTM_NEWTFILTER, PUT, body + _text(TCA_KIND, "bpf") + attr(TCA_OPTIONS, options))


def delete_classifiers(block: int) -> Message:
    """Remove all filters of a block that are of our priority."""
    body = _TCMSG.pack(AF_UNSPEC, TCM_IFINDEX_MAGIC_BLOCK, 0, block, _FILTER)
    return Message(RTM_DELTFILTER, 0, body)


def all_classifiers(block: int) -> Message:
    """Ask for the filters of a block."""
    body = _TCMSG.pack(AF_UNSPEC, TCM_IFINDEX_MAGIC_BLOCK, 0, block, 0)
    return Message(RTM_GETTFILTER, NLM_F_DUMP, body)


_FILTER = 1 << 16 | socket.htons(0x0003)
"""Priority 1, all protocols (ETH_P_ALL)."""


# --- answers ---------------------------------------------------------------------------------


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield (type, flags, sequence, body) of each message in one datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > len(data):
            raise WireError("netlink message longer than its datagram")
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def refused_kind(body: bytes) -> int:
    """Return the type of the request that an NLMSG_ERROR body is about."""
    kind: int = _HEADER.unpack_from(body, 4)[1]
    return kind


def attrs(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes in ``data`` from ``offset`` on, the last of each type."""
    return dict(_attributes(data, offset))


def _attributes(data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    size = len(data)
    while offset + 4 <= size:
        length, kind = _ATTR.unpack_from(data, offset)
        if length < 4 or offset + length > size:
            raise WireError("netlink attribute longer than its message")
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link as the kernel shows it."""

    index: int
    name: str
    up: bool
    carrier: bool
    mtu: int
    mac: str
    alias: str
    kind: str
    peer: int = 0
    """Index of a veth's other end, in its own namespace."""
    vni: int = 0
    port: int = 0
    local: IPAddress | None = None
    learning: bool = False
    sources: tuple[int, int] = (0, 0)
    counters: tuple[int, int, int, int] = (0, 0, 0, 0)
    """rx packets, tx packets, rx bytes, tx bytes."""
    v6: bool = False
    """Whether IPv6 is on."""


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def parse_link(body: bytes) -> Link:
    """Return the link in an RTM_NEWLINK body."""
    _, _, index, flags, _ = _IFINFO.unpack_from(body)
    found = attrs(body, _IFINFO.size)
    info = attrs(found.get(IFLA_LINKINFO, b""))
    kind = _string(info.get(IFLA_INFO_KIND, b""))
    data = attrs(info.get(IFLA_INFO_DATA, b"")) if kind == "vxlan" else {}
    local = data.get(IFLA_VXLAN_LOCAL) or data.get(IFLA_VXLAN_LOCAL6)
    stats = found.get(IFLA_STATS64, b"")
    inet6 = attrs(attrs(found.get(IFLA_AF_SPEC, b"")).get(AF_INET6, b""))
    values = inet6.get(IFLA_INET6_CONF, b"")[4 * DEVCONF_DISABLE_IPV6 :][:4]
    return Link(
        index=index,
        name=_string(found.get(IFLA_IFNAME, b"")),
        up=bool(flags & IFF_UP),
        carrier=found.get(IFLA_CARRIER, b"\0") != b"\0",
        mtu=_U32.unpack(found[IFLA_MTU])[0] if IFLA_MTU in found else 0,
        mac=mac_text(found.get(IFLA_ADDRESS, b"")),
        alias=_string(found.get(IFLA_IFALIAS, b"")),
        kind=kind,
        peer=_U32.unpack(found[IFLA_LINK])[0] if IFLA_LINK in found else 0,
        vni=_U32.unpack(data[IFLA_VXLAN_ID])[0] if IFLA_VXLAN_ID in data else 0,
        port=int.from_bytes(data.get(IFLA_VXLAN_PORT, b""), "big"),
        local=ipaddress.ip_address(local) if local else None,
        sources=_PORTS.unpack(data[IFLA_VXLAN_PORT_RANGE])
        if IFLA_VXLAN_PORT_RANGE in data
        else (0, 0),
        learning=data.get(IFLA_VXLAN_LEARNING, b"\0") != b"\0",
        counters=_STATS.unpack_from(stats) if len(stats) >= _STATS.size else (0, 0, 0, 0),
        v6=len(values) == 4 and not any(values),
    )


def parse_address(body: bytes) -> tuple[int, IPInterface]:
    """Return (index, address) of an RTM_NEWADDR body."""
    _, prefixlen, _, _, index = _IFADDR.unpack_from(body)
    found = attrs(body, _IFADDR.size)
    raw = found.get(IFA_LOCAL) or found[IFA_ADDRESS]
    return index, ipaddress.ip_interface((raw, prefixlen))


class Row(NamedTuple):
    """A route as the kernel shows it."""

    target: IPNetwork
    device: int
    via: IPAddress | None
    kind: int
    protocol: int


def parse_route(body: bytes) -> Row:
    """Return the route in an RTM_NEWROUTE body."""
    family, length, _, _, _, protocol, _, kind, _ = _RTMSG.unpack_from(body)
    found = attrs(body, _RTMSG.size)
    raw = found.get(RTA_DST, bytes(4 if family == AF_INET else 16))
    via = found.get(RTA_GATEWAY)
    return Row(
        target=ipaddress.ip_network((raw, length)),
        device=_U32.unpack(found[RTA_OIF])[0] if RTA_OIF in found else 0,
        via=ipaddress.ip_address(via) if via else None,
        kind=kind,
        protocol=protocol,
    )


class Entry(NamedTuple):
    """A neighbour or forwarding entry as the kernel shows it."""

    device: int
    state: int
    mac: str
    ip: IPAddress | None
    """The neighbour's address, or the forwarding entry's VTEP."""


def parse_entry(body: bytes) -> Entry:
    """Return the entry in an RTM_NEWNEIGH body."""
    family, index, state, _, _ = _NDMSG.unpack_from(body)
    found: dict[int, bytes] = {}
    # Of many attributes only two matter, and they come first.
    for kind, value in _attributes(body, _NDMSG.size):
        found[kind] = value
        if NDA_DST in found and NDA_LLADDR in found:
            break
    raw = found.get(NDA_DST)
    # A forwarding entry's is a tunnel address, of which there are few.
    address = _tunnel if family == AF_BRIDGE else ipaddress.ip_address
    return Entry(index, state, mac_text(found.get(NDA_LLADDR, b"")), address(raw) if raw else None)


@functools.lru_cache(maxsize=1 << 10)
def _tunnel(raw: bytes) -> IPAddress:
    return ipaddress.ip_address(raw)


def parse_tap(body: bytes) -> tuple[int, int]:
    """Return (interface, shared block of its ingress) of an RTM_NEWQDISC body; block 0: none."""
    _, index, _, _, _ = _TCMSG.unpack_from(body)
    raw = attrs(body, _TCMSG.size).get(TCA_INGRESS_BLOCK)
    return index, 0 if raw is None else _U32.unpack(raw)[0]


def parse_classifier(body: bytes) -> str:
    """Return the name of the program in an RTM_NEWTFILTER body, empty if it is another kind."""
    options = attrs(attrs(body, _TCMSG.size).get(TCA_OPTIONS, b""))
    return _string(options.get(TCA_BPF_NAME, b""))
