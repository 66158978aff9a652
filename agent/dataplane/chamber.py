"""A namespace from which the paths to other nodes are tried. Worker thread only.

It holds a VXLAN device like those of networks, on a VNI that no manager gives out, and the node's own
tunnel address inside as outside. Nothing of it is kept by name: it ends with the process. Packets that do
not fit are dropped on the way and not cut (``df``), so that a path shows its size.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Collection
from dataclasses import dataclass, field

from agent.dataplane import names, namespace, netlink
from agent.dataplane.channel import Channel
from agent.dataplane.model import IPAddress, Settings, host_route
from agent.dataplane.mtu import overlay_mtu
from agent.dataplane.objects import Vxlan
from agent.dataplane.underlay import Underlay

PROBE_VNI = 1
"""Below every VNI that managers give out."""

PROBE_PORT = 7
"""UDP port of the echo in there."""

_SO_NO_CHECK = 11
_UDP_NO_CHECK6_TX, _UDP_NO_CHECK6_RX = 101, 102
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3


@dataclass(slots=True)
class Chamber:
    """The namespace, its device and its sockets.

    Attributes:
        mtu: of the device, bytes: the largest IP packet that can be tried.
        echo: answers the first bytes of what comes.
        summed: sends datagrams whose checksum is left to the device.
        plain: sends datagrams without a checksum.
    """

    settings: Settings
    mtu: int
    fd: int
    channel: Channel
    index: int
    echo: socket.socket
    summed: socket.socket
    plain: socket.socket
    known: set[IPAddress] = field(default_factory=set)

    def know(self, peers: Collection[IPAddress]) -> None:
        """Be able to reach these nodes, and to answer them, and no others."""
        messages = []
        for peer, add in (
            *((peer, True) for peer in peers if peer not in self.known),
            *((peer, False) for peer in self.known.difference(peers)),
        ):
            mac = names.vxlan_mac(peer, PROBE_VNI)
            messages += [
                netlink.neighbour(self.index, peer, mac, add=add),
                netlink.fdb(self.index, mac, peer, add=add),
                netlink.route(
                    host_route(peer), index=self.index, kind=netlink.RTN_UNICAST, add=add
                ),
            ]
        self.channel.check(messages)
        self.known = set(peers)

    def close(self) -> None:
        """Let go; the namespace ends, and the device at once."""
        self.channel.run([netlink.delete_group(names.DEVICE_GROUP)])
        self.channel.close()
        for one in (self.echo, self.summed, self.plain):
            one.close()
        os.close(self.fd)


def make(settings: Settings, underlay: Underlay, home: int, underlay_mtu: int) -> Chamber:
    """Make the namespace.

    Raises:
        ConflictError: another device has its VNI: an agent that has just ended, or somebody else's.
        HostError: the kernel refused.
    """
    vtep = settings.vtep
    mtu = overlay_mtu(underlay_mtu, vtep.version, encrypted=False)
    with namespace.scratch(home) as scratch:
        fd = os.dup(scratch)
    try:
        with namespace.entered(fd, home):
            channel = Channel()
        vxlan = Vxlan(
            name=names.vxlan_name(PROBE_VNI),
            vni=PROBE_VNI,
            port=settings.port,
            local=vtep,
            mac=names.vxlan_mac(vtep, PROBE_VNI),
            mtu=mtu,
            sources=names.PLAIN_SOURCES,
        )
        underlay.make_vxlan(vxlan, fd, whole=True)
        index = channel.index(vxlan.name)
        own = ipaddress.ip_interface(vtep)
        channel.check(
            [
                netlink.set_link(names.LOOPBACK, up=True),
                netlink.set_link(index, up=True, mtu=mtu),
                netlink.address(index, own, add=True, prefix_route=False),
            ]
        )
        with namespace.entered(fd, home):
            echo, summed, plain = (_socket(settings) for _ in range(3))
        echo.bind((str(vtep), PROBE_PORT))
        for one in (echo, plain):
            _without_checksum(one, vtep.version)
    except BaseException:
        os.close(fd)
        raise
    return Chamber(
        settings=settings,
        mtu=mtu,
        fd=fd,
        channel=channel,
        index=index,
        echo=echo,
        summed=summed,
        plain=plain,
    )


def _socket(settings: Settings) -> socket.socket:
    v6 = settings.vtep.version == 6
    made = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    if v6:
        made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        made.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_RX, 1)
    else:
        made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    return made


def _without_checksum(one: socket.socket, version: int) -> None:
    if version == 6:
        one.setsockopt(socket.IPPROTO_UDP, _UDP_NO_CHECK6_TX, 1)
    else:
        one.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
