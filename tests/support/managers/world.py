"""A world of managers in virtual time: a bad network, slow disks, crashes, and an all-seeing eye.

Everything random comes from one seed, so a failure is repeated by its number. What a process
consists of is up to the two kinds of world: ``register`` (cores alone) and ``cluster`` (whole
managers).
"""

from __future__ import annotations

import abc
import itertools
import random
from collections.abc import Callable
from typing import Generic, TypeVar

from manager.raft.config import RaftConfig
from manager.raft.events import Role
from manager.raft.membership import Change, ChangeKind
from manager.raft.messages import Body, Message
from support.managers.clock import Clock
from support.managers.eye import Eye, Process

P = TypeVar("P", bound=Process)

TICK_MS = 100


class World(abc.ABC, Generic[P]):
    """See the module.

    Attributes:
        nodes: every process there ever was.
        blocked: (from, to) that nothing passes.
        loss, repeat, straggle: how likely a message is lost, doubled, or late by seconds.
        delay: how long a message takes, from and to (milliseconds).
        on_commit: called once, when a leader next carries out a command.
        voters: how many the administrator wants at least.
        size: how many members the administrator allows.
    """

    def __init__(self, seed: int, *, voters: int = 3, size: int = 5) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.nodes: dict[int, P] = {}
        self.eye = Eye(self.nodes)
        self.voters = voters
        self.size = size
        self._next_id = itertools.count(1)
        self.blocked: set[tuple[int, int]] = set()
        self.loss = self.repeat = self.straggle = 0.0
        self.delay = (1, 20)
        self.on_commit: Callable[[P], None] | None = None
        self.snapshot_entries = self.rng.choice((15, 40, 10_000))
        # Short elections make many terms, and leaders that know too little.
        self.election_ticks = self.rng.choice((2, 3, 10))
        self.trailing = self.rng.choice((0, 3, 20))
        self.start(self.new_node(bootstrap=True))

    # What a process is ------------------------------------------------------------------------

    @abc.abstractmethod
    def make_node(self, raft_id: int, *, bootstrap: bool) -> P:
        """Make a process that was never started."""

    @abc.abstractmethod
    def start(self, node: P) -> None:
        """Start a process from its disk."""

    @abc.abstractmethod
    def end(self, node: P) -> None:
        """Let a process vanish with all it has in memory."""

    @abc.abstractmethod
    def pump(self, node: P) -> None:
        """Let a process carry out what its core wants."""

    @abc.abstractmethod
    def deliver(self, node: P, message: Message[Body]) -> None:
        """Hand a message to a process."""

    @abc.abstractmethod
    def pause(self, node: P) -> None:
        """Stop a process like SIGSTOP: it loses nothing and does nothing."""

    @abc.abstractmethod
    def resume(self, node: P) -> None:
        """Go on, with everything that arrived meanwhile."""

    @abc.abstractmethod
    def change(self, node: P, change: Change) -> None:
        """Try a membership change at a process; it may be refused."""

    @abc.abstractmethod
    def transfer(self, node: P) -> None:
        """Try to hand over leadership; it may be refused."""

    @abc.abstractmethod
    def write(self) -> None:
        """Let some client write something."""

    @abc.abstractmethod
    def read(self) -> None:
        """Let some client read something."""

    # Processes ------------------------------------------------------------------------------

    def new_node(self, *, bootstrap: bool = False) -> P:
        """Add a process, not started yet."""
        node = self.make_node(next(self._next_id), bootstrap=bootstrap)
        self.nodes[node.id] = node
        return node

    def config(self, node: P) -> RaftConfig:
        """Return what a process is told at start."""
        return RaftConfig(
            cluster_id="sim",
            raft_id=node.id,
            node_id=f"n{node.id}",
            addr=f"host{node.id}",
            bootstrap=node.bootstrap,
            snapshot_entries=self.snapshot_entries,
            trailing_entries=self.trailing,
            election_ticks=self.election_ticks,
        )

    def crash(self, node: P) -> None:
        """Lose the process and all that was not synced."""
        if node.syncing is not None and self.rng.random() < 0.5:
            # The power failed during the sync: the batch may be there all the same.
            node.disk.save(node.syncing)
        node.life += 1
        node.syncing = None
        node.up = node.paused = False
        self.end(node)
        node.core = None
        self.hang_up(node)

    def hang_up(self, node: P) -> None:
        """End the connections on which a process spoke; whom it reaches notices, or not."""
        for other in self.running():
            if (node.id, other.id) not in self.blocked and self.rng.random() < 0.7:
                self.clock.after(
                    self.rng.randrange(1, 50), lambda other=other: self._lose(other, node)
                )

    def _lose(self, other: P, node: P) -> None:
        if other.core is not None and not other.paused:
            other.core.report_lost(node.id)
            self.eye.counts["connections ended"] += 1

    def running(self) -> list[P]:
        """Processes that live."""
        return [node for node in self.nodes.values() if node.core is not None]

    def leader(self) -> P | None:
        """The leader of the highest term."""
        leaders = [n for n in self.running() if n.core and n.core.role is Role.LEADER]
        return max(leaders, key=lambda n: n.core.term if n.core else 0, default=None)

    # The network ----------------------------------------------------------------------------

    def transmit(self, message: Message[Body]) -> None:
        """Put a message on the network, which may do anything to it but alter it."""
        copies = 1
        if self.rng.random() < self.loss:
            copies = 0
            self.eye.counts["messages lost"] += 1
            sender = self.nodes[message.sender]
            if sender.core is not None and self.rng.random() < 0.3:
                sender.core.report_unreachable(message.to)
        elif self.rng.random() < self.repeat:
            copies = 2
            self.eye.counts["messages repeated"] += 1
        for _ in range(copies):
            delay = self.rng.randrange(*self.delay)
            if self.straggle and self.rng.random() < self.straggle:
                delay = self.rng.randrange(100, 4000)
                self.eye.counts["messages late"] += 1
            self.clock.after(delay, lambda: self._arrive(message))

    def _arrive(self, message: Message[Body]) -> None:
        node = self.nodes[message.to]
        if (message.sender, message.to) in self.blocked:
            self.eye.counts["messages cut off"] += 1
        elif node.core is not None:
            self.deliver(node, message)

    def note_applied(self, node: P) -> None:
        """A process has applied a command; its clients hear of it right after."""
        strike = self.on_commit
        if strike is not None and node.core is not None and node.core.role is Role.LEADER:
            self.on_commit = None
            self.clock.after(0, lambda: strike(node))

    # Administration -------------------------------------------------------------------------

    def grow_or_shrink(self) -> None:
        """Take one random administrative step at the leader."""
        node = self.leader()
        if node is None or node.core is None or node.paused:
            return
        members = node.core.membership.members
        learners = sorted(members.keys() - node.core.membership.voters)
        if learners and self.rng.random() < 0.8:
            self.change(node, Change(kind=ChangeKind.PROMOTE, raft_id=learners[0]))
        elif len(members) < self.voters or (len(members) < self.size and self.rng.random() < 0.3):
            self.add_learner(node)
        elif self.rng.random() < 0.3 and len(members) > 1:
            victim = self.rng.choice(sorted(members))
            self.change(node, Change(kind=ChangeKind.REMOVE, raft_id=victim))
        elif self.rng.random() < 0.2:
            who = self.rng.choice(sorted(members))
            addr = f"new{self.clock.now}"
            self.change(node, Change(kind=ChangeKind.UPDATE, raft_id=who, addr=addr))
        else:
            self.transfer(node)

    def add_learner(self, leader: P) -> None:
        """Start a new process and have it added."""
        newcomer = self.new_node()
        self.start(newcomer)
        self.change(
            leader,
            Change(
                kind=ChangeKind.ADD_LEARNER,
                raft_id=newcomer.id,
                node_id=f"n{newcomer.id}",
                addr=f"host{newcomer.id}",
            ),
        )

    # The end --------------------------------------------------------------------------------

    def heal(self) -> None:
        """Make everything work again, for good."""
        self.blocked.clear()
        self.on_commit = None
        self.loss = self.repeat = self.straggle = 0.0
        self.delay = (1, 20)
        for node in list(self.nodes.values()):
            node.disk_ms = (1, 10)
            if node.gone:
                continue
            if not node.up:
                self.start(node)
            elif node.paused:
                self.resume(node)

    def recovered(self) -> bool:
        """Return whether one leader has brought all its members up to its own commit index."""
        leader = self.leader()
        if leader is None or leader.core is None:
            return False
        core = leader.core
        members = [self.nodes[raft_id].core for raft_id in core.membership.members]
        return core.log.term_of(core.log.commit) == core.term and all(
            member is not None and member.log.applied == core.log.last_index for member in members
        )
