"""The routing mesh: published ports of services, on every node, with the client's own address.

Takes part in the ingress network for as long as the managers give this node an address on it, whether
a task runs here or not. Which backends there are comes from endpoint records; which nodes are of our
kind from peer records: a node of ours announces its address on the ingress network under the MAC of
its tunnel device, which follows from its tunnel address.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from agent.balancer import published, steering
from agent.balancer.balancer import HOST, RETRY, Balancer, DataplanePort
from agent.balancer.table import Backend, IPAddress, Port, Target
from agent.dataplane import names, sysctl
from agent.dataplane.model import Network, Peer
from agent.dataplane.nft import Nft
from agent.gossip.records import EndpointRecord, PeerRecord
from swarm.errors import HostError, NotFoundError, SwarmError

FORWARD: Final = "net/ipv4/ip_forward"
CLOSED: Final = "closed"
"""Chain that lets nothing else through, on a host that did not forward before us."""

log = structlog.get_logger(component="mesh")


@dataclass(slots=True, kw_only=True)
class _Ingress:
    """The ingress network on this node."""

    network: Network
    address: IPAddress
    prefixlen: int
    peers: Callable[[], Iterable[Peer]]
    local: set[IPAddress] = field(default_factory=set)
    records: dict[str, EndpointRecord] = field(default_factory=dict)
    fronts: dict[str, Backend] = field(default_factory=dict)
    held: dict[str, dict[str, str]] | None = None

    @property
    def vni(self) -> int:
        subnet = self.network.subnet_of(self.address)
        if subnet is None:
            raise HostError(f"{self.address} is in no subnet of the ingress network")
        return self.network.vni_of(subnet)

    @property
    def device(self) -> str:
        return names.vxlan_name(self.vni)


class Mesh:
    """Published ports in ingress mode.

    Args:
        dataplane: has the ingress network's router.
        balancer: keeps the host's table of ports.
        routers: directory of the router namespaces.
        vtep: this node's tunnel address.
        taken: tells whether a port (protocol, number) is published in host mode here.
    """

    def __init__(
        self,
        dataplane: DataplanePort,
        balancer: Balancer,
        *,
        routers: Path,
        vtep: IPAddress,
        taken: Callable[[str, int], bool] = lambda _, __: False,
    ) -> None:
        self._taken = taken
        self._dataplane = dataplane
        self._balancer = balancer
        self._routers = routers
        self._vtep = vtep
        self._ingress: _Ingress | None = None
        self._dirty = asyncio.Event()

    # -- what there is ---------------------------------------------------------------------

    def enter(
        self,
        network: Network,
        address: IPAddress,
        prefixlen: int,
        peers: Callable[[], Iterable[Peer]],
    ) -> None:
        """Take part: the network's router exists.

        Args:
            network: the ingress network.
            address: this node's on it.
            prefixlen: of its subnet.
            peers: returns the network's remote endpoints.
        """
        self._ingress = _Ingress(network=network, address=address, prefixlen=prefixlen, peers=peers)
        self._dirty.set()

    def identity(self) -> tuple[str, str, bytes] | None:
        """Return network, key and value of the peer record that tells others of this node."""
        ingress = self._ingress
        if ingress is None:
            return None
        key = hashlib.sha256(f"ingress {self._vtep} {ingress.network.id}".encode()).hexdigest()
        record = PeerRecord(
            endpoint_ip=f"{ingress.address}/{ingress.prefixlen}",
            endpoint_mac=names.vxlan_mac(self._vtep, ingress.vni),
            tunnel_endpoint_ip=str(self._vtep),
        )
        return ingress.network.id, key, record.encode()

    def put(self, network_id: str, key: str, record: EndpointRecord, *, local: bool) -> None:
        """Take an endpoint's record, new or changed; those of other networks mean nothing."""
        ingress = self._ingress
        if ingress is None or ingress.network.id != network_id:
            return
        ingress.records[key] = record
        if local:
            ingress.local.add(_ip(record))
        self._dirty.set()

    def remove(self, network_id: str, key: str) -> None:
        """Forget an endpoint's record; an unknown one is fine."""
        ingress = self._ingress
        if ingress is None or ingress.network.id != network_id:
            return
        record = ingress.records.pop(key, None)
        if record is not None:
            ingress.local.discard(_ip(record))
        self._dirty.set()

    def touch(self, network_id: str) -> None:
        """Hear that the peers of a network have changed."""
        if self._ingress is not None and self._ingress.network.id == network_id:
            self._dirty.set()

    # -- the loop --------------------------------------------------------------------------

    async def run(self) -> None:
        """Apply changes until cancelled; rules and links stay."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            ingress = self._ingress
            if ingress is None:
                continue
            try:
                await self._apply(ingress)
            except NotFoundError:
                continue  # the network is not here (any more)
            except SwarmError as error:
                log.warning("mesh.failed", reason=str(error))
                ingress.held = None
                await asyncio.sleep(RETRY)
                self._dirty.set()

    async def _apply(self, ingress: _Ingress) -> None:
        peers = {peer.ip: peer for peer in ingress.peers()}
        nodes = {
            peer.mac: ip
            for ip, peer in peers.items()
            if peer.mac == names.vxlan_mac(peer.vtep, ingress.vni)
        }
        ours = {peers[ip].vtep for ip in nodes.values()}
        kinds = {
            ip: "ours" if peer.vtep in ours else "engine" for ip, peer in peers.items()
        } | dict.fromkeys(ingress.local, "local")
        fronts = {
            key: backend
            for key, backend in _fronts(ingress.records, kinds).items()
            if isinstance(backend.vip, Port)
            and not self._taken(backend.vip.protocol, backend.vip.number)
        }
        elements = steering.node_elements(nodes) | _elements(ingress.records, kinds)
        if ingress.held is None:
            await self._open(ingress)
            text = steering.build(
                steering.Steering(
                    address=ingress.address,
                    subnet=_subnet(ingress),
                    devices=(ingress.device,),
                    elements=elements,
                )
            )
        else:
            text = "\n".join(steering.changes(ingress.held, elements))
        if text:
            await self._dataplane.within(ingress.network.id, lambda nft: nft.run(text))
        ingress.held = elements
        for key in ingress.fronts.keys() - fronts.keys():
            self._balancer.remove(HOST, key)
        for key, backend in fronts.items():
            self._balancer.put(HOST, key, backend)
        ingress.fronts = fronts

    async def _open(self, ingress: _Ingress) -> None:
        network, mtu = ingress.network, ingress.network.mtu or 1450
        router = str(self._routers / names.router_name(network.id))
        subnets = [subnet.cidr for subnet in network.subnets]

        def host(nft: Nft) -> None:
            _forward(nft)
            steering.link_host(router, subnets, mtu)

        await self._dataplane.within(HOST, host)
        await self._dataplane.within(
            network.id, lambda _: steering.link_router(ingress.device, mtu)
        )
        await self._dataplane.change_vips(network.id, (ingress.address,), ())
        self._balancer.open(HOST)
        log.info("mesh.opened", network=network.id, address=str(ingress.address))

    async def destroy(self) -> None:
        """Remove everything on the host, for leaving the cluster; the router goes by itself."""
        self._ingress = None
        self._balancer.close(HOST)

        def host(nft: Nft) -> None:
            steering.unlink_host()
            closed = _chains(nft, published.TABLE) & {CLOSED}
            nft.run(published.remove())
            if closed:
                sysctl.write(FORWARD, "0")

        await self._dataplane.within(HOST, host)


def _ip(record: EndpointRecord) -> IPAddress:
    return ipaddress.ip_address(record.endpoint_ip)


def _subnet(ingress: _Ingress) -> steering.IPNetwork:
    return ipaddress.ip_network(f"{ingress.address}/{ingress.prefixlen}", strict=False)


def _fronts(
    records: Mapping[str, EndpointRecord], kinds: Mapping[IPAddress, str]
) -> dict[str, Backend]:
    """Return what the host's ports lead to.

    An engine's task takes the published port and translates it itself; ours take their own.
    """
    found: dict[str, Backend] = {}
    for key, record in records.items():
        ip = _ip(record)
        if ip not in kinds:
            continue  # nobody has said yet where it is
        for each in record.ingress_ports:
            protocol = each.protocol.name.lower()
            port = each.published_port if kinds[ip] == "engine" else each.target_port
            if each.published_port and port:
                found[f"{key} {protocol} {each.published_port}"] = Backend(
                    vip=Port(ip.version, protocol, each.published_port),
                    ip=Target(ip, port),
                    serving=not record.service_disabled,
                )
    return found


def _elements(
    records: Mapping[str, EndpointRecord], kinds: Mapping[IPAddress, str]
) -> dict[str, dict[str, str]]:
    """Return the elements of the router's rules that backends make."""
    foreign = {str(ip): "" for ip in map(_ip, records.values()) if kinds.get(ip) == "engine"}
    targets: dict[str, str] = {}
    for record in records.values():
        ip = _ip(record)
        if kinds.get(ip) != "local" or ip.version != 4:
            continue
        for each in record.ingress_ports:
            if each.published_port != each.target_port:
                place = f"{ip} . {each.protocol.name.lower()} . {each.published_port}"
                targets[place] = f"{ip} . {each.target_port}"
    return {"foreign": foreign, "targets": targets}


def _forward(nft: Nft) -> None:
    """Have the host forward; whatever it did not forward before, it does not forward now."""
    closed = sysctl.read(FORWARD) != "1"
    closed = closed or any(name.startswith("closed-") for name in _chains(nft, names.TABLE))
    if closed:
        mesh, exits = f'"{steering.HOST_DEVICE}"', f'"{names.EXIT_PREFIX}*"'
        where = f"inet {published.TABLE} {CLOSED}"
        rules = [
            f"add rule {where} {side} {device} accept"
            for device in (mesh, exits)
            for side in ("iifname", "oifname")
        ]
        hook = "type filter hook forward priority 0"
        nft.run(
            "\n".join(
                [
                    f"add table inet {published.TABLE}",
                    f"add chain {where} {{ {hook}; }}",
                    f"flush chain {where}",
                    *rules,
                    f"add rule {where} drop",
                ]
            )
        )
        sysctl.write(FORWARD, "1")


def _chains(nft: Nft, table: str) -> set[str]:
    listing = nft.table("inet", table) or ()
    return {item["chain"]["name"] for item in listing if "chain" in item}
