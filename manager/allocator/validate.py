"""What a network may be asked to be; nothing here looks at the store."""

from __future__ import annotations

import re

from manager.store.claims import vnis_of
from manager.store.pools import Subnet, parse_address, parse_subnet
from swarm.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    PreconditionError,
    UnimplementedError,
)
from swarm.model import Driver, IPAMConfig, Network, NetworkSpec, Node

OVERLAY = "overlay"
LOCAL_DRIVERS = frozenset({"bridge", "host", "ipvlan", "macvlan"})
"""Drivers whose networks every node makes for itself; nothing is allocated for them."""
IPAM_DRIVERS = frozenset({"", "default"})
PREDEFINED = "com.docker.swarm.predefined"
"""Label of the networks the swarm itself makes."""
MAX_NAME = 63
MAX_SUBNETS = 128
"""Subnets of one network."""
MAX_RESERVED = 1024
"""Auxiliary addresses of one subnet."""
MAX_LABELS = 256
"""Labels of one network, and options of one driver."""
MAX_LABEL_BYTES = 64 * 1024
"""All labels, or all options, together."""
MTU_OPTION = "com.docker.network.driver.mtu"
"""The underlay's MTU, as in every engine; the containers' is what the tunnel leaves of it."""
LEAST_MTU = {4: 576 + 76, 6: 1280 + 76}
"""What the underlay must carry for containers that speak IPv4 alone, or IPv6 too: 76 bytes are the tunnel's."""
GREATEST_MTU = 65535
LAYER2_OPTION = "overswarm.l2"
ENCRYPTED_OPTION = "encrypted"
NO = frozenset({"false", "0", "no", "off"})
"""Values of an option of which, here, the value counts and not the mere presence."""
LONGEST_PREFIX = {4: 30, 6: 126}
"""A longer prefix leaves no room for a gateway and one attachment."""

_NAME = re.compile(r"[a-zA-Z0-9](?:[-_]*[a-zA-Z0-9]+)*", re.ASCII)


def driver_of(spec: NetworkSpec) -> str:
    """Return the name of a network's driver, ``overlay`` by default."""
    return (spec.driver_config.name if spec.driver_config else "") or OVERLAY


def is_local(spec: NetworkSpec) -> bool:
    """Say whether every node makes this network for itself."""
    return driver_of(spec) in LOCAL_DRIVERS


def is_any_subnet(subnet: Subnet) -> bool:
    """Say whether a subnet means "any of this length": ``0.0.0.0/n``, ``::/n``."""
    return int(subnet.network_address) == 0


def validate_network_spec(spec: NetworkSpec) -> None:
    """Check what a user asks of a new network.

    Raises:
        InvalidArgumentError: a name, driver, subnet, range, gateway, reservation or VNI cannot be right.
        PermissionDeniedError: a label only the swarm itself may set.
        UnimplementedError: an ingress network with another driver than overlay, or a bridge.

    Source: the checks of SwarmKit's control API and of docker network create; the bounds are ours.
    """
    _validate_name(spec.annotations.name)
    _validate_map("labels", spec.annotations.labels)
    if PREDEFINED in spec.annotations.labels:
        raise PermissionDeniedError(
            f"label {PREDEFINED} is for internally created predefined networks and cannot be"
            " applied by users"
        )
    if spec.ingress and spec.attachable:
        raise InvalidArgumentError("ingress network cannot be attachable")
    _validate_driver(spec.driver_config)
    if spec.ingress and driver_of(spec) != OVERLAY:
        raise UnimplementedError(f"ingress network driver must be {OVERLAY}")
    if driver_of(spec) == OVERLAY:
        vnis_of(spec.driver_config)
        _validate_options(spec)
    if spec.ipam is not None:
        if spec.ipam.driver is not None and spec.ipam.driver.name not in IPAM_DRIVERS:
            raise InvalidArgumentError(f"ipam driver {spec.ipam.driver.name} not found")
        _validate_map("IPAM options", spec.ipam.driver.options if spec.ipam.driver else {})
        _validate_configs(spec.ipam.configs)


def _validate_name(name: str) -> None:
    if not name:
        raise InvalidArgumentError("meta: name must be provided")
    if len(name) > MAX_NAME:
        raise InvalidArgumentError(f"name must be {MAX_NAME} characters or fewer")
    if not _NAME.fullmatch(name):
        raise InvalidArgumentError(f"name {name!r} must be valid as a DNS name component")


def _validate_map(what: str, content: object) -> None:
    assert hasattr(content, "items")  # noqa: S101  # told to the type checker
    pairs = list(content.items())
    size = sum(len(key.encode()) + len(value.encode()) for key, value in pairs)
    if len(pairs) > MAX_LABELS or size > MAX_LABEL_BYTES:
        raise InvalidArgumentError(
            f"{what}: at most {MAX_LABELS}, of {MAX_LABEL_BYTES} bytes together"
        )


def _validate_driver(driver: Driver | None) -> None:
    if driver is None:
        return
    if not driver.name:
        raise InvalidArgumentError("driver name: if driver is specified name is required")
    if driver.name != OVERLAY and driver.name not in LOCAL_DRIVERS:
        raise InvalidArgumentError(f"network driver {driver.name} not found")
    _validate_map("driver options", driver.options)


def _validate_options(spec: NetworkSpec) -> None:
    """Check the values of the overlay driver's options: a node could only fail over them later."""
    options = spec.driver_config.options if spec.driver_config else {}
    given = options.get(MTU_OPTION, "")
    if given:
        least = LEAST_MTU[6 if spec.ipv6_enabled else 4]
        number = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else -1
        if number and not least <= number <= GREATEST_MTU:
            raise InvalidArgumentError(
                f"{MTU_OPTION}={given:.20} is not an MTU of the underlay: give a number of bytes in"
                f" {least}-{GREATEST_MTU}, or leave the option out to have it found"
            )
    if options.get(LAYER2_OPTION, "false").lower() not in NO:
        raise UnimplementedError(
            f"{LAYER2_OPTION}: networks are routed on every node; none of them can be a bridge yet"
        )


def is_encrypted(network: Network) -> bool:
    """Say whether an allocated network is carried in ESP."""
    state = network.driver_state
    return state is not None and ENCRYPTED_OPTION in state.options


def check_platform(network: Network, node: Node) -> None:
    """Check that a node's system can carry a network.

    Raises:
        PreconditionError: the network is encrypted and the node runs Windows, which has no overlay
            encryption: Docker lets it join all the same, and it then talks to nobody.
    """
    platform = node.description.platform if node.description else None
    if platform is not None and platform.os.lower() == "windows" and is_encrypted(network):
        name = (node.description.hostname if node.description else "") or node.id
        raise PreconditionError(
            f"node {name} runs Windows, which cannot carry the encrypted network"
            f" {network.spec.annotations.name}: use a Linux node, or a network without --opt"
            f" {ENCRYPTED_OPTION}"
        )


def _validate_configs(configs: tuple[IPAMConfig, ...]) -> None:
    if len(configs) > MAX_SUBNETS:
        raise InvalidArgumentError(f"a network may have {MAX_SUBNETS} subnets")
    subnets: list[Subnet] = []
    for config in configs:
        if not config.subnet:
            if config.range or config.gateway or config.reserved:
                raise InvalidArgumentError(
                    "ipam configuration: a range, gateway or reserved address needs its subnet"
                )
            continue
        subnet = parse_subnet(config.subnet)
        _validate_config(config, subnet)
        for other in subnets:
            if subnet.version == other.version and subnet.overlaps(other):
                raise InvalidArgumentError(f"subnets {other} and {subnet} of one network overlap")
        if not is_any_subnet(subnet):
            subnets.append(subnet)


def _validate_config(config: IPAMConfig, subnet: Subnet) -> None:
    if subnet.prefixlen == 0:
        raise InvalidArgumentError(f"subnet {subnet} is everything there is")
    if subnet.prefixlen > LONGEST_PREFIX[subnet.version]:
        raise InvalidArgumentError(
            f"subnet {subnet} is too small; its prefix may have"
            f" {LONGEST_PREFIX[subnet.version]} bits at most"
        )
    if is_any_subnet(subnet):
        if config.range or config.gateway or config.reserved:
            raise InvalidArgumentError(
                f"ipam configuration: {subnet} means any subnet, so a range, gateway or reserved"
                " address cannot be known to lie in it"
            )
        return
    if subnet.is_multicast or subnet.is_loopback:
        raise InvalidArgumentError(f"subnet {subnet} is a multicast or loopback range")
    if config.range:
        part = parse_subnet(config.range)
        if part.version != subnet.version or not _within(part, subnet):
            raise InvalidArgumentError(f"ip range {part} is not inside subnet {subnet}")
    if len(config.reserved) > MAX_RESERVED:
        raise InvalidArgumentError(f"a subnet may have {MAX_RESERVED} reserved addresses")
    if config.gateway:
        _validate_member(subnet, "gateway", config.gateway)
    for name, text in config.reserved.items():
        _validate_member(subnet, f"reserved address {name}", text)


def _validate_member(subnet: Subnet, what: str, text: str) -> None:
    address = parse_address(text)
    if "/" in text:
        raise InvalidArgumentError(f"{what} {text} must be given without a prefix length")
    if address.version != subnet.version or address not in subnet:
        raise InvalidArgumentError(f"{what} {address} is not inside subnet {subnet}")
    last = subnet.broadcast_address if subnet.version == 4 else None
    if address in {subnet.network_address, last}:
        raise InvalidArgumentError(
            f"{what} {address} is the network or broadcast address of subnet {subnet}"
        )


def _within(part: Subnet, whole: Subnet) -> bool:
    return part.network_address in whole and part.prefixlen >= whole.prefixlen
