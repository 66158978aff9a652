"""What the gossip tests share."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agent.gossip.config import GossipConfig
from agent.gossip.networkdb import wire as tables
from agent.gossip.node import Node
from agent.gossip.outputs import Datagram, Dial
from agent.gossip.swim import seal, wire, wrappers
from agent.gossip.swim.keyring import GossipKey, Keyring
from agent.gossip.swim.membership import VERSIONS

KEYS = (
    GossipKey(lamport=1, key=b"oldest----------"),
    GossipKey(lamport=2, key=bytes(range(16))),
    GossipKey(lamport=3, key=b"newest----------"),
)


@dataclass
class Bench:
    """One node core under test, spoken to by a hand that knows the keys."""

    node: Node
    keyring: Keyring
    now: float = 100.0
    answering: bool = False  # whether every probe is acknowledged
    sent: list[tuple[str, wire.PacketMessage]] = field(default_factory=list)
    dials: list[tuple[Dial, wire.StreamMessage]] = field(default_factory=list)
    serial: int = 0  # of what was sealed for the node: nothing is ever sealed alike twice

    def collect(self) -> None:
        """Decode what the node wants to send."""
        for output in self.node.take_outputs():
            if isinstance(output, Datagram):
                plain = seal.open_datagram_untrusted(output.data, self.keyring)
                for leaf in wrappers.unfold_untrusted(plain)[0]:
                    self.sent.append((output.host, wire.decode_packet_untrusted(leaf)))
            elif isinstance(output, Dial):
                header, body = output.frame[:5], output.frame[5:]
                plain = seal.open_frame_untrusted(header, body, self.keyring)
                self.dials.append((output, wire.decode_stream_untrusted(plain)))

    def give(self, *messages: wire.PacketMessage, source: str = "10.0.0.9") -> None:
        """Deliver messages in one datagram and let the node work."""
        parts = [wire.encode_packet(message) for message in messages]
        self.give_raw(wrappers.compound(parts), source=source)

    def give_raw(self, plain: bytes, *, source: str = "10.0.0.9") -> None:
        """Deliver an opened datagram."""
        data = seal.seal_datagram(plain, self.keyring, self.nonce())
        self.node.receive_datagram(data, source, 7946, self.now)
        while self.node.work(self.now):
            pass
        self.collect()

    def nonce(self) -> bytes:
        """Return one that was not used before."""
        self.serial += 1
        return self.serial.to_bytes(12, "big")

    def serve(self, message: wire.StreamMessage) -> bytes | None:
        """Deliver a request over a stream; return the frame it is answered with."""
        frame = seal.seal_frame(wire.encode_stream(message), self.keyring, self.nonce())
        opened = self.node.decode_stream(frame[:5], frame[5:])
        return self.node.serve_stream(opened, frame, self.now)

    def reply(self, dial: Dial, message: wire.StreamMessage) -> None:
        """Deliver the reply to a request of the node over a stream."""
        frame = seal.seal_frame(wire.encode_stream(message), self.keyring, self.nonce())
        self.node.stream_reply(dial.token, message, frame, self.now)

    def pass_time(self, seconds: float, *, step: float = 0.05) -> None:
        """Let time pass in small steps."""
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.now = min(end, self.now + step)
            self.node.tick(self.now)
            while self.node.work(self.now):
                pass
            if self.answering:
                self.collect()
                for _, ping in self.take_sent(wire.Ping):
                    self.give(wire.Ack(seq=ping.seq))  # type: ignore[union-attr]
        self.collect()

    def meet(self, *names: str, incarnation: int = 1) -> None:
        """Make nodes known: n1 lives at 10.0.0.1, and so on."""
        for name in names:
            addr = bytes((10, 0, 0, int(name.lstrip("n"))))
            self.give(alive(name, addr=addr, incarnation=incarnation))

    def event(self, *events: tables.Event | tables.BulkSync) -> None:
        """Deliver table-layer messages as one user message."""
        self.give(wire.User(body=tables.compound([tables.encode(event) for event in events])))

    def queued(self, name: str) -> wire.PacketMessage | None:
        """Return the membership broadcast waiting about a node."""
        item = self.node.swim.queue._by_name.get(name)
        return wire.decode_packet_untrusted(item.message) if item else None

    def take_sent(self, kind: type) -> list[tuple[str, wire.PacketMessage]]:
        """Return and forget the messages of one kind sent so far."""
        found = [entry for entry in self.sent if isinstance(entry[1], kind)]
        self.sent = [entry for entry in self.sent if entry not in found]
        return found

    def syncs(self) -> list[tuple[str, tables.BulkSync, list[tables.Body]]]:
        """Return and forget the bulk syncs dialled: target, message, its events."""
        found = []
        for dial, message in self.dials:
            if isinstance(message, wire.User):
                body = tables.decode_untrusted(message.body)
                if isinstance(body, tables.BulkSync):
                    leaves = tables.unfold_untrusted(body.payload)
                    found.append((dial.host, body, [tables.decode_untrusted(x) for x in leaves]))
        self.dials.clear()
        return found


def alive(
    name: str,
    *,
    addr: bytes = b"\x0a\x00\x00\x01",
    port: int = 7946,
    incarnation: int = 1,
    versions: bytes = VERSIONS,
) -> wire.Alive:
    """Return a claim that a node lives."""
    return wire.Alive(
        incarnation=incarnation, node=name, addr=addr, port=port, meta=b"", versions=versions
    )


@pytest.fixture
def keyring() -> Keyring:
    """Return a ring whose middle key is the one of the reference vectors."""
    return Keyring(KEYS)


@pytest.fixture
def claim() -> Callable[..., wire.Alive]:
    """Return the maker of alive claims."""
    return alive


@pytest.fixture
def bench(keyring: Keyring) -> Bench:
    """Return a started node named ``me`` at 10.0.0.100."""
    rng = random.Random(7)
    node = Node(
        GossipConfig(advertise_host="10.0.0.100", node_name="me"),
        keys=KEYS,
        rng=rng,
        nonces=lambda: rng.randbytes(12),
        now=100.0,
    )
    node.start(100.0)
    made = Bench(node=node, keyring=keyring)
    made.collect()
    return made
