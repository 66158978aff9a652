"""The simulation itself: it repeats exactly, and its judges can say no."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.managers.clock import Clock
from support.managers.histories import Call, NotLinearisableError, check
from support.managers.ledger import Ledger
from support.managers.loop import VirtualLoop
from support.managers.requests import only

from manager.store import Action, Change, TableId
from manager.store.entry import Attempt, Edit, dump_attempt, dump_entry
from swarm.api import codec
from swarm.model import (
    Driver,
    IPAMConfig,
    IPAMOptions,
    Network,
    NetworkAttachment,
    Task,
)

TRACE = """
import hashlib, sys
from support.managers.scenario import simulate
world = simulate(int(sys.argv[1]), duration=3000)
seen = repr((world.clock.steps, world.clients.writes, world.clients.reads, world.ledger.indexes,
             sorted(world.eye.counts.items())))
print(hashlib.sha256(seen.encode()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 7])
def test_a_seed_gives_the_same_run_in_every_process(seed: int) -> None:
    """Also under another hash seed, which orders Python's sets differently."""
    tests = Path(__file__).parents[2]
    runs = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(tests), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", TRACE, str(seed)],
            env=environment,
            cwd=tests.parent,
            check=True,
            capture_output=True,
            text=True,
        )
        runs.add(done.stdout)
    assert len(runs) == 1


# The loop ---------------------------------------------------------------------------------------


def test_the_loop_lives_in_virtual_time() -> None:
    """Sleeps, time-outs and events take the clock's time and no other."""
    clock, told = Clock(), []
    loop = VirtualLoop(clock)

    async def work() -> None:
        await asyncio.sleep(3600)
        told.append(clock.now)
        try:
            async with asyncio.timeout(1):
                await asyncio.Event().wait()
        except TimeoutError:
            told.append(clock.now)

    loop.spawn(work())
    clock.run(3_600_000)
    assert told == [3_600_000]
    clock.run(1_000)
    assert told == [3_600_000, 3_601_000]


def test_a_paused_loop_does_nothing_and_loses_nothing() -> None:
    """Timers that came due meanwhile fire when it goes on."""
    clock, told = Clock(), []
    loop = VirtualLoop(clock)

    async def work() -> None:
        await asyncio.sleep(1)
        told.append(clock.now)

    loop.spawn(work())
    loop.paused = True
    clock.run(5_000)
    assert not told
    loop.paused = False
    loop.turn()
    assert told == [5_000]


def test_what_a_task_raises_to_nobody_ends_the_run() -> None:
    """A violation inside a process must not vanish with its task."""
    clock = Clock()
    loop = VirtualLoop(clock)

    async def work() -> None:
        await asyncio.sleep(1)
        raise AssertionError("seen")

    loop.spawn(work())
    with pytest.raises(AssertionError, match="seen"):
        clock.run(2_000)


# Histories --------------------------------------------------------------------------------------


def write(start: int, end: int | None, value: int) -> Call:
    """A write to a register."""
    return Call(
        start=start, end=end, text=f"write {value}", step=only(lambda _: True, lambda _: value)
    )


def read(start: int, end: int, value: int) -> Call:
    """A read of a register."""
    return Call(start=start, end=end, text=f"read {value}", step=only(lambda s: s == value))


POSSIBLE = {
    "one after the other": [write(0, 1, 1), read(2, 3, 1)],
    "a read beside a write may see either": [write(0, 9, 1), read(1, 2, 1), read(1, 2, 0)],
    "an unknown write may happen late": [write(0, None, 1), read(5, 6, 0), read(7, 8, 1)],
    "an unknown write may never happen": [write(0, None, 1), write(1, 2, 2), read(8, 9, 2)],
    "calls that meet in one moment overlap": [write(0, 5, 1), read(5, 6, 0)],
    "two writes in either order": [write(0, 5, 1), write(0, 5, 2), read(6, 7, 1)],
}
IMPOSSIBLE = {
    "a lost write": [write(0, 1, 1), read(2, 3, 0)],
    "a read of what was never written": [write(0, 1, 1), read(2, 3, 2)],
    "back to the old value": [write(0, 9, 1), read(1, 2, 1), read(3, 4, 0)],
    "an unknown write that comes and goes": [write(0, None, 1), read(1, 2, 1), read(3, 4, 0)],
    "two readers disagree on the order": [
        write(0, 9, 1),
        write(0, 9, 2),
        read(10, 11, 1),
        read(12, 13, 2),
    ],
}


@pytest.mark.parametrize("calls", POSSIBLE.values(), ids=POSSIBLE)
def test_possible_histories_pass(calls: list[Call]) -> None:
    """There is an order that explains them."""
    check("register", calls, 0)


@pytest.mark.parametrize("calls", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_histories_are_refused(calls: list[Call]) -> None:
    """There is none, and the text names the call that cannot be."""
    with pytest.raises(NotLinearisableError, match="<- cannot be"):
        check("register", calls, 0)


# The ledger -------------------------------------------------------------------------------------


def network(
    name: str, *, vni: int = 4097, subnet: str = "10.0.0.0/24", gateway: int = 1
) -> Network:
    """A network as an allocator might have made it."""
    spec = Network().spec
    annotations = type(spec.annotations)(name=name)
    prefix = subnet.rpartition(".")[0]
    return Network(
        id=f"id-{name}",
        spec=type(spec)(annotations=annotations),
        driver_state=Driver(
            name="overlay", options={"com.docker.network.driver.overlay.vxlanid_list": str(vni)}
        ),
        ipam=IPAMOptions(configs=(IPAMConfig(subnet=subnet, gateway=f"{prefix}.{gateway}"),)),
    )


def task(name: str, address: str) -> Task:
    """A task with an address on network ``a``."""
    attachment = NetworkAttachment(network=Network(id="id-a"), addresses=(f"{address}/24",))
    return Task(id=name, networks=(attachment,))


class Log:
    """Writes entries into a ledger."""

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.position = 0

    def create(self, item: Network | Task, *, request: str = "", attempt: str = "") -> None:
        """Create one object."""
        table = TableId.NETWORK if isinstance(item, Network) else TableId.TASK
        edit = Edit(action=Action.CREATE, table=table, id=item.id, data=codec.dumps(item))
        name = (attempt or f"attempt {self.position}").encode()
        data = dump_entry([dump_attempt(Attempt(id=name, request_id=request, edits=(edit,)))])
        self.position += 1
        change = Change(kind=Action.CREATE, table=table, old=None, new=item)
        self.ledger.applied(self.position, self.position * 2, data, (None,), (change,))


A = network("a")
FORBIDDEN: dict[str, Callable[[Log], None]] = {
    "a name twice": lambda log: log.create(
        Network(**{**fields(network("a", vni=4098, subnet="10.0.1.0/24")), "id": "other"})
    ),
    "a VNI twice": lambda log: log.create(network("b", subnet="10.0.1.0/24")),
    "a subnet twice": lambda log: log.create(network("b", vni=4098)),
    "an overlap": lambda log: log.create(network("b", vni=4098, subnet="10.0.0.128/25")),
    "the gateway again": lambda log: log.create(task("t", "10.0.0.1")),
    "an address from elsewhere": lambda log: log.create(task("t", "10.0.9.9")),
    "an address twice": lambda log: (
        log.create(task("t", "10.0.0.9")),
        log.create(task("u", "10.0.0.9")),
    ),
    "a request twice": lambda log: (
        log.create(task("t", "10.0.0.8"), request="r1"),
        log.create(task("u", "10.0.0.9"), request="r1"),
    ),
    "an attempt twice": lambda log: (
        log.create(task("t", "10.0.0.8"), attempt="x"),
        log.create(task("u", "10.0.0.9"), attempt="x"),
    ),
}


def fields(item: Network) -> dict[str, object]:
    """An object's fields by name."""
    return {name: getattr(item, name) for name in type(item).__dataclass_fields__}


@pytest.mark.parametrize("act", FORBIDDEN.values(), ids=FORBIDDEN)
def test_the_ledger_refuses(act: Callable[[Log], None]) -> None:
    """Nothing is ever given twice."""
    log = Log()
    log.create(A)
    with pytest.raises(AssertionError):
        act(log)


def test_the_ledger_compares_replicas() -> None:
    """Other results, other changes, other bytes, another order: each is noticed."""
    log = Log()
    log.create(A)
    ledger = log.ledger
    entry = dump_entry([])
    with pytest.raises(AssertionError, match="replicas differ"):
        ledger.applied(1, 2, entry, (None,), ())
    with pytest.raises(AssertionError, match="is not at"):
        ledger.applied(1, 3, entry, (None,), ())
    ledger.snapshot(1, b"one")
    with pytest.raises(AssertionError, match="different bytes"):
        ledger.snapshot(1, hashlib.sha256(b"other").digest())
