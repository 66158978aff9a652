"""The endpoints on other nodes of one network, out of gossip records. Pure.

Several records may claim one address (an endpoint that moved, an address given again before the old
record died): the first that came stays in force, and when it goes the next takes over, as in every
engine. What cannot be true (another subnet, our own address, our own tunnel) is refused with a reason.

Source: libnetwork ``drivers/overlay/peerdb.go``, ``joinleave.go``.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from agent.dataplane.model import IPAddress, Network, Peer
from agent.gossip.records import PeerRecord
from swarm.errors import InvalidArgumentError


class Refusal(StrEnum):
    """Why a peer record is not used."""

    OWN_TUNNEL = "own_tunnel"
    TUNNEL_FAMILY = "tunnel_family"
    BAD_TUNNEL = "bad_tunnel"
    FOREIGN_SUBNET = "foreign_subnet"
    PREFIX_LENGTH = "prefix_length"
    GATEWAY = "gateway"
    OWN_ADDRESS = "own_address"
    BAD_MAC = "bad_mac"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChange:
    """What the data plane has to do for one address."""

    put: Peer | None = None
    remove: IPAddress | None = None


class PeerTable:
    """The peers of one network.

    Args:
        network: whose subnets decide what may be a peer.
        vtep: this node's tunnel address.
    """

    __slots__ = ("_by_ip", "_by_key", "_fading", "_own", "network", "refused", "vtep")

    def __init__(self, network: Network, vtep: IPAddress) -> None:
        self.network = network
        self.vtep = vtep
        self.refused: dict[Refusal, int] = {}
        self._by_key: dict[str, Peer] = {}
        self._by_ip: dict[
            IPAddress, list[str]
        ] = {}  # keys in order of arrival; the first is in force
        self._own: set[IPAddress] = set()
        self._fading: set[str] = (
            set()
        )  # keys that count only until somebody else claims the address

    def __len__(self) -> int:
        return len(self._by_ip)

    def put(self, key: str, record: PeerRecord) -> list[PeerChange]:
        """Take a record (new or changed) and return what changes; a refused one withdraws the old."""
        peer = self._checked(record)
        if isinstance(peer, Refusal):
            self._count(peer)
            return self._withdraw(key)
        if self._by_key.get(key) == peer and key not in self._fading:
            return []
        changes = self._withdraw(key)
        if peer.ip in self._own:
            self._count(Refusal.OWN_ADDRESS)  # kept all the same: it counts once ours is gone
        self._by_key[key] = peer
        keys = self._by_ip.setdefault(peer.ip, [])
        behind = next((i for i, other in enumerate(keys) if other in self._fading), len(keys))
        keys.insert(behind, key)
        if behind == 0 and peer.ip not in self._own:
            changes.append(PeerChange(put=peer))
        return _condensed(changes)

    def delete(self, key: str) -> list[PeerChange]:
        """Forget a record and return what changes; unknown ones are fine."""
        return self._withdraw(key)

    def fade(self, key: str) -> list[PeerChange]:
        """Keep a record whose owner went silent, behind any other record for its address."""
        peer = self._by_key.get(key)
        if peer is None or key in self._fading:
            return []
        keys = self._by_ip[peer.ip]
        first = keys[0]
        keys.remove(key)
        keys.append(key)
        self._fading.add(key)
        if keys[0] == first or peer.ip in self._own:
            return []
        return [PeerChange(put=self._by_key[keys[0]])]

    def fading(self, key: str) -> bool:
        """Tell whether a record counts only until somebody else claims its address."""
        return key in self._fading

    def claim(self, addresses: Iterable[IPAddress]) -> list[PeerChange]:
        """Note addresses of this node's own endpoints: no record of others counts for them."""
        changes: list[PeerChange] = []
        for ip in addresses:
            if ip not in self._own:
                self._own.add(ip)
                if ip in self._by_ip:
                    changes.append(PeerChange(remove=ip))
        return changes

    def release(self, addresses: Iterable[IPAddress]) -> list[PeerChange]:
        """Note that own endpoints are gone; records of others for their addresses count again."""
        changes: list[PeerChange] = []
        for ip in addresses:
            self._own.discard(ip)
            if ip in self._by_ip:
                changes.append(PeerChange(put=self._by_key[self._by_ip[ip][0]]))
        return changes

    def peers(self) -> list[Peer]:
        """Return the peers in force."""
        return [self._by_key[keys[0]] for ip, keys in self._by_ip.items() if ip not in self._own]

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all accepted records, in force or waiting."""
        return tuple(self._by_key)

    def get(self, key: str) -> Peer | None:
        """Return the accepted record under a key, in force or waiting."""
        return self._by_key.get(key)

    def _withdraw(self, key: str) -> list[PeerChange]:
        old = self._by_key.pop(key, None)
        self._fading.discard(key)
        if old is None:
            return []
        keys = self._by_ip[old.ip]
        in_force = keys[0] == key
        keys.remove(key)
        if not keys:
            del self._by_ip[old.ip]
        if old.ip in self._own or not in_force:
            return []
        if keys:
            return [PeerChange(put=self._by_key[keys[0]])]
        return [PeerChange(remove=old.ip)]

    def _checked(self, record: PeerRecord) -> Peer | Refusal:
        interface = ipaddress.ip_interface(record.endpoint_ip)
        tunnel = ipaddress.ip_address(record.tunnel_endpoint_ip)
        subnet = self.network.subnet_of(interface.ip)
        if tunnel == self.vtep:
            return Refusal.OWN_TUNNEL
        if tunnel.version != self.vtep.version:
            return Refusal.TUNNEL_FAMILY
        if tunnel.is_multicast or tunnel.is_unspecified or tunnel.is_loopback or _broadcast(tunnel):
            return Refusal.BAD_TUNNEL
        if subnet is None:
            return Refusal.FOREIGN_SUBNET
        if interface.network.prefixlen != subnet.cidr.prefixlen:
            return Refusal.PREFIX_LENGTH
        if interface.ip == subnet.gateway:
            return Refusal.GATEWAY
        try:
            return Peer(
                network_id=self.network.id,
                ip=interface.ip,
                prefixlen=interface.network.prefixlen,
                mac=record.endpoint_mac,
                vtep=tunnel,
            )
        except InvalidArgumentError:
            return Refusal.BAD_MAC

    def _count(self, reason: Refusal) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


def _broadcast(ip: IPAddress) -> bool:
    return ip.version == 4 and int(ip) == 0xFFFFFFFF


def _condensed(changes: list[PeerChange]) -> list[PeerChange]:
    """Drop a removal that a put for the same address follows: puts replace."""
    put = {change.put.ip for change in changes if change.put is not None}
    return [change for change in changes if change.remove is None or change.remove not in put]
