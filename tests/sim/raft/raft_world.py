"""A world of raft cores in virtual time: a bad network, slow disks, crashes, and an all-seeing eye.

Everything random comes from one seed, so a failure is repeated by its number. After each event the
world checks what must always hold; at the end it heals everything and checks that the group comes
back and that nothing acknowledged is lost.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

from manager.raft import leader as leader_module
from manager.raft.config import RaftConfig
from manager.raft.core import RaftCore
from manager.raft.errors import ChangeRefusedError, DroppedError, NotLeaderError
from manager.raft.events import OldCopy, Role, RoleChanged, StateLost, Truncated
from manager.raft.membership import Change, ChangeKind
from manager.raft.messages import (
    AppendReply,
    Batch,
    Body,
    Entry,
    EntryKind,
    Message,
    Ready,
    Stored,
    Vote,
    VoteReply,
)

TICK_MS = 100


class Disk:
    """What survives a crash. Applies a batch at the moment its sync ends."""

    def __init__(self) -> None:
        self.stored = Stored(incarnation=0)
        self.entries: dict[int, Entry] = {}
        self.votes: dict[int, int] = {}

    def save(self, batch: Batch) -> None:
        """Store a batch, and check that it fits what is there."""
        old = self.stored
        assert batch.state.term >= old.state.term, "the durable term fell"
        if batch.state.vote is not None:
            given = self.votes.setdefault(batch.state.term, batch.state.vote)
            assert given == batch.state.vote, f"two votes in term {batch.state.term}"
        for index in [i for i in self.entries if not batch.first_index <= i <= batch.keep_to]:
            del self.entries[index]
        for entry in batch.entries:
            self.entries[entry.index] = entry
        assert len(self.entries) == batch.last_index - batch.first_index + 1, "a gap in the log"
        self.stored = replace(
            old,
            state=batch.state,
            snapshot=batch.snapshot or old.snapshot,
            first_index=batch.first_index,
            prev_term=batch.prev_term,
        )

    @property
    def last_index(self) -> int:
        """Last index on disk."""
        return self.stored.first_index + len(self.entries) - 1

    def load(self) -> Stored:
        """Start once more."""
        self.stored = replace(self.stored, incarnation=self.stored.incarnation + 1)
        return replace(self.stored, entries=tuple(self.entries[i] for i in sorted(self.entries)))


class Register:
    """The state machine: every write ever applied, the last one being the value."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def apply(self, data: bytes) -> None:
        """Write."""
        self.writes.append(data)

    def snapshot(self) -> bytes:
        """Return all writes."""
        return b"\n".join(self.writes)

    def restore(self, data: bytes) -> None:
        """Take all writes."""
        self.writes = data.split(b"\n") if data else []


@dataclass(slots=True)
class Operation:
    """One client call; ``end`` stays None while its outcome is unknown."""

    start: int
    write: bytes | None = None
    value: bytes | None = None
    end: int | None = None
    dropped: bool = False


@dataclass(slots=True)
class Node:
    """One manager: a disk that lasts, and a process that comes and goes."""

    id: int
    bootstrap: bool
    disk: Disk = field(default_factory=Disk)
    core: RaftCore | None = None
    machine: Register = field(default_factory=Register)
    life: int = 0
    paused: bool = False
    backlog: list[Callable[[], None]] = field(default_factory=list)
    disk_ms: tuple[int, int] = (1, 10)
    proposals: dict[int, tuple[int, Operation]] = field(default_factory=dict)
    reads: dict[int, Operation] = field(default_factory=dict)
    points: list[tuple[int, Operation]] = field(default_factory=list)
    seen_commit: int = 0
    syncing: Batch | None = None


class World:
    """See the module."""

    def __init__(self, seed: int, *, voters: int = 3, size: int = 5) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0
        self.size = size
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self.nodes: dict[int, Node] = {}
        self._next_id = itertools.count(1)
        self._writes = itertools.count(1)
        self.operations: list[Operation] = []
        self.blocked: set[tuple[int, int]] = set()
        self.loss = self.repeat = 0.0
        self.delay = (1, 20)
        self.straggle = 0.0
        # The all-seeing eye.
        self.leaders: dict[int, int] = {}
        self.committed: dict[int, tuple[int, bytes]] = {}
        self.highest = 0
        self.committed_in: dict[int, int] = {}
        self.snapshot_entries = self.rng.choice((15, 40, 10_000))
        # Short elections make many terms, and leaders that know too little.
        self.election_ticks = self.rng.choice((2, 3, 10))
        self.trailing = self.rng.choice((0, 3, 20))
        self.counts: dict[str, int] = {}
        first = self._new_node(bootstrap=True)
        self.start(first)
        self.targets = voters

    # Time -----------------------------------------------------------------------------------

    def after(self, delay: int, what: Callable[[], None]) -> None:
        """Do something later (milliseconds)."""
        heapq.heappush(self._queue, (self.now + delay, next(self._sequence), what))

    def run(self, duration: int) -> None:
        """Let virtual time pass."""
        end = self.now + duration
        while self._queue and self._queue[0][0] <= end:
            self.now, _, what = heapq.heappop(self._queue)
            what()
        self.now = end

    # Processes ------------------------------------------------------------------------------

    def _new_node(self, *, bootstrap: bool = False) -> Node:
        node = Node(id=next(self._next_id), bootstrap=bootstrap)
        self.nodes[node.id] = node
        return node

    def start(self, node: Node) -> None:
        """Start a process from its disk."""
        config = RaftConfig(
            cluster_id="sim",
            raft_id=node.id,
            node_id=f"n{node.id}",
            addr=f"host{node.id}",
            bootstrap=node.bootstrap,
            trailing_entries=self.trailing,
            election_ticks=self.election_ticks,
        )
        node.life += 1
        node.machine = Register()
        node.core = RaftCore(config, node.disk.load(), random.Random(self.rng.random()))
        node.seen_commit = node.core.log.snapshot.index
        node.paused = False
        self.pump(node)
        if node.core.alone:
            node.core.campaign()
            self.pump(node)
        self._schedule_tick(node, node.life, self.rng.randrange(1, TICK_MS))

    def crash(self, node: Node) -> None:
        """Lose the process and all that was not synced."""
        if node.syncing is not None and self.rng.random() < 0.5:
            # The power failed during the sync: the batch may be there all the same.
            node.disk.save(node.syncing)
        node.syncing = None
        node.core = None
        node.life += 1
        node.backlog.clear()
        node.proposals.clear()
        node.reads.clear()
        node.points.clear()

    def pause(self, node: Node) -> None:
        """Stop a process like SIGSTOP: it loses nothing and does nothing."""
        node.paused = True

    def resume(self, node: Node) -> None:
        """Go on, with everything that arrived meanwhile."""
        node.paused = False
        backlog, node.backlog = node.backlog, []
        for what in backlog:
            what()

    def _schedule_tick(self, node: Node, life: int, delay: int) -> None:
        def tick() -> None:
            if node.life != life or node.core is None:
                return
            self._schedule_tick(node, life, TICK_MS + self.rng.randrange(-3, 4))
            if not node.paused:
                node.core.tick()
                self.pump(node)

        self.after(delay, tick)

    # One round of one node ------------------------------------------------------------------

    def pump(self, node: Node) -> None:
        """Carry out what a core wants until it wants nothing."""
        core = node.core
        while core is not None and node.core is core:
            ready = core.ready()
            if ready.idle:
                break
            self._carry_out(node, core, ready)
        if node.core is not None:
            self._check(node, node.core)

    def _carry_out(self, node: Node, core: RaftCore, ready: Ready) -> None:
        # What counts as committed is looked at first: the eye compares logs, not promises.
        self._watch_commit(node, core)
        for event in ready.events:
            self.counts[type(event).__name__] = self.counts.get(type(event).__name__, 0) + 1
            if isinstance(event, RoleChanged) and event.role is Role.LEADER:
                self._watch_leader(node, core, event.term)
            elif isinstance(event, RoleChanged):
                self._lost_leadership(node, core)
            elif isinstance(event, Truncated):
                for index in [i for i in node.proposals if i >= event.index]:
                    node.proposals.pop(index)[1].dropped = True
            assert not isinstance(event, StateLost | OldCopy), f"{node.id} lost state: {event}"
        if ready.batch is not None:
            life, batch = node.life, ready.batch
            node.syncing = batch

            def synced() -> None:
                if node.life != life:
                    return
                node.disk.save(batch)
                node.syncing = None
                if node.core is not None:

                    def done() -> None:
                        if node.core is core:
                            core.advance()
                            self.pump(node)

                    self._soon(node, done)

            self.after(self.rng.randrange(*node.disk_ms), synced)
        for message in ready.messages:
            self._watch_message(node, message)
            self.transmit(message)
        if ready.restore is not None:
            node.machine.restore(ready.restore.data)
            for index in [i for i in node.proposals if i <= ready.restore.index]:
                node.proposals.pop(index)
        for entry in ready.committed:
            self._apply(node, entry)
        for result in ready.reads:
            operation = node.reads.pop(result.context, None)
            if operation is not None and result.index is not None:
                node.points.append((result.index, operation))
        for point in [p for p in node.points if p[0] <= core.log.applied]:
            node.points.remove(point)
            point[1].value = node.machine.writes[-1] if node.machine.writes else b""
            point[1].end = self.now
        if core.log.applied - core.log.snapshot.index >= self.snapshot_entries:
            core.compact(core.log.applied, node.machine.snapshot())

    def _apply(self, node: Node, entry: Entry) -> None:
        assert self.committed.get(entry.index) == (entry.term, entry.data), (
            f"{node.id} applies {entry}, committed is {self.committed.get(entry.index)}"
        )
        if entry.kind is EntryKind.COMMAND:
            node.machine.apply(entry.data)
        waiting = node.proposals.pop(entry.index, None)
        if waiting is not None:
            term, operation = waiting
            if term == entry.term:
                operation.end = self.now
            else:
                operation.dropped = True

    def _lost_leadership(self, node: Node, core: RaftCore) -> None:
        for index in [i for i in node.proposals if i > core.log.commit]:
            del node.proposals[index]

    # The network ----------------------------------------------------------------------------

    def transmit(self, message: Message[Body]) -> None:
        """Put a message on the network, which may do anything to it but alter it."""
        copies = 1
        if self.rng.random() < self.loss:
            copies = 0
            sender = self.nodes[message.sender]
            if sender.core is not None and self.rng.random() < 0.3:
                sender.core.report_unreachable(message.to)
        elif self.rng.random() < self.repeat:
            copies = 2
        for _ in range(copies):
            delay = self.rng.randrange(*self.delay)
            if self.straggle and self.rng.random() < self.straggle:
                delay = self.rng.randrange(100, 4000)
            self.after(delay, lambda: self._arrive(message))

    def _arrive(self, message: Message[Body]) -> None:
        node = self.nodes[message.to]
        if node.core is None or (message.sender, message.to) in self.blocked:
            return

        def deliver() -> None:
            if node.core is not None:
                node.core.step(message)
                self.pump(node)

        self._soon(node, deliver)

    @staticmethod
    def _soon(node: Node, what: Callable[[], None]) -> None:
        """Do it now, or when the paused process goes on."""
        if node.paused:
            node.backlog.append(what)
        else:
            what()

    # Clients --------------------------------------------------------------------------------

    def write(self) -> None:
        """Write a new value at whoever takes itself for the leader."""
        node = self._client_choice()
        if node is None or node.core is None:
            return
        operation = Operation(start=self.now, write=b"w%d" % next(self._writes))
        try:
            index, term = node.core.propose(operation.write or b"")
        except (NotLeaderError, DroppedError):
            return
        self.operations.append(operation)
        node.proposals[index] = (term, operation)
        self.pump(node)

    def read(self) -> None:
        """Read at any member."""
        alive = self.running()
        if not alive:
            return
        node = self.rng.choice(alive)
        if node.core is None or node.paused:
            return
        operation = Operation(start=self.now)
        self.operations.append(operation)
        node.reads[node.core.request_read()] = operation
        self.pump(node)

    def _client_choice(self) -> Node | None:
        leaders = [n for n in self.running() if n.core and n.core.role is Role.LEADER]
        leaders = [n for n in leaders if not n.paused]
        return self.rng.choice(leaders) if leaders else None

    def running(self) -> list[Node]:
        """Processes that live."""
        return [node for node in self.nodes.values() if node.core is not None]

    def leader(self) -> Node | None:
        """The leader of the highest term."""
        leaders = [n for n in self.running() if n.core and n.core.role is Role.LEADER]
        return max(leaders, key=lambda n: n.core.term if n.core else 0, default=None)

    # Administration -------------------------------------------------------------------------

    def grow_or_shrink(self) -> None:
        """Take one random administrative step at the leader."""
        node = self.leader()
        if node is None or node.core is None or node.paused:
            return
        core = node.core
        members = core.membership.members
        learners = sorted(members.keys() - core.membership.voters)
        try:
            if learners and self.rng.random() < 0.8:
                core.change(Change(kind=ChangeKind.PROMOTE, raft_id=learners[0]))
            elif len(members) < self.targets or (
                len(members) < self.size and self.rng.random() < 0.3
            ):
                newcomer = self._new_node()
                self.start(newcomer)
                core.change(
                    Change(
                        kind=ChangeKind.ADD_LEARNER,
                        raft_id=newcomer.id,
                        node_id=f"n{newcomer.id}",
                        addr=f"host{newcomer.id}",
                    )
                )
            elif self.rng.random() < 0.3 and len(members) > 1:
                victim = self.rng.choice(sorted(members))
                core.change(Change(kind=ChangeKind.REMOVE, raft_id=victim))
            elif self.rng.random() < 0.2:
                who = self.rng.choice(sorted(members))
                core.change(Change(kind=ChangeKind.UPDATE, raft_id=who, addr=f"new{self.now}"))
            else:
                core.transfer_leadership()
        except (ChangeRefusedError, NotLeaderError):
            pass
        self.pump(node)

    # The all-seeing eye ---------------------------------------------------------------------

    def _watch_leader(self, node: Node, core: RaftCore, term: int) -> None:
        known = self.leaders.setdefault(term, node.id)
        assert known == node.id, f"two leaders in term {term}: {known} and {node.id}"
        # Leader completeness (paper, figure 3): what earlier terms committed is in its log. A
        # paused candidate may win an old term while a later one is under way; that is no harm.
        highest = max((i for t, i in self.committed_in.items() if t < term), default=0)
        if highest >= core.log.first_index:
            assert core.log.term_of(highest) == self.committed[highest][0], (
                f"leader {node.id} of term {term} lacks committed entry {highest}"
            )

    def _watch_commit(self, node: Node, core: RaftCore) -> None:
        commit = core.log.commit
        if commit <= node.seen_commit:
            assert commit >= node.seen_commit, f"{node.id}: the commit index fell"
            return
        start = max(node.seen_commit + 1, core.log.first_index)
        for entry in core.log.slice(start, max_bytes=1 << 40, max_entries=commit - start + 1):
            known = self.committed.setdefault(entry.index, (entry.term, entry.data))
            assert known == (entry.term, entry.data), (
                f"{node.id} commits {entry}, but {known} was committed there"
            )
        node.seen_commit = commit
        if commit > self.highest:
            self.highest = commit
            self.committed_in[core.term] = commit
            self._watch_majority(core, commit)

    def _watch_majority(self, core: RaftCore, index: int) -> None:
        """An entry that anybody commits for the first time is on a majority of disks."""
        voters = core.membership.voters
        having = 0
        for voter in voters:
            disk = self.nodes[voter].disk
            entry = disk.entries.get(index)
            covered = disk.stored.snapshot.index >= index
            having += bool(covered or (entry and entry.term == core.log.term_of(index)))
        assert having > len(voters) // 2, f"{index} committed on {having} of {len(voters)} disks"

    def _watch_message(self, node: Node, message: Message[Body]) -> None:
        """Nothing that leaves may claim what the disk does not hold yet."""
        body, disk = message.body, node.disk
        if isinstance(body, Vote) or (isinstance(body, VoteReply) and body.granted):
            choice = node.id if isinstance(body, Vote) else message.to
            assert disk.votes.get(message.term) == choice, f"{message} before it is durable"
        elif isinstance(body, AppendReply) and not body.rejected and body.index:
            assert body.index <= disk.last_index, f"{message}, but disk ends {disk.last_index}"
            assert disk.stored.state.term >= message.term, f"{message} before it is durable"

    @staticmethod
    def _check(node: Node, core: RaftCore) -> None:
        log = core.log
        assert log.applied <= log.commit <= log.last_index, node
        assert log.saved <= log.saving <= log.last_index, node
        assert core.role is Role.LEADER or not core.peers, node

    # The end --------------------------------------------------------------------------------

    def heal(self) -> None:
        """Make everything work again, for good."""
        self.blocked.clear()
        self.loss = self.repeat = self.straggle = 0.0
        self.delay = (1, 20)
        for node in self.nodes.values():
            node.disk_ms = (1, 10)
            if node.core is None:
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

    def check_recovered(self) -> None:
        """One leader, equal logs on all its members, nothing acknowledged missing."""
        leader = self.leader()
        assert leader is not None, "nobody leads after everything is healed"
        assert leader.core is not None
        core = leader.core
        for raft_id in core.membership.members:
            member = self.nodes[raft_id]
            assert member.core is not None
            assert member.core.log.applied == core.log.commit, f"{raft_id} has not caught up"
            assert member.machine.writes == leader.machine.writes
        for raft_id in core.log.committed_membership.removed:
            former = self.nodes[raft_id].core
            assert former is None or former.role is not Role.LEADER
        self.check_history(leader.machine.writes)

    def check_history(self, writes: list[bytes]) -> None:
        """Check that the register's history is linearisable in the order of the log.

        The log's order is the witness: a write sits at its place, a read right after the write it
        saw. It is a valid one if no operation sits before another that ended before it began.
        """
        place = {value: number for number, value in enumerate(writes, start=1)}
        assert len(place) == len(writes), "a write was applied twice"
        place[b""] = 0
        done: list[tuple[int, int]] = []
        for operation in self.operations:
            if operation.write is not None:
                assert not (operation.dropped and operation.write in place), "dropped, yet applied"
            if operation.end is None:
                continue
            value = operation.write if operation.write is not None else operation.value
            assert value is not None
            assert value in place, f"acknowledged {value!r} is lost"
            done.append((operation.end, place[value]))
        done.sort()
        begun = sorted((o for o in self.operations if o.end is not None), key=lambda o: o.start)
        latest, position = 0, 0
        for operation in begun:
            while position < len(done) and done[position][0] < operation.start:
                latest = max(latest, done[position][1])
                position += 1
            if operation.write is not None:
                assert place[operation.write] > latest, f"{operation} after {latest}"
            else:
                assert place[operation.value or b""] >= latest, f"{operation} after {latest}"


class Trouble:
    """Random faults, forever."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = world.rng
        self.on = True
        every: list[Callable[[], Any]] = [
            self._crash,
            self._crash_leader,
            self._power_failure,
            self._pause,
            self._partition,
            self._isolate_leader,
            self._one_way,
            self._slow_disk,
            self._loss,
            self._stragglers,
            self._change,
            self._change_and_cut,
            self._write_and_crash,
            self._campaigns,
        ]
        # A few kinds over and over find more than all of them now and then.
        self._kinds = self.rng.sample(every, self.rng.randrange(3, len(every) + 1))
        self._pace = self.rng.choice(((50, 300), (100, 900), (500, 2000)))

    def start(self) -> None:
        """Begin with faults and clients."""
        self._next()
        self._next_client()

    def _next(self) -> None:
        self.world.after(self.rng.randrange(*self._pace), self._strike)

    def _strike(self) -> None:
        if self.on:
            self.rng.choice(self._kinds)()
            self._next()

    def _next_client(self) -> None:
        self.world.after(self.rng.randrange(5, 120), self._client)

    def _client(self) -> None:
        if self.on:
            for _ in range(self.rng.choice((1, 1, 1, 8))):
                self.world.write() if self.rng.random() < 0.7 else self.world.read()
            self._next_client()

    def _victim(self) -> Any:
        running = self.world.running()
        return self.rng.choice(running) if running else None

    def _crash_node(self, node: Any) -> None:
        if node is None or node.core is None:
            return
        self.world.crash(node)
        life = node.life

        def back() -> None:
            if node.life == life:
                self.world.start(node)

        self.world.after(self.rng.randrange(1, 3000), back)

    def _crash(self) -> None:
        self._crash_node(self._victim())

    def _crash_leader(self) -> None:
        self._crash_node(self.world.leader())

    def _pause(self) -> None:
        node = self._victim()
        if node is not None and not node.paused:
            self.world.pause(node)
            life = node.life
            self.world.after(
                self.rng.randrange(50, 4000),
                lambda: self.world.resume(node) if node.life == life else None,
            )

    def _block(self, pairs: set[tuple[int, int]]) -> None:
        self.world.blocked |= pairs

        def unblock() -> None:
            self.world.blocked -= pairs

        self.world.after(self.rng.randrange(200, 5000), unblock)

    def _partition(self) -> None:
        ids = list(self.world.nodes)
        self.rng.shuffle(ids)
        cut = self.rng.randrange(len(ids) + 1)
        self._block(
            {(a, b) for a in ids[:cut] for b in ids[cut:]}
            | {(b, a) for a in ids[:cut] for b in ids[cut:]}
        )

    def _isolate_leader(self) -> None:
        leader = self.world.leader()
        if leader is not None:
            others = [i for i in self.world.nodes if i != leader.id]
            self._block({(leader.id, i) for i in others} | {(i, leader.id) for i in others})

    def _one_way(self) -> None:
        node = self._victim()
        if node is not None:
            others = [i for i in self.world.nodes if i != node.id]
            inward = self.rng.random() < 0.5
            self._block({(i, node.id) if inward else (node.id, i) for i in others})

    def _slow_disk(self) -> None:
        node = self._victim()
        if node is not None:
            node.disk_ms = self.rng.choice(((1, 10), (1, 200), (100, 1500)))

    def _loss(self) -> None:
        self.world.loss = self.rng.choice((0.0, 0.02, 0.1, 0.4))
        self.world.repeat = self.rng.choice((0.0, 0.1, 0.3))

    def _stragglers(self) -> None:
        self.world.straggle = self.rng.choice((0.0, 0.02, 0.1))
        self.world.delay = self.rng.choice(((1, 5), (1, 20), (1, 120), (50, 400)))

    def _change(self) -> None:
        self.world.grow_or_shrink()

    def _change_and_cut(self) -> None:
        """Begin a membership change that reaches few others, or nobody."""
        leader = self.world.leader()
        if leader is not None:
            others = [i for i in self.world.nodes if i != leader.id]
            self.rng.shuffle(others)
            cut = others[self.rng.randrange(2) :]
            self._block({(leader.id, i) for i in cut} | {(i, leader.id) for i in cut})
            self.world.grow_or_shrink()

    def _write_and_crash(self) -> None:
        """Leave entries on the leader's disk that nobody else, or only some, have."""
        leader = self.world.leader()
        if leader is not None:
            for _ in range(self.rng.randrange(1, 6)):
                self.world.write()
            life = leader.life
            self.world.after(
                self.rng.randrange(1, 60),
                lambda: self._crash_node(leader) if leader.life == life else None,
            )

    def _power_failure(self) -> None:
        for node in self.world.running():
            if self.rng.random() < 0.8:
                self._crash_node(node)

    def _campaigns(self) -> None:
        """Make several members campaign at the same moment, leases or not."""
        for node in self.world.running():
            if node.core is not None and not node.paused and self.rng.random() < 0.6:
                node.core.campaign()
                node.core.elapsed = self.rng.randrange(20)
                self.world.pump(node)


def simulate(seed: int, *, duration: int = 15_000) -> World:
    """Run one seed from birth to recovery; raises AssertionError naming what broke."""
    rng = random.Random(~seed)
    # Small appends leave followers with parts of what the leader has.
    with patch.object(leader_module, "MAX_APPEND_ENTRIES", rng.choice((2, 8, 4096))):
        return _simulate(World(seed, voters=rng.choice((1, 2, 3, 3, 3, 5, 5)), size=7), duration)


def _simulate(world: World, duration: int) -> World:
    for _ in range(4):
        world.run(400)
        world.grow_or_shrink()
    trouble = Trouble(world)
    trouble.start()
    world.run(duration)
    trouble.on = False
    world.heal()
    for _ in range(10):
        world.run(1_000)
        if world.recovered():
            break
    world.check_recovered()
    return world
