"""What an object claims for itself alone: names, VNIs, ports, subnets, addresses.

Pure functions of one object. The store checks every claim when a transaction is built and again
when it is applied, on every replica.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from manager.store.pools import Address, Subnet, parse_address, parse_subnet
from manager.store.tables import Object
from swarm.errors import InvalidArgumentError
from swarm.model import (
    Cluster,
    Driver,
    Network,
    Node,
    PublishMode,
    Service,
    Task,
    TaskState,
)

VXLANID_LIST = "com.docker.network.driver.overlay.vxlanid_list"
"""Driver option that carries a network's VNIs: decimal, comma separated, one a subnet."""
MIN_VNI = 4096
MAX_VNI = (1 << 24) - 1
MAX_VNIS = 256
"""VNIs of one network."""

Key: TypeAlias = tuple[str, str | int] | tuple[str, str, int]
"""Something only one object may hold: ("network", lower-case name), ("vni", 4097), ("port", "tcp", 80)."""

Place: TypeAlias = tuple[str, int, int]
"""An address on a network: (network id, 4 or 6, the address as integer)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """The claims of one object; ``asked`` holds those of the addresses that a user named."""

    keys: frozenset[Key] = frozenset()
    subnets: frozenset[Subnet] = frozenset()
    addresses: frozenset[Place] = frozenset()
    asked: frozenset[tuple[int, int]] = frozenset()


NOTHING = Claims()


def claims_of(item: Object | None) -> Claims:
    """Return what an object claims.

    Raises:
        InvalidArgumentError: an address, subnet or VNI in it is malformed.
    """
    match item:
        case None:
            return NOTHING
        case Task():
            return _task(item)
        case Node():
            pairs = ((each.network.id, each.addresses) for each in item.attachments)
            return Claims(addresses=_addresses(*pairs))
        case Network():
            return _network(item)
        case Service():
            return _service(item)
        case Cluster():
            return Claims(keys=_name("cluster", item.spec.annotations.name))


def vnis_of(driver: Driver | None) -> tuple[int, ...]:
    """Return the VNIs a driver's options name, in order.

    Raises:
        InvalidArgumentError: not a list of different numbers in MIN_VNI..MAX_VNI.
    """
    text = driver.options.get(VXLANID_LIST, "") if driver else ""
    return _parse_vnis(text) if text else ()


@lru_cache(maxsize=4096)
def _parse_vnis(text: str) -> tuple[int, ...]:
    parts = [each.strip() for each in text.split(",")]
    if len(parts) > MAX_VNIS:
        raise InvalidArgumentError(f"{VXLANID_LIST} names more than {MAX_VNIS} VNIs")
    if not all(each.isascii() and each.isdigit() and len(each) <= 8 for each in parts):
        raise InvalidArgumentError(f"{VXLANID_LIST} {text!r} is not a list of decimal VNIs")
    vnis = tuple(int(each) for each in parts)
    for vni in vnis:
        if not MIN_VNI <= vni <= MAX_VNI:
            raise InvalidArgumentError(f"VNI {vni} is not in {MIN_VNI}-{MAX_VNI}")
    if len(set(vnis)) != len(vnis):
        raise InvalidArgumentError(f"{VXLANID_LIST} {text!r} names a VNI twice")
    return vnis


def holds_addresses(task: Task) -> bool:
    """Say whether a task still holds its addresses: until it is observed to have ended.

    Source: SwarmKit counts tasks with state <= RUNNING as users of a network; observed states only rise.
    """
    return task.status.state <= TaskState.RUNNING


def _task(task: Task) -> Claims:
    if not task.networks or not holds_addresses(task):
        return NOTHING
    return Claims(
        addresses=_addresses(*[(each.network.id, each.addresses) for each in task.networks]),
        asked=_asked(task),
    )


def _asked(task: Task) -> frozenset[tuple[int, int]]:
    texts = [text for config in task.spec.networks for text in config.addresses if text]
    return frozenset(map(_pair, map(parse_address, texts))) if texts else _NONE


def _network(network: Network) -> Claims:
    keys: set[Key] = set(_name("network", network.spec.annotations.name))
    keys.update(("vni", vni) for vni in vnis_of(network.driver_state))
    if network.spec.ingress:
        keys.add(("ingress", ""))
    configs = network.ipam.configs if network.ipam else ()
    subnets = [parse_subnet(each.subnet) for each in configs if each.subnet]
    for number, one in enumerate(subnets):
        for other in subnets[:number]:
            if one.version == other.version and one.overlaps(other):
                raise InvalidArgumentError(f"subnets {other} and {one} of one network overlap")
    return Claims(keys=frozenset(keys), subnets=frozenset(subnets))


def _service(service: Service) -> Claims:
    keys: set[Key] = set(_name("service", service.spec.annotations.name))
    endpoint = service.endpoint
    if endpoint is None:
        return Claims(keys=frozenset(keys))
    keys.update(
        ("port", port.protocol.name.lower(), port.published_port)
        for port in endpoint.ports
        if port.publish_mode is PublishMode.INGRESS and port.published_port
    )
    pairs = ((each.network_id, (each.addr,) if each.addr else ()) for each in endpoint.virtual_ips)
    return Claims(keys=frozenset(keys), addresses=_addresses(*pairs))


def _name(table: str, name: str) -> frozenset[Key]:
    return frozenset({(table, name.lower())}) if name else frozenset()


def _addresses(*pairs: tuple[str, tuple[str, ...]]) -> frozenset[Place]:
    return frozenset(
        [(network_id, *_pair(parse_address(text))) for network_id, texts in pairs for text in texts]
    )


def _pair(address: Address) -> tuple[int, int]:
    return address.version, int(address)


_NONE: frozenset[tuple[int, int]] = frozenset()
