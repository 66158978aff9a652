"""What gossip costs one node: processor time per 1000 events, memory per 10,000 entries, and how both grow."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc

from support.gossip import PORT, TABLE, key_set

from agent.gossip.config import GossipConfig
from agent.gossip.networkdb.publisher import packed
from agent.gossip.networkdb.wire import (
    Action,
    BulkSync,
    NetworkEvent,
    PushPullState,
    TableEvent,
    compound,
    encode,
)
from agent.gossip.node import Node
from agent.gossip.swim import seal, wire, wrappers
from agent.gossip.swim.keyring import Keyring
from bench.table import Row
from swarm.api.networkdb import networkdb_pb2 as pb

NETWORK = "n" * 25
VALUE = bytes(150)  # an endpoint record has 100 to 200
ROOM = 1300


def node_among(size: int) -> tuple[Node, list[str]]:
    """Return a node that knows ``size`` others, all on its network, and their names."""
    rng = random.Random(1)
    node = Node(
        GossipConfig(advertise_host="10.255.0.1"),
        keys=key_set(0),
        rng=rng,
        nonces=lambda: rng.randbytes(seal.NONCE_SIZE),
        now=0.0,
    )
    names = [f"{index:012x}" for index in range(size)]
    attachments = tuple(
        NetworkEvent(joining=True, time=1, node=name, network=NETWORK) for name in names
    )
    node.db.join_network(NETWORK)
    node.swim._merge(
        wire.PushPull(
            join=False,
            nodes=tuple(
                wire.NodeState(
                    name=name,
                    addr=(0x0A000000 + index).to_bytes(4, "big"),
                    port=PORT,
                    meta=b"",
                    incarnation=1,
                    state=wire.State.ALIVE,
                    versions=bytes((1, 5, 2, 0, 0, 0)),
                )
                for index, name in enumerate(names)
            ),
            user_state=encode(PushPullState(time=2, node=names[0], attachments=attachments)),
        )
    )
    node.db.state.own[NETWORK].in_sync = True
    node.take_outputs()
    return node, names


def events(names: list[str], count: int, start: int = 0) -> list[bytes]:
    """Return encoded entries of many owners."""
    return [
        encode(
            TableEvent(
                action=Action.CREATE,
                time=10 + index,
                owner=names[index % len(names)],
                network=NETWORK,
                table=TABLE,
                key=f"{index:064x}",
                value=VALUE,
            )
        )
        for index in range(start, start + count)
    ]


def datagrams(parts: list[bytes], seed: int = 2) -> list[bytes]:
    """Return entries as sealed datagrams, as gossip sends them; never sealed alike for two seeds."""
    ring, rng = Keyring(key_set(0)), random.Random(seed)
    return [
        seal.seal_datagram(
            wrappers.with_crc(bytes((wire.Kind.USER,)) + compound(group)),
            ring,
            rng.randbytes(seal.NONCE_SIZE),
        )
        for group in packed(parts, ROOM)
    ]


def feed(node: Node, packets: list[bytes]) -> float:
    """Return the processor seconds a node takes for datagrams."""
    start = time.process_time()
    for packet in packets:
        node.receive_datagram(packet, "10.0.0.1", PORT, 0.0)
        while node.work(0.0):
            pass
    return time.process_time() - start


def parse_only(packets: list[bytes]) -> float:
    """Return the processor seconds that opening and parsing alone takes, as C libraries do it."""
    ring = Keyring(key_set(0))
    start = time.process_time()
    for packet in packets:
        plain = seal.open_datagram_untrusted(packet, ring)
        outer = pb.GossipMessage.FromString(plain[wrappers.CRC_SIZE + 1 :])
        for part in pb.CompoundMessage.FromString(outer.data).messages:
            pb.TableEvent.FromString(pb.GossipMessage.FromString(part.payload).data)
    return time.process_time() - start


def strangers(node: Node, count: int) -> float:
    """Return the processor seconds that a flood of datagrams without a valid key takes."""
    rng = random.Random(4)
    packets = [b"\x01" + rng.randbytes(ROOM) for _ in range(count)]
    return feed(node, packets)


def bulk(node: Node, names: list[str], parts: list[bytes]) -> float:
    """Return the processor seconds a node takes for a bulk sync of entries."""
    message = BulkSync(
        time=1 << 20, unsolicited=False, node=names[0], networks=(NETWORK,), payload=compound(parts)
    )
    start = time.process_time()
    node.swim._delegate.user_message(encode(message))
    while node.work(0.0):
        pass
    return time.process_time() - start


def memory(size: int, count: int) -> float:
    """Return the bytes that ``count`` entries take in a node."""
    node, names = node_among(size)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    bulk(node, names, events(names, count))
    node.take_changes()
    queue = node.db.state.own[NETWORK].relayed
    while queue.take(room=1 << 30, overhead=0, limit=1, count=1 << 20):
        pass
    gc.collect()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert node.db.state.store.size == count
    return float(used)


def run() -> list[Row]:
    """Measure."""
    rows = []
    for size in (10, 100, 1000):
        node, names = node_among(size)
        fresh = datagrams(events(names, 1000))
        again = datagrams(events(names, 1000), seed=3)
        floor = parse_only(fresh) * 1000
        rows += [
            Row(
                what=f"{size} nodes known: 1000 new events by gossip",
                value=feed(node, fresh) * 1000,
                unit="ms CPU",
                floor=floor,
                floor_name="decrypt and parse",
            ),
            Row(
                what=f"{size} nodes known: the same 1000 again",
                value=feed(node, again) * 1000,
                unit="ms CPU",
                floor=floor,
                floor_name="decrypt and parse",
            ),
        ]
    node, names = node_among(100)
    rows.append(
        Row(
            what="1000 datagrams that no key opens",
            value=strangers(node, 10_000) / 10 * 1000,
            unit="ms CPU",
        )
    )
    for known in (1000, 10_000, 100_000):
        held = node.db.state.store.size
        took = bulk(node, names, events(names, known - held, held))
        rows.append(
            Row(
                what=f"bulk sync of {known - held} new entries, per 1000",
                value=took / (known - held) * 1e6,
                unit="ms CPU",
            )
        )
        took = bulk(node, names, events(names, known))
        rows.append(
            Row(
                what=f"bulk sync of {known} known entries, per 1000",
                value=took / known * 1e6,
                unit="ms CPU",
            )
        )
    for count in (1000, 10_000, 20_000):
        raw = sum(map(len, events(["x" * 12], count)))
        rows.append(
            Row(
                what=f"memory of {count} entries, per 10,000",
                value=memory(100, count) / count * 1e4 / 1e6,
                unit="MB",
                floor=raw / count * 1e4 / 1e6,
                floor_name="the events as sent",
            )
        )
    return rows
