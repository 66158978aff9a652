"""Any number of seeds from the shell: ``make soak SEEDS=1000 FIRST=0``.

Every seed runs whole managers; with ``--cores`` raft cores alone, which is quicker. All processors
work. A failing seed prints what broke and how to run it again; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import click

from support.managers import register, scenario

SHOWN_EVERY = 10.0
"""Seconds between two lines of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one seed did; ``failure`` is empty when nothing broke."""

    seed: int
    steps: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    failure: str = ""


def run_seed(seed: int, *, cores: bool) -> Outcome:
    """Run one seed."""
    start = time.process_time()
    try:
        if cores:
            lone = register.simulate(seed)
            counts = Counter(lone.eye.counts)
            counts["calls"] = len(lone.operations)
            steps = lone.clock.steps
        else:
            world = scenario.simulate(seed)
            counts = Counter(world.eye.counts)
            counts["commands committed"] = len(world.ledger.indexes)
            counts["calls"] = len(world.clients.writes) + len(world.clients.reads)
            counts["snapshots compared"] = world.ledger.snapshots
            steps = world.clock.steps
    except Exception:  # noqa: BLE001  # whatever breaks, breaks the seed
        return Outcome(
            seed=seed, seconds=time.process_time() - start, failure=traceback.format_exc()
        )
    return Outcome(seed=seed, steps=steps, counts=counts, seconds=time.process_time() - start)


def _run_whole(seed: int) -> Outcome:
    return run_seed(seed, cores=False)


def _run_cores(seed: int) -> Outcome:
    return run_seed(seed, cores=True)


def outcomes(first: int, seeds: int, *, cores: bool, jobs: int) -> Iterator[Outcome]:
    """Run seeds on so many processors, in no order."""
    work = _run_cores if cores else _run_whole
    numbers = range(first, first + seeds)
    if jobs == 1:
        yield from map(work, numbers)
        return
    # Fresh interpreters: each has its own hash seed, on which nothing may depend.
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(work, numbers, chunksize=4)


def summary(total: Counter[str], *, seeds: int, steps: int, seconds: float, failed: int) -> str:
    """Return what happened in all seeds together."""
    lines = [f"seeds {seeds}, steps {steps}, CPU {seconds:.0f} s"]
    faults = {name: number for name, number in total.items() if name.startswith("fault ")}
    lines.append(f"faults injected {sum(faults.values())}:")
    lines += [f"  {name.removeprefix('fault '):<24}{faults[name]:>10}" for name in sorted(faults)]
    lines.append("what they did:")
    rest = sorted(total.keys() - faults.keys())
    lines += [f"  {name:<24}{total[name]:>10}" for name in rest]
    lines.append(f"violations {failed}")
    return "\n".join(lines)


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processors")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--cores", action="store_true", help="raft cores alone")
    chosen = parser.parse_args()
    total: Counter[str] = Counter()
    seeds = steps = failed = 0
    seconds = 0.0
    begun = shown = time.monotonic()
    results = outcomes(chosen.first, chosen.seeds, cores=chosen.cores, jobs=chosen.jobs)
    for outcome in results:
        seeds += 1
        steps += outcome.steps
        seconds += outcome.seconds
        total.update(outcome.counts)
        if outcome.failure:
            failed += 1
            click.echo(f"seed {outcome.seed} broke; again: {_again(outcome, cores=chosen.cores)}")
            click.echo(outcome.failure)
        if time.monotonic() - shown >= SHOWN_EVERY:
            shown = time.monotonic()
            click.echo(f"{seeds}/{chosen.seeds} seeds, {steps} steps, violations {failed}")
        if time.monotonic() - begun >= chosen.seconds:
            break
    click.echo(summary(total, seeds=seeds, steps=steps, seconds=seconds, failed=failed))
    return 1 if failed else 0


def _again(outcome: Outcome, *, cores: bool) -> str:
    return f"make soak SEEDS=1 FIRST={outcome.seed}" + (" CORES=1" if cores else "")


if __name__ == "__main__":
    sys.exit(main())
