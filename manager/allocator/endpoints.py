"""A service's endpoint: virtual addresses and published ports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from manager.allocator.addresses import allocate_attachment
from manager.allocator.validate import is_local
from manager.store.transaction import Transaction, View
from swarm.errors import ConflictError, ExhaustedError, PreconditionError
from swarm.model import (
    Endpoint,
    EndpointResolutionMode,
    EndpointSpec,
    Network,
    PortConfig,
    PortProtocol,
    PublishMode,
    Service,
    ServiceSpec,
    VirtualIP,
)

LOWEST_PORT: Final = 30000
HIGHEST_PORT: Final = 32767
"""Published ports nobody asked for come from this range, for each protocol by itself."""


def needs_ingress(spec: ServiceSpec) -> bool:
    """Say whether a service publishes a port on every node."""
    ports = spec.endpoint.ports if spec.endpoint else ()
    return any(port.publish_mode is PublishMode.INGRESS for port in ports)


def allocate_endpoint(tx: Transaction, service: Service, networks: Sequence[Network]) -> Endpoint:
    """Return a service's endpoint for its spec; write it with the service to make it its own.

    What the service has already it keeps: the virtual addresses of networks it stays on, and the
    ports it was given. On a dual-stack network it has two virtual addresses, IPv4 first.

    Args:
        tx: the transaction that writes the service.
        service: with its new spec, and the endpoint it had.
        networks: the networks the spec names.

    Raises:
        PreconditionError: it publishes a port on every node, and there is no ingress network.
        ConflictError: a port is taken; the text says by which service.
        ExhaustedError: no address, or no port of the range, is left.

    Source: SwarmKit ``manager/allocator``.
    """
    spec = service.spec.endpoint or EndpointSpec()
    ports = _ports(tx, service, spec)
    addresses: list[VirtualIP] = []
    if spec.mode is EndpointResolutionMode.VIP:
        for network in (*_ingress(tx, service.spec), *networks):
            addresses += _virtual_addresses(tx, service, network)
    return Endpoint(spec=spec, ports=ports, virtual_ips=tuple(addresses))


def _ingress(tx: Transaction, spec: ServiceSpec) -> tuple[Network, ...]:
    if not needs_ingress(spec):
        return ()
    network = tx.networks.ingress()
    if network is None:
        raise PreconditionError(
            "service needs ingress network, but no ingress network is present; make one with"
            " network create --ingress, or publish in host mode"
        )
    return (network,)


def _virtual_addresses(
    tx: Transaction, service: Service, network: Network
) -> tuple[VirtualIP, ...]:
    if is_local(network.spec):
        return ()
    held = service.endpoint.virtual_ips if service.endpoint else ()
    kept = tuple(each for each in held if each.network_id == network.id and each.addr)
    if kept:
        return kept
    return tuple(
        VirtualIP(network_id=network.id, addr=address)
        for address in allocate_attachment(tx, network)
    )


def _ports(tx: Transaction, service: Service, spec: EndpointSpec) -> tuple[PortConfig, ...]:
    """Return the ports with every published number filled in; asked ones before picked ones."""
    taken: set[tuple[PortProtocol, int]] = set()
    for port in spec.ports:
        if port.publish_mode is PublishMode.INGRESS and port.published_port:
            _check_free(tx, service, port.protocol, port.published_port)
            taken.add((port.protocol, port.published_port))
        elif port.published_port:
            _check_free_on_hosts(tx, service, port.protocol, port.published_port)
    given = _given(service)
    last = {protocol: tx.last_port(protocol.name.lower()) for protocol in PortProtocol}
    ports = []
    for port in spec.ports:
        if port.publish_mode is PublishMode.HOST or port.published_port:
            ports.append(port)
            continue
        number = _again(given.get(_likeness(port), []), port.protocol, taken)
        if number is None:
            number = last[port.protocol] = _next_free(tx, port.protocol, last[port.protocol], taken)
        taken.add((port.protocol, number))
        ports.append(
            PortConfig(
                name=port.name,
                protocol=port.protocol,
                target_port=port.target_port,
                published_port=number,
                publish_mode=port.publish_mode,
            )
        )
    return tuple(ports)


_Likeness = tuple[str, PortProtocol, int]


def _likeness(port: PortConfig) -> _Likeness:
    return port.name, port.protocol, port.target_port


def _given(service: Service) -> dict[_Likeness, list[int]]:
    """Return the numbers this service was given unasked, by what they were given for."""
    endpoint = service.endpoint
    if endpoint is None or endpoint.spec is None:
        return {}
    found: dict[_Likeness, list[int]] = {}
    for asked, port in zip(endpoint.spec.ports, endpoint.ports, strict=False):
        if asked.publish_mode is PublishMode.INGRESS and not asked.published_port:
            found.setdefault(_likeness(asked), []).append(port.published_port)
    return found


def _again(
    numbers: list[int], protocol: PortProtocol, taken: set[tuple[PortProtocol, int]]
) -> int | None:
    while numbers:
        number = numbers.pop(0)
        if number and (protocol, number) not in taken:
            return number
    return None


def _check_free(view: View, service: Service, protocol: PortProtocol, number: int) -> None:
    holder = view.holder(("port", protocol.name.lower(), number))
    if holder is not None and holder != service.id:
        raise _in_use(protocol, number, view.services.require(holder), "an ingress")
    for other in view.services.by_host_port(protocol, number):
        if other.id != service.id:
            raise _in_use(protocol, number, other, "a host-published")


def _check_free_on_hosts(view: View, service: Service, protocol: PortProtocol, number: int) -> None:
    holder = view.holder(("port", protocol.name.lower(), number))
    if holder is not None and holder != service.id:
        raise _in_use(protocol, number, view.services.require(holder), "an ingress")


def _in_use(protocol: PortProtocol, number: int, other: Service, how: str) -> ConflictError:
    return ConflictError(
        f"port '{number}' ({protocol.name.lower()}) is already in use by service"
        f" '{other.spec.annotations.name}' ({other.id}) as {how} port; publish another one, or"
        " remove it there"
    )


def _next_free(
    view: View, protocol: PortProtocol, last: int, taken: set[tuple[PortProtocol, int]]
) -> int:
    name = protocol.name.lower()
    size = HIGHEST_PORT - LOWEST_PORT + 1
    start = last + 1 - LOWEST_PORT if LOWEST_PORT <= last <= HIGHEST_PORT else 0
    for step in range(size):
        number = LOWEST_PORT + (start + step) % size
        if (
            (protocol, number) not in taken
            and view.holder(("port", name, number)) is None
            and not view.services.by_host_port(protocol, number)
        ):
            return number
    raise ExhaustedError(
        f"no {name} port in {LOWEST_PORT}-{HIGHEST_PORT} is free; ask for one outside of that"
        " range, or remove services that publish one"
    )
