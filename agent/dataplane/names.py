"""The names and addresses by which every kernel object of ours is recognised.

All are pure functions of ids, so that a daemon that starts anew finds what an earlier one made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from ipaddress import IPv6Interface

from agent.dataplane.model import IPAddress

TABLE = "overswarm"
"""nftables table of the data plane, in router namespaces and in the daemon's own."""

SERVICES_TABLE = "overswarm-services"
"""nftables table in router namespaces that belongs to service load balancing, not to the data plane.

It is a table of its own because a NAT chain switches connection tracking on for the whole
namespace (5 to 10 % of throughput): a router without services has none.
"""

IPSEC_TABLE = "overswarm-ipsec"
"""nftables tables (inet and netdev) that guard encrypted networks, in the daemon's namespace."""

IPSEC_REQID = 0xD0C4E3
"""``reqid`` of every security association and template of ours; Docker's engines use the same."""

PLAIN_SOURCES = (32768, 60999)
"""UDP source ports of networks that are not encrypted, first and last: the kernel's own default."""

ESP_SOURCES = (0xF000, 0xFFFF)
"""UDP source ports of encrypted networks: outside the default, and one masked IPsec selector."""

MESH_DEVICE = "ovmesh0"
"""The daemon's namespace's end of the link to the ingress network's router; not the data plane's."""

MESH_TABLE = "overswarm-ports"
"""nftables table of published ports, in the daemon's namespace; not the data plane's."""

MESH_CLOSED = {4: "closed", 6: "closed6"}
"""Chains in there that let nothing else of an IP version through, on a host that did not forward it
before the routing mesh."""

VXLAN_PREFIX = "vx-"
PORT_PREFIX = "ep"
EXIT_PREFIX = "gw"

DEVICE_GROUP = 0x6F76
"""Interface group of all devices of ours: one message removes the whole group."""

LOOPBACK = 1
"""Index of ``lo`` in every namespace."""

ROUTE_PROTOCOL = 83
"""``rtm_protocol`` of all routes of ours; unused in iproute2's rt_protos."""

ROUTER_LINK_LOCAL = IPv6Interface("fe80::1/64")
"""The router's address on every container link; the containers' IPv6 next hop."""


def mesh_closed(chains: Collection[str]) -> frozenset[int]:
    """Return the IP versions that the host forwards for the routing mesh, by the chains of its table."""
    return frozenset(version for version, name in MESH_CLOSED.items() if name in chains)


def router_name(network_id: str) -> str:
    """Return the file name of a network's router namespace: 12 characters."""
    return network_id[:12]


def vxlan_name(vni: int) -> str:
    """Return the name of the VXLAN device of a VNI inside its router."""
    return f"{VXLAN_PREFIX}{vni:06x}"


def port_name(endpoint_id: str) -> str:
    """Return the name of the router's end of an endpoint's veth: 14 bytes."""
    return f"{PORT_PREFIX}{endpoint_id[:12]}"


def exit_name(endpoint_id: str) -> str:
    """Return the name of the daemon's end of an endpoint's veth to the outside: 14 bytes."""
    return f"{EXIT_PREFIX}{endpoint_id[:12]}"


def _mac(seed: str) -> str:
    # 6e: unicast, locally administered, and never Docker's 02:42.
    digest = hashlib.sha256(seed.encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x6E, *digest[:5]))


def vxlan_mac(vtep: IPAddress, vni: int) -> str:
    """Return the MAC of a VXLAN device: unique per node, the same after a restart.

    A receiver drops frames whose inner source MAC is its own VXLAN device's, so two nodes must
    never share one.

    Source:
        Linux ``drivers/net/vxlan/vxlan_core.c``, ``vxlan_set_mac``.
    """
    return _mac(f"vxlan {vtep} {vni}")


def router_mac(network_id: str) -> str:
    """Return the MAC a network's router shows to its containers.

    The same on every container link (each is a link of its own): a container's ARP entries stay
    right when its link is made anew.
    """
    return _mac(f"router {network_id}")


def leg_mac(endpoint_id: str) -> str:
    """Return the MAC of a container's leg to the outside."""
    return _mac(f"leg {endpoint_id}")
