"""What the data plane is asked for, and what it answers.

Wanted state (:class:`Network`, :class:`Endpoint`, :class:`Peer`) is never edited: the assignment
or the gossip record as it came. Everything is validated on construction, so a plan never meets an
address outside its subnet or a name the kernel would cut.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path
from typing import Literal

from swarm.errors import InvalidArgumentError

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network
IPInterface = IPv4Interface | IPv6Interface

MAX_VNI = (1 << 24) - 1
MIN_MTU = 576
MIN_MTU_V6 = 1280
MAX_MTU = 65535
MAX_SUBNETS = 64
"""Subnets of one network; each owns a VXLAN device."""

KEY_BYTES = 16
MAX_KEYS = 3
"""IPsec keys alive at one time; the managers give out three."""

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_ENDPOINT_ID = re.compile(r"[0-9a-f]{64}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_IFNAME = re.compile(r"[^\s/:\"*\\]{1,15}")


def _need(condition: bool, text: str) -> None:
    if not condition:
        raise InvalidArgumentError(text)


def _check_mac(mac: str) -> None:
    _need(
        _MAC.fullmatch(mac) is not None and not int(mac[:2], 16) & 1 and mac != "00" + ":00" * 5,
        f"{mac!r} is not a unicast MAC address in lower-case colon form",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """One address range of a network.

    Attributes:
        cidr: the range.
        gateway: the address the router answers on, inside ``cidr``.
        vni: VXLAN network identifier, 1..2^24-1. None: this range travels under the VNI of the
            network's first subnet that has one (an IPv6 range beside the IPv4 one).
    """

    cidr: IPNetwork
    gateway: IPAddress
    vni: int | None = None

    def __post_init__(self) -> None:
        _need(self.gateway in self.cidr, f"gateway {self.gateway} is outside {self.cidr}")
        _need(self.vni is None or 0 < self.vni <= MAX_VNI, f"VNI {self.vni} is not in 1..{MAX_VNI}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network as assigned to this node.

    Attributes:
        id: cluster-wide id; the first 12 characters name its router namespace.
        name: for people, in errors and logs.
        subnets: at least one, at least one of them with a VNI.
        mtu: of the containers' interfaces, bytes; 0 takes what the underlay leaves. A value that
            the underlay cannot carry is lowered to what it can.
        encrypted: only ESP may carry it.
        internal: no way out of the overlay.
        l2: a plain bridge on this node instead of the L3 router.
    """

    id: str
    name: str
    subnets: tuple[Subnet, ...]
    mtu: int = 0
    encrypted: bool = False
    internal: bool = False
    l2: bool = False

    def __post_init__(self) -> None:
        _need(_ID.fullmatch(self.id) is not None, f"network id {self.id!r} is malformed")
        _need(0 < len(self.subnets) <= MAX_SUBNETS, f"network {self.name} has no usable subnets")
        vnis = [subnet.vni for subnet in self.subnets if subnet.vni is not None]
        _need(bool(vnis), f"network {self.name} has no VNI")
        _need(len(set(vnis)) == len(vnis), f"network {self.name} names a VNI twice")
        for i, one in enumerate(self.subnets):
            for other in self.subnets[:i]:
                _need(
                    one.cidr.version != other.cidr.version or not one.cidr.overlaps(other.cidr),
                    f"subnets {one.cidr} and {other.cidr} of network {self.name} overlap",
                )
        floor = self.least_mtu
        _need(
            self.mtu == 0 or floor <= self.mtu <= MAX_MTU,
            f"MTU {self.mtu} of network {self.name} is not in {floor}..{MAX_MTU}",
        )

    @property
    def has_v6(self) -> bool:
        """Whether any subnet is IPv6."""
        return any(subnet.cidr.version == 6 for subnet in self.subnets)

    @property
    def least_mtu(self) -> int:
        """The smallest MTU its protocols allow, bytes."""
        return MIN_MTU_V6 if self.has_v6 else MIN_MTU

    def subnet_of(self, ip: IPAddress) -> Subnet | None:
        """Return the subnet that holds ``ip``, None when no subnet does."""
        for subnet in self.subnets:
            if ip in subnet.cidr:
                return subnet
        return None

    @property
    def vnis(self) -> frozenset[int]:
        """All its VNIs."""
        return frozenset(subnet.vni for subnet in self.subnets if subnet.vni is not None)

    def vni_of(self, subnet: Subnet) -> int:
        """Return the VNI that carries ``subnet``."""
        if subnet.vni is not None:
            return subnet.vni
        return next(other.vni for other in self.subnets if other.vni is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class IpsecKey:
    """A key of subsystem ``networking:ipsec``, as the managers give it out.

    Attributes:
        lamport: orders the keys; its low 32 bits are the key's tag on the wire.
        key: AES-128, 16 bytes; never shown.
    """

    lamport: int
    key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        _need(len(self.key) == KEY_BYTES, f"an IPsec key has {KEY_BYTES} bytes")
        _need(0 <= self.lamport < 1 << 64, f"{self.lamport} is not a lamport time")

    @property
    def tag(self) -> int:
        """What enters the SPI: the low 32 bits of the lamport time."""
        return self.lamport & 0xFFFFFFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class NetnsRef:
    """A network namespace by path: ``/proc/PID/ns/net`` or a file it is bind-mounted on."""

    path: str

    @classmethod
    def of_pid(cls, pid: int) -> NetnsRef:
        """Return the namespace of process ``pid``."""
        return cls(path=f"/proc/{pid}/ns/net")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One interface of one container.

    Attributes:
        id: 64 hex digits; stable over restarts of the agent.
        network_id: the network it is plugged into.
        container: for people, in errors and logs.
        netns: the container's namespace.
        ifname: the interface's name inside, at most 15 bytes.
        mac: unicast, lower-case colon form, unique in the network.
        addresses: with the prefix length of their subnet.
        default_route: the container's way out goes through this endpoint.
    """

    id: str
    network_id: str
    container: str
    netns: NetnsRef
    ifname: str
    mac: str
    addresses: tuple[IPInterface, ...]
    default_route: bool = False

    def __post_init__(self) -> None:
        _need(_ENDPOINT_ID.fullmatch(self.id) is not None, f"endpoint id {self.id!r} is malformed")
        _need(
            _IFNAME.fullmatch(self.ifname) is not None and self.ifname not in {".", "..", "lo"},
            f"{self.ifname!r} cannot name an interface",
        )
        _check_mac(self.mac)
        _need(bool(self.addresses), f"endpoint {self.id[:12]} has no address")
        _need(
            len({address.ip for address in self.addresses}) == len(self.addresses),
            f"endpoint {self.id[:12]} names an address twice",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """An endpoint on another node, as gossip tells it.

    Attributes:
        network_id: the network.
        ip: its address inside the overlay.
        prefixlen: of its subnet; a record that disagrees with ours is refused.
        mac: its MAC, the address frames to it carry.
        vtep: the other node's tunnel address, of the same family as ours.
    """

    network_id: str
    ip: IPAddress
    prefixlen: int
    mac: str
    vtep: IPAddress

    def __post_init__(self) -> None:
        _check_mac(self.mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a data plane needs to know about its node.

    Attributes:
        vtep: this node's tunnel address; the outer source of everything it sends, and what it
            advertises: a different outer source is dropped by Docker's engines as spoofed.
        port: UDP port of the cluster's VXLAN, 1..65535.
        run_dir: where router namespaces are kept, under ``netns/``.
        check_interval: seconds between two slow comparisons of the kernel with the wanted state.
            Less finds drift sooner and costs about 1 ms per endpoint each time.
        raise_limits: whether :meth:`Dataplane.preflight` raises host limits or only names them.
        exit_pool: IPv4 range out of which a container's leg to the outside gets its address;
            local to the node, never seen on any wire, but not to overlap what the host itself
            reaches (Docker's own bridge is 172.18.0.0/16).
        exit_pool6: the same in IPv6, for containers that have it; at least as many addresses.
        shortcuts: whether packets may pass a router without its IP stack where the kernel can do it.
    """

    vtep: IPAddress
    run_dir: Path
    port: int = 4789
    check_interval: float = 30.0
    raise_limits: bool = True
    exit_pool: IPv4Network = field(default=IPv4Network("172.30.0.0/16"))
    exit_pool6: IPv6Network = field(default=IPv6Network("fd6f:7673:7761:726d::/64"))
    shortcuts: bool = True

    def __post_init__(self) -> None:
        _need(0 < self.port < 65536, f"{self.port} is not a UDP port")
        _need(self.check_interval > 0, "check_interval must be above 0 seconds")
        _need(self.exit_pool.prefixlen <= 24, "exit_pool must hold at least a /24")
        _need(
            self.exit_pool6.num_addresses >= self.exit_pool.num_addresses,
            "exit_pool6 must hold as many addresses as exit_pool",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The whole wanted state of a node, for :meth:`Dataplane.reconcile`."""

    networks: tuple[Network, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    peers: tuple[Peer, ...] = ()
    vips: tuple[tuple[str, IPAddress], ...] = ()
    """Service addresses: (network id, VIP)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An object that could not be brought into its wanted state, and why."""

    kind: Literal["network", "endpoint", "peer"]
    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a reconcile found and did.

    Attributes:
        adopted: endpoints found running and left alone (or repaired in place).
        attached: endpoints plugged anew.
        gone: endpoints whose namespace no longer exists; forgotten, for the caller to withdraw.
        removed: routers (first 12 characters of a network id) that nobody wants any more.
        failed: what is not in its wanted state.
        operations: kernel operations executed; 0 when nothing was to do.
    """

    adopted: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    failed: tuple[Failure, ...] = ()
    operations: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanCounters:
    """Traffic of a network through this node's tunnel, since the devices were made."""

    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One result of the preflight.

    Attributes:
        name: of the limit or feature.
        level: ``ok``; ``raised`` when the limit was too low and no longer is; ``warning`` when it
            is too low and somebody has to act.
        text: a sentence for a person, with the command that helps.
    """

    name: str
    level: Literal["ok", "raised", "warning"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counters of one data plane since its start.

    Attributes:
        networks, endpoints, peers: held now.
        operations: kernel operations executed.
        checks: slow comparisons done.
        drift: operations that a slow comparison found necessary; above 0 somebody else changes
            our objects (or there is a bug).
        failures: calls that ended in an error.
        attach_seconds: how long the latest plug took.
        path_mtu: of the smallest path to another node, bytes; 0 while all take what the device does.
        software_checksums: whether packets to other nodes were found to arrive with wrong checksums,
            and checksums are made before the device since.
    """

    networks: int = 0
    endpoints: int = 0
    peers: int = 0
    operations: int = 0
    checks: int = 0
    drift: int = 0
    failures: int = 0
    attach_seconds: float = 0.0
    path_mtu: int = 0
    software_checksums: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Encryption:
    """What carries the encrypted networks of a node, as the kernel shows it.

    Attributes:
        keys: known to this data plane; None before the first :meth:`Dataplane.set_keys`.
        vnis: guarded.
        peers: tunnel addresses that packets can be sent to.
        associations: in the kernel.
        dropped_in: VXLAN packets of encrypted networks that came outside ESP.
        dropped_out: those that would have left outside ESP, stopped by nftables: above 0
            somebody has tampered with the IPsec policies.
    """

    keys: int | None = None
    vnis: frozenset[int] = frozenset()
    peers: frozenset[IPAddress] = frozenset()
    associations: int = 0
    dropped_in: int = 0
    dropped_out: int = 0


@functools.lru_cache(maxsize=1 << 16)
def host_route(ip: IPAddress) -> IPNetwork:
    """Return the /32 or /128 of ``ip``."""
    return ipaddress.ip_network(ip)
