"""Assigned networks as the data plane wants them. Pure.

Source: libnetwork ``drivers/overlay/ov_network.go`` (options, MTU), ``ovmanager``.
"""

from __future__ import annotations

import ipaddress
from typing import Final

from agent.dataplane.model import IPAddress, IPNetwork, Network, Subnet
from agent.dataplane.mtu import overlay_mtu
from swarm import model
from swarm.errors import InvalidArgumentError, UnimplementedError

DRIVER: Final = "overlay"
VNI_OPTION: Final = "com.docker.network.driver.overlay.vxlanid_list"
MTU_OPTION: Final = "com.docker.network.driver.mtu"
ENCRYPTED_OPTION: Final = "encrypted"
"""Its presence counts, as in every engine; our managers leave it out of what nodes hear when its value says no."""
L2_OPTION: Final = "overswarm.l2"


def network_of(network: model.Network, underlay_family: int = 4) -> Network:
    """Translate a network as the manager describes it.

    IPv4 ranges carry the VNIs in order; IPv6 ranges travel under the first.

    Args:
        network: with ``driver_state`` and ``ipam`` filled in by the allocator.
        underlay_family: of this node's tunnel address, for the MTU.

    Raises:
        InvalidArgumentError: it is not fully allocated, or a value in it makes no sense.
        UnimplementedError: its driver is not ``overlay``.
    """
    name = network.spec.annotations.name
    state = network.driver_state
    if state is None or network.ipam is None:
        raise InvalidArgumentError(f"network {name} is not allocated yet")
    if state.name not in {"", DRIVER}:
        raise UnimplementedError(
            f"network {name} uses the driver {state.name!r}; this node only knows {DRIVER}"
        )
    vnis = _vnis(name, state.options.get(VNI_OPTION, ""))
    subnets: list[Subnet] = []
    for config in network.ipam.configs:
        cidr = _cidr(name, config.subnet)
        vni = vnis.pop(0) if cidr.version == 4 and vnis else None
        if cidr.version == 4 and vni is None:
            raise InvalidArgumentError(f"network {name} has fewer VNIs than IPv4 subnets")
        subnets.append(Subnet(cidr=cidr, gateway=_gateway(name, config.gateway, cidr), vni=vni))
    encrypted = ENCRYPTED_OPTION in state.options
    return Network(
        id=network.id,
        name=name,
        subnets=tuple(subnets),
        mtu=_mtu(name, state.options.get(MTU_OPTION, ""), underlay_family, encrypted=encrypted),
        encrypted=encrypted,
        internal=network.spec.internal,
        l2=state.options.get(L2_OPTION, "false").lower() in {"true", "1", "yes", ""},
    )


def _vnis(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError as error:
        raise InvalidArgumentError(f"network {name} has malformed VNIs {text!r:.80}") from error


def _cidr(name: str, text: str) -> IPNetwork:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidArgumentError(f"network {name} has a malformed subnet {text!r:.80}") from error


def _gateway(name: str, text: str, cidr: IPNetwork) -> IPAddress:
    if not text:
        return cidr[1] if cidr.num_addresses > 2 else cidr[0]
    try:
        return ipaddress.ip_address(text.partition("/")[0])
    except ValueError as error:
        raise InvalidArgumentError(
            f"network {name} has a malformed gateway {text!r:.80}"
        ) from error


def _mtu(name: str, text: str, family: int, *, encrypted: bool) -> int:
    """The option is the underlay's MTU, as in every engine; the containers' is what remains of it."""
    if not text:
        return 0
    try:
        underlay = int(text)
    except ValueError as error:
        raise InvalidArgumentError(f"network {name} has a malformed MTU {text!r:.80}") from error
    if underlay <= 0:
        return 0
    # Engines subtract the IPv4 overhead whatever the underlay; ours must not exceed theirs.
    return min(overlay_mtu(underlay, 4, encrypted), overlay_mtu(underlay, family, encrypted))
