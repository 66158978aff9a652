"""The converter between the model and the wire."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import types
import typing
from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarm import model
from swarm.api import codec
from swarm.api.docker.swarmkit import dispatcher_pb2, objects_pb2
from swarm.errors import WireError

OBJECTS = (model.Cluster, model.Node, model.Network, model.Service, model.Task)
ALL = tuple(
    each
    for each in vars(model).values()
    if isinstance(each, type) and dataclasses.is_dataclass(each)
)
HINTS = {each: typing.get_type_hints(each) for each in ALL}
TEXTS = ("", "a", "web", "\u00e9\u4e16", "x" * 300)
OPAQUE = (b"", b"\xfa\x3f\x02hi")
"""A message carried untouched: an unknown field survives every hop."""


def value_of(hint: Any, rng: random.Random, owner: type[Any], name: str) -> Any:
    """Return some value of a field's type that its wire type can carry."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        (inner,) = (each for each in arguments if each is not type(None))
        return None if rng.random() < 0.4 else value_of(inner, rng, owner, name)
    if origin is tuple:
        return tuple(value_of(arguments[0], rng, owner, name) for _ in range(rng.randrange(3)))
    if origin is Mapping:
        keys = rng.sample(TEXTS, rng.randrange(3))
        return {key: value_of(arguments[1], rng, owner, name) for key in keys}
    if hint in HINTS:
        return object_of(hint, rng)
    if issubclass(hint, IntEnum):
        return rng.choice(list(hint))
    if hint is bytes:
        field = codec._table(owner).message().DESCRIPTOR.fields_by_name[name.rstrip("_")]
        return rng.choice(OPAQUE if field.message_type is not None else (b"", b"\0\xff"))
    choices: dict[Any, tuple[Any, ...]] = {
        str: TEXTS,
        bool: (False, True),
        int: (0, 1, 127, 128, 2**31 - 1),
    }
    return rng.choice(choices[hint])


def object_of(kind: type[Any], rng: random.Random) -> Any:
    """Return some value of a model class."""
    content = {name: value_of(hint, rng, kind, name) for name, hint in HINTS[kind].items()}
    for union in codec._table(kind).message().DESCRIPTOR.oneofs:  # at most one member is present
        members = [name for name in content if name.rstrip("_") in {f.name for f in union.fields}]
        chosen = rng.choice(members)
        content.update({name: None for name in members if name != chosen})
    return kind(**content)


@settings(max_examples=30, deadline=None)
@pytest.mark.parametrize("kind", ALL, ids=lambda each: each.__name__)
@given(seed=st.integers(0, 2**32))
def test_every_class_survives_the_wire(kind: type[Any], seed: int) -> None:
    """Encoding and decoding is the identity, and equal objects have equal bytes."""
    value = object_of(kind, random.Random(seed))
    wire = codec.dumps(value)
    again = codec.loads(kind, wire)
    assert again == value
    assert codec.dumps(again) == wire


def test_golden_bytes_of_a_network() -> None:
    """An otherwise empty network is what a Go manager emits for it."""
    assert codec.dumps(model.Network(id="n1")).hex() == "0a026e3112020a001a020a00"
    assert codec.loads(model.Network, bytes.fromhex("0a026e31")) == model.Network(id="n1")


def test_golden_bytes_of_a_heartbeat_answer() -> None:
    """Five seconds."""
    message = dispatcher_pb2.HeartbeatResponse()
    message.period.seconds = 5
    assert message.SerializeToString().hex() == "0a020805"


def test_golden_bytes_of_a_session_message() -> None:
    """Peers and keys come out of the model exactly as Go writes them."""
    peer = model.WeightedPeer(peer=model.Peer(node_id="m", addr="a:1"), weight=10)
    key = model.EncryptionKey(subsystem="networking:gossip", key=b"\1\2", lamport_time=7)
    message = dispatcher_pb2.SessionMessage(session_id="s")
    message.managers.append(codec.encode(peer))  # type: ignore[arg-type]  # the codec returns Message
    message.network_bootstrap_keys.append(codec.encode(key))  # type: ignore[arg-type]  # likewise
    wire = message.SerializeToString()
    # RootCA is field 5, given as raw bytes so that the test does not depend on its spelling.
    assert (wire + b"\x2a\x01R").hex() == (
        "0a01731a0c0a080a016d1203613a31100a22190a116e6574776f726b696e673a676f737369701a02010220072a0152"
    )


def test_absent_parts_stay_absent() -> None:
    """None is not an empty message: engines tell the two apart."""
    without = codec.dumps(model.Network(id="n"))
    empty = codec.dumps(model.Network(id="n", ipam=model.IPAMOptions()))
    assert without != empty
    assert codec.loads(model.Network, empty).ipam == model.IPAMOptions()
    assert codec.loads(model.Network, without).ipam is None


def test_times_before_the_epoch_and_fractions() -> None:
    """Nanoseconds survive, also negative ones, in the canonical form."""
    for moment in (0, 1, 1_500_000_000, -1, -1_500_000_000):
        meta = model.Meta(created_at=moment)
        assert codec.loads(model.Meta, codec.dumps(meta)) == meta


@pytest.mark.parametrize("kind", OBJECTS, ids=lambda each: each.__name__)
@given(data=st.binary(max_size=64))
def test_any_bytes_decode_or_raise_wire_error(kind: type[Any], data: bytes) -> None:
    """Nothing else escapes."""
    with contextlib.suppress(WireError):
        codec.loads(kind, data)


def test_unknown_enumeration_values_are_wire_errors() -> None:
    """A state this program does not know is refused, not guessed."""
    message = objects_pb2.Task(id="t")
    message.desired_state = 7  # type: ignore[assignment]  # no such state
    with pytest.raises(WireError, match="7 is not a TaskState"):
        codec.loads(model.Task, message.SerializeToString())
