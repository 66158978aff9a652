"""What a node makes of claims about members: alive, suspect, dead, left.

Source: SWIM, section 4.2 (suspicion and incarnations); Lifeguard, section IV; memberlist 0.2 to 0.6
for every rule of detail.
"""

from __future__ import annotations

import random
from typing import Final, Protocol

from agent.gossip.config import Timing
from agent.gossip.refusal import Refusal, Refusals
from agent.gossip.swim import suspicion, wire
from agent.gossip.swim.awareness import Awareness
from agent.gossip.swim.delegate import Delegate
from agent.gossip.swim.membership import MAX_MEMBERS, Member, Membership, compatible, usable
from agent.gossip.swim.queue import BroadcastQueue
from agent.gossip.swim.wire import State
from agent.gossip.timers import Timer, Timers

MAX_INCARNATION: Final = 0xFFFFFFFF


class Tracer(Protocol):
    """Takes facts worth a line in the log."""

    def __call__(self, event: str, level: str = "info", **data: object) -> None:
        """Note one."""


class Rules:
    """Judges claims, runs suspicions, refutes what is said about this node.

    Attributes:
        leaving: this node has said that it goes; what others say of it is no longer refuted.
    """

    def __init__(
        self,
        *,
        me: Member,
        timing: Timing,
        timers: Timers,
        rng: random.Random,
        members: Membership,
        queue: BroadcastQueue,
        awareness: Awareness,
        refusals: Refusals,
        delegate: Delegate,
        trace: Tracer,
    ) -> None:
        self.leaving = False
        self._me = me
        self._timing = timing
        self._timers = timers
        self._rng = rng
        self._members = members
        self._queue = queue
        self._awareness = awareness
        self._refusals = refusals
        self._delegate = delegate
        self._trace = trace
        self._suspicions: dict[str, tuple[suspicion.Suspicion, Timer]] = {}

    def merge(self, nodes: tuple[wire.NodeState, ...]) -> None:
        """Take another node's view: its dead are only suspects here."""
        for node in nodes:
            match node.state:
                case State.ALIVE:
                    self.alive(
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
                    self.dead(
                        wire.Dead(incarnation=node.incarnation, node=node.name, origin=node.name)
                    )
                case State.DEAD | State.SUSPECT:
                    if node.name == self._me.name and node.state is State.DEAD:
                        self._delegate.accused(dead=True)
                    self.suspect(
                        wire.Suspect(
                            incarnation=node.incarnation, node=node.name, origin=self._me.name
                        )
                    )

    def announce(self, member: Member) -> None:
        """Queue the news that a node lives."""
        message = wire.Alive(
            incarnation=member.incarnation,
            node=member.name,
            addr=member.addr,
            port=member.port,
            meta=member.meta,
            versions=member.versions,
        )
        self._queue.put(member.name, wire.encode_packet(message))

    def alive(self, claim: wire.Alive) -> None:
        """Judge a claim that a node lives."""
        if claim.node == self._me.name:
            self._alive_about_self(claim)
            return
        if not claim.node or not usable(claim.addr, claim.port):
            self._refusals.count(Refusal.ADDRESS)
            return
        if not compatible(claim.versions):
            self._refusals.count(Refusal.VERSION)
            return
        member = self._members.get(claim.node)
        if member is None:
            member = self._new_member(claim)
            if member is None:
                return
        moved = member.addr != claim.addr or member.port != claim.port
        if moved and member.state is not State.LEFT:
            self._refusals.count(Refusal.ADDRESS_CONFLICT)
            return
        if not moved and claim.incarnation <= member.incarnation:
            return
        self._clear_suspicion(member.name)
        was_gone = member.gone
        member.incarnation = claim.incarnation
        member.addr, member.port = claim.addr, claim.port
        member.meta, member.versions = claim.meta, claim.versions[:6]
        self._change(member, State.ALIVE)
        self.announce(member)
        if was_gone:
            self._trace("gossip.member.up", member=member.name, host=member.host, port=member.port)
            self._delegate.member_up(member)

    def _new_member(self, claim: wire.Alive) -> Member | None:
        if len(self._members) >= MAX_MEMBERS:
            self._refusals.count(Refusal.MEMBERS_FULL)
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
        self._members.add(member, self._rng)
        return member

    def _alive_about_self(self, claim: wire.Alive) -> None:
        if self.leaving:
            return
        if claim.addr != self._me.addr or claim.port != self._me.port:
            self._refusals.count(Refusal.ADDRESS_CONFLICT)
            return
        if claim.incarnation < self._me.incarnation:
            return
        same = claim.meta == self._me.meta and claim.versions == self._me.versions
        if claim.incarnation == self._me.incarnation and same:
            return
        self._refute(claim.incarnation, dead=False)

    def suspect(self, claim: wire.Suspect) -> None:
        """Judge an accusation: the accused gets time to refute."""
        member = self._members.get(claim.node)
        if member is None or claim.incarnation < member.incarnation:
            return
        running = self._suspicions.get(member.name)
        if running is not None:
            self._confirm(member, claim, *running)
            return
        if member.state is not State.ALIVE:
            return
        if member is self._me:
            self._refute(claim.incarnation, dead=False)
            return
        self._queue.put(member.name, wire.encode_packet(claim))
        member.incarnation = claim.incarnation
        self._change(member, State.SUSPECT)
        limits = suspicion.bounds(
            nodes=len(self._members),
            probe_interval=self._timing.probe_interval,
            mult=self._timing.suspicion_mult,
            max_mult=self._timing.suspicion_max_mult,
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
            self._queue.put(member.name, wire.encode_packet(claim))

    def _arm(self, member: Member, running: suspicion.Suspicion) -> None:
        def expire() -> None:
            self.dead(
                wire.Dead(incarnation=member.incarnation, node=member.name, origin=self._me.name)
            )

        self._suspicions[member.name] = (running, self._timers.at(running.deadline(), expire))

    def _clear_suspicion(self, name: str) -> None:
        running = self._suspicions.pop(name, None)
        if running is not None:
            running[1].cancel()

    def dead(self, claim: wire.Dead) -> None:
        """Judge a death notice; one from the node itself says that it leaves."""
        member = self._members.get(claim.node)
        if member is None or claim.incarnation < member.incarnation or member.gone:
            return
        if member is self._me and not self.leaving:
            self._refute(claim.incarnation, dead=True)
            return
        self._clear_suspicion(member.name)
        self._queue.put(member.name, wire.encode_packet(claim))
        member.incarnation = claim.incarnation
        left = claim.origin == claim.node
        self._change(member, State.LEFT if left else State.DEAD)
        if member is not self._me:
            self._trace("gossip.member.down", member=member.name, left=left, accuser=claim.origin)
            self._delegate.member_down(member)

    def _refute(self, accused: int, *, dead: bool) -> None:
        """Outbid an accusation and tell everybody."""
        if accused >= MAX_INCARNATION:
            self._refusals.count(Refusal.INCARNATION)
            return
        self._me.incarnation = max(self._me.incarnation, accused) + 1
        self._awareness.apply(1)
        self.announce(self._me)
        self._trace(
            "gossip.accusation.refuted", "warning", incarnation=self._me.incarnation, dead=dead
        )
        self._delegate.accused(dead=dead)

    def _change(self, member: Member, state: State) -> None:
        if member.state is not state:
            member.state = state
            member.changed = self._timers.now
