"""Control's nodes: show, list, change, remove."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from manager.api.access import Caller
from manager.api.backend import Backend, nothing
from manager.api.checks import check_labels, present, required, same_version
from manager.api.filters import by_name, has_labels, one_of
from manager.api.removal import check_removal, once_heard
from manager.api.server import Context
from manager.api.wire import encoded
from manager.cluster import blacklisted
from manager.raft.config import MAX_VOTERS
from manager.store import Transaction
from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2
from swarm.errors import PreconditionError
from swarm.model import ManagerStatus, Node, NodeRole, NodeSpec, NodeState

OWN_AGENT_LABEL: Final = "overswarm.version"
"""Engine label of this project's own agent."""

FULL: Final = f"the swarm has {MAX_VOTERS} managers already, and more would only slow every write"
LAST_DEMOTED: Final = "attempting to demote the last manager of the swarm"

NO_DESCRIPTION: Final[Mapping[str, str]] = {}


class Nodes:
    """The node RPCs of Control."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._store = backend.store

    async def GetNode(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return one node by id."""
        await self._backend.barrier()
        node = self._store.view.nodes.require(required(request.node_id, "node ID"))
        return control_pb2.GetNodeResponse(node=encoded(self._shown(node)))

    async def ListNodes(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the nodes that match; a node's name is its hostname."""
        await self._backend.barrier()
        wanted = request.filters
        found = by_name(self._store.view.nodes.all(), wanted, _hostname)
        return control_pb2.ListNodesResponse(
            nodes=[
                encoded(self._shown(node))
                for node in found
                if has_labels(_engine_labels(node), wanted.labels)
                and has_labels(node.spec.annotations.labels, wanted.node_labels)
                and one_of(int(node.spec.membership), wanted.memberships)
                and one_of(int(node.role), wanted.roles)
            ]
        )

    async def UpdateNode(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Replace a node's spec."""
        node_id = required(request.node_id, "node ID")
        version = present(request, "node_version").index
        spec = codec.decode(NodeSpec, present(request, "spec"))
        check_labels(spec.annotations.labels)

        def build(tx: Transaction) -> None:
            node = tx.nodes.require(node_id)
            same_version(node.meta, version)
            if spec.desired_role is not node.spec.desired_role:
                check_role(node, spec.desired_role, self._backend.managers())
            tx.update(replace(node, spec=spec))

        await once_heard(lambda: self._backend.once(caller, build, repeated=nothing))
        node = self._store.view.nodes.require(node_id)
        return control_pb2.UpdateNodeResponse(node=encoded(self._shown(node)))

    async def RemoveNode(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Remove a node, its tasks with it, and refuse its certificate from now on."""
        node_id = required(request.node_id, "node ID")
        force = bool(request.force)

        def build(tx: Transaction) -> None:
            node = tx.nodes.require(node_id)
            if node_id in self._backend.managers():
                raise PreconditionError(
                    f"node {node_id} is a cluster manager and is a member of the raft cluster. "
                    "It must be demoted to worker before removal"
                )
            if node.status.state is NodeState.READY and not force:
                raise PreconditionError(f"node {node_id} is not down and can't be removed")
            tx.update(blacklisted(tx.clusters.only(), node, self._backend.clock.wall()))
            for task in tx.tasks.by_node(node_id):
                tx.delete(task)
            tx.delete(node)

        await self._backend.once(caller, build, repeated=nothing)
        return control_pb2.RemoveNodeResponse()

    def _shown(self, node: Node) -> Node:
        status = self._backend.managers().get(node.id)
        return node if status is None else replace(node, manager_status=status)


def check_role(node: Node, wanted: NodeRole, managers: Mapping[str, ManagerStatus]) -> None:
    """Check that a node may get another role.

    Args:
        node: as it is.
        wanted: the role it shall have.
        managers: the raft members by node id.

    Raises:
        PreconditionError: it cannot be a manager of this swarm, or must stay one.
    """
    if wanted is NodeRole.MANAGER:
        if not runs_our_agent(node):
            raise PreconditionError(
                f"node {node.id} cannot become a manager: the managers of this swarm replicate their "
                "state in a way of their own, which other engines do not speak"
            )
        if len(managers) >= MAX_VOTERS:
            raise PreconditionError(FULL)
    elif node.id in managers:
        check_removal(node.id, managers, LAST_DEMOTED)


def runs_our_agent(node: Node) -> bool:
    """Say whether a node described itself as running this project's agent."""
    return OWN_AGENT_LABEL in _engine_labels(node)


def _hostname(node: Node) -> str:
    return node.description.hostname if node.description else ""


def _engine_labels(node: Node) -> Mapping[str, str]:
    if node.description is None or node.description.engine is None:
        return NO_DESCRIPTION
    return node.description.engine.labels
