"""The membership protocol: SWIM with Lifeguard, as memberlist protocol 2 speaks it.

Joins its parts: :mod:`~agent.gossip.swim.probing` finds out who lives, :mod:`~agent.gossip.swim.rules`
judges what is said about members; here are datagrams and streams, gossip and full exchanges.

Source: Das, Gupta, Motivala, "SWIM" (probes, suspicion, piggybacking); Dadgar, Phillips, Currey,
"Lifeguard" (awareness, confirmations, nacks); memberlist 0.2 to 0.6 for every rule of detail.
"""

from __future__ import annotations

import ipaddress
import math
import random
from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from agent.gossip.config import Timing
from agent.gossip.outputs import Datagram, Dial, Output, Trace
from agent.gossip.refusal import Refusal, Refusals
from agent.gossip.swim import seal, wire, wrappers
from agent.gossip.swim.awareness import Awareness
from agent.gossip.swim.delegate import Delegate
from agent.gossip.swim.keyring import Keyring
from agent.gossip.swim.membership import CRC_VERSION, MAX_MEMBERS, VERSIONS, Member, Membership
from agent.gossip.swim.probing import URGENT, Prober
from agent.gossip.swim.queue import BroadcastQueue, retransmit_limit
from agent.gossip.swim.replay import Replays
from agent.gossip.swim.rules import Rules
from agent.gossip.swim.wire import State
from agent.gossip.timers import Timers
from swarm.errors import WireError

MAX_INBOX: Final = 4096  # messages waiting to be worked on


def datagram_room(packet_size: int, label: bytes) -> int:
    """Return how many bytes of messages one datagram holds beside everything around them."""
    header = len(label) + 2 if label else 0
    return packet_size - header - seal.OVERHEAD - wrappers.CRC_SIZE - wrappers.COMPOUND_HEADER


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
        self._timers = timers
        self._rng = rng
        self._keyring = keyring
        self._nonces = nonces
        self._delegate = delegate
        self._label = label
        self._outputs: list[Output] = []
        self._inbox: deque[bytes] = deque()
        self._dials: dict[int, Callable[[wire.StreamMessage | None, str], None]] = {}
        self._token = 0
        self._replays = Replays()
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
        self.rules = Rules(
            me=self.me,
            timing=timing,
            timers=timers,
            rng=rng,
            members=self.members,
            queue=self.queue,
            awareness=self.awareness,
            refusals=self.refusals,
            delegate=delegate,
            trace=self._trace,
        )
        self.prober = Prober(
            me=self.me,
            timing=timing,
            timers=timers,
            rng=rng,
            members=self.members,
            awareness=self.awareness,
            refusals=self.refusals,
            courier=self,
            suspect=self.rules.suspect,
            trace=self._trace,
        )

    # -- driving ---------------------------------------------------------------------------

    def start(self) -> None:
        """Say that this node lives, and begin to probe and gossip; first ticks are staggered."""
        timing = self.timing
        self.rules.announce(self.me)
        self.prober.start()
        self._timers.after(self._rng.random() * timing.gossip_interval, self._gossip_tick)
        self._timers.after(self._rng.random() * self._push_pull_pause(), self._push_pull_tick)

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
        if self._replayed(data):
            return
        try:
            leaves, truncated = wrappers.unfold_untrusted(plain)
        except WireError:
            self.refusals.count(Refusal.MALFORMED)
            return
        if truncated:
            self.refusals.count(Refusal.TRUNCATED, truncated)
        for leaf in leaves:
            if leaf[0] in URGENT:
                self.prober.receive(leaf, host, port)
            elif len(self._inbox) < MAX_INBOX:
                self._inbox.append(leaf)
            else:
                self.refusals.count(Refusal.OVERFLOW)

    def _replayed(self, sealed: bytes) -> bool:
        """Tell whether an opened datagram or frame was there before, and count it if so."""
        replayed = self._replays.seen(seal.identity(sealed))
        if replayed:
            self.refusals.count(Refusal.REPLAYED)
        return replayed

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
                    self.rules.alive(message)
                case wire.Suspect():
                    self.rules.suspect(message)
                case wire.Dead():
                    self.rules.dead(message)
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

    def serve_stream(self, message: wire.StreamMessage, sealed: bytes) -> bytes | None:
        """Take what a dialling node sent; return the frame to answer with, if any.

        Args:
            message: what the frame held.
            sealed: the frame itself, or its end: one that was served before is not served again.
        """
        if self._replayed(sealed):
            return None
        match message:
            case wire.Ping():
                if message.node and message.node != self.name:
                    self.refusals.count(Refusal.WRONG_NODE)
                    return None
                return self.frame(wire.Ack(seq=message.seq), dialling=False)
            case wire.PushPull():
                state = self._full_state(join=message.join, newcomers=message.nodes)
                reply = self.frame(state, dialling=False)
                self._merge(message)
                return reply
            case wire.User():
                self._delegate.user_message(message.body)
            case wire.ErrorReply() | wire.Ack():
                self.refusals.count(Refusal.PEER_ERROR)
        return None

    def stream_reply(self, token: int, message: wire.StreamMessage, sealed: bytes) -> None:
        """Take the reply to a :class:`Dial`; ``sealed`` as in :meth:`serve_stream`."""
        settle = self._dials.pop(token, None)
        if settle is None:
            return
        if self._replayed(sealed):
            settle(None, "replayed")
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
        frame = self.frame(wire.User(body=body), dialling=True)
        self.dial(
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
        self.rules.leaving = True
        self.rules.dead(
            wire.Dead(incarnation=self.me.incarnation, node=self.name, origin=self.name)
        )

    @property
    def leaving(self) -> bool:
        """Whether this node has said that it goes."""
        return self.rules.leaving

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
            message = wrappers.with_crc(message)
        data = seal.seal_datagram(message, self._keyring, self._nonces(), label=self._label)
        self._outputs.append(Datagram(host=host, port=port, data=data))

    def send(
        self, parts: list[bytes], host: str, port: int, *, member: Member | None = None
    ) -> None:
        """Send messages with as many broadcasts as fit beside them."""
        used = sum(len(part) + wrappers.COMPOUND_PART for part in parts)
        extra = self._broadcasts(self._room() - used, 255 - len(parts))
        self._emit(wrappers.compound([*parts, *extra]), host, port, member=member)

    def _room(self) -> int:
        return datagram_room(self.timing.packet_size, self._label)

    def _broadcasts(self, room: int, count: int) -> list[bytes]:
        if not self.queue and not self._delegate.pending:
            return []
        limit = retransmit_limit(self.timing.retransmit_mult, len(self.members))
        taken = self.queue.take(
            room=room, overhead=wrappers.COMPOUND_PART, limit=limit, count=min(count, 200)
        )
        room -= sum(len(message) + wrappers.COMPOUND_PART for message in taken)
        above = self._delegate.broadcasts(room=room, overhead=wrappers.COMPOUND_PART + 1)
        user = bytes((wire.Kind.USER,))
        return [*taken, *(user + body for body in above[: count - len(taken)])]

    def frame(self, message: wire.StreamMessage, *, dialling: bool) -> bytes:
        """Return a message as one frame of a stream; only the dialling side writes the label."""
        return seal.seal_frame(
            wire.encode_stream(message),
            self._keyring,
            self._nonces(),
            label=self._label,
            dialling=dialling,
        )

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
        self._token += 1
        self._dials[self._token] = settle
        self._outputs.append(
            Dial(token=self._token, host=host, port=port, frame=frame, reply=reply, timeout=timeout)
        )

    def _trace(self, event: str, level: str = "info", **data: object) -> None:
        self._outputs.append(Trace(event=event, level=level, data=data))

    # -- gossip and push/pull --------------------------------------------------------------

    def _gossip_tick(self) -> None:
        timing, now = self.timing, self._timers.now
        self._timers.after(timing.gossip_interval, self._gossip_tick)
        if not self.queue and not self._delegate.pending:
            return
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
            self._emit(wrappers.compound(parts), member.host, member.port, member=member)

    def _push_pull_pause(self) -> float:
        """Return the pause between two full exchanges: longer the larger the cluster."""
        count = len(self.members)
        stretch = 1 if count <= 32 else math.ceil(math.log2(count) - 5) + 1
        return self.timing.push_pull_interval * stretch

    def _push_pull_tick(self) -> None:
        self._timers.after(self._push_pull_pause(), self._push_pull_tick)
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

        self.dial(
            host,
            port,
            self.frame(self._full_state(join=join), dialling=True),
            reply=True,
            timeout=self.timing.stream_timeout,
            settle=settle,
        )

    def _full_state(self, *, join: bool, newcomers: Iterable[wire.NodeState] = ()) -> wire.PushPull:
        former = self._superseded(newcomers)
        return wire.PushPull(
            join=join,
            nodes=tuple(member.to_wire() for member in self.members if member.name not in former),
            user_state=self._delegate.local_state(join=join),
        )

    def _superseded(self, newcomers: Iterable[wire.NodeState]) -> set[str]:
        """Return the members at whose address a later name lives, ours or one that is new to us.

        They are processes that were killed and started again, and not missed yet. Nobody must hear that
        its former self is alive: an engine would wait half a minute for its bulk sync before all else.
        """
        latest: dict[tuple[bytes, int], Member] = {}
        for member in self.members:
            place = (member.addr, member.port)
            if not member.gone and (place not in latest or latest[place].changed <= member.changed):
                latest[place] = member
        taken = {
            (node.addr, node.port)
            for node in newcomers
            if node.state is State.ALIVE and self.members.get(node.name) is None
        }
        return {
            member.name
            for member in self.members
            if not member.gone
            and member.name != self.name
            and (
                (member.addr, member.port) in taken
                or latest[member.addr, member.port] is not member
            )
        }

    def _merge(self, message: wire.PushPull) -> None:
        """Merge another node's view; the state of the layer above comes last."""
        self.rules.merge(message.nodes)
        if message.user_state:
            self._delegate.merge_state(message.user_state)
