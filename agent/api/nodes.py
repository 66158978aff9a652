"""Info, Init, Join, Leave."""
# ruff: noqa: N802  # the names of RPCs are given

from __future__ import annotations

import time

from agent.api import convert
from agent.api.calls import Context, answering
from agent.api.workloads import Workloads
from agent.node.describe import version
from agent.node.membership import Lifecycle
from agent.node.node import Node
from agent.node.options import InitOptions, JoinOptions
from agent.workload.spec import State
from swarm.api.docker.swarmkit import types_pb2
from swarm.api.overswarm.v1 import local_pb2

_LIFECYCLES = {
    Lifecycle.INACTIVE: local_pb2.NODE_LIFECYCLE_INACTIVE,
    Lifecycle.PENDING: local_pb2.NODE_LIFECYCLE_PENDING,
    Lifecycle.ACTIVE: local_pb2.NODE_LIFECYCLE_ACTIVE,
    Lifecycle.ERROR: local_pb2.NODE_LIFECYCLE_ERROR,
    Lifecycle.LOCKED: local_pb2.NODE_LIFECYCLE_LOCKED,
}


class NodeCalls:
    """The node's part of the service. RPCs are documented in ``local.proto``."""

    def __init__(self, node: Node, workloads: Workloads) -> None:
        self._node = node
        self._workloads = workloads
        self._started_at = time.time()

    @answering
    async def Info(self, _: local_pb2.InfoRequest, __: Context) -> local_pb2.InfoResponse:
        """Describe this node."""
        node = self._node
        workloads = self._workloads.runtime.list()
        answer = local_pb2.InfoResponse(
            version=version(),
            hostname=node.settings.hostname,
            lifecycle=_LIFECYCLES[node.lifecycle],
            error=node.error,
            containers_running=sum(each.state is State.RUNNING for each in workloads),
            containers_total=len(workloads),
            networks=len(self._workloads.network_names()),
        )
        convert.stamp(answer.started_at, self._started_at)
        if (state := node.state) is not None:
            answer.node_id = state.node_id
            answer.cluster_id = state.cluster_id
            answer.manager = state.manager
            answer.listen_addr = state.addresses.listen
            answer.advertise_addr = state.addresses.advertise
            answer.data_path_addr = state.addresses.data_path
        if (member := node.member) is not None:
            answer.data_path_port = member.data_path_port
            answer.managers.extend(
                types_pb2.Peer(node_id=peer.node_id, addr=peer.addr) for peer in member.managers
            )
        return answer

    @answering
    async def Init(self, request: local_pb2.InitRequest, _: Context) -> local_pb2.InitResponse:
        """Make a cluster."""
        node_id, unlock_key = await self._node.init(
            InitOptions(
                listen_addr=request.listen_addr,
                advertise_addr=request.advertise_addr,
                data_path_addr=request.data_path_addr,
                data_path_port=request.data_path_port,
                default_addr_pools=tuple(request.default_addr_pools),
                default_addr_pool_mask_length=request.default_addr_pool_mask_length,
                availability=convert.availability(request.availability),
                cert_expiry_ns=request.cert_expiry_ns,
                dispatcher_heartbeat_ns=request.dispatcher_heartbeat_ns,
                task_history_limit=request.task_history_limit,
                autolock=request.autolock,
                force_new_cluster=request.force_new_cluster,
                snapshot_interval=request.snapshot_interval,
                max_snapshots=request.max_snapshots,
            )
        )
        return local_pb2.InitResponse(node_id=node_id, unlock_key=unlock_key)

    @answering
    async def Join(self, request: local_pb2.JoinRequest, _: Context) -> local_pb2.JoinResponse:
        """Join a cluster."""
        node_id, manager = await self._node.join(
            JoinOptions(
                remote_addrs=tuple(request.remote_addrs),
                token=request.token.strip(),
                listen_addr=request.listen_addr,
                advertise_addr=request.advertise_addr,
                data_path_addr=request.data_path_addr,
                availability=convert.availability(request.availability),
            )
        )
        return local_pb2.JoinResponse(node_id=node_id, manager=manager)

    @answering
    async def Unlock(
        self, request: local_pb2.UnlockRequest, _: Context
    ) -> local_pb2.UnlockResponse:
        """Unlock this node's manager."""
        await self._node.unlock(request.unlock_key)
        return local_pb2.UnlockResponse()

    @answering
    async def Leave(self, request: local_pb2.LeaveRequest, _: Context) -> local_pb2.LeaveResponse:
        """Leave the cluster."""
        await self._node.leave(force=request.force)
        return local_pb2.LeaveResponse()
