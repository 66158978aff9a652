"""From wanted state to kernel objects, and from two sets of objects to a plan. Pure.

IPv4 and IPv6 take one path; where they differ, the objects differ and not the code.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from agent.dataplane import names, ruleset, shortcut
from agent.dataplane.model import (
    Endpoint,
    IPAddress,
    IPNetwork,
    Network,
    Peer,
    Settings,
    Subnet,
    host_route,
)
from agent.dataplane.objects import (
    Address,
    Association,
    Cover,
    Drop,
    Fdb,
    Guards,
    Inside,
    Key,
    Label,
    Member,
    Neighbour,
    Object,
    Offload,
    Op,
    Port,
    Put,
    Remotes,
    Route,
    Ruleset,
    Shortcut,
    State,
    Sysctl,
    Tap,
    Vxlan,
)
from swarm.errors import InvalidArgumentError

_NETWORK_SYSCTLS = (
    ("net/ipv4/ip_forward", "1"),
    # A redirect would tell a container that its peer is on its own link; it is not.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/conf/all/accept_redirects", "0"),
    # The kernel takes the larger of "all" and the device's own: 0 here, 1 on each port.
    ("net/ipv4/conf/all/rp_filter", "0"),
)


def _sysctls_v6(on: bool) -> tuple[tuple[str, str], ...]:
    if not on:
        return (("net/ipv6/conf/default/disable_ipv6", "1"),)
    return (
        ("net/ipv6/conf/default/disable_ipv6", "0"),
        ("net/ipv6/conf/all/forwarding", "1"),
        ("net/ipv6/conf/default/forwarding", "1"),
        # Ports get fe80::1 from us; a tunnel device needs no link-local address at all.
        ("net/ipv6/conf/default/addr_gen_mode", "1"),
        ("net/ipv6/conf/default/accept_dad", "0"),
        ("net/ipv6/conf/default/accept_ra", "0"),
    )


@dataclass(slots=True)
class NetworkState:
    """Everything wanted of one network on this node.

    Attributes:
        network: as assigned, its MTU already fitted to the underlay.
        endpoints: local ones by id.
        owners, macs, ports: endpoint id by local address, MAC and port name; each has one owner.
        peers: remote ones by address; an address that is local too stays dormant.
        vips: service addresses that the router answers for.
        via: the VXLAN device of each remote address.
        sharers: addresses behind each (device, MAC), for one forwarding entry serves them all.
        tunnels: how many addresses are behind each remote tunnel address.
        software: whether checksums must be made before a packet reaches the underlay's device.
        shortcuts: whether the kernel can take packets past the router's IP stack.
    """

    network: Network
    settings: Settings
    endpoints: dict[str, Endpoint] = field(default_factory=dict)
    owners: dict[IPAddress, str] = field(default_factory=dict)
    macs: dict[str, str] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    peers: dict[IPAddress, Peer] = field(default_factory=dict)
    vips: set[IPAddress] = field(default_factory=set)
    via: dict[IPAddress, str] = field(default_factory=dict)
    sharers: dict[tuple[str, str], set[IPAddress]] = field(default_factory=dict)
    tunnels: dict[IPAddress, int] = field(default_factory=dict)
    software: bool = False
    shortcuts: bool = False
    _ranges: tuple[_Range, ...] = field(init=False)
    _seen: IPAddress | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._ranges = tuple(
            _Range.of(subnet, names.vxlan_name(self.network.vni_of(subnet)))
            for subnet in self.network.subnets
        )

    def add_endpoint(self, endpoint: Endpoint) -> None:
        """Remember a local endpoint; :meth:`check_endpoint` has passed."""
        self.endpoints[endpoint.id] = endpoint
        self.macs[endpoint.mac] = endpoint.id
        self.ports[names.port_name(endpoint.id)] = endpoint.id
        for address in endpoint.addresses:
            self.owners[address.ip] = endpoint.id

    def discard_endpoint(self, endpoint_id: str) -> Endpoint | None:
        """Forget a local endpoint."""
        endpoint = self.endpoints.pop(endpoint_id, None)
        if endpoint is not None:
            del self.macs[endpoint.mac], self.ports[names.port_name(endpoint.id)]
            for address in endpoint.addresses:
                del self.owners[address.ip]
        return endpoint

    def add_peer(self, peer: Peer) -> None:
        """Remember a remote endpoint; :meth:`check_peer` has passed."""
        self.discard_peer(peer.ip)
        device = self._device(peer.ip)
        self.peers[peer.ip] = peer
        self.via[peer.ip] = device
        self.sharers.setdefault((device, peer.mac), set()).add(peer.ip)
        self.tunnels[peer.vtep] = self.tunnels.get(peer.vtep, 0) + 1

    def discard_peer(self, ip: IPAddress) -> Peer | None:
        """Forget a remote endpoint."""
        peer = self.peers.pop(ip, None)
        if peer is not None:
            where = (self.via.pop(ip), peer.mac)
            self.sharers[where].discard(ip)
            if not self.sharers[where]:
                del self.sharers[where]
            self.tunnels[peer.vtep] -= 1
            if not self.tunnels[peer.vtep]:
                del self.tunnels[peer.vtep]
        return peer

    def add_newcomers(self, peers: Mapping[IPAddress, Peer], many: Iterable[Remotes]) -> None:
        """Remember peers for which :meth:`newcomers` has returned ``many``."""
        self.peers.update(peers)
        for each in many:
            for peer in each.peers:
                self.sharers[each.ifname, peer.mac] = {peer.ip}
            ours = peers if len(each.peers) == len(peers) else [peer.ip for peer in each.peers]
            self.via.update(dict.fromkeys(ours, each.ifname))
            for vtep, count in Counter([peer.vtep for peer in each.peers]).items():
                self.tunnels[vtep] = self.tunnels.get(vtep, 0) + count

    def forget_peers(self) -> None:
        """Forget all remote endpoints."""
        for held in (self.peers, self.via, self.sharers, self.tunnels):
            held.clear()

    def check_peer(self, peer: Peer) -> None:
        """Raise InvalidArgumentError when the record cannot be of this network."""
        if peer.network_id != self.network.id:
            raise InvalidArgumentError(f"peer {peer.ip} is of network {peer.network_id}")
        home = self._range(peer.ip)
        if home.subnet.prefixlen != peer.prefixlen:
            raise InvalidArgumentError(f"{peer.ip}/{peer.prefixlen} is not of {home.subnet}")
        if int(peer.ip) in home.reserved:
            raise InvalidArgumentError(
                f"{peer.ip} of {home.subnet} cannot be a container's address"
            )
        if peer.vtep is self._seen:  # of thousands, most are behind the one before
            return
        if not _is_tunnel_address(peer.vtep):
            raise InvalidArgumentError(f"{peer.vtep} cannot be a tunnel address")
        if peer.vtep.version != self.settings.vtep.version:
            raise InvalidArgumentError(
                f"the tunnel address {peer.vtep} of {peer.ip} is of another family than ours"
            )
        self._seen = peer.vtep

    def check_endpoint(self, endpoint: Endpoint) -> None:
        """Raise InvalidArgumentError when the endpoint cannot be of this network."""
        for address in endpoint.addresses:
            subnet = self.network.subnet_of(address.ip)
            if subnet is None:
                raise InvalidArgumentError(f"{address} is in no subnet of {self.network.name}")
            if subnet.cidr.prefixlen != address.network.prefixlen:
                raise InvalidArgumentError(f"{address} is not of {subnet.cidr}")
            if subnet.gateway == address.ip or not _is_host(address.ip, subnet.cidr):
                text = f"{address} is the gateway or no host address of {self.network.name}"
                raise InvalidArgumentError(text)

    def _device(self, ip: IPAddress) -> str:
        return self._range(ip).device

    def _range(self, ip: IPAddress) -> _Range:
        number, version = int(ip), ip.version
        for each in self._ranges:
            if each.first <= number <= each.last and each.version == version:
                return each
        raise InvalidArgumentError(f"{ip} is in no subnet of {self.network.name}")

    def objects(self) -> dict[Key, Object]:
        """Return everything the network's router must hold."""
        found = list(self._router())
        found += self.peer_objects(self.peers)
        for ip in self.vips:
            found.append(Route(target=host_route(ip), kind="local"))
        found += self.shortcut_objects(self.vips)
        for endpoint in self.endpoints.values():
            found += self.endpoint_objects(endpoint)
        return {item.key: item for item in found}

    def _router(self) -> Iterator[Object]:
        for path, value in _NETWORK_SYSCTLS + _sysctls_v6(self.network.has_v6):
            yield Sysctl(path=path, value=value)
        devices = []
        for subnet in self.network.subnets:
            yield Address(ifname="lo", address=ipaddress.ip_interface(subnet.gateway))
            yield ruleset.local(subnet.gateway)
            # Only addresses that are known get an answer; the rest fail at once.
            yield Route(target=subnet.cidr, kind="unreachable")
            if subnet.vni is not None:
                devices.append(names.vxlan_name(subnet.vni))
                yield from self._vxlan(subnet.vni)
        yield ruleset.wanted(devices)
        if self.shortcuts:
            for name in devices:
                yield Tap(ifname=name, block=shortcut.BLOCK)

    def shortcut_objects(self, vips: Collection[IPAddress]) -> Iterator[Object]:
        """Yield the program past the router's IP stack; none where it translates service addresses."""
        if not self.shortcuts or vips:
            return
        devices = frozenset(names.vxlan_name(vni) for vni in self.network.vnis)
        yield Shortcut(name=shortcut.name(), devices=devices)

    def _vxlan(self, vni: int) -> Iterator[Object]:
        name = names.vxlan_name(vni)
        yield Vxlan(
            name=name,
            vni=vni,
            port=self.settings.port,
            local=self.settings.vtep,
            mac=names.vxlan_mac(self.settings.vtep, vni),
            mtu=self.network.mtu,
            sources=names.ESP_SOURCES if self.network.encrypted else names.PLAIN_SOURCES,
        )
        # Docker's engines route between the subnets of a network at the sender's end: a frame of
        # one subnet may carry a source of another, which a strict reverse path would drop.
        for key, value in (("rp_filter", "0"), ("proxy_arp", "0")):
            yield Sysctl(path=f"net/ipv4/conf/{name}/{key}", value=value, ifname=name)
        if self.software:
            yield Offload(ifname=name, checksums=False)

    def endpoint_objects(self, endpoint: Endpoint) -> Iterator[Object]:
        """Yield what the router holds for a local endpoint."""
        name = names.port_name(endpoint.id)
        mac = names.router_mac(self.network.id)
        v6 = any(address.version == 6 for address in endpoint.addresses)
        yield Port(
            name=name,
            endpoint_id=endpoint.id,
            mac=mac,
            mtu=self.network.mtu,
            netns=endpoint.netns,
            inside_ifname=endpoint.ifname,
            inside_mac=endpoint.mac,
        )
        # First of all, for a strict reverse path is what keeps it from speaking for others.
        for key, value in (
            ("conf/{}/proxy_arp", "1"),
            ("conf/{}/rp_filter", "1"),
            # New devices start at 0.8 s, and a child namespace has no default to set.
            ("neigh/{}/proxy_delay", "0"),
        ):
            yield Sysctl(path=f"net/ipv4/{key.format(name)}", value=value, ifname=name)
        yield Inside(
            ifname=name,
            netns=endpoint.netns,
            name=endpoint.ifname,
            mac=endpoint.mac,
            mtu=self.network.mtu,
            addresses=frozenset(endpoint.addresses),
            routes=frozenset(self._inside_routes(endpoint)),
            v6=v6,
            hop_mac=mac,
        )
        if v6:
            yield Address(ifname=name, address=names.ROUTER_LINK_LOCAL)
        yield ruleset.mac(endpoint.mac)
        for address in endpoint.addresses:
            yield Neighbour(ifname=name, ip=address.ip, mac=endpoint.mac)
            yield ruleset.local(address.ip)
            yield Route(target=host_route(address.ip), kind="unicast", ifname=name)
        yield Label(ifname=name, text=endpoint.id)

    def _inside_routes(self, endpoint: Endpoint) -> Iterator[tuple[IPNetwork, IPAddress]]:
        # IPv4: the own subnet is on the link (proxy ARP), the others are behind its gateway.
        # IPv6: all are behind the router's link-local address, so nothing needs proxy discovery.
        homes = {
            address.version: self.network.subnet_of(address.ip) for address in endpoint.addresses
        }
        own = {address.network for address in endpoint.addresses}
        for subnet in self.network.subnets:
            home = homes.get(subnet.cidr.version)
            if home is None:
                continue
            if subnet.cidr.version == 6:
                yield subnet.cidr, names.ROUTER_LINK_LOCAL.ip
            elif subnet.cidr not in own:
                yield subnet.cidr, home.gateway

    def peer_objects(self, ips: Iterable[IPAddress]) -> Iterator[Object]:
        """Yield what the router holds for remote addresses; those not known yield nothing."""
        for ip in ips:
            peer = self.peers.get(ip)
            if peer is None or ip in self.owners:
                continue
            device = self.via[ip]
            yield Neighbour(ifname=device, ip=ip, mac=peer.mac)
            sharers = self.sharers[device, peer.mac]
            vtep = peer.vtep
            if len(sharers) > 1:
                # Two records may name one MAC (a router's). Should they disagree about where it is,
                # every order of events must end in the same entry.
                last = max(sharers, key=lambda one: (one.version, one))
                vtep = self.peers[last].vtep
            yield Fdb(ifname=device, mac=peer.mac, vtep=vtep)
            yield Route(target=host_route(ip), kind="unicast", ifname=device)

    def newcomers(self, peers: Mapping[IPAddress, Peer]) -> tuple[Remotes, ...] | None:
        """Return what to put for peers of whose addresses and MACs nothing is known; None if any is known.

        It is what :func:`plan` would make of them, without the comparison: a list of thousands comes
        when a node takes up a network.
        """
        if _meet(peers, self.peers) or _meet(peers, self.owners):
            return None
        many = self._grouped(peers.values())
        places = {(each.ifname, peer.mac) for each in many for peer in each.peers}
        if len(places) < len(peers) or any(place in self.sharers for place in places):
            return None
        return many

    def all_peers(self) -> tuple[Remotes, ...] | None:
        """Return all remote endpoints, to be dropped at once; None if any shares what it has."""
        if len(self.sharers) < len(self.peers) or _meet(self.peers, self.owners):
            return None
        return self._grouped(self.peers.values())

    def _grouped(self, peers: Collection[Peer]) -> tuple[Remotes, ...]:
        if not peers:
            return ()
        if len(self._ranges) == 1:
            return (Remotes(ifname=self._ranges[0].device, peers=tuple(peers)),)
        groups: dict[tuple[str, int], list[Peer]] = {}
        for peer in peers:
            home = self._range(peer.ip)
            groups.setdefault((home.device, home.version), []).append(peer)
        return tuple(
            Remotes(ifname=device, peers=tuple(found)) for (device, _), found in groups.items()
        )

    def around(self, ips: Iterable[IPAddress], extra: Iterable[Peer] = ()) -> set[IPAddress]:
        """Return ``ips`` and every address that shares a forwarding entry with one of them."""
        found = set(ips)
        places = [(self.via[ip], self.peers[ip].mac) for ip in found if ip in self.peers]
        places += [(self._device(peer.ip), peer.mac) for peer in extra]
        for place in places:
            found |= self.sharers.get(place, set())
        return found


@dataclass(frozen=True, slots=True)
class _Range:
    """A subnet as numbers, for what is asked of thousands of addresses."""

    subnet: IPNetwork
    version: int
    first: int
    last: int
    reserved: frozenset[int]
    """No container's: the gateway, the range's first and, in IPv4, last address."""
    device: str

    @classmethod
    def of(cls, subnet: Subnet, device: str) -> _Range:
        cidr = subnet.cidr
        first = int(cidr.network_address)
        last = first + cidr.num_addresses - 1
        reserved = {int(subnet.gateway)}
        if cidr.num_addresses > 2:
            reserved |= {first} if cidr.version == 6 else {first, last}
        return cls(cidr, cidr.version, first, last, frozenset(reserved), device)


def _meet(some: Mapping[IPAddress, object], others: Mapping[IPAddress, object]) -> bool:
    """Tell whether two mappings have a key in common. Hashing an address takes longer than finding it."""
    less, more = (some, others) if len(some) < len(others) else (others, some)
    if 8 * len(less) < len(more):
        return any(ip in more for ip in less)
    return not set(less).isdisjoint(set(more))


@functools.lru_cache(maxsize=1 << 14)
def _is_tunnel_address(vtep: IPAddress) -> bool:
    """Tell whether frames may be sent there: to a group, one would go to everybody; to ourselves, round."""
    return not (vtep.is_multicast or vtep.is_unspecified or vtep.is_loopback)


def _is_host(ip: IPAddress, cidr: IPNetwork) -> bool:
    """Tell whether ``ip`` is neither the first nor, in IPv4, the last address of its range."""
    if cidr.num_addresses <= 2:
        return True
    return ip != cidr.network_address and (cidr.version == 6 or ip != cidr.broadcast_address)


def keyed(objects: Iterable[Object]) -> dict[Key, Object]:
    """Return objects by key, the last of each."""
    return {item.key: item for item in objects}


def plan(wanted: State, observed: State) -> tuple[Op, ...]:
    """Return the operations that lead from ``observed`` to ``wanted``.

    Removals come first, in reverse rank, and leave out what goes with its interface; then puts by
    rank. A route that changes its interface is replaced, never removed first. ``observed`` may be
    a part of a router's state if ``wanted`` is the same part.
    """
    lost = {
        old.name
        for key, old in observed.items()
        if isinstance(old, Vxlan | Port) and _other_device(old, wanted.get(key))
    }
    flushed = any(
        isinstance(new, Ruleset) and (observed.get(key) != new or new.devices & lost)
        for key, new in wanted.items()
    )
    kept: dict[Key, Object] = {}
    drops: list[Drop] = []
    for key, old in observed.items():
        if old.ifname in lost:
            if isinstance(old, Vxlan | Port):
                drops.append(Drop(old))
        elif flushed and old.rank in {Ruleset.rank, Member.rank}:
            continue  # the new ruleset's transaction starts from nothing
        elif isinstance(old, Shortcut) and old.devices & lost:
            continue  # gone with its block
        elif key in wanted:
            kept[key] = old
        else:
            drops.append(Drop(old))
    puts = [
        Put(new) for key, new in wanted.items() if key not in kept or not _holds(kept[key], new)
    ]
    drops.sort(key=lambda op: -op.object.rank)
    puts.sort(key=lambda op: op.object.rank)
    return (*drops, *puts)


def plan_add_first(wanted: State, observed: State) -> tuple[Op, ...]:
    """Return the operations that lead from ``observed`` to ``wanted`` without a gap.

    Puts come first, by rank, then removals in reverse: a packet finds the old way or the new one.
    """
    fresh = any(isinstance(new, Guards) and observed.get(key) != new for key, new in wanted.items())
    puts = [
        Put(new)
        for key, new in wanted.items()
        # New guards start from an empty set.
        if key not in observed or not _holds(observed[key], new) or (fresh and type(new) is Cover)
    ]
    drops = [Drop(old) for key, old in observed.items() if key not in wanted]
    puts.sort(key=lambda op: op.object.rank)
    drops.sort(key=lambda op: -op.object.rank)
    return (*puts, *drops)


def _other_device(old: Vxlan | Port, new: Object | None) -> bool:
    return not isinstance(new, type(old)) or new.device != old.device


def _holds(old: Object, new: Object) -> bool:
    if isinstance(new, Inside):
        return isinstance(old, Inside) and new.held_by(old)
    if isinstance(new, Association):
        return isinstance(old, Association) and (new is old or new.held_by(old))
    return old == new
