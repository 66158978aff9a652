"""Every kind of trouble at once: crashes, power failures, pauses, cuts, losses, slow disks, changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from support.managers.eye import Process
from support.managers.world import World

P = TypeVar("P", bound=Process)


class Trouble(Generic[P]):
    """Random faults, forever.

    Attributes:
        on: faults come.
        over: neither faults nor clients come any more.
    """

    def __init__(
        self,
        world: World[P],
        *,
        changes: bool = True,
        crashes: bool = True,
        paces: tuple[tuple[int, int], ...] = ((50, 300), (100, 900), (500, 2000)),
    ) -> None:
        """Choose the kinds of faults of this world.

        Args:
            world: where they happen.
            changes: random membership changes are among them.
            crashes: crashes are among them.
            paces: time between two faults, from and to (milliseconds); one of these.
        """
        self.world = world
        self.rng = world.rng
        self.on = True
        self.over = False
        every: list[Callable[[], None]] = [
            self._pause,
            self._partition,
            self._isolate_leader,
            self._isolate_at_commit,
            self._one_way,
            self._slow_disk,
            self._loss,
            self._stragglers,
            self._campaigns,
            self._hang_up,
        ]
        if crashes:
            every += [self._crash, self._crash_leader, self._power_failure, self._write_and_crash]
            every += [self._crash_at_commit]
        if changes:
            every += [self._change, self._change_and_cut]
        # A few kinds over and over find more than all of them now and then.
        self._kinds = self.rng.sample(every, self.rng.randrange(3, len(every) + 1))
        self._pace = self.rng.choice(paces)

    def start(self) -> None:
        """Begin with faults and clients."""
        self._next()
        self._next_client()

    def _next(self) -> None:
        self.world.clock.after(self.rng.randrange(*self._pace), self._strike)

    def _strike(self) -> None:
        if self.on and not self.over:
            strike = self.rng.choice(self._kinds)
            self.world.eye.counts[f"fault {strike.__name__[1:].replace('_', ' ')}"] += 1
            strike()
        if not self.over:
            self._next()

    def _next_client(self) -> None:
        self.world.clock.after(self.rng.randrange(5, 120), self._client)

    def _client(self) -> None:
        if not self.over:
            for _ in range(self.rng.choice((1, 1, 1, 8))):
                self.world.write() if self.rng.random() < 0.7 else self.world.read()
            self._next_client()

    def _victim(self) -> P | None:
        running = self.world.running()
        return self.rng.choice(running) if running else None

    def _crash_node(self, node: P | None) -> None:
        if node is None or node.core is None:
            return
        self.world.crash(node)
        life = node.life

        def back() -> None:
            if node.life == life:
                self.world.start(node)

        self.world.clock.after(self.rng.randrange(1, 3000), back)

    def _crash(self) -> None:
        self._crash_node(self._victim())

    def _crash_leader(self) -> None:
        self._crash_node(self.world.leader())

    def _pause(self) -> None:
        node = self._victim()
        if node is not None and not node.paused:
            self.world.pause(node)
            life = node.life
            self.world.clock.after(
                self.rng.randrange(50, 4000),
                lambda: self.world.resume(node) if node.life == life else None,
            )

    def _block(self, pairs: set[tuple[int, int]]) -> None:
        self.world.blocked |= pairs

        def unblock() -> None:
            self.world.blocked -= pairs

        self.world.clock.after(self.rng.randrange(200, 5000), unblock)

    def _partition(self) -> None:
        ids = list(self.world.nodes)
        self.rng.shuffle(ids)
        cut = self.rng.randrange(len(ids) + 1)
        self._block(
            {(a, b) for a in ids[:cut] for b in ids[cut:]}
            | {(b, a) for a in ids[:cut] for b in ids[cut:]}
        )

    def _isolate_leader(self) -> None:
        self._isolate(self.world.leader())

    def _isolate(self, node: P | None) -> None:
        if node is not None:
            others = [i for i in self.world.nodes if i != node.id]
            self._block({(node.id, i) for i in others} | {(i, node.id) for i in others})

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
            self.world.clock.after(
                self.rng.randrange(1, 60),
                lambda: self._crash_node(leader) if leader.life == life else None,
            )

    def _crash_at_commit(self) -> None:
        """Take a leader away when it alone knows that something is committed."""
        self.world.on_commit = self._crash_node

    def _isolate_at_commit(self) -> None:
        """The same, and it goes on leading nobody."""
        self.world.on_commit = self._isolate

    def _power_failure(self) -> None:
        for node in self.world.running():
            if self.rng.random() < 0.8:
                self._crash_node(node)

    def _hang_up(self) -> None:
        """End the connections of the leader, which lives."""
        leader = self.world.leader()
        if leader is not None:
            self.world.hang_up(leader)

    def _campaigns(self) -> None:
        """Make several members campaign at the same moment, leases or not."""
        for node in self.world.running():
            if node.core is not None and not node.paused and self.rng.random() < 0.6:
                node.core.campaign()
                node.core.elapsed = self.rng.randrange(20)
                self.world.pump(node)
