"""Control's clusters (there is one): show, list, change, rotate join tokens and the unlock key."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from manager.api.access import Caller
from manager.api.backend import Backend, nothing
from manager.api.checks import check_labels, present, required, same_version
from manager.api.filters import by_name, has_labels
from manager.api.server import Context
from manager.api.wire import encoded
from manager.ca.authority import new_join_tokens
from manager.ca.rotation import follow_config
from manager.cluster import NAME, SUBSYSTEM_UNLOCK, redacted
from manager.store import Transaction
from swarm.api import codec
from swarm.api.docker.swarmkit import control_pb2
from swarm.errors import InvalidArgumentError, UnimplementedError
from swarm.identity.unlock import new_unlock_key
from swarm.model import Cluster, ClusterSpec, EncryptionKey, JoinTokens

MIN_EXPIRY: Final = 3600 * 1_000_000_000
"""Shortest validity of a node certificate, nanoseconds."""


class Clusters:
    """The cluster RPCs of Control; what leaves here holds no key.

    Args:
        backend: the store and its surroundings.
        follow_lock: locks or unlocks what this manager has on disk as the cluster object says. An
            update is answered only after it, so that who was told a new unlock key needs no other.
    """

    def __init__(self, backend: Backend, follow_lock: Callable[[], Awaitable[None]]) -> None:
        self._backend = backend
        self._follow_lock = follow_lock
        self._store = backend.store

    async def GetCluster(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the cluster by id."""
        await self._backend.barrier()
        cluster = self._store.view.clusters.require(required(request.cluster_id, "cluster ID"))
        return control_pb2.GetClusterResponse(cluster=encoded(redacted(cluster)))

    async def ListClusters(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Return the cluster if it matches."""
        await self._backend.barrier()
        wanted = request.filters
        found = by_name(self._store.view.clusters.all(), wanted, _name)
        return control_pb2.ListClustersResponse(
            clusters=[
                encoded(redacted(cluster))
                for cluster in found
                if has_labels(cluster.spec.annotations.labels, wanted.labels)
            ]
        )

    async def UpdateCluster(self, request: Any, caller: Caller, context: Context) -> Any:  # noqa: ARG002, N802
        """Replace the cluster's spec and rotate what is asked for."""
        cluster_id = required(request.cluster_id, "cluster ID")
        version = present(request, "cluster_version").index
        spec = codec.decode(ClusterSpec, present(request, "spec"))
        rotation = request.rotation
        _check(spec)

        def build(tx: Transaction) -> None:
            cluster = tx.clusters.require(cluster_id)
            same_version(cluster.meta, version)
            root = follow_config(cluster.root_ca, spec.ca_config, now=self._backend.clock.now())
            cluster = replace(cluster, spec=_without_root(spec), root_ca=root)
            cluster = with_new_tokens(
                cluster, worker=rotation.worker_join_token, manager=rotation.manager_join_token
            )
            tx.update(with_lock(cluster, fresh=rotation.manager_unlock_key))

        await self._backend.once(caller, build, repeated=nothing)
        await self._follow_lock()
        cluster = self._store.view.clusters.require(cluster_id)
        return control_pb2.UpdateClusterResponse(cluster=encoded(redacted(cluster)))


def with_new_tokens(cluster: Cluster, *, worker: bool, manager: bool) -> Cluster:
    """Replace the asked join tokens; nodes that joined already are not affected."""
    made = new_join_tokens(cluster.root_ca.ca_cert, secrets.token_bytes, fips=cluster.fips)
    present_ones = cluster.root_ca.join_tokens
    tokens = JoinTokens(
        worker=made.worker if worker else present_ones.worker,
        manager=made.manager if manager else present_ones.manager,
    )
    return replace(cluster, root_ca=replace(cluster.root_ca, join_tokens=tokens))


def with_lock(cluster: Cluster, *, fresh: bool) -> Cluster:
    """Make the unlock key follow the spec: present exactly with autolock, new when asked."""
    others = tuple(key for key in cluster.unlock_keys if key.subsystem != SUBSYSTEM_UNLOCK)
    if not cluster.spec.encryption_config.auto_lock_managers:
        return replace(cluster, unlock_keys=others)
    if len(others) < len(cluster.unlock_keys) and not fresh:
        return cluster
    key = EncryptionKey(subsystem=SUBSYSTEM_UNLOCK, key=new_unlock_key())
    return replace(cluster, unlock_keys=(*others, key))


def _check(spec: ClusterSpec) -> None:
    check_labels(spec.annotations.labels)
    if spec.annotations.name != NAME:
        raise InvalidArgumentError("modification of cluster name is not allowed")
    expiry = spec.ca_config.node_cert_expiry
    if expiry is not None and expiry < MIN_EXPIRY:
        raise InvalidArgumentError("minimum certificate expiry time is: 1h0m0s")
    if spec.ca_config.external_cas:
        raise UnimplementedError("external certificate authorities are not offered")
    heartbeat = spec.dispatcher.heartbeat_period
    if heartbeat is not None and heartbeat < 0:
        raise InvalidArgumentError("heartbeat time period cannot be a negative duration")


def _without_root(spec: ClusterSpec) -> ClusterSpec:
    """Drop a given root and its key: the cluster object has them where they belong, once."""
    return replace(spec, ca_config=replace(spec.ca_config, signing_ca_cert=b"", signing_ca_key=b""))


def _name(cluster: Cluster) -> str:
    return cluster.spec.annotations.name
