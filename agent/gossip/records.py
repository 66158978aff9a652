"""The values of the two tables every engine writes: endpoints and peers.

Source: the records of libnetwork's service discovery and overlay driver, as stock engines write
them. Rules of the wire that writers must keep: ``endpoint_ip`` has no prefix length in an endpoint
record and has one in a peer record; a virtual address that does not exist is the text ``<nil>``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from google.protobuf.message import DecodeError

from swarm.api.networkdb import endpoint_pb2, peer_pb2
from swarm.errors import WireError

ENDPOINT_TABLE: Final = "endpoint_table"
PEER_TABLE: Final = "overlay_peer_table"
NO_VIRTUAL_IP: Final = "<nil>"
MAX_LIST: Final = 1024  # aliases or ports in one record
MAX_TEXT: Final = 1024  # characters of a name
_DISABLED_TAG: Final = b"\x48"  # field 9 as a varint
_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")


class Protocol(IntEnum):
    """Transport protocol of a published port."""

    TCP = 0
    UDP = 1
    SCTP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PortConfig:
    """One published port of a service; 0 to 65535 each."""

    name: str = ""
    protocol: Protocol = Protocol.TCP
    target_port: int
    published_port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Balancing:
    """How flows are spread over a service's backends.

    Attributes:
        weight: share of this backend, from 1.
        sticky: a client keeps its backend.
        prefer_local: backends of the client's own node come first.
    """

    weight: int = 1
    sticky: bool = False
    prefer_local: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRecord:
    """What an endpoint is called, and which service it serves.

    Attributes:
        name: the container's name; what its address resolves back to.
        service_name: DNS name of the service; empty for a container attached by itself.
        service_id: empty for a container attached by itself.
        virtual_ip: the service's address without prefix length; "" when it has none.
        endpoint_ip: the endpoint's address without prefix length.
        ingress_ports: only in records on the ingress network.
        aliases: further names of the service on this network.
        task_aliases: further names of this endpoint alone.
        service_disabled: draining: out of names and balancing, yet still there.
        balancing: None for the usual; engines neither write nor read it.
    """

    name: str
    service_name: str = ""
    service_id: str = ""
    virtual_ip: str = ""
    endpoint_ip: str
    ingress_ports: tuple[PortConfig, ...] = ()
    aliases: tuple[str, ...] = ()
    task_aliases: tuple[str, ...] = ()
    service_disabled: bool = False
    balancing: Balancing | None = None

    def encode(self) -> bytes:
        """Return the value to put into the endpoint table."""
        balancing = self.balancing
        return endpoint_pb2.EndpointRecord(
            name=self.name,
            service_name=self.service_name,
            service_id=self.service_id,
            virtual_ip=self.virtual_ip or NO_VIRTUAL_IP,
            endpoint_ip=self.endpoint_ip,
            ingress_ports=[
                endpoint_pb2.PortConfig(
                    name=port.name,
                    protocol=endpoint_pb2.PortConfig.Protocol.Name(port.protocol),  # type: ignore[arg-type]
                    target_port=port.target_port,
                    published_port=port.published_port,
                )
                for port in self.ingress_ports
            ],
            aliases=self.aliases,
            task_aliases=self.task_aliases,
            service_disabled=self.service_disabled,
            balancing=None
            if balancing is None
            else endpoint_pb2.Balancing(
                weight=balancing.weight,
                sticky=balancing.sticky,
                prefer_local=balancing.prefer_local,
            ),
        ).SerializeToString(deterministic=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRecord:
    """Where an endpoint's frames are to be sent.

    Attributes:
        endpoint_ip: with prefix length.
        endpoint_mac: six hexadecimal pairs with colons.
        tunnel_endpoint_ip: data path address of the host that has the endpoint.
    """

    endpoint_ip: str
    endpoint_mac: str
    tunnel_endpoint_ip: str

    def encode(self) -> bytes:
        """Return the value to put into the peer table."""
        return peer_pb2.PeerRecord(
            endpoint_ip=self.endpoint_ip,
            endpoint_mac=self.endpoint_mac,
            tunnel_endpoint_ip=self.tunnel_endpoint_ip,
        ).SerializeToString(deterministic=True)


def decode_endpoint_untrusted(value: bytes) -> EndpointRecord:
    """Return the endpoint record in ``value``.

    A virtual address that is no address (``<nil>`` among them) becomes "".

    Raises:
        WireError: malformed, beyond a bound, or without a name and an address.
    """
    message = endpoint_pb2.EndpointRecord()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise WireError("endpoint record is malformed") from error
    if max(len(message.ingress_ports), len(message.aliases), len(message.task_aliases)) > MAX_LIST:
        raise WireError(f"endpoint record lists more than {MAX_LIST} aliases or ports")
    if not message.name:
        raise WireError("endpoint record has no name")
    return EndpointRecord(
        name=_text(message.name),
        service_name=_text(message.service_name),
        service_id=_text(message.service_id),
        virtual_ip=_address(message.virtual_ip) or "",
        endpoint_ip=_required_address(message.endpoint_ip),
        ingress_ports=tuple(_port(port) for port in message.ingress_ports),
        aliases=tuple(_text(alias) for alias in message.aliases),
        task_aliases=tuple(_text(alias) for alias in message.task_aliases),
        service_disabled=message.service_disabled,
        balancing=_balancing(message.balancing) if message.HasField("balancing") else None,
    )


def decode_peer_untrusted(value: bytes) -> PeerRecord:
    """Return the peer record in ``value``.

    Raises:
        WireError: malformed, or an address in it is.
    """
    message = peer_pb2.PeerRecord()
    try:
        message.ParseFromString(value)
    except DecodeError as error:
        raise WireError("peer record is malformed") from error
    if "/" not in message.endpoint_ip:
        raise WireError("endpoint address of a peer record has no prefix length")
    try:
        interface = ipaddress.ip_interface(_text(message.endpoint_ip))
    except ValueError as error:
        raise WireError("endpoint address of a peer record is malformed") from error
    if not _MAC.fullmatch(message.endpoint_mac):
        raise WireError("MAC address of a peer record is malformed")
    return PeerRecord(
        endpoint_ip=str(interface),
        endpoint_mac=message.endpoint_mac.lower(),
        tunnel_endpoint_ip=_required_address(message.tunnel_endpoint_ip),
    )


def is_draining(table: str, value: bytes) -> bool:
    """Tell whether an entry is a draining endpoint, which older engines must see as an update.

    Docker up to 28 revives a draining backend when it arrives as a created entry, and ignores
    updates of any other kind; from 29 on the kind of event carries no meaning.
    """
    if table != ENDPOINT_TABLE or _DISABLED_TAG not in value:
        return False  # the tag's absence is proof enough, and asked about every entry
    try:
        return decode_endpoint_untrusted(value).service_disabled
    except WireError:
        return False


def _balancing(message: endpoint_pb2.Balancing) -> Balancing:
    return Balancing(
        weight=max(message.weight, 1), sticky=message.sticky, prefer_local=message.prefer_local
    )


def _port(port: endpoint_pb2.PortConfig) -> PortConfig:
    if max(port.target_port, port.published_port) > 0xFFFF or port.protocol > Protocol.SCTP:
        raise WireError("port of an endpoint record is malformed")
    return PortConfig(
        name=_text(port.name),
        protocol=Protocol(port.protocol),
        target_port=port.target_port,
        published_port=port.published_port,
    )


def _text(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise WireError(f"text in a record has more than {MAX_TEXT} characters")
    return value


def _address(value: str) -> str | None:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        return None


def _required_address(value: str) -> str:
    address = _address(value)
    if address is None:
        raise WireError("address in a record is malformed")
    return address
