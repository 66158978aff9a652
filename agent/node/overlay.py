"""One network on this node: its endpoints here, its peers elsewhere, what gossip said of it."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import dataclass, field

import structlog

from agent.balancer.table import backend_of
from agent.dataplane.model import Endpoint, IPAddress, NetnsRef, Network, Peer
from agent.discovery.names import NameRecord, NameTable
from agent.gossip.records import (
    ENDPOINT_TABLE,
    PEER_TABLE,
    EndpointRecord,
    decode_endpoint_untrusted,
    decode_peer_untrusted,
)
from agent.node.memory import EntryLog
from agent.node.peers import PeerChange, PeerTable
from agent.node.seams import BalancerPort, MeshPort
from agent.node.state import Attachment
from swarm import model
from swarm.errors import WireError

log = structlog.get_logger(component="overlay")


def endpoint_of(attachment: Attachment) -> Endpoint:
    """Return an attachment as the data plane wants it."""
    return Endpoint(
        id=attachment.endpoint_id,
        network_id=attachment.network_id,
        container=attachment.container_name,
        netns=NetnsRef(path=attachment.netns),
        ifname=attachment.interface,
        mac=attachment.mac,
        addresses=tuple(ipaddress.ip_interface(address) for address in attachment.addresses),
        default_route=attachment.default_route,
    )


def ips_of(attachment: Attachment) -> list[IPAddress]:
    """Return an attachment's bare addresses."""
    return [ipaddress.ip_interface(address).ip for address in attachment.addresses]


@dataclass(slots=True, kw_only=True)
class Overlay:
    """Everything this node knows of one network.

    Attributes:
        network: as the manager described it.
        spec: as the data plane has it.
        peers: remote endpoints out of gossip.
        memory: the same over restarts.
        lock: held while endpoints come and go, and while peers are applied.
        attachments: the endpoints here, by endpoint id.
        prepared: the data plane has the network.
        closed: the last endpoint went; make a new object.
        pending: addresses whose peer changed since the data plane was told.
        records: endpoint records of others, for people who ask.
        balancer: hears of services' backends.
        mesh: hears of those on the ingress network.
        held: this node takes part whether it has endpoints or not.
        owners: names of the gossip nodes that wrote peer records, likewise.
        silent: keys of endpoint records whose owners are not heard any more.
    """

    network: model.Network
    spec: Network
    peers: PeerTable
    memory: EntryLog
    balancer: BalancerPort
    mesh: MeshPort
    held: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    attachments: dict[str, Attachment] = field(default_factory=dict)
    prepared: bool = False
    closed: bool = False
    pending: dict[IPAddress, Peer | None] = field(default_factory=dict)
    records: dict[str, EndpointRecord] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def take(self, table: str, key: str, value: bytes | None, names: NameTable) -> None:
        """Take one entry of a table (None: deleted) into peers and names; nonsense is refused."""
        if table == PEER_TABLE:
            self._take_peer(key, value)
            self.mesh.touch(self.network.id)
        elif table == ENDPOINT_TABLE:
            self._take_endpoint(key, value, names)

    def note(self, changes: list[PeerChange]) -> None:
        """Remember what the data plane has to be told."""
        for change in changes:
            if change.put is not None:
                self.pending[change.put.ip] = change.put
            elif change.remove is not None:
                self.pending[change.remove] = None

    def _take_peer(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.note(self.peers.delete(key))
            return
        try:
            record = decode_peer_untrusted(value)
        except WireError as error:
            log.warning("peer.record.refused", network=self.network.id, key=key, reason=str(error))
            self.note(self.peers.delete(key))
            return
        before = sum(self.peers.refused.values())
        self.note(self.peers.put(key, record))
        if sum(self.peers.refused.values()) != before:
            log.debug("peer.record.refused", network=self.network.id, key=key, peer=record)

    def _take_endpoint(self, key: str, value: bytes | None, names: NameTable) -> None:
        record = None
        if value is not None:
            try:
                record = decode_endpoint_untrusted(value)
            except WireError as error:
                log.warning(
                    "endpoint.record.refused", network=self.network.id, key=key, reason=str(error)
                )
        if record is None:
            self._drop_endpoint(key, names)
            return
        address = ipaddress.ip_address(record.endpoint_ip)
        if self.spec.subnet_of(address) is None:
            log.warning("endpoint.record.foreign", network=self.network.id, key=key)
            self._drop_endpoint(key, names)
            return
        self.records[key] = record
        self.silent.discard(key)
        self.balance(key, record, local=False)
        names.put(
            self.network.id,
            key,
            NameRecord(
                name=record.name,
                addresses=(address,),
                service_name=record.service_name,
                service_id=record.service_id,
                virtual_ips=(ipaddress.ip_address(record.virtual_ip),) if record.virtual_ip else (),
                aliases=record.aliases,
                task_aliases=record.task_aliases,
                disabled=record.service_disabled,
            ),
        )

    def _drop_endpoint(self, key: str, names: NameTable) -> None:
        self.records.pop(key, None)
        self.silent.discard(key)
        names.remove(self.network.id, key)
        self.unbalance(key)

    def fade(self, key: str) -> None:
        """Lead new flows elsewhere, if there is an elsewhere: the record's owner is not heard any more."""
        record = self.records.get(key)
        if record is not None and key not in self.silent:
            self.silent.add(key)
            self.balance(key, record, local=False)

    def unbalance(self, key: str) -> None:
        """Tell balancer and mesh that a record is gone."""
        self.balancer.remove(self.network.id, key)
        self.mesh.remove(self.network.id, key)

    def balance(self, key: str, record: EndpointRecord, *, local: bool) -> None:
        """Tell balancer and mesh of a record; a virtual address that cannot be one counts as none."""
        silent = not local and key in self.silent
        self.mesh.put(self.network.id, key, record, local=local, silent=silent)
        ip = ipaddress.ip_address(record.endpoint_ip)
        vip = ipaddress.ip_address(record.virtual_ip) if record.virtual_ip else None
        subnet = None if vip is None else self.spec.subnet_of(vip)
        if (
            vip is None
            or subnet is None
            or vip in {ip, subnet.gateway}
            or vip.version != ip.version
        ):
            self.balancer.remove(self.network.id, key)
            return
        self.balancer.put(
            self.network.id, key, backend_of(record, vip, ip, local=local, silent=silent)
        )
