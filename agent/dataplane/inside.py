"""A container's end of a port: looked at and set from within its namespace. Worker thread only."""

from __future__ import annotations

import contextlib
import os

from agent.dataplane import namespace, netlink, sysctl
from agent.dataplane.channel import Channel
from agent.dataplane.model import IPAddress, IPNetwork
from agent.dataplane.names import LOOPBACK, ROUTE_PROTOCOL, ROUTER_LINK_LOCAL
from agent.dataplane.netlink import Message
from agent.dataplane.objects import Inside
from swarm.errors import HostError, NotFoundError, SwarmError

ASK_AGAIN_MS = 20
"""Milliseconds between two ARP requests of a container; each goes to its router and no further.

A container may answer a newcomer before this node has heard of it. Its packets wait in its own queue then; at
the kernel's usual pace the next request would be a second later.
"""

ASK_TIMES = 50
"""Requests until an address counts as absent: a second, of three at the kernel's usual pace."""


def observe(home: int, wanted: Inside, port_index: int) -> Inside | None:
    """Return the container's end of a port as it is, None when it is not there.

    A namespace whose path has vanished while the port lives (its first process ended, another
    is still there) cannot be looked at: what is wanted is believed.
    """
    try:
        fd = namespace.open_netns(wanted.netns.path)
    except SwarmError:
        return wanted
    try:
        with namespace.entered(fd, home):
            channel = Channel()
        with contextlib.closing(channel):
            link = channel.link(wanted.name)
            if link is None or link.peer != port_index or not link.up:
                return None
            addresses = map(netlink.parse_address, channel.dump(netlink.all_addresses()))
            routes = _routes(channel, wanted, link.index)
    finally:
        os.close(fd)
    return Inside(
        ifname=wanted.ifname,
        netns=wanted.netns,
        name=link.name,
        mac=link.mac,
        mtu=link.mtu,
        addresses=frozenset(value for index, value in addresses if index == link.index),
        routes=routes,
        v6=link.v6,
    )


def put(home: int, inside: Inside, source: sysctl.Source | None = None) -> None:
    """Set everything on a container's end of a port, and take off routes wanted no more.

    Raises:
        NotFoundError: the namespace has ended, or the interface is not in it.
        HostError: the kernel refused.
    """
    fd = namespace.open_netns(inside.netns.path)
    try:
        with namespace.entered(fd, home), contextlib.closing(Channel()) as channel:
            link = channel.link(inside.name)
            if link is None:
                raise NotFoundError(f"the container has no interface {inside.name} any more")
            # The MTU first: below 1280 the kernel takes IPv6 off an interface, settings
            # included, and above gives it back with defaults.
            if (link.mtu, link.mac) != (inside.mtu, inside.mac):
                message = netlink.set_link(link.index, mtu=inside.mtu, mac=inside.mac)
                channel.check([message])
            _prepare_v6(inside, source)
            channel.run([netlink.resolution(link.index, again=ASK_AGAIN_MS, times=ASK_TIMES)])
            channel.check(_messages(inside, link.index))
            if link.up:  # not new: it may have routes of ours that are wanted no more
                stale = _routes(channel, inside, link.index) - inside.routes
                channel.check(
                    [
                        netlink.route(
                            target,
                            index=link.index,
                            via=via,
                            kind=netlink.RTN_UNICAST,
                            add=False,
                        )
                        for target, via in stale
                    ]
                )
    finally:
        os.close(fd)


def _routes(channel: Channel, inside: Inside, index: int) -> frozenset[tuple[IPNetwork, IPAddress]]:
    """Return the routes of ours on a container's interface."""
    versions = (4, 6) if inside.v6 else (4,)
    dumps = (channel.dump(netlink.all_routes(version)) for version in versions)
    rows = [netlink.parse_route(body) for bodies in dumps for body in bodies]
    return frozenset(
        (row.target, row.via)
        for row in rows
        if row.device == index and row.protocol == ROUTE_PROTOCOL and row.via is not None
    )


def _messages(inside: Inside, index: int) -> list[Message]:
    messages = [netlink.set_link(LOOPBACK, up=True), netlink.set_link(index, up=True)]
    messages += [
        # An IPv6 subnet is not on the link (see the planner): no prefix route for it.
        netlink.address(index, value, add=True, prefix_route=value.version == 4)
        for value in sorted(inside.addresses, key=str)
    ]
    if inside.v6:
        messages.append(netlink.neighbour(index, ROUTER_LINK_LOCAL.ip, inside.hop_mac, add=True))
    messages += [
        netlink.route(target, index=index, via=via, kind=netlink.RTN_UNICAST, add=True)
        for target, via in sorted(inside.routes, key=str)
    ]
    return messages


def _prepare_v6(inside: Inside, source: sysctl.Source | None) -> None:
    conf = f"net/ipv6/conf/{inside.name}"
    with contextlib.closing(sysctl.Tree(source)) as tree:
        if tree.read(f"{conf}/accept_dad") is None:
            if inside.v6:
                raise HostError("IPv6 is switched off in this kernel (boot option ipv6.disable)")
            return
        if inside.v6:
            tree.write(f"{conf}/accept_dad", "0")
            tree.write(f"{conf}/accept_ra", "0")
        # Without an address of ours, not even a link-local one: nothing would filter what it says.
        tree.write(f"{conf}/disable_ipv6", "0" if inside.v6 else "1")
