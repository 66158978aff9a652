"""Kernel objects as values, and the two operations on them.

A router's state, wanted or observed, is a mapping of key to object. An object knows its key (two
objects with one key replace each other), the interface it lives on (it vanishes with it) and its
rank (the order in which plans put things: ARP, then FDB, then route).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from agent.dataplane.model import (
    IPAddress,
    IPInterface,
    IPNetwork,
    NetnsRef,
    Peer,
    host_route,
)
from swarm.errors import InvariantError

Key = tuple[Hashable, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sysctl:
    """A value under /proc/sys of a router; ``ifname`` when it belongs to an interface."""

    path: str
    value: str
    ifname: str | None = None

    @property
    def rank(self) -> int:
        """Before all links, or right after them."""
        return 1 if self.ifname is None else 4

    @property
    def key(self) -> Key:
        """Identity."""
        return ("sysctl", self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """Whether a device leaves checksums to the one under it; wanted only where that is broken."""

    ifname: str
    checksums: bool
    rank: ClassVar[int] = 4

    @property
    def key(self) -> Key:
        """Identity."""
        return ("offload", self.ifname)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vxlan:
    """A VXLAN device; any difference but in the MTU means another device.

    ``sources``: the first and last UDP source port. IPsec policies know encrypted networks by it.
    """

    name: str
    vni: int
    port: int
    local: IPAddress
    mac: str
    mtu: int
    sources: tuple[int, int]
    rank: ClassVar[int] = 2

    @property
    def key(self) -> Key:
        """Identity."""
        return ("link", self.name)

    @property
    def ifname(self) -> str:
        """The interface it is."""
        return self.name

    @property
    def device(self) -> tuple[object, ...]:
        """What cannot be changed on a live device (the kernel caches routes by ``local``)."""
        return (self.vni, self.port, self.local, self.mac, self.sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A router's end of an endpoint's veth. What the other end needs to be made rides along.

    ``endpoint_id`` is observed as the interface's alias, which is set last: a port without it is
    the debris of a crash and is made anew.
    """

    name: str
    endpoint_id: str
    mac: str
    mtu: int
    netns: NetnsRef | None = field(default=None, compare=False)
    inside_ifname: str = field(default="", compare=False)
    inside_mac: str = field(default="", compare=False)
    rank: ClassVar[int] = 3

    @property
    def key(self) -> Key:
        """Identity."""
        return ("link", self.name)

    @property
    def ifname(self) -> str:
        """The interface it is."""
        return self.name

    @property
    def device(self) -> tuple[object, ...]:
        """What makes it this endpoint's port."""
        return (self.endpoint_id, self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inside:
    """A container's end of a port, with all that is set on it.

    Attributes:
        ifname: of the port.
        netns: the container's namespace.
        name, mac, mtu: of the interface inside.
        addresses: those wanted; observed: all, for users may add their own.
        routes: (target, next hop); observed: those of ours.
        v6: whether IPv6 is on; off, the container has not even a link-local address there.
        hop_mac: MAC of the IPv6 next hop, so that no packet waits for neighbour discovery.
    """

    ifname: str
    netns: NetnsRef
    name: str
    mac: str
    mtu: int
    addresses: frozenset[IPInterface]
    routes: frozenset[tuple[IPNetwork, IPAddress]]
    v6: bool
    hop_mac: str = field(default="", compare=False)
    rank: ClassVar[int] = 4

    @property
    def key(self) -> Key:
        """Identity."""
        return ("inside", self.ifname)

    def held_by(self, observed: Inside) -> bool:
        """Tell whether the observed interface is as wanted; more addresses are the user's matter."""
        return (
            (self.name, self.mac, self.mtu, self.v6)
            == (observed.name, observed.mac, observed.mtu, observed.v6)
            and self.addresses <= observed.addresses
            and self.routes == observed.routes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """A device whose incoming packets the programs of a block see first: the way to a shortcut."""

    ifname: str
    block: int
    rank: ClassVar[int] = 5

    @property
    def key(self) -> Key:
        """Identity."""
        return ("tap", self.ifname)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortcut:
    """The program of a block, past the router's IP stack.

    Attributes:
        name: of this program and no other.
        devices: without which the kernel forgets the block, and this with it.
    """

    name: str
    devices: frozenset[str] = field(compare=False)
    ifname: ClassVar[None] = None
    # When all else is there; first to go.
    rank: ClassVar[int] = 12

    @property
    def key(self) -> Key:
        """Identity."""
        return ("shortcut",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address of a router."""

    ifname: str
    address: IPInterface
    rank: ClassVar[int] = 5

    @property
    def key(self) -> Key:
        """Identity."""
        return ("address", self.ifname, self.address)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A permanent neighbour entry of a router."""

    ifname: str
    ip: IPAddress
    mac: str
    rank: ClassVar[int] = 6

    @property
    def key(self) -> Key:
        """Identity."""
        return ("neighbour", self.ifname, self.ip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fdb:
    """A forwarding entry of a VXLAN device: this MAC is behind that VTEP."""

    ifname: str
    mac: str
    vtep: IPAddress
    rank: ClassVar[int] = 7

    @property
    def key(self) -> Key:
        """Identity."""
        return ("fdb", self.ifname, self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remotes:
    """Many remote endpoints of one device and one IP version, as one operation; never observed.

    It is what its parts are; thousands of those, each an object with a key, would take longer to
    make than the kernel needs for all of it.
    """

    ifname: str
    peers: tuple[Peer, ...]
    rank: ClassVar[int] = 6

    @property
    def key(self) -> Key:
        """Identity: none."""
        raise InvariantError("many remote endpoints are no object with a key")

    def parts(self) -> Iterator[Neighbour | Fdb | Route]:
        """Yield what it is, in the order of ranks."""
        for peer in self.peers:
            yield Neighbour(ifname=self.ifname, ip=peer.ip, mac=peer.mac)
        for peer in self.peers:
            yield Fdb(ifname=self.ifname, mac=peer.mac, vtep=peer.vtep)
        for peer in self.peers:
            yield Route(target=host_route(peer.ip), kind="unicast", ifname=self.ifname)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """The nftables tables of a router: their layout, for these VXLAN devices."""

    digest: str
    devices: frozenset[str]
    ifname: ClassVar[None] = None
    rank: ClassVar[int] = 8

    @property
    def key(self) -> Key:
        """Identity."""
        return ("ruleset",)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitTable:
    """The nftables table of the ways out, in the daemon's namespace.

    ``closed``: the IP versions that the host did not forward before us; of these only our traffic
    may pass.
    """

    digest: str
    closed: frozenset[int]
    ifname: ClassVar[None] = None
    rank: ClassVar[int] = 0

    @property
    def key(self) -> Key:
        """Identity."""
        return ("exits",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An element of one of the router's nftables sets."""

    set: str
    value: str
    ifname: ClassVar[None] = None
    rank: ClassVar[int] = 9

    @property
    def key(self) -> Key:
        """Identity."""
        return ("member", self.set, self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route of a router: to an interface, to the router itself, or to nowhere."""

    target: IPNetwork
    kind: Literal["unicast", "local", "unreachable"]
    ifname: str | None = None
    rank: ClassVar[int] = 10

    @property
    def key(self) -> Key:
        """Identity; in numbers, which are quicker to compare than networks are."""
        to = self.target
        return ("route", self.kind == "local", to.version, int(to.network_address), to.prefixlen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The alias of a port, the endpoint's id: the mark that it is complete."""

    ifname: str
    text: str
    rank: ClassVar[int] = 11

    @property
    def key(self) -> Key:
        """Identity."""
        return ("label", self.ifname)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """The nftables tables that drop what an encrypted network sends or gets outside ESP.

    ``devices``: under the tunnel, index and name, where a table of its own looks at what leaves.
    """

    digest: str
    devices: frozenset[tuple[int, str]]
    ifname: ClassVar[None] = None
    rank: ClassVar[int] = 0

    @property
    def key(self) -> Key:
        """Identity."""
        return ("guards",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cover:
    """A VNI that the guards watch."""

    vni: int
    ifname: ClassVar[None] = None
    rank: ClassVar[int] = 1

    @property
    def key(self) -> Key:
        """Identity."""
        return ("cover", self.vni)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """An outbound IPsec policy for VXLAN packets of encrypted networks.

    Attributes:
        local, remote: tunnel addresses; both None: any.
        port: the VXLAN port they go to.
        version: of IP.
        spi: of the association that must carry them; None: they are blocked.
    """

    local: IPAddress | None
    remote: IPAddress | None
    port: int
    version: int
    spi: int | None
    ifname: ClassVar[None] = None

    @property
    def rank(self) -> int:
        """The block before the associations, what allows after them."""
        return 2 if self.spi is None else 5

    @property
    def key(self) -> Key:
        """Identity: the kernel's, one policy per selector."""
        return ("policy", self.local, self.remote, self.port, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Association:
    """An ESP security association (SA).

    Attributes:
        source, destination: the tunnel addresses.
        spi: with the destination, its name.
        material: AES key and salt; None when observed on a kernel that does not show keys.
        sends: whether we are the source.
        sent: packets sent so far under it, observed.
    """

    source: IPAddress
    destination: IPAddress
    spi: int
    material: bytes | None = field(repr=False)
    sends: bool = field(compare=False)
    sent: int = field(default=0, compare=False)
    ifname: ClassVar[None] = None

    @property
    def rank(self) -> int:
        """Who listens comes before who speaks."""
        return 4 if self.sends else 3

    @property
    def key(self) -> Key:
        """Identity: the kernel's."""
        return ("association", self.destination, self.spi)

    def held_by(self, observed: Association) -> bool:
        """Tell whether the observed association is this one; a hidden key is believed."""
        return self == observed or (observed.material is None and self.source == observed.source)


Object = (
    Sysctl
    | Offload
    | Vxlan
    | Port
    | Inside
    | Tap
    | Shortcut
    | Address
    | Neighbour
    | Fdb
    | Remotes
    | Ruleset
    | ExitTable
    | Member
    | Route
    | Label
    | Guards
    | Cover
    | Policy
    | Association
)
State = Mapping[Key, Object]


@dataclass(frozen=True, slots=True)
class Put:
    """Make the object, or replace the one with its key. Doing it twice is doing it once."""

    object: Object


@dataclass(frozen=True, slots=True)
class Drop:
    """Remove the object; an absent one is no error."""

    object: Object


Op = Put | Drop
