"""The world of raft cores alone, with a register for a state machine.

The driver below is the loop of ``manager.raft``'s manual, in virtual time. It is quick, so it can
try many seeds; whole managers are in ``cluster``.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from unittest.mock import patch

from manager.raft import leader as leader_module
from manager.raft.core import RaftCore
from manager.raft.errors import ChangeRefusedError, DroppedError, NotLeaderError
from manager.raft.events import OldCopy, Role, RoleChanged, StateLost, Truncated
from manager.raft.membership import Change
from manager.raft.messages import Batch, Body, Entry, EntryKind, Message, Ready
from support.managers.eye import Process
from support.managers.trouble import Trouble
from support.managers.world import TICK_MS, World


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


@dataclass(slots=True, kw_only=True)
class Member(Process):
    """One raft core and its register."""

    machine: Register = field(default_factory=Register)
    backlog: list[Callable[[], None]] = field(default_factory=list)
    proposals: dict[int, tuple[int, Operation]] = field(default_factory=dict)
    reads: dict[int, Operation] = field(default_factory=dict)
    points: list[tuple[int, Operation]] = field(default_factory=list)


class RegisterWorld(World[Member]):
    """See the module."""

    def __init__(self, seed: int, *, voters: int = 3, size: int = 5) -> None:
        self._writes = itertools.count(1)
        self.operations: list[Operation] = []
        super().__init__(seed, voters=voters, size=size)

    # Processes ------------------------------------------------------------------------------

    def make_node(self, raft_id: int, *, bootstrap: bool) -> Member:
        """Make a process that was never started."""
        return Member(id=raft_id, bootstrap=bootstrap)

    def start(self, node: Member) -> None:
        """Start a process from its disk."""
        node.life += 1
        node.up = True
        node.machine = Register()
        stored = node.disk.load()
        node.core = core = RaftCore(self.config(node), stored, random.Random(self.rng.random()))
        node.seen_commit = core.log.snapshot.index
        self.pump(node)
        if core.alone:
            core.campaign()
            self.pump(node)
        self._schedule_tick(node, node.life, self.rng.randrange(1, TICK_MS))

    def end(self, node: Member) -> None:
        """Let a process vanish with all it has in memory."""
        node.backlog.clear()
        node.proposals.clear()
        node.reads.clear()
        node.points.clear()

    def pause(self, node: Member) -> None:
        """Stop a process like SIGSTOP: it loses nothing and does nothing."""
        node.paused = True

    def resume(self, node: Member) -> None:
        """Go on, with everything that arrived meanwhile."""
        node.paused = False
        backlog, node.backlog = node.backlog, []
        for what in backlog:
            what()

    def deliver(self, node: Member, message: Message[Body]) -> None:
        """Hand a message to a process."""

        def step() -> None:
            if node.core is not None:
                node.core.step(message)
                self.pump(node)

        self._soon(node, step)

    def change(self, node: Member, change: Change) -> None:
        """Try a membership change at a process; it may be refused."""
        assert node.core is not None
        with contextlib.suppress(ChangeRefusedError, NotLeaderError):
            node.core.change(change)
        self.pump(node)

    def transfer(self, node: Member) -> None:
        """Try to hand over leadership; it may be refused."""
        assert node.core is not None
        with contextlib.suppress(ChangeRefusedError, NotLeaderError):
            node.core.transfer_leadership()
        self.pump(node)

    def _schedule_tick(self, node: Member, life: int, delay: int) -> None:
        def tick() -> None:
            if node.life != life or node.core is None:
                return
            self._schedule_tick(node, life, TICK_MS + self.rng.randrange(-3, 4))
            if not node.paused:
                node.core.tick()
                self.pump(node)

        self.clock.after(delay, tick)

    @staticmethod
    def _soon(node: Member, what: Callable[[], None]) -> None:
        """Do it now, or when the paused process goes on."""
        if node.paused:
            node.backlog.append(what)
        else:
            what()

    # One round of one node ------------------------------------------------------------------

    def pump(self, node: Member) -> None:
        """Carry out what a core wants until it wants nothing."""
        core = node.core
        while core is not None and node.core is core:
            ready = core.ready()
            if ready.idle:
                break
            self._carry_out(node, core, ready)
        if node.core is not None:
            self.eye.check(node)

    def _carry_out(self, node: Member, core: RaftCore, ready: Ready) -> None:
        self.eye.observe(node, core, ready)
        for event in ready.events:
            if isinstance(event, RoleChanged) and event.role is not Role.LEADER:
                for index in [i for i in node.proposals if i > core.log.commit]:
                    del node.proposals[index]
            elif isinstance(event, Truncated):
                for index in [i for i in node.proposals if i >= event.index]:
                    node.proposals.pop(index)[1].dropped = True
            assert not isinstance(event, StateLost | OldCopy), f"{node.id} lost state: {event}"
        if ready.batch is not None:
            self._sync(node, core, ready.batch)
        for message in ready.messages:
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
            point[1].end = self.clock.now
        if core.log.applied - core.log.snapshot.index >= self.snapshot_entries:
            core.compact(core.log.applied, node.machine.snapshot())

    def _sync(self, node: Member, core: RaftCore, batch: Batch) -> None:
        life = node.life
        node.syncing = batch

        def done() -> None:
            if node.core is core:
                core.advance()
                self.pump(node)

        def synced() -> None:
            if node.life == life:
                node.disk.save(batch)
                node.syncing = None
                self._soon(node, done)

        self.clock.after(self.rng.randrange(*node.disk_ms), synced)

    def _apply(self, node: Member, entry: Entry) -> None:
        committed = self.eye.committed.get(entry.index)
        assert committed == (entry.term, entry.data), (
            f"{node.id} applies {entry}, committed is {committed}"
        )
        if entry.kind is EntryKind.COMMAND:
            node.machine.apply(entry.data)
            self.note_applied(node)
        waiting = node.proposals.pop(entry.index, None)
        if waiting is not None:
            term, operation = waiting
            if term == entry.term:
                operation.end = self.clock.now
            else:
                operation.dropped = True

    # Clients --------------------------------------------------------------------------------

    def write(self) -> None:
        """Write a new value at somebody who takes itself for the leader."""
        leaders = [n for n in self.running() if n.core and n.core.role is Role.LEADER]
        leaders = [n for n in leaders if not n.paused]
        node = self.rng.choice(leaders) if leaders else None
        if node is None or node.core is None:
            return
        operation = Operation(start=self.clock.now, write=b"w%d" % next(self._writes))
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
        operation = Operation(start=self.clock.now)
        self.operations.append(operation)
        node.reads[node.core.request_read()] = operation
        self.pump(node)

    # The end --------------------------------------------------------------------------------

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
        assert self.recovered(), "nothing is committed after everything is healed"
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


def simulate(seed: int, *, duration: int = 15_000) -> RegisterWorld:
    """Run one seed from birth to recovery; raises AssertionError naming what broke."""
    rng = random.Random(~seed)
    # Small appends leave followers with parts of what the leader has.
    with patch.object(leader_module, "MAX_APPEND_ENTRIES", rng.choice((2, 8, 4096))):
        voters = rng.choice((1, 2, 3, 3, 3, 5, 5))
        return _simulate(RegisterWorld(seed, voters=voters, size=7), duration)


def _simulate(world: RegisterWorld, duration: int) -> RegisterWorld:
    for _ in range(4):
        world.clock.run(400)
        world.grow_or_shrink()
    trouble = Trouble(world)
    trouble.start()
    world.clock.run(duration)
    trouble.over = True
    world.heal()
    for _ in range(10):
        world.clock.run(1_000)
        if world.recovered():
            break
    world.check_recovered()
    return world
