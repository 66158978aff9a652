"""VNIs, subnets and gateways of a network."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv6Network

from manager.allocator.validate import ENCRYPTED_OPTION, NO, driver_of, is_any_subnet, is_local
from manager.store.claims import (
    MAX_VNI,
    MIN_VNI,
    VXLANID_LIST,
    holds_addresses,
    vnis_of,
)
from manager.store.pools import Subnet, parse_address, parse_subnet
from manager.store.transaction import Transaction, View
from swarm.errors import ExhaustedError, InvalidArgumentError, PreconditionError
from swarm.model import (
    Driver,
    IPAMConfig,
    IPAMFamily,
    IPAMOptions,
    Network,
    NetworkSpec,
    PublishMode,
)

DEFAULT_POOLS = ("10.0.0.0/8",)
DEFAULT_LENGTH = 24
V6_LENGTH = 64
"""Prefix length of the IPv6 subnets handed out; RFC 4291 wants it for anything with interfaces."""
_ULA_BITS = 48


def allocate_network(view: View, network: Network) -> Network:
    """Return ``network`` with its VNIs, subnets and gateways; write it to make them its own.

    Write it before allocating another one: until then they count as free.

    Args:
        view: the transaction that will write the network.
        network: a network with an id and a validated spec.

    Raises:
        ConflictError: a given subnet, VNI or name is taken; the text says by which network.
        ExhaustedError: no subnet of the wanted size, or no VNI, is left.
        InvalidArgumentError: fewer VNIs are given than there are IPv4 subnets.

    Source: libnetwork ``cnmallocator``, ``drivers/overlay/ovmanager``; IPv6 subnets are ours.
    """
    spec = network.spec
    if is_local(spec):
        allocated = replace(
            network,
            driver_state=Driver(name=driver_of(spec)),
            ipam=IPAMOptions(driver=Driver()),
        )
        view.check(allocated)
        return allocated
    configs = _allocate_subnets(view, _wanted(spec))
    given = _driver_options(spec)
    wanted = sum(config.family is IPAMFamily.IPV4 for config in configs)
    vnis = _given_vnis(spec, wanted) or _next_vnis(view, wanted)
    ipam_driver = spec.ipam.driver if spec.ipam else None
    allocated = replace(
        network,
        driver_state=Driver(
            name=driver_of(spec), options={**given, VXLANID_LIST: ",".join(map(str, vnis))}
        ),
        ipam=IPAMOptions(
            driver=Driver(
                name=(ipam_driver.name if ipam_driver else "") or "default",
                options=ipam_driver.options if ipam_driver else {},
            ),
            configs=configs,
        ),
    )
    view.check(allocated)
    return allocated


def remove_network(tx: Transaction, network_id: str) -> None:
    """Delete a network nobody uses, with the nodes' load balancer addresses on it.

    Raises:
        NotFoundError: no such network.
        PreconditionError: a service or a task uses it.
    """
    network = tx.networks.require(network_id)
    for service in tx.services.by_network(network):
        raise PreconditionError(f"network {network_id} is in use by service {service.id}")
    for task in tx.tasks.by_network(network_id):
        if holds_addresses(task):
            raise PreconditionError(f"network {network_id} is in use by task {task.id}")
    if network.spec.ingress:
        _check_ingress_unused(tx)
    for node in tx.nodes.by_network(network_id):
        kept = tuple(each for each in node.attachments if each.network.id != network_id)
        tx.update(replace(node, attachments=kept))
    tx.delete(network)


def _check_ingress_unused(view: View) -> None:
    for service in view.services.all():
        ports = service.spec.endpoint.ports if service.spec.endpoint else ()
        if any(port.publish_mode is PublishMode.INGRESS for port in ports):
            raise PreconditionError(
                "ingress network cannot be removed because service"
                f" {service.spec.annotations.name} depends on it"
            )


def _wanted(spec: NetworkSpec) -> tuple[IPAMConfig, ...]:
    """Return the subnets a spec asks for, each of a known family, IPv4 first of all."""
    configs = tuple(
        replace(each, family=_family(each)) for each in (spec.ipam.configs if spec.ipam else ())
    )
    if not any(each.family is IPAMFamily.IPV4 for each in configs):
        # An engine makes no overlay without an IPv4 subnet.
        configs = (IPAMConfig(family=IPAMFamily.IPV4), *configs)
    if spec.ipv6_enabled and not any(each.family is IPAMFamily.IPV6 for each in configs):
        configs = (*configs, IPAMConfig(family=IPAMFamily.IPV6))
    return configs


def _family(config: IPAMConfig) -> IPAMFamily:
    if config.subnet:
        return IPAMFamily(parse_subnet(config.subnet).version)
    return config.family if config.family is IPAMFamily.IPV6 else IPAMFamily.IPV4


def _allocate_subnets(view: View, wanted: tuple[IPAMConfig, ...]) -> tuple[IPAMConfig, ...]:
    """Fill in subnets and gateways; the given subnets first, so that no picked one is among them."""
    parsed = [parse_subnet(each.subnet) if each.subnet else None for each in wanted]
    chosen = [each for each in parsed if each is not None and not is_any_subnet(each)]
    configs = []
    for config, given in zip(wanted, parsed, strict=True):
        subnet = given
        if subnet is None or is_any_subnet(subnet):
            length = given.prefixlen if given is not None else None
            subnet = _pick_subnet(view, config.family, length, chosen)
            chosen.append(subnet)
        gateway = config.gateway or _first_free(subnet, config)
        configs.append(replace(config, subnet=str(subnet), gateway=gateway))
    return tuple(configs)


def _pick_subnet(
    view: View, family: IPAMFamily, length: int | None, chosen: Iterable[Subnet]
) -> Subnet:
    pools, usual = address_pools(view, family)
    length = usual if length is None else length
    for pool in pools:
        start = 0
        while length >= pool.prefixlen:
            found = view.subnets.lowest_free(pool, length, start=start)
            if found is None:
                break
            clash = next((each for each in chosen if _overlap(each, found)), None)
            if clash is None:
                return found
            start = int(clash.broadcast_address) + 1
    raise ExhaustedError(
        f"no free /{length} subnet is left in the address pool"
        f" {', '.join(map(str, pools)) or '(none)'}; remove networks that are not used, give the"
        " network a subnet of its own, or make the swarm with a larger --default-addr-pool"
    )


def address_pools(view: View, family: IPAMFamily) -> tuple[tuple[Subnet, ...], int]:
    """Return the pools that subnets of a family are cut from, and the subnets' prefix length.

    IPv4: the cluster's default address pools and subnet size, or 10.0.0.0/8 in /24. IPv6: the
    cluster's IPv6 pools, or the unique local /48 that its id determines (RFC 4193), in /64.
    """
    cluster = next(iter(view.clusters), None)
    given = [parse_subnet(text) for text in (cluster.default_address_pool if cluster else ())]
    pools = tuple(each for each in given if each.version == family)
    if family is IPAMFamily.IPV6:
        return pools or (_unique_local(cluster.id if cluster else ""),), V6_LENGTH
    size = (cluster.subnet_size if cluster else 0) or DEFAULT_LENGTH
    return pools or tuple(parse_subnet(text) for text in DEFAULT_POOLS), size


def _unique_local(cluster_id: str) -> IPv6Network:
    global_id = hashlib.sha256(cluster_id.encode()).digest()[:5]
    return IPv6Network((b"\xfd" + global_id + bytes(10), _ULA_BITS))


def _overlap(one: Subnet, other: Subnet) -> bool:
    return one.version == other.version and one.overlaps(other)


def _first_free(subnet: Subnet, config: IPAMConfig) -> str:
    reserved = {parse_address(each) for each in config.reserved.values()}
    address = subnet.network_address + 1
    while address in reserved:
        address += 1
    if address not in subnet or (subnet.version == 4 and address == subnet.broadcast_address):
        raise InvalidArgumentError(f"the reserved addresses leave no gateway in subnet {subnet}")
    return str(address)


def _given_vnis(spec: NetworkSpec, wanted: int) -> tuple[int, ...]:
    given = vnis_of(spec.driver_config)
    if given and len(given) < wanted:
        raise InvalidArgumentError(
            f"{VXLANID_LIST} names {len(given)} VNIs for {wanted} IPv4 subnets; each needs one"
        )
    return given


def _next_vnis(view: View, wanted: int) -> tuple[int, ...]:
    vnis: list[int] = []
    candidate = view.last_vni
    for _ in range(MAX_VNI - MIN_VNI + 1):
        if len(vnis) == wanted:
            break
        candidate = candidate + 1 if MIN_VNI <= candidate < MAX_VNI else MIN_VNI
        if view.holder(("vni", candidate)) is None:
            vnis.append(candidate)
    if len(vnis) < wanted:
        raise ExhaustedError(f"no VNI in {MIN_VNI}-{MAX_VNI} is free; remove networks")
    return tuple(vnis)


def _driver_options(spec: NetworkSpec) -> dict[str, str]:
    """Return the options nodes are told.

    Docker looks only at the presence of ``encrypted``, so that ``encrypted=false`` encrypts. Here it does not:
    the option is left out of what nodes hear, and every agent and engine agrees.
    """
    options = dict(spec.driver_config.options) if spec.driver_config else {}
    if options.get(ENCRYPTED_OPTION, "").lower() in NO:
        del options[ENCRYPTED_OPTION]
    return options
