"""Connect and disconnect, foreign namespaces, and what is on which network."""
# ruff: noqa: N802  # the names of RPCs are given

from __future__ import annotations

from agent.api import convert
from agent.api.calls import Context, answering
from agent.api.workloads import Wish, Workloads
from agent.node.state import Attachment
from swarm.api.overswarm.v1 import local_pb2
from swarm.errors import InvalidArgumentError, PreconditionError


def wish(message: local_pb2.NetworkWish, upstreams: tuple[str, ...] = ()) -> Wish:
    """Convert a wish."""
    return Wish(
        network=message.network,
        aliases=tuple(message.aliases),
        ipv4=message.ipv4,
        ipv6=message.ipv6,
        upstreams=upstreams,
    )


class NetworkCalls:
    """The networks' part of the service. RPCs are documented in ``local.proto``."""

    def __init__(self, workloads: Workloads) -> None:
        self._workloads = workloads

    @answering
    async def ConnectNetwork(
        self, request: local_pb2.ConnectNetworkRequest, _: Context
    ) -> local_pb2.ConnectNetworkResponse:
        """Attach a container to one more network."""
        found = await self._workloads.connect(request.container, wish(request.network))
        return local_pb2.ConnectNetworkResponse(endpoint=self._endpoint(found))

    @answering
    async def DisconnectNetwork(
        self, request: local_pb2.DisconnectNetworkRequest, _: Context
    ) -> local_pb2.DisconnectNetworkResponse:
        """Take a container off a network."""
        await self._workloads.disconnect(request.container, request.network, force=request.force)
        return local_pb2.DisconnectNetworkResponse()

    @answering
    async def AttachNamespace(
        self, request: local_pb2.AttachNamespaceRequest, _: Context
    ) -> local_pb2.AttachNamespaceResponse:
        """Put somebody else's namespace on a network."""
        where = request.WhichOneof("where")
        if where == "pid" and request.pid > 0:
            path = f"/proc/{request.pid}/ns/net"
        elif where == "netns_path" and request.netns_path.startswith("/"):
            path = request.netns_path
        else:
            raise InvalidArgumentError("give a process id, or the absolute path of a namespace")
        found = await self._workloads.attach_namespace(
            path, wish(request.network), name=request.name, interface=request.interface
        )
        return local_pb2.AttachNamespaceResponse(endpoint=self._endpoint(found))

    @answering
    async def DetachNamespace(
        self, request: local_pb2.DetachNamespaceRequest, _: Context
    ) -> local_pb2.DetachNamespaceResponse:
        """Take somebody else's namespace off."""
        await self._workloads.detach_namespace(request.endpoint, request.network)
        return local_pb2.DetachNamespaceResponse()

    @answering
    async def ListLocalNetworks(
        self, _: local_pb2.ListLocalNetworksRequest, __: Context
    ) -> local_pb2.ListLocalNetworksResponse:
        """List the networks in use here."""
        answer = local_pb2.ListLocalNetworksResponse()
        member = self._workloads.node.member
        if member is None or member.coordinator is None or member.dataplane is None:
            return answer
        for overlay in member.coordinator.overlays():
            usual = await member.dataplane.path_mtu(encrypted=overlay.spec.encrypted)
            message = convert.network(overlay, min(overlay.spec.mtu or usual, usual))
            counters = await member.coordinator.counters(overlay.network.id)
            message.rx_packets, message.tx_packets = counters.rx_packets, counters.tx_packets
            message.rx_bytes, message.tx_bytes = counters.rx_bytes, counters.tx_bytes
            answer.networks.append(message)
        return answer

    @answering
    async def ListEndpoints(
        self, request: local_pb2.ListEndpointsRequest, _: Context
    ) -> local_pb2.ListEndpointsResponse:
        """List endpoints here and elsewhere."""
        answer = local_pb2.ListEndpointsResponse()
        try:
            coordinator = self._workloads.node.coordinator()
        except PreconditionError:
            if request.network:
                raise
            return answer
        overlays = (
            [coordinator.overlay(request.network)] if request.network else coordinator.overlays()
        )
        for overlay in overlays:
            answer.local.extend(self._endpoint(each) for each in overlay.attachments.values())
            answer.remote.extend(convert.remote_endpoints(overlay))
        return answer

    @answering
    async def GossipStatus(
        self, _: local_pb2.GossipStatusRequest, __: Context
    ) -> local_pb2.GossipStatusResponse:
        """Describe the gossip."""
        member = self._workloads.node.member
        gossip = None if member is None else member.gossip
        if gossip is None:
            raise PreconditionError("gossip is not running: this node is in no swarm, or starting")
        return convert.gossip(gossip)

    def _endpoint(self, attachment: Attachment) -> local_pb2.LocalEndpoint:
        return convert.endpoint(attachment, self._workloads.network_names())
