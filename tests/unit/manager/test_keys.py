"""Rotation of the network keys on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from manager.api.keys import PAUSE
from swarm.api.overswarm.v1 import keys_pb2, keys_pb2_grpc

pytestmark = pytest.mark.slow
Code = Callable[..., Any]


def lamports(swarm: Any, subsystem: str) -> list[int]:
    """Return the tags of one subsystem's keys, in order."""
    keys = swarm.cluster.network_bootstrap_keys
    return sorted(key.lamport_time for key in keys if key.subsystem == subsystem)


async def test_one_generation_goes_and_one_comes(swarm: Any, code_of: Code) -> None:
    """Each subsystem loses its oldest key and gets a newer one; the answer names the newest of all."""
    stub = keys_pb2_grpc.KeysStub(swarm.local)
    before = {each: lamports(swarm, each) for each in ("networking:gossip", "networking:ipsec")}
    answer = await stub.RotateKeys(keys_pb2.RotateKeysRequest())
    for subsystem, tags in before.items():
        after = lamports(swarm, subsystem)
        assert after[:2] == tags[1:]
        assert after[2] > max(before["networking:gossip"] + before["networking:ipsec"])
    assert answer.lamport_time == swarm.cluster.encryption_key_lamport_clock
    assert answer.lamport_time >= max(
        lamports(swarm, "networking:gossip")[2], lamports(swarm, "networking:ipsec")[2]
    )


async def test_a_second_one_at_once_is_refused(swarm: Any, code_of: Code) -> None:
    """Engines take over one generation at a time: the next is made only when the last has arrived."""
    later = 0
    real = swarm.clock.monotonic
    object.__setattr__(swarm.clock, "monotonic", lambda: real() + later)
    stub = keys_pb2_grpc.KeysStub(swarm.local)
    await stub.RotateKeys(keys_pb2.RotateKeysRequest())
    held = lamports(swarm, "networking:gossip")
    code, text = await code_of(stub.RotateKeys(keys_pb2.RotateKeysRequest()))
    assert code == "FAILED_PRECONDITION"
    assert "one generation at a time" in text
    assert lamports(swarm, "networking:gossip") == held
    later = PAUSE * 1_000_000_000
    await stub.RotateKeys(keys_pb2.RotateKeysRequest())
    assert lamports(swarm, "networking:gossip") != held


async def test_only_managers_may_rotate(swarm: Any, code_of: Code) -> None:
    """A worker's certificate does not reach the keys."""
    engine = await swarm.engine().join(swarm.worker_token)
    stub = keys_pb2_grpc.KeysStub(engine.channel(engine.credentials))
    code, text = await code_of(stub.RotateKeys(keys_pb2.RotateKeysRequest()))
    assert code == "PERMISSION_DENIED"
    assert "swarm-manager" in text
