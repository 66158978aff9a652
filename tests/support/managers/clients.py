"""Clients of the managers: they ask anybody, follow hints, try again, and remember what they saw.

A write carries one request id through all its tries, at whichever manager. What clients saw is
checked in two ways: against the ledger (every acknowledged write is there, once, as told, in an
order that fits the clock) and, object by object, by a search that knows nothing of the ledger's
order.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from manager.raft.errors import DroppedError, NotLeaderError
from manager.store import RepeatedError
from support.managers import histories, requests
from support.managers.histories import Call
from support.managers.ledger import Key, known_of
from support.managers.loop import VirtualLoop
from swarm.errors import InvariantError, StaleError, SwarmError, UnavailableError

if TYPE_CHECKING:
    from support.managers.cluster import ClusterWorld, Manager

LIMIT = 12
"""Writes, and reads, under way at once; a histories' search grows with their number."""


class RefusedError(UnavailableError):
    """Nobody listens there."""


@dataclass(slots=True, kw_only=True)
class Write:
    """One write as its client knows it.

    Attributes:
        tried: when the last try began.
        unsure: some try may have taken effect, or may still.
        denied: ids of what tries would have made that were said to be without effect.
        end: when the client heard how it ended; None when it gave up or still waits.
        told: what the manager answered; None for a repeated request, which is not told again.
        refusal: why it was refused.
    """

    id: str
    request: requests.Request
    start: int
    tried: int
    tries: int = 0
    unsure: bool = False
    denied: list[str] = field(default_factory=list)
    end: int | None = None
    done: bool = False
    repeated: RepeatedError | None = None
    told: object = None
    refusal: SwarmError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One read and what it saw; ``position`` counts the commands the manager had applied."""

    start: int
    end: int
    position: int
    saw: tuple[tuple[Key, object], ...]


HABITS = ((11, 9, 30, 20, 6, 4, 14, 6), (30, 25, 6, 16, 16, 14, 4, 2), (4, 3, 50, 40, 2, 2, 2, 10))
"""How often what is asked for, in the order of ``_wish``: all sorts, mostly networks, mostly tasks."""


@dataclass(slots=True)
class Clients:
    """All of them, on one event loop."""

    world: ClusterWorld
    rng: random.Random
    names: tuple[str, ...]
    nodes: tuple[str, ...]
    writes: list[Write] = field(default_factory=list)
    by_id: dict[str, Write] = field(default_factory=dict)
    reads: list[Read] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    reading: int = 0
    leader: Manager | None = None
    habits: tuple[int, ...] = HABITS[0]
    loop: VirtualLoop = field(init=False)

    def __post_init__(self) -> None:
        self.habits = self.rng.choice(HABITS)
        self.loop = VirtualLoop(self.world.clock)  # type: ignore[abstract]  # has all it needs

    @property
    def busy(self) -> int:
        """How many calls are under way."""
        return self.reading + sum(not write.done for write in self.writes[-200:])

    # Writing ----------------------------------------------------------------------------------

    def write(self, manager: Manager | None = None) -> None:
        """Begin a write, at a manager or at anybody, unless too many are under way.

        Who comes to one manager often wants what others wanted just now: that is how the same
        thing is given twice.
        """
        limit = LIMIT if manager is None else 2 * LIMIT
        if sum(not write.done for write in self.writes[-200:]) >= limit:
            return
        now = self.world.clock.now
        request = self._wish()
        if manager is not None and self.rng.random() < 0.7:
            request = self._same() or request
        write = Write(id=f"r{len(self.writes)}", request=request, start=now, tried=now)
        self.writes.append(write)
        self.by_id[write.id] = write
        self.loop.spawn(self._insist(write, manager))

    def _wish(self) -> requests.Request:
        rng, name = self.rng, self.rng.choice(self.names)
        node = rng.choice(self.nodes)
        match rng.choices(range(8), self.habits)[0]:
            case 0:
                vni, subnet = rng.choice(requests.VNIS), rng.choice(requests.SUBNETS)
                return requests.CreateNetwork(name, vni, subnet)
            case 1:
                return requests.RemoveNetwork(name)
            case 2:
                return requests.Attach(node, name, rng.choice((0, 0, 0, 1, 2)))
            case 3 if self.tasks:
                return requests.Detach(rng.choice(self.tasks[-10:]), end=rng.random() < 0.3)
            case 4:
                return requests.Publish(f"s{rng.randrange(4)}", name)
            case 5:
                return requests.Withdraw(f"s{rng.randrange(4)}")
            case 6:
                return requests.Append(node)
            case _:
                return requests.Sync(node)

    def _same(self) -> requests.Request | None:
        """Return what took effect just now, to be asked for once more."""
        latest = [self.by_id[each] for each in list(self.world.ledger.requests)[1:][-3:]]
        if not latest:
            return None
        request, name = self.rng.choice(latest).request, self.rng.choice(self.names)
        # Another name, so that it is the subnet, the VNI or the port that is wanted twice.
        if isinstance(request, requests.CreateNetwork):
            return replace(request, name=name)
        if isinstance(request, requests.Publish):
            return requests.Publish(f"s{self.rng.randrange(4)}", name)
        return request

    async def _insist(self, write: Write, manager: Manager | None) -> None:
        """Try until the outcome is known, or patience ends."""
        if manager is None:
            manager = self.leader if self.leader and self.rng.random() < 0.8 else self._anybody()
        while True:
            write.tries += 1
            write.tried = self.world.clock.now
            hint = None
            try:
                await self._try(write, manager)
                self.leader = manager
                return  # noqa: TRY300  # the rest is for another try
            except NotLeaderError as error:
                hint = error.leader_id
                write.denied.append(self._made(write))
            except (DroppedError, StaleError, RefusedError):
                write.denied.append(self._made(write))
            except (UnavailableError, TimeoutError):
                write.unsure = True
                self.world.eye.counts["outcomes unknown"] += 1
                if self.rng.random() < 0.05:
                    write.done = True  # the client dies
                    return
            manager = self.world.nodes[hint] if hint else self._anybody()
            await asyncio.sleep(self.rng.uniform(0.005, 0.2))

    @staticmethod
    def _made(write: Write) -> str:
        """Return the id of what the present try makes."""
        return f"{write.id}.{write.tries}"

    async def _try(self, write: Write, manager: Manager) -> None:
        made = self._made(write)
        try:
            async with asyncio.timeout(self.rng.uniform(0.2, 3)):
                write.told = await self.world.call(
                    manager,
                    lambda: manager.write(
                        lambda tx: write.request.build(tx, made, write.id), write.id
                    ),
                )
        except RepeatedError as error:
            write.repeated = error
        except (InvariantError, UnavailableError, StaleError):
            raise
        except SwarmError as error:
            write.refusal = error
        write.done = True
        write.end = self.world.clock.now
        if isinstance(write.request, requests.Attach) and write.refusal is None:
            found = write.repeated.created if write.repeated else (("task", write.told[0]),)  # type: ignore[index]
            self.tasks += [each for noun, each in found if noun == "task"]

    def _anybody(self) -> Manager:
        return self.rng.choice(list(self.world.nodes.values()))

    # Reading ----------------------------------------------------------------------------------

    def read(self) -> None:
        """Begin a read at any manager, unless too many are under way."""
        if self.reading < LIMIT:
            self.reading += 1
            self.loop.spawn(self._look())

    async def _look(self) -> None:
        keys: list[Key] = [("network", self.rng.choice(self.names))]
        keys += [("node", self.rng.choice(self.nodes)), ("service", f"s{self.rng.randrange(4)}")]
        if self.tasks:
            keys.append(("task", self.rng.choice(self.tasks[-8:])))
        manager, start = self._anybody(), self.world.clock.now
        try:
            async with asyncio.timeout(self.rng.uniform(0.5, 4)):
                index, saw = await self.world.call(manager, lambda: manager.read(keys))
        except (UnavailableError, TimeoutError):
            return
        finally:
            self.reading -= 1
        position = self.world.ledger.position(index)
        end = self.world.clock.now
        self.reads.append(Read(start=start, end=end, position=position, saw=saw))

    # Checking ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Check everything that was seen.

        Raises:
            AssertionError: something acknowledged is missing, or seen in an impossible order.
        """
        self._check_told()
        self._check_order()
        for key, calls in self._histories().items():
            initial: Hashable = () if key[0] == "node" else None
            try:
                histories.check(key, calls, initial)
            except histories.UndecidedError:
                self.world.eye.counts["histories left undecided"] += 1

    def _check_told(self) -> None:
        """Every acknowledged write is in the log, once, and did what its client was told."""
        ledger = self.world.ledger
        for write in self.writes:
            effect = ledger.requests.get(write.id)
            for change in effect.changes if effect is not None else ():
                assert change.item.id not in write.denied, f"{write}: took effect all the same"
            if write.refusal is not None:
                assert effect is None or write.unsure, f"{write} was refused, yet took effect"
            elif write.end is not None:
                if effect is None:
                    # What changes nothing is not logged.
                    assert isinstance(write.request, requests.Sync), f"{write} is lost"
                    continue
                if write.repeated is None:
                    told = write.request.told(effect)
                    assert told == write.told, f"{write}: {told} is in the log"
                else:
                    assert ledger.position(write.repeated.index) == effect.position, write

    def _check_order(self) -> None:
        """The log's order fits the clock: nothing sits before what had ended when it began."""
        done: list[tuple[int, int, int, Any]] = []
        for write in self.writes:
            effect = self.world.ledger.requests.get(write.id)
            if write.end is not None and write.refusal is None and effect is not None:
                done.append((write.start, write.end, effect.position, write))
        for read in self.reads:
            for key, value in read.saw:
                truth = self.world.ledger.at(key, read.position)
                assert value == truth, f"{read} saw {value} of {key}, which was {truth}"
            done.append((read.start, read.end, read.position, read))
        ended = sorted((end, position) for _, end, position, _ in done)
        latest = place = 0
        for start, _, position, what in sorted(done, key=lambda each: each[:3]):
            while place < len(ended) and ended[place][0] < start:
                latest = max(latest, ended[place][1])
                place += 1
            assert position >= latest, f"{what} is at {position}, after {latest} was seen"

    def _histories(self) -> dict[Key, list[Call]]:
        found: defaultdict[Key, list[Call]] = defaultdict(list)
        for write in self.writes:
            effect = self.world.ledger.requests.get(write.id)
            told = write.end if write.refusal is None else None
            if effect is not None:
                # Of an outcome nobody heard, the log says whether it came about, not when.
                for key, text, step in write.request.rules(write.id, effect):
                    found[key].append(Call(start=write.start, end=told, text=text, step=step))
            if write.refusal is not None:
                for key, what, step in write.request.refused(write.refusal):
                    text = f"{what} ({write.id})"
                    found[key].append(Call(start=write.tried, end=write.end, text=text, step=step))
        for read in self.reads:
            for key, value in read.saw:
                step = requests.seen(key, value)
                found[key].append(
                    Call(start=read.start, end=read.end, text=f"read {value}", step=step)
                )
        return found


def look(view: Any, key: Key) -> object:
    """Return what a manager's state tells of an object."""
    kind, name = key
    tables = {"network": view.networks, "service": view.services}
    if kind in tables:
        return known_of(tables[kind].find(name))
    return known_of({"task": view.tasks, "node": view.nodes}[kind].get(name))
