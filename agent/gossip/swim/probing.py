"""Probing: whose turn it is, who is asked to help, and answers to others' probes.

Source: SWIM, sections 3.1 and 4.3 (round-robin probes, indirect probes); Lifeguard, section IV.A
(nacks, stretched intervals); memberlist 0.2 to 0.6 for every rule of detail.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from agent.gossip.config import Timing
from agent.gossip.refusal import Refusal, Refusals
from agent.gossip.swim import wire
from agent.gossip.swim.awareness import Awareness
from agent.gossip.swim.membership import (
    NACK_VERSION,
    STREAM_PING_VERSION,
    Member,
    Membership,
    host_of,
    usable,
)
from agent.gossip.swim.rules import Tracer
from agent.gossip.swim.wire import State
from agent.gossip.timers import Timers
from swarm.errors import WireError

MAX_RELAYS: Final = 1024  # indirect pings in flight for others
URGENT: Final = frozenset({wire.Kind.PING, wire.Kind.INDIRECT_PING, wire.Kind.ACK, wire.Kind.NACK})
"""What is answered before any other work."""


class Courier(Protocol):
    """Seals messages and hands them to the outside."""

    def send(
        self, parts: list[bytes], host: str, port: int, *, member: Member | None = None
    ) -> None:
        """Send messages in one datagram, with as many broadcasts as fit beside them."""

    def frame(self, message: wire.StreamMessage, *, dialling: bool) -> bytes:
        """Return a message as one frame of a stream."""

    def dial(
        self,
        host: str,
        port: int,
        frame: bytes,
        *,
        reply: bool,
        timeout: float,
        settle: Callable[[wire.StreamMessage | None, str], None],
    ) -> None:
        """Send a frame over a stream of its own; ``settle`` hears the reply, or why there is none."""


@dataclass(slots=True, kw_only=True)
class _Probe:
    """One probe in flight."""

    member: Member
    incarnation: int  # when the probe began: a refutation since then outdates the verdict
    ends: float
    nacks_expected: int = 0
    nacks: int = 0
    stream_ack: bool = False


@dataclass(slots=True, kw_only=True)
class _Relay:
    """One ping sent for another node."""

    host: str
    port: int
    seq: int


class Prober:
    """Finds out who lives; accuses who does not answer."""

    def __init__(
        self,
        *,
        me: Member,
        timing: Timing,
        timers: Timers,
        rng: random.Random,
        members: Membership,
        awareness: Awareness,
        refusals: Refusals,
        courier: Courier,
        suspect: Callable[[wire.Suspect], None],
        trace: Tracer,
    ) -> None:
        self._me = me
        self._timing = timing
        self._timers = timers
        self._rng = rng
        self._members = members
        self._awareness = awareness
        self._refusals = refusals
        self._courier = courier
        self._suspect = suspect
        self._trace = trace
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._seq = rng.randrange(1 << 16)

    def start(self) -> None:
        """Begin to probe; the first tick is staggered."""
        self._timers.after(self._rng.random() * self._timing.probe_interval, self._tick)

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _ping(self, seq: int, node: str) -> bytes:
        return wire.encode_packet(
            wire.Ping(
                seq=seq,
                node=node,
                source_addr=self._me.addr,
                source_port=self._me.port,
                source_node=self._me.name,
            )
        )

    def _tick(self) -> None:
        timing = self._timing
        now = self._timers.now
        interval = self._awareness.stretch(timing.probe_interval)
        self._timers.after(interval, self._tick)
        member = self._members.next_probe(
            self._rng,
            skip=self._me.name,
            forget=lambda m: m.gone and now - m.changed > timing.gossip_to_dead,
        )
        if member is None:
            return
        seq = self._next_seq()
        self._probes[seq] = _Probe(
            member=member, incarnation=member.incarnation, ends=now + interval
        )
        parts = [self._ping(seq, member.name)]
        suspected = member.state is not State.ALIVE
        if suspected:
            accusation = wire.Suspect(
                incarnation=member.incarnation, node=member.name, origin=self._me.name
            )
            parts.append(wire.encode_packet(accusation))
        self._courier.send(parts, member.host, member.port, member=member if suspected else None)
        self._timers.after(timing.probe_timeout, lambda: self._ask_others(seq))
        self._timers.at(now + interval, lambda: self._end(seq))

    def _ask_others(self, seq: int) -> None:
        probe = self._probes.get(seq)
        if probe is None:
            return
        target = probe.member
        helpers = self._members.sample(
            self._rng,
            self._timing.indirect_checks,
            lambda m: m.state is State.ALIVE and m is not self._me and m is not target,
        )
        for helper in helpers:
            nack = helper.versions[1] >= NACK_VERSION
            probe.nacks_expected += nack
            message = wire.IndirectPing(
                seq=seq,
                target=target.addr,
                port=target.port,
                node=target.name,
                nack=nack,
                source_addr=self._me.addr,
                source_port=self._me.port,
                source_node=self._me.name,
            )
            self._courier.send([wire.encode_packet(message)], helper.host, helper.port)
        if target.versions[1] >= STREAM_PING_VERSION:
            self._ask_stream(seq, probe)

    def _ask_stream(self, seq: int, probe: _Probe) -> None:
        def settle(message: wire.StreamMessage | None, _: str) -> None:
            probe.stream_ack = isinstance(message, wire.Ack) and message.seq == seq

        ping = wire.Ping(
            seq=seq,
            node=probe.member.name,
            source_addr=self._me.addr,
            source_port=self._me.port,
            source_node=self._me.name,
        )
        self._courier.dial(
            probe.member.host,
            probe.member.port,
            self._courier.frame(ping, dialling=True),
            reply=True,
            timeout=max(0.05, probe.ends - self._timers.now),
            settle=settle,
        )

    def _end(self, seq: int) -> None:
        probe = self._probes.pop(seq, None)
        if probe is None:
            return
        if probe.stream_ack:
            self._awareness.apply(-1)
            self._trace(
                "gossip.member.datagrams_lost",
                "warning",
                member=probe.member.name,
                host=probe.member.host,
            )
            return
        missing = probe.nacks_expected - probe.nacks
        self._awareness.apply(max(0, missing) if probe.nacks_expected else 1)
        self._suspect(
            wire.Suspect(
                incarnation=probe.incarnation, node=probe.member.name, origin=self._me.name
            )
        )

    def receive(self, leaf: bytes, host: str, port: int) -> None:
        """Take one of the urgent messages from an address; whatever it asks for is sent at once."""
        try:
            message = wire.decode_packet_untrusted(leaf)
        except WireError:
            self._refusals.count(Refusal.MALFORMED)
            return
        match message:
            case wire.Ping():
                self._answer(message, host, port)
            case wire.IndirectPing():
                self._relay(message, host, port)
            case wire.Ack():
                self._ack(message.seq)
            case wire.Nack():
                probe = self._probes.get(message.seq)
                if probe is not None:
                    probe.nacks += 1
            case _:
                self._refusals.count(Refusal.MALFORMED)

    def _answer(self, ping: wire.Ping, host: str, port: int) -> None:
        if ping.node and ping.node != self._me.name:
            self._refusals.count(Refusal.WRONG_NODE)
            return
        if usable(ping.source_addr, ping.source_port):
            host, port = host_of(ping.source_addr), ping.source_port
        self._courier.send([wire.encode_packet(wire.Ack(seq=ping.seq))], host, port)

    def _relay(self, request: wire.IndirectPing, host: str, port: int) -> None:
        if usable(request.source_addr, request.source_port):
            host, port = host_of(request.source_addr), request.source_port
        if not usable(request.target, request.port):
            self._refusals.count(Refusal.ADDRESS)
            return
        if len(self._relays) >= MAX_RELAYS:
            self._refusals.count(Refusal.RELAYS_FULL)
            return
        seq = self._next_seq()
        self._relays[seq] = _Relay(host=host, port=port, seq=request.seq)
        self._courier.send([self._ping(seq, request.node)], host_of(request.target), request.port)

        def give_up() -> None:
            relay = self._relays.pop(seq, None)
            if relay is not None and request.nack:
                self._courier.send(
                    [wire.encode_packet(wire.Nack(seq=relay.seq))], relay.host, relay.port
                )

        self._timers.after(self._timing.probe_timeout, give_up)

    def _ack(self, seq: int) -> None:
        if self._probes.pop(seq, None) is not None:
            self._awareness.apply(-1)
            return
        relay = self._relays.pop(seq, None)
        if relay is not None:
            self._courier.send(
                [wire.encode_packet(wire.Ack(seq=relay.seq))], relay.host, relay.port
            )
