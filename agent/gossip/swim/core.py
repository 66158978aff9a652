"""The membership protocol: SWIM with Lifeguard, as memberlist protocol 2 speaks it.

Source: Das, Gupta, Motivala, "SWIM" (probes, suspicion, piggybacking); Dadgar, Phillips, Currey,
"Lifeguard" (awareness, confirmations, nacks); memberlist 0.2 to 0.6 for every rule of detail.
"""

from __future__ import annotations

import ipaddress
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from agent.gossip.config import Timing
from agent.gossip.outputs import Datagram, Dial, Output, Trace
from agent.gossip.refusal import Refusal, Refusals
from agent.gossip.swim import seal, suspicion, wire
from agent.gossip.swim.awareness import Awareness
from agent.gossip.swim.keyring import Keyring
from agent.gossip.swim.membership import (
    CRC_VERSION,
    MAX_MEMBERS,
    NACK_VERSION,
    STREAM_PING_VERSION,
    VERSIONS,
    Member,
    Membership,
    compatible,
    host_of,
    usable,
)
from agent.gossip.swim.queue import BroadcastQueue, retransmit_limit
from agent.gossip.swim.wire import State
from agent.gossip.timers import Timer, Timers
from swarm.errors import WireError

MAX_INBOX: Final = 4096  # messages waiting to be worked on
MAX_RELAYS: Final = 1024  # indirect pings in flight for others
MAX_INCARNATION: Final = 0xFFFFFFFF
_URGENT: Final = frozenset({wire.Kind.PING, wire.Kind.INDIRECT_PING, wire.Kind.ACK, wire.Kind.NACK})


def datagram_room(packet_size: int, label: bytes) -> int:
    """Return how many bytes of messages one datagram holds beside everything around them."""
    header = len(label) + 2 if label else 0
    return packet_size - header - seal.OVERHEAD - wire.CRC_SIZE - wire.COMPOUND_HEADER


class Delegate(Protocol):
    """The layer above: it rides on membership messages and hears about members."""

    def broadcasts(self, *, room: int, overhead: int) -> list[bytes]:
        """Return messages for everybody that fit ``room`` bytes, ``overhead`` each included."""

    def user_message(self, body: bytes) -> None:
        """Take a message another node's upper layer sent."""

    def local_state(self, *, join: bool) -> bytes:
        """Return what a push/pull carries for the layer above."""

    def merge_state(self, state: bytes) -> None:
        """Take what the other side's push/pull carried."""

    def member_up(self, member: Member) -> None:
        """Hear of a node that was unknown, dead or gone, and is alive."""

    def member_down(self, member: Member) -> None:
        """Hear of a node that died or left (see its state)."""

    def accused(self, *, dead: bool) -> None:
        """Hear that others doubted this node's life, and whether they had given it up."""

    def joined(self) -> None:
        """Hear that a join has reached another node."""


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


class Swim:
    """One node's membership core; time comes from ``timers``, which the caller advances."""

    def __init__(
        self,
        *,
        name: str,
        host: str,
        port: int,
        timing: Timing,
        timers: Timers,
        rng: random.Random,
        keyring: Keyring,
        nonces: Callable[[], bytes],
        delegate: Delegate,
        incarnation: int = 1,
        label: bytes = b"",
    ) -> None:
        self.name = name
        self.timing = timing
        self.refusals = Refusals()
        self.awareness = Awareness(limit=timing.awareness_limit)
        self.members = Membership()
        self.queue = BroadcastQueue(limit=MAX_MEMBERS)
        self.leaving = False
        self._timers = timers
        self._rng = rng
        self._keyring = keyring
        self._nonces = nonces
        self._delegate = delegate
        self._label = label
        self._outputs: list[Output] = []
        self._inbox: deque[bytes] = deque()
        self._suspicions: dict[str, tuple[suspicion.Suspicion, Timer]] = {}
        self._probes: dict[int, _Probe] = {}
        self._relays: dict[int, _Relay] = {}
        self._dials: dict[int, Callable[[wire.StreamMessage | None, str], None]] = {}
        self._seq = rng.randrange(1 << 16)
        self._token = 0
        self.me = Member(
            name=name,
            addr=ipaddress.ip_address(host).packed,
            port=port,
            meta=b"",
            versions=VERSIONS,
            incarnation=incarnation,
            state=State.ALIVE,
            changed=timers.now,
        )
        self.members.add(self.me, rng)

    # -- driving ---------------------------------------------------------------------------

    def start(self) -> None:
        """Say that this node lives, and begin to probe and gossip; first ticks are staggered."""
        timing = self.timing
        self._announce(self.me)
        self._timers.after(self._rng.random() * timing.probe_interval, self._probe_tick)
        self._timers.after(self._rng.random() * timing.gossip_interval, self._gossip_tick)
        self._timers.after(self._rng.random() * timing.push_pull_interval, self._push_pull_tick)

    def take_outputs(self) -> list[Output]:
        """Return what is to be done outside, and forget it."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def receive_datagram(self, data: bytes, host: str, port: int) -> None:
        """Take one datagram: probes are answered at once, all else waits for :meth:`work`."""
        try:
            plain = seal.open_datagram_untrusted(data, self._keyring, label=self._label)
        except WireError:
            self.refusals.count(Refusal.UNDECRYPTABLE)
            return
        try:
            leaves, truncated = wire.unfold_untrusted(plain)
        except WireError:
            self.refusals.count(Refusal.MALFORMED)
            return
        if truncated:
            self.refusals.count(Refusal.TRUNCATED, truncated)
        for leaf in leaves:
            if leaf[0] in _URGENT:
                self._urgent(leaf, host, port)
            elif len(self._inbox) < MAX_INBOX:
                self._inbox.append(leaf)
            else:
                self.refusals.count(Refusal.OVERFLOW)

    def work(self, limit: int) -> bool:
        """Work on up to ``limit`` waiting messages; return whether more wait."""
        for _ in range(min(limit, len(self._inbox))):
            leaf = self._inbox.popleft()
            try:
                message = wire.decode_packet_untrusted(leaf)
            except WireError:
                self.refusals.count(Refusal.MALFORMED)
                continue
            match message:
                case wire.Alive():
                    self._alive(message)
                case wire.Suspect():
                    self._suspect(message)
                case wire.Dead():
                    self._dead(message)
                case wire.User():
                    self._delegate.user_message(message.body)
                case _:  # the urgent kinds never get here
                    self.refusals.count(Refusal.MALFORMED)
        return bool(self._inbox)

    # -- streams ---------------------------------------------------------------------------

    def decode_stream(self, header: bytes, body: bytes) -> wire.StreamMessage:
        """Return the message of one frame; touches no state and may run in another thread.

        Raises:
            WireError: no key opens it, or it is malformed.
        """
        plain = seal.open_frame_untrusted(header, body, self._keyring, label=self._label)
        return wire.decode_stream_untrusted(plain)

    def serve_stream(self, message: wire.StreamMessage) -> bytes | None:
        """Take what a dialling node sent; return the frame to answer with, if any."""
        match message:
            case wire.Ping():
                if message.node and message.node != self.name:
                    self.refusals.count(Refusal.WRONG_NODE)
                    return None
                return self._frame(wire.Ack(seq=message.seq), dialling=False)
            case wire.PushPull():
                reply = self._frame(self._full_state(join=message.join), dialling=False)
                self._merge(message)
                return reply
            case wire.User():
                self._delegate.user_message(message.body)
            case wire.ErrorReply() | wire.Ack():
                self.refusals.count(Refusal.PEER_ERROR)
        return None

    def stream_reply(self, token: int, message: wire.StreamMessage) -> None:
        """Take the reply to a :class:`Dial`."""
        settle = self._dials.pop(token, None)
        if settle is None:
            return
        if isinstance(message, wire.ErrorReply):
            self.refusals.count(Refusal.PEER_ERROR)
            settle(None, message.error)
        else:
            settle(message, "")

    def stream_sent(self, token: int) -> None:
        """Hear that a :class:`Dial` without reply has been written."""
        settle = self._dials.pop(token, None)
        if settle is not None:
            settle(None, "")

    def stream_failed(self, token: int, reason: str) -> None:
        """Hear that a :class:`Dial` came to nothing."""
        settle = self._dials.pop(token, None)
        if settle is not None:
            settle(None, reason or "failed")

    def send_user_stream(
        self, member: Member, body: bytes, settle: Callable[[bool], None] | None = None
    ) -> None:
        """Send bytes of the layer above over a stream; ``settle`` hears whether they were written."""
        frame = self._frame(wire.User(body=body), dialling=True)
        self._dial(
            member.host,
            member.port,
            frame,
            reply=False,
            timeout=self.timing.stream_timeout,
            settle=lambda _, reason: settle(not reason) if settle else None,
        )

    def send_user_datagram(self, member: Member, body: bytes) -> None:
        """Send bytes of the layer above in one datagram, without piggybacked broadcasts."""
        self._emit(bytes((wire.Kind.USER,)) + body, member.host, member.port, member=member)

    def join(self, host: str, port: int) -> None:
        """Exchange full states with whoever is at that address."""
        self._push_pull(host, port, join=True)

    # -- leaving ---------------------------------------------------------------------------

    def leave(self) -> None:
        """Say that this node goes on purpose; it answers as before until it is stopped."""
        self.leaving = True
        self._dead(wire.Dead(incarnation=self.me.incarnation, node=self.name, origin=self.name))

    @property
    def leave_spread(self) -> bool:
        """Whether the announced leave has had all its transmissions, or nobody is there to hear."""
        return self.name not in self.queue or not any(
            not m.gone for m in self.members if m is not self.me
        )

    # -- sending ---------------------------------------------------------------------------

    def _emit(self, message: bytes, host: str, port: int, *, member: Member | None = None) -> None:
        """Seal and send; the checksum goes to nodes whose record says they read it."""
        if member is not None and member.versions[1] >= CRC_VERSION:
            message = wire.with_crc(message)
        data = seal.seal_datagram(message, self._keyring, self._nonces(), label=self._label)
        self._outputs.append(Datagram(host=host, port=port, data=data))

    def _send(
        self, parts: list[bytes], host: str, port: int, *, member: Member | None = None
    ) -> None:
        """Send messages with as many broadcasts as fit beside them."""
        used = sum(len(part) + wire.COMPOUND_PART for part in parts)
        extra = self._broadcasts(self._room() - used, 255 - len(parts))
        self._emit(wire.compound([*parts, *extra]), host, port, member=member)

    def _room(self) -> int:
        return datagram_room(self.timing.packet_size, self._label)

    def _broadcasts(self, room: int, count: int) -> list[bytes]:
        limit = retransmit_limit(self.timing.retransmit_mult, len(self.members))
        taken = self.queue.take(
            room=room, overhead=wire.COMPOUND_PART, limit=limit, count=min(count, 200)
        )
        room -= sum(len(message) + wire.COMPOUND_PART for message in taken)
        above = self._delegate.broadcasts(room=room, overhead=wire.COMPOUND_PART + 1)
        user = bytes((wire.Kind.USER,))
        return [*taken, *(user + body for body in above[: count - len(taken)])]

    def _frame(self, message: wire.StreamMessage, *, dialling: bool) -> bytes:
        return seal.seal_frame(
            wire.encode_stream(message),
            self._keyring,
            self._nonces(),
            label=self._label,
            dialling=dialling,
        )

    def _dial(
        self,
        host: str,
        port: int,
        frame: bytes,
        *,
        reply: bool,
        timeout: float,
        settle: Callable[[wire.StreamMessage | None, str], None],
    ) -> None:
        self._token += 1
        self._dials[self._token] = settle
        self._outputs.append(
            Dial(token=self._token, host=host, port=port, frame=frame, reply=reply, timeout=timeout)
        )

    def _trace(self, event: str, level: str = "info", **data: object) -> None:
        self._outputs.append(Trace(event=event, level=level, data=data))

    # -- probing ---------------------------------------------------------------------------

    def _next_seq(self) -> int:
        self._seq = (self._seq + 1) & 0xFFFFFFFF
        return self._seq

    def _ping(self, seq: int, node: str) -> bytes:
        return wire.encode_packet(
            wire.Ping(
                seq=seq,
                node=node,
                source_addr=self.me.addr,
                source_port=self.me.port,
                source_node=self.name,
            )
        )

    def _probe_tick(self) -> None:
        timing = self.timing
        now = self._timers.now
        interval = self.awareness.stretch(timing.probe_interval)
        self._timers.after(interval, self._probe_tick)
        member = self.members.next_probe(
            self._rng,
            skip=self.name,
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
                incarnation=member.incarnation, node=member.name, origin=self.name
            )
            parts.append(wire.encode_packet(accusation))
        self._send(parts, member.host, member.port, member=member if suspected else None)
        self._timers.after(timing.probe_timeout, lambda: self._probe_indirectly(seq))
        self._timers.at(now + interval, lambda: self._probe_end(seq))

    def _probe_indirectly(self, seq: int) -> None:
        probe = self._probes.get(seq)
        if probe is None:
            return
        target = probe.member
        helpers = self.members.sample(
            self._rng,
            self.timing.indirect_checks,
            lambda m: m.state is State.ALIVE and m is not self.me and m is not target,
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
                source_addr=self.me.addr,
                source_port=self.me.port,
                source_node=self.name,
            )
            self._send([wire.encode_packet(message)], helper.host, helper.port)
        if target.versions[1] >= STREAM_PING_VERSION:
            self._probe_stream(seq, probe)

    def _probe_stream(self, seq: int, probe: _Probe) -> None:
        def settle(message: wire.StreamMessage | None, _: str) -> None:
            probe.stream_ack = isinstance(message, wire.Ack) and message.seq == seq

        ping = wire.Ping(
            seq=seq,
            node=probe.member.name,
            source_addr=self.me.addr,
            source_port=self.me.port,
            source_node=self.name,
        )
        self._dial(
            probe.member.host,
            probe.member.port,
            self._frame(ping, dialling=True),
            reply=True,
            timeout=max(0.05, probe.ends - self._timers.now),
            settle=settle,
        )

    def _probe_end(self, seq: int) -> None:
        probe = self._probes.pop(seq, None)
        if probe is None:
            return
        if probe.stream_ack:
            self.awareness.apply(-1)
            self._trace(
                "gossip.member.datagrams_lost",
                "warning",
                member=probe.member.name,
                host=probe.member.host,
            )
            return
        missing = probe.nacks_expected - probe.nacks
        self.awareness.apply(max(0, missing) if probe.nacks_expected else 1)
        self._suspect(
            wire.Suspect(incarnation=probe.incarnation, node=probe.member.name, origin=self.name)
        )

    def _urgent(self, leaf: bytes, host: str, port: int) -> None:
        try:
            message = wire.decode_packet_untrusted(leaf)
        except WireError:
            self.refusals.count(Refusal.MALFORMED)
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
                self.refusals.count(Refusal.MALFORMED)

    def _answer(self, ping: wire.Ping, host: str, port: int) -> None:
        if ping.node and ping.node != self.name:
            self.refusals.count(Refusal.WRONG_NODE)
            return
        if usable(ping.source_addr, ping.source_port):
            host, port = host_of(ping.source_addr), ping.source_port
        self._send([wire.encode_packet(wire.Ack(seq=ping.seq))], host, port)

    def _relay(self, request: wire.IndirectPing, host: str, port: int) -> None:
        if usable(request.source_addr, request.source_port):
            host, port = host_of(request.source_addr), request.source_port
        if not usable(request.target, request.port):
            self.refusals.count(Refusal.ADDRESS)
            return
        if len(self._relays) >= MAX_RELAYS:
            self.refusals.count(Refusal.RELAYS_FULL)
            return
        seq = self._next_seq()
        self._relays[seq] = _Relay(host=host, port=port, seq=request.seq)
        self._send([self._ping(seq, request.node)], host_of(request.target), request.port)

        def give_up() -> None:
            relay = self._relays.pop(seq, None)
            if relay is not None and request.nack:
                self._send([wire.encode_packet(wire.Nack(seq=relay.seq))], relay.host, relay.port)

        self._timers.after(self.timing.probe_timeout, give_up)

    def _ack(self, seq: int) -> None:
        if self._probes.pop(seq, None) is not None:
            self.awareness.apply(-1)
            return
        relay = self._relays.pop(seq, None)
        if relay is not None:
            self._send([wire.encode_packet(wire.Ack(seq=relay.seq))], relay.host, relay.port)

    # -- gossip and push/pull --------------------------------------------------------------

    def _gossip_tick(self) -> None:
        timing, now = self.timing, self._timers.now
        self._timers.after(timing.gossip_interval, self._gossip_tick)
        chosen = self.members.sample(
            self._rng,
            timing.gossip_nodes,
            lambda m: (
                m is not self.me
                and (
                    m.state in {State.ALIVE, State.SUSPECT}
                    or (m.state is State.DEAD and now - m.changed < timing.gossip_to_dead)
                )
            ),
        )
        for member in chosen:
            parts = self._broadcasts(self._room(), 255)
            if not parts:
                return
            self._emit(wire.compound(parts), member.host, member.port, member=member)

    def _push_pull_tick(self) -> None:
        count = len(self.members)
        stretch = 1 if count <= 32 else math.ceil(math.log2(count) - 5) + 1
        self._timers.after(self.timing.push_pull_interval * stretch, self._push_pull_tick)
        for member in self.members.sample(
            self._rng, 1, lambda m: m.state is State.ALIVE and m is not self.me
        ):
            self._push_pull(member.host, member.port, join=False)

    def _push_pull(self, host: str, port: int, *, join: bool) -> None:
        def settle(message: wire.StreamMessage | None, reason: str) -> None:
            if isinstance(message, wire.PushPull):
                self._merge(message)
                if join:
                    self._delegate.joined()
            else:
                self._trace(
                    "gossip.exchange.failed",
                    "debug",
                    host=host,
                    port=port,
                    join=join,
                    reason=reason or "unexpected reply",
                )

        self._dial(
            host,
            port,
            self._frame(self._full_state(join=join), dialling=True),
            reply=True,
            timeout=self.timing.stream_timeout,
            settle=settle,
        )

    def _full_state(self, *, join: bool) -> wire.PushPull:
        return wire.PushPull(
            join=join,
            nodes=tuple(member.to_wire() for member in self.members),
            user_state=self._delegate.local_state(join=join),
        )

    def _merge(self, message: wire.PushPull) -> None:
        """Merge another node's view: its dead are only suspects here, its user state comes last."""
        for node in message.nodes:
            match node.state:
                case State.ALIVE:
                    self._alive(
                        wire.Alive(
                            incarnation=node.incarnation,
                            node=node.name,
                            addr=node.addr,
                            port=node.port,
                            meta=node.meta,
                            versions=node.versions,
                        )
                    )
                case State.LEFT:
                    self._dead(
                        wire.Dead(incarnation=node.incarnation, node=node.name, origin=node.name)
                    )
                case State.DEAD | State.SUSPECT:
                    if node.name == self.name and node.state is State.DEAD:
                        self._delegate.accused(dead=True)
                    self._suspect(
                        wire.Suspect(incarnation=node.incarnation, node=node.name, origin=self.name)
                    )
        if message.user_state:
            self._delegate.merge_state(message.user_state)

    # -- membership rules ------------------------------------------------------------------

    def _announce(self, member: Member) -> None:
        message = wire.Alive(
            incarnation=member.incarnation,
            node=member.name,
            addr=member.addr,
            port=member.port,
            meta=member.meta,
            versions=member.versions,
        )
        self.queue.put(member.name, wire.encode_packet(message))

    def _alive(self, claim: wire.Alive) -> None:
        if claim.node == self.name:
            self._alive_about_self(claim)
            return
        if not claim.node or not usable(claim.addr, claim.port):
            self.refusals.count(Refusal.ADDRESS)
            return
        if not compatible(claim.versions):
            self.refusals.count(Refusal.VERSION)
            return
        member = self.members.get(claim.node)
        if member is None:
            member = self._new_member(claim)
            if member is None:
                return
        moved = member.addr != claim.addr or member.port != claim.port
        if moved and member.state is not State.LEFT:
            self.refusals.count(Refusal.ADDRESS_CONFLICT)
            return
        if not moved and claim.incarnation <= member.incarnation:
            return
        self._clear_suspicion(member.name)
        was_gone = member.gone
        member.incarnation = claim.incarnation
        member.addr, member.port = claim.addr, claim.port
        member.meta, member.versions = claim.meta, claim.versions[:6]
        self._change(member, State.ALIVE)
        self._announce(member)
        if was_gone:
            self._trace("gossip.member.up", member=member.name, host=member.host, port=member.port)
            self._delegate.member_up(member)

    def _new_member(self, claim: wire.Alive) -> Member | None:
        if len(self.members) >= MAX_MEMBERS:
            self.refusals.count(Refusal.MEMBERS_FULL)
            return None
        if claim.incarnation == 0:
            return None  # equal to what an unknown node is taken to have: never news
        member = Member(
            name=claim.node,
            addr=claim.addr,
            port=claim.port,
            meta=claim.meta,
            versions=claim.versions[:6],
            incarnation=0,
            state=State.DEAD,
            changed=self._timers.now,
        )
        self.members.add(member, self._rng)
        return member

    def _alive_about_self(self, claim: wire.Alive) -> None:
        if self.leaving:
            return
        if claim.addr != self.me.addr or claim.port != self.me.port:
            self.refusals.count(Refusal.ADDRESS_CONFLICT)
            return
        if claim.incarnation < self.me.incarnation:
            return
        same = claim.meta == self.me.meta and claim.versions == self.me.versions
        if claim.incarnation == self.me.incarnation and same:
            return
        self._refute(claim.incarnation, dead=False)

    def _suspect(self, claim: wire.Suspect) -> None:
        member = self.members.get(claim.node)
        if member is None or claim.incarnation < member.incarnation:
            return
        running = self._suspicions.get(member.name)
        if running is not None:
            self._confirm(member, claim, *running)
            return
        if member.state is not State.ALIVE:
            return
        if member is self.me:
            self._refute(claim.incarnation, dead=False)
            return
        self.queue.put(member.name, wire.encode_packet(claim))
        member.incarnation = claim.incarnation
        self._change(member, State.SUSPECT)
        limits = suspicion.bounds(
            nodes=len(self.members),
            probe_interval=self.timing.probe_interval,
            mult=self.timing.suspicion_mult,
            max_mult=self.timing.suspicion_max_mult,
        )
        begun = suspicion.Suspicion(since=self._timers.now, limits=limits, accusers={claim.origin})
        self._arm(member, begun)
        self._trace("gossip.member.suspected", member=member.name, accuser=claim.origin)

    def _confirm(
        self, member: Member, claim: wire.Suspect, running: suspicion.Suspicion, timer: Timer
    ) -> None:
        if running.confirm(claim.origin):
            timer.cancel()
            self._arm(member, running)
            self.queue.put(member.name, wire.encode_packet(claim))

    def _arm(self, member: Member, running: suspicion.Suspicion) -> None:
        def expire() -> None:
            self._dead(
                wire.Dead(incarnation=member.incarnation, node=member.name, origin=self.name)
            )

        self._suspicions[member.name] = (running, self._timers.at(running.deadline(), expire))

    def _clear_suspicion(self, name: str) -> None:
        running = self._suspicions.pop(name, None)
        if running is not None:
            running[1].cancel()

    def _dead(self, claim: wire.Dead) -> None:
        member = self.members.get(claim.node)
        if member is None or claim.incarnation < member.incarnation or member.gone:
            return
        if member is self.me and not self.leaving:
            self._refute(claim.incarnation, dead=True)
            return
        self._clear_suspicion(member.name)
        self.queue.put(member.name, wire.encode_packet(claim))
        member.incarnation = claim.incarnation
        left = claim.origin == claim.node
        self._change(member, State.LEFT if left else State.DEAD)
        if member is not self.me:
            self._trace("gossip.member.down", member=member.name, left=left, accuser=claim.origin)
            self._delegate.member_down(member)

    def _refute(self, accused: int, *, dead: bool) -> None:
        """Outbid an accusation and tell everybody."""
        if accused >= MAX_INCARNATION:
            self.refusals.count(Refusal.INCARNATION)
            return
        self.me.incarnation = max(self.me.incarnation, accused) + 1
        self.awareness.apply(1)
        self._announce(self.me)
        self._trace(
            "gossip.accusation.refuted", "warning", incarnation=self.me.incarnation, dead=dead
        )
        self._delegate.accused(dead=dead)

    def _change(self, member: Member, state: State) -> None:
        if member.state is not state:
            member.state = state
            member.changed = self._timers.now
