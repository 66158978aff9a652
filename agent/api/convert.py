"""Our objects as messages of the local API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from google.protobuf.message import Message

from agent.gossip.service import Gossip, Member
from agent.node.overlay import Overlay
from agent.node.state import Attachment
from agent.workload.spec import State, Workload
from swarm.api import codec
from swarm.api.overswarm.v1 import local_pb2
from swarm.identity.sockets import join_address
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
    workload: Workload,
    endpoints: Iterable[local_pb2.LocalEndpoint],
    published: Iterable[str] = (),
) -> local_pb2.Container:
    """Convert a workload with its endpoints and published ports."""
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
        published=published,
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
    """Convert what gossip knows of a network's endpoints on other nodes.

    A way that is kept although its node is not heard and its name is gone is left out.
    """
    found: list[local_pb2.RemoteEndpoint] = []
    for peer_key in overlay.peers.keys():  # noqa: SIM118  # a method of ours, not a mapping
        peer = overlay.peers.get(peer_key)
        record = overlay.records.get(peer_key)
        kept = record is None and overlay.peers.fading(peer_key)
        if peer is not None and not kept:
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


def gossip(running: Gossip) -> local_pb2.GossipStatusResponse:
    """Convert what the gossip layer says of itself."""
    stats = running.stats()
    return local_pb2.GossipStatusResponse(
        self_name=running.node_name,
        members=[_member(each) for each in running.members()],
        networks=sorted(running.networks()),
        key_fingerprints=stats.keys,
        health_score=stats.health,
        counters={
            **{f"queue.{name}": count for name, count in stats.queues.items()},
            **{f"refused.{cause}": count for cause, count in stats.refused.items()},
            **{f"traffic.{name}": count for name, count in stats.traffic.items()},
            "entries": stats.entries,
            "pending_syncs": stats.pending_syncs,
            "dropped": stats.dropped,
            "trimmed": stats.trimmed,
            "largest_frame": stats.largest_frame,
            "stalled_seconds": int(stats.stalled),
        },
        tables=[
            local_pb2.GossipTable(
                network=each.network,
                table=each.table,
                entries=each.visible,
                own=each.own,
                tombstones=each.tombstones,
                hidden=each.hidden,
            )
            for each in running.tables()
        ],
        network_states=[
            local_pb2.GossipNetwork(
                id=each.id,
                peers=each.peers,
                in_sync=each.in_sync,
                own_queue=each.own_queue,
                relay_queue=each.relay_queue,
            )
            for each in running.network_states()
        ],
        seeds=[join_address(host, port) for host, port in running.seeds()],
    )


def _member(member: Member) -> local_pb2.GossipMember:
    message = local_pb2.GossipMember(
        name=member.name,
        address=join_address(member.host, member.port),
        state=member.state.name.lower(),
        incarnation=member.incarnation,
        networks=member.networks,
    )
    if member.compared is not None:
        message.comparison.age = member.compared
        message.comparison.entries = member.entries
        message.comparison.lacking = member.lacking
    return message
