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
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from agent.balancer import audit, conntrack, published, steering
from agent.balancer.balancer import AUDIT, HOST, RETRY, Balancer, DataplanePort
from agent.balancer.table import Backend, IPAddress, Port, Target, backend_of
from agent.dataplane import exits, forwarding, names
from agent.dataplane.model import Network, Peer
from agent.dataplane.nft import Nft
from agent.gossip.records import EndpointRecord, PeerRecord
from swarm.errors import HostError, NotFoundError, SwarmError

IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface

log = structlog.get_logger(component="mesh")


@dataclass(slots=True, kw_only=True)
class _Ingress:
    """The ingress network on this node."""

    network: Network
    addresses: tuple[IPInterface, ...]
    peers: Callable[[], Iterable[Peer]]
    local: set[IPAddress] = field(default_factory=set)
    records: dict[str, EndpointRecord] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    fronts: dict[str, Backend] = field(default_factory=dict)
    held: dict[str, dict[str, str]] | None = None

    @property
    def address(self) -> IPAddress:
        """The first, IPv4 one: the node's name in the rules of others."""
        return self.addresses[0].ip

    @property
    def versions(self) -> tuple[int, ...]:
        """Of IP, that the network has."""
        return tuple(sorted({subnet.cidr.version for subnet in self.network.subnets}))

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
        audit_every: seconds without a change after which the router's rules are looked at.
    """

    def __init__(
        self,
        dataplane: DataplanePort,
        balancer: Balancer,
        *,
        routers: Path,
        vtep: IPAddress,
        taken: Callable[[str, int], bool] = lambda _, __: False,
        audit_every: float = AUDIT,
    ) -> None:
        self._every = audit_every
        self.drift = 0
        """How often somebody else had changed the router's rules."""
        self._taken = taken
        self._dataplane = dataplane
        self._balancer = balancer
        self._routers = routers
        self._vtep = vtep
        self._ingress: _Ingress | None = None
        self._dirty = asyncio.Event()
        self._lock = asyncio.Lock()  # held while the kernel is changed

    # -- what there is ---------------------------------------------------------------------

    def enter(
        self,
        network: Network,
        addresses: Sequence[IPInterface],
        peers: Callable[[], Iterable[Peer]],
    ) -> None:
        """Take part: the network's router exists.

        Args:
            network: the ingress network.
            addresses: this node's on it, IPv4 first, with the lengths of their subnets.
            peers: returns the network's remote endpoints.
        """
        self._ingress = _Ingress(network=network, addresses=tuple(addresses), peers=peers)
        self._dirty.set()

    def addresses(self) -> tuple[str, ...]:
        """Return this node's addresses on the ingress network; none while it takes no part."""
        return () if self._ingress is None else tuple(map(str, self._ingress.addresses))

    async def leave(self) -> None:
        """Take no part any more: the network goes, or this node's address on it."""
        async with self._lock:
            ingress, self._ingress = self._ingress, None
            if ingress is None:
                return
            for key in ingress.fronts:
                self._balancer.remove(HOST, key)
            await self._dataplane.within(HOST, lambda _: steering.unlink_host())
        log.info("mesh.left", network=ingress.network.id)

    @property
    def foreign_edits(self) -> int:
        """How often a table of balancer or mesh had been changed by somebody else, and was mended."""
        return self.drift + self._balancer.drift

    def identity(self) -> tuple[str, str, bytes] | None:
        """Return network, key and value of the peer record that tells others of this node."""
        ingress = self._ingress
        if ingress is None:
            return None
        key = hashlib.sha256(f"ingress {self._vtep} {ingress.network.id}".encode()).hexdigest()
        record = PeerRecord(
            endpoint_ip=str(ingress.addresses[0]),
            endpoint_mac=names.vxlan_mac(self._vtep, ingress.vni),
            tunnel_endpoint_ip=str(self._vtep),
        )
        return ingress.network.id, key, record.encode()

    def put(
        self,
        network_id: str,
        key: str,
        record: EndpointRecord,
        *,
        local: bool,
        silent: bool = False,
    ) -> None:
        """Take an endpoint's record, new or changed; those of other networks mean nothing.

        Args:
            network_id: of the network it is on.
            key: of the record.
            record: itself.
            local: the endpoint is on this node.
            silent: its node is not heard any more.
        """
        ingress = self._ingress
        if ingress is None or ingress.network.id != network_id:
            return
        ingress.records[key] = record
        (ingress.silent.add if silent else ingress.silent.discard)(key)
        if local:
            ingress.local.add(_ip(record))
        self._dirty.set()

    def remove(self, network_id: str, key: str) -> None:
        """Forget an endpoint's record; an unknown one is fine."""
        ingress = self._ingress
        if ingress is None or ingress.network.id != network_id:
            return
        ingress.silent.discard(key)
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
            await self._news()
            ingress = self._ingress
            if ingress is None:
                continue
            try:
                async with self._lock:
                    if ingress is self._ingress:
                        await self._apply(ingress)
            except NotFoundError:
                continue  # the network is not here (any more)
            except SwarmError as error:
                log.warning("mesh.failed", reason=str(error))
                ingress.held = None
                await asyncio.sleep(RETRY)
                self._dirty.set()

    async def _news(self) -> None:
        """Wait for a change, or for the time to look whether somebody else has changed the tables."""
        try:
            async with asyncio.timeout(self._every):
                await self._dirty.wait()
        except TimeoutError:
            await self._audit()
        self._dirty.clear()

    async def _audit(self) -> None:
        ingress = self._ingress
        if ingress is None or ingress.held is None:
            return
        held = ingress.held
        rules = steering.rules(self._steering(ingress, {}))

        def look(nft: Nft) -> str:
            for family in ("inet", "netdev"):
                wrong = audit.differs(
                    nft,
                    steering.TABLE,
                    family=family,
                    rules=[line for line in rules if line.split()[2] == family],
                    elements={
                        name: frozenset(
                            audit.canonical(f"{key} : {value}" if value else key)
                            for key, value in held.get(name, {}).items()
                        )
                        for name in steering.NAMES[family]
                    },
                )
                if wrong:
                    return f"{family}: {wrong}"
            return ""

        try:
            async with self._lock:
                wrong = await self._dataplane.within(ingress.network.id, look)
        except SwarmError as error:
            log.warning("mesh.audit.failed", reason=str(error))
            return
        if wrong:
            self.drift += 1
            log.warning("mesh.drifted", what=wrong)
            ingress.held = None

    @staticmethod
    def _steering(
        ingress: _Ingress, elements: Mapping[str, Mapping[str, str]]
    ) -> steering.Steering:
        return steering.Steering(
            addresses=tuple(each.ip for each in ingress.addresses),
            subnets=tuple(subnet.cidr for subnet in ingress.network.subnets),
            devices=(ingress.device,),
            elements=elements,
        )

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
            for key, backend in _fronts(ingress.records, kinds, ingress.silent).items()
            if isinstance(backend.vip, Port)
            and not self._taken(backend.vip.protocol, backend.vip.number)
        }
        network = ingress.network
        elements = steering.node_elements(nodes) | _elements(ingress.records, kinds)
        if ingress.held is None:
            await self._open(ingress)
            text = steering.build(self._steering(ingress, elements))
        else:
            text = "\n".join(steering.changes(ingress.held, elements))
        if text:
            await self._dataplane.within(network.id, lambda nft: nft.run(text))
        await self._forget_nodes(ingress, elements)
        ingress.held = elements
        for key in ingress.fronts.keys() - fronts.keys():
            self._balancer.remove(HOST, key)
        for key, backend in fronts.items():
            self._balancer.put(HOST, key, backend)
        ingress.fronts = fronts

    async def _forget_nodes(
        self, ingress: _Ingress, elements: Mapping[str, Mapping[str, str]]
    ) -> None:
        """Forget flows that came in at nodes that are gone: their clients may come in elsewhere."""
        before = (ingress.held or {}).get("macs", {})
        gone = {int(mark, 16) for mark in before if mark not in elements["macs"]}
        if gone:
            count = await self._dataplane.within(
                ingress.network.id, lambda _: conntrack.forget_marks(gone)
            )
            log.info("nodes.gone", nodes=len(gone), flows=count)

    async def _open(self, ingress: _Ingress) -> None:
        network, mtu = ingress.network, ingress.network.mtu or 1450
        router = str(self._routers / names.router_name(network.id))
        subnets = [subnet.cidr for subnet in network.subnets]

        def host(nft: Nft) -> None:
            for version in ingress.versions:
                _forward(nft, version)
            steering.link_host(router, subnets, mtu)

        await self._dataplane.within(HOST, host)
        await self._dataplane.within(
            network.id, lambda _: steering.link_router(ingress.device, mtu, ingress.versions)
        )
        own = tuple(each.ip for each in ingress.addresses)
        await self._dataplane.change_vips(network.id, own, ())
        self._balancer.open(HOST)
        log.info("mesh.opened", network=network.id, addresses=list(map(str, own)))

    async def destroy(self) -> None:
        """Remove everything on the host, for leaving the cluster; the router goes by itself."""
        self._ingress = None
        self._balancer.close(HOST)

        def host(nft: Nft) -> None:
            steering.unlink_host()
            closed = names.mesh_closed(nft.chains("inet", published.TABLE))
            nft.run(published.remove())
            for version in closed:
                forwarding.switch(version, on=False)

        await self._dataplane.within(HOST, host)


def _ip(record: EndpointRecord) -> IPAddress:
    return ipaddress.ip_address(record.endpoint_ip)


def _fronts(
    records: Mapping[str, EndpointRecord],
    kinds: Mapping[IPAddress, str],
    silent: Container[str],
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
                found[f"{key} {protocol} {each.published_port}"] = backend_of(
                    record,
                    Port(ip.version, protocol, each.published_port),
                    Target(ip, port),
                    local=kinds[ip] == "local",
                    silent=key in silent,
                )
    return found


def _elements(
    records: Mapping[str, EndpointRecord], kinds: Mapping[IPAddress, str]
) -> dict[str, dict[str, str]]:
    """Return the elements of the router's rules that backends make."""
    found: dict[str, dict[str, str]] = {
        f"{name}{version}": {} for name in ("foreign", "targets") for version in (4, 6)
    }
    for record in records.values():
        ip = _ip(record)
        if kinds.get(ip) == "engine":
            found[f"foreign{ip.version}"][str(ip)] = ""
        if kinds.get(ip) != "local":
            continue
        for each in record.ingress_ports:
            if each.published_port != each.target_port:
                place = f"{ip} . {each.protocol.name.lower()} . {each.published_port}"
                found[f"targets{ip.version}"][place] = f"{ip} . {each.target_port}"
    return found


def _forward(nft: Nft, version: int) -> None:
    """Have the host forward an IP version; whatever it did not forward before, it does not now."""
    closed = exits.closed_by(nft.chains("inet", names.TABLE))
    if version in closed or not forwarding.forwards(version):
        mesh, legs = f'"{steering.HOST_DEVICE}"', f'"{names.EXIT_PREFIX}*"'
        where = f"inet {published.TABLE} {names.MESH_CLOSED[version]}"
        rules = [
            f"add rule {where} {side} {device} accept"
            for device in (mesh, legs)
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
                    f"add rule {where} meta nfproto ipv{version} drop",
                ]
            )
        )
        forwarding.switch(version, on=True)
