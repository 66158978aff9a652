"""What an operator does: managers added and removed one by one, and a disk restored from a backup."""

# ruff: noqa: ASYNC110  # in virtual time looking again costs nothing

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from manager.raft.node import RaftNode
from swarm.errors import SwarmError

if TYPE_CHECKING:
    from support.managers.cluster import ClusterWorld, Manager


class Administrator:
    """Persistent: tries each step until it is done.

    Attributes:
        done: nothing is left to do.
        reached: how many voters there were at the end of each step of a resize.
    """

    def __init__(self, world: ClusterWorld) -> None:
        self.world = world
        self.done = True
        self.reached: list[int] = []
        self._newcomer: Manager | None = None

    def begin(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin with a work, on the clients' loop."""
        self.done = False

        async def carry_out() -> None:
            await work()
            self.done = True

        self.world.clients.loop.spawn(carry_out())

    async def resize(self, *targets: int) -> None:
        """Bring the group to so many voters, one number after the other."""
        for target in targets:
            while not await self._resized(target):
                await asyncio.sleep(0.05)
            self.reached.append(target)

    async def _resized(self, target: int) -> bool:
        leader = self.world.leader()
        if leader is None or leader.core is None:
            return False
        membership = leader.core.log.committed_membership
        learners = sorted(membership.members.keys() - membership.voters)
        if learners:
            await self._ask(lambda raft: raft.promote(learners[0]))
        elif len(membership.voters) < target:
            who = self._candidate(membership.members.keys() | membership.removed).id
            await self._ask(
                lambda raft: raft.add_learner(raft_id=who, node_id=f"n{who}", addr=f"host{who}")
            )
        elif len(membership.voters) > target:
            victim = self.world.rng.choice(sorted(membership.voters))
            await self._ask(lambda raft: raft.remove(victim))
        return len(membership.voters) == target and not learners

    def _candidate(self, known: set[int]) -> Manager:
        """Return the newcomer that was not let in yet, or the next one."""
        if self._newcomer is None or self._newcomer.id in known:
            self._newcomer = self.world.new_node()
            self.world.start(self._newcomer)
        return self._newcomer

    async def restore_old_copy(self) -> None:
        """Put a manager back to a backup that is two starts old, and remove it when it notices.

        Everybody has heard of the later start and still knows: that is what makes it noticed.
        """
        world = self.world
        victim = await self._victim()
        copy = victim.disk.copy()
        for _ in range(2):
            await asyncio.sleep(world.rng.uniform(0.3, 1.5))
            world.crash(victim)
            await asyncio.sleep(world.rng.uniform(0.01, 1))
            if not victim.up:
                world.start(victim)
            while victim.core is None:  # a start counts once its disk was read
                await asyncio.sleep(0.01)
        while not self._all_know(victim):
            # Followers hear each other in elections only, but everybody hears a leader.
            await self._ask(lambda raft: raft.transfer_leadership(victim.id))
            await asyncio.sleep(0.5)
        world.crash(victim)
        victim.disk, victim.lost = copy, victim.disk
        world.eye.counts["old copies restored"] += 1
        world.start(victim)
        while not victim.gone:
            await asyncio.sleep(0.1)
        while self._is_member(victim):
            await self._ask(lambda raft: raft.remove(victim.id))
            await asyncio.sleep(0.1)

    async def _victim(self) -> Manager:
        while True:
            leader = self.world.leader()
            if leader is not None and leader.core is not None:
                voters = sorted(leader.core.log.committed_membership.voters)
                running = [self.world.nodes[each] for each in voters]
                running = [each for each in running if each.core is not None]
                if len(voters) >= 3 and running:
                    return self.world.rng.choice(running)
            await asyncio.sleep(0.1)

    def _members(self) -> list[Manager]:
        leader = self.world.leader()
        if leader is None or leader.core is None:
            return []
        return [self.world.nodes[each] for each in leader.core.membership.members]

    def _all_know(self, victim: Manager) -> bool:
        others = [each for each in self.world.running() if each is not victim]
        return victim.core is not None and all(
            other.core is not None
            and other.core.incarnations.get(victim.id) == victim.core.incarnation
            for other in others
        )

    def _is_member(self, victim: Manager) -> bool:
        members = self._members()
        return not members or victim in members

    async def _ask(self, what: Callable[[RaftNode], Awaitable[Any]]) -> None:
        """Ask the leader for something, once."""
        leader = self.world.leader()
        if leader is None or leader.raft is None:
            return
        raft = leader.raft

        async def handler() -> None:
            await what(raft)

        try:
            async with asyncio.timeout(3):
                await self.world.call(leader, handler)
        except (SwarmError, TimeoutError):
            self.world.eye.counts["administration refused"] += 1
