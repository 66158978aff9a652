"""How large a packet fits through the tunnel."""

from __future__ import annotations

VXLAN_OVERHEAD = {4: 50, 6: 70}
"""Outer IP + UDP 8 + VXLAN 8 + inner Ethernet 14, bytes, by family of the underlay."""

ESP_OVERHEAD = 26
"""ESP header 8 + IV 8 + trailer 2 + ICV 8, bytes (transport mode, AES-GCM, 64-bit ICV)."""

ETHERNET_MTU = 1500
"""What Docker's engines assume of every underlay."""


def overlay_mtu(underlay_mtu: int, family: int, encrypted: bool) -> int:
    """Return the largest MTU a container may have over an underlay.

    Args:
        underlay_mtu: of the path between the nodes, bytes.
        family: of the underlay, 4 or 6.
        encrypted: whether ESP wraps the tunnel; its payload is a multiple of 4 bytes.

    Source:
        ``docker/libnetwork`` overlay driver for the shape (it takes 50 always and never looks at
        the underlay, which is the black hole on IPv6); RFC 7348 section 5, RFC 4106.
    """
    inner = underlay_mtu - VXLAN_OVERHEAD[family]
    if encrypted:
        inner = (inner - ESP_OVERHEAD) // 4 * 4
    return inner


def network_mtu(wanted: int, underlay_mtu: int | None, family: int, encrypted: bool) -> int:
    """Return the MTU to give a network's interfaces.

    Args:
        wanted: what the network asks for, bytes; 0 for the default.
        underlay_mtu: of the device that holds the VTEP address; None when unknown.
        family: of the underlay, 4 or 6.
        encrypted: whether ESP wraps the tunnel.

    The default never exceeds Docker's own value: a peer of theirs on the same network would not
    take more. An explicit value may (jumbo frames), up to what the underlay carries.
    """
    usual = overlay_mtu(ETHERNET_MTU, family, encrypted)
    possible = overlay_mtu(underlay_mtu, family, encrypted) if underlay_mtu else usual
    return min(wanted or usual, possible)
