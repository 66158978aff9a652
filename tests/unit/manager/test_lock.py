"""Autolock: what is on disk follows the cluster object, and survives a crash between two files."""

from __future__ import annotations

from typing import Any

import pytest

from manager.raft.errors import LockedError as RaftLockedError
from manager.raft.keys import is_locked
from swarm.api.docker.swarmkit import ca_pb2, ca_pb2_grpc, control_pb2
from swarm.identity.keystore import KeyStore, LockedError

pytestmark = pytest.mark.slow


async def unlock_key(swarm: Any) -> bytes:
    stub = ca_pb2_grpc.CAStub(swarm.local)
    answer = await stub.GetUnlockKey(ca_pb2.GetUnlockKeyRequest())
    assert answer.version.index == swarm.cluster.meta.version.index
    return bytes(answer.unlock_key)


async def set_autolock(swarm: Any, wanted: bool, *, rotate: bool = False) -> None:
    shown = (await swarm.control.ListClusters(control_pb2.ListClustersRequest())).clusters[0]
    shown.spec.encryption_config.auto_lock_managers = wanted
    await swarm.control.UpdateCluster(
        control_pb2.UpdateClusterRequest(
            cluster_id=shown.id,
            cluster_version=shown.meta.version,
            spec=shown.spec,
            rotation=control_pb2.KeyRotation(manager_unlock_key=rotate),
        )
    )


async def test_without_autolock_the_key_is_empty(swarm: Any) -> None:
    assert await unlock_key(swarm) == b""
    assert KeyStore(swarm.state_dir / "certificates").load() is not None


async def test_a_locked_manager_needs_its_key(stopped_swarm: Any) -> None:
    swarm = stopped_swarm
    swarm.settings = {"autolock": True}
    await swarm.start()
    key = await unlock_key(swarm)
    token = swarm.worker_token
    assert len(key) == 32
    assert is_locked(swarm.state_dir / "raft" / "raft.key")
    with pytest.raises(LockedError):
        KeyStore(swarm.state_dir / "certificates").load()
    await swarm.stop()
    with pytest.raises(RaftLockedError):
        await swarm.start()
    with pytest.raises(RaftLockedError):
        await swarm.start(unlock_key=bytes(32))
    await swarm.start(unlock_key=key)
    assert swarm.worker_token == token
    assert await swarm.worker()


async def test_switching_on_rotating_and_switching_off(swarm: Any) -> None:
    await set_autolock(swarm, True)
    first = await unlock_key(swarm)
    await set_autolock(swarm, True)
    assert await unlock_key(swarm) == first
    await set_autolock(swarm, True, rotate=True)
    second = await unlock_key(swarm)
    assert second not in {first, b""}
    await swarm.stop()
    await swarm.start(unlock_key=second)
    assert KeyStore(swarm.state_dir / "certificates").load(second) is not None
    await set_autolock(swarm, False)
    assert await unlock_key(swarm) == b""
    await swarm.stop()
    await swarm.start()


async def test_a_crash_between_the_two_files_heals(stopped_swarm: Any) -> None:
    """Raft state locked already, private key not yet; and the other way round."""
    swarm = stopped_swarm
    swarm.settings = {"autolock": True}
    await swarm.start()
    key = await unlock_key(swarm)
    await swarm.stop()
    store = KeyStore(swarm.state_dir / "certificates")
    credentials = store.load(key)
    assert credentials is not None
    store.save(credentials)
    await swarm.start(unlock_key=key)
    with pytest.raises(LockedError):
        store.load()
    await swarm.stop()
    store.save(credentials, bytes(32))
    await swarm.start(unlock_key=key)
    assert store.load(key) is not None
    assert await swarm.worker()
