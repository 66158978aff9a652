"""Our objects as messages of the local API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.message import Message

from agent.node.overlay import Overlay
from agent.node.state import Attachment
from agent.workload.spec import State, Workload
from swarm.api import codec
from swarm.api.overswarm.v1 import local_pb2
from swarm.model import NodeAvailability

_STATES: Final = {
    State.CREATED: local_pb2.CONTAINER_STATE_CREATED,
    State.RUNNING: local_pb2.CONTAINER_STATE_RUNNING,
    State.EXITED: local_pb2.CONTAINER_STATE_EXITED,
    State.DEAD: local_pb2.CONTAINER_STATE_DEAD,
}


def stamp(into: Message, seconds: float | None) -> None:
    """Fill a Timestamp field with seconds since the epoch, if there are any."""
    if seconds is not None:
        into.FromNanoseconds(int(seconds * 1e9))  # type: ignore[attr-defined]  # well-known types have it


def endpoint(attachment: Attachment, networks: Mapping[str, str]) -> local_pb2.LocalEndpoint:
    """Convert an endpoint; ``networks`` has the networks' names by id."""
    return local_pb2.LocalEndpoint(
        endpoint_id=attachment.endpoint_id,
        network_id=attachment.network_id,
        network_name=networks.get(attachment.network_id, ""),
        container_id=attachment.container_id,
        container_name=attachment.container_name,
        attachment_id=attachment.attachment_id,
        interface=attachment.interface,
        mac=attachment.mac,
        addresses=attachment.addresses,
        aliases=attachment.aliases,
        netns=attachment.netns,
    )


def container(
    workload: Workload, endpoints: Iterable[local_pb2.LocalEndpoint]
) -> local_pb2.Container:
    """Convert a workload with its endpoints."""
    spec = workload.spec
    message = local_pb2.Container(
        id=spec.id,
        name=spec.name,
        argv=spec.argv,
        state=_STATES[workload.state],
        pid=workload.pid,
        exit_code=workload.exit_code or 0,
        endpoints=endpoints,
        labels=dict(spec.labels),
        error=workload.message,
        hostname=spec.effective_hostname,
        netns=workload.netns_path,
    )
    stamp(message.created_at, spec.created_at)
    stamp(message.started_at, workload.started_at)
    stamp(message.finished_at, workload.finished_at)
    return message


def network(overlay: Overlay, mtu: int) -> local_pb2.LocalNetwork:
    """Convert a network in use here; the caller adds the counters."""
    message = local_pb2.LocalNetwork(
        endpoints=len(overlay.attachments), peers=len(overlay.peers), mtu=mtu
    )
    message.network.MergeFromString(codec.dumps(overlay.network))
    return message


def remote_endpoints(overlay: Overlay) -> list[local_pb2.RemoteEndpoint]:
    """Convert what gossip knows of a network's endpoints on other nodes."""
    found: list[local_pb2.RemoteEndpoint] = []
    for peer_key in overlay.peers.keys():  # noqa: SIM118  # a method of ours, not a mapping
        peer = overlay.peers.get(peer_key)
        record = overlay.records.get(peer_key)
        if peer is not None:
            found.append(
                local_pb2.RemoteEndpoint(
                    endpoint_id=peer_key,
                    network_id=overlay.network.id,
                    name="" if record is None else record.name,
                    address=f"{peer.ip}/{peer.prefixlen}",
                    mac=peer.mac,
                    vtep=str(peer.vtep),
                    gossip_node=overlay.owners.get(peer_key, ""),
                    service_name="" if record is None else record.service_name,
                )
            )
    return found


def availability(value: int) -> NodeAvailability:
    """Convert a node availability; the numbers are the same."""
    return NodeAvailability(value)
