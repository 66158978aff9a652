"""Ten minutes of coming and going in a mixed cluster: ``python tests/interop/churn.py [SECONDS] [SEED] [PAUSE]``.

Containers come and go on engines and on our hosts, names are asked and pinged all the time, and a manager,
an agent and an engine are restarted in turn. It ends with equal tables on every host; a name or ping that
fails while both ends are meant to be there is counted and printed, and makes the exit status 1.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from support.cluster import Cluster
from support.mixed import Mixed

from swarm.api.docker.swarmkit import types_pb2
from swarm.lab.cluster import Lab
from swarm.lab.engine import Engine, require_engine
from swarm.lab.processes import wait_until

HOSTS = ("w1", "w2", "d1", "d2")
MOST = 10
"""Containers at once."""
SLOW_SECONDS = 2.5
"""An answer that takes longer is shown."""
SETTLE_SECONDS = 10.0
"""A name must be right everywhere within this time after its container came."""


def say(*words: object) -> None:
    """Print one line at once."""
    print(*words, flush=True)  # noqa: T201  # a program for people


@dataclass(slots=True)
class Churn:
    """The state of the run."""

    mixed: Mixed
    network: str
    rng: random.Random
    present: dict[str, str] = field(default_factory=dict)
    """Container to host."""
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    number: int = 0

    def run(self, seconds: float, pause: float) -> None:
        """Churn for so long, with a fault every ``pause`` seconds; then compare everything."""
        end = time.monotonic() + seconds
        faults = [self.restart_manager, self.restart_engine, self.restart_agent, self.kill_engine]
        due = time.monotonic() + pause
        for host in HOSTS:  # one on each host, which stays: somebody to ask from
            self.create(host, f"base-{host}")
        while time.monotonic() < end:
            if time.monotonic() >= due:
                fault = faults.pop(0)
                faults.append(fault)
                fault()
                due = time.monotonic() + pause
            self.rng.choice((self.come, self.come, self.go, self.ask, self.ask, self.ask))()
        self.compare()

    # -- coming and going ---------------------------------------------------------------------

    def create(self, host: str, name: str) -> None:
        """Start a container."""
        flags = ("--restart", "always") if host in self.mixed.engines else ()
        self.mixed.idle(host, name, self.network, flags=flags)
        self.present[name] = host
        self.counts["created"] += 1

    def come(self) -> None:
        """Start a container somewhere."""
        if len(self.present) < MOST:
            self.number += 1
            self.create(self.rng.choice(HOSTS), f"c{self.number}")

    def go(self) -> None:
        """Remove one; soon its name is known nowhere."""
        passing = [name for name in self.present if not name.startswith("base-")]
        if not passing:
            return
        name = self.rng.choice(passing)
        self.mixed.remove(self.present.pop(name), name)
        self.counts["removed"] += 1
        asker = self.rng.choice(HOSTS)
        self._within(
            lambda: not self.mixed.resolves(asker, f"base-{asker}", name),
            f"{name} stays on {asker}",
        )

    def ask(self) -> None:
        """Ping one by name from the container that every host has."""
        asker, name = self.rng.choice(HOSTS), self.rng.choice(list(self.present))
        self.counts["asked"] += 1
        self._within(
            lambda: self.mixed.pings(asker, f"base-{asker}", name),
            f"{name} on {self.present[name]} not reached from {asker}",
        )

    def _within(self, holds: Callable[[], bool], what: str) -> None:
        began = time.monotonic()
        try:
            wait_until(holds, seconds=SETTLE_SECONDS, what=lambda: what, pause=0.2)
        except Exception as error:  # noqa: BLE001  # a failure is a finding, the churn goes on
            self.failures.append(what)
            say("FAILED:", error)
        took = time.monotonic() - began
        if took > SLOW_SECONDS:
            say(f"slow, {took:.1f} s: {what}")
        self.counts["slowest answer, ms"] = max(
            self.counts["slowest answer, ms"], round(took * 1000)
        )

    # -- faults -------------------------------------------------------------------------------

    def restart_manager(self) -> None:
        """SIGKILL to the manager; everybody is Ready again by himself."""
        self.mixed.cluster.lab.kill("m1", manager_only=True)
        self._recovered("manager killed")

    def restart_agent(self) -> None:
        """SIGKILL to an agent of ours and a new start."""
        host = self.rng.choice(("w1", "w2"))
        self.mixed.cluster.lab.kill(host)
        self.mixed.cluster.lab.start(host)
        self._recovered("agent killed")

    def restart_engine(self, number: int = signal.SIGTERM) -> None:
        """An engine ends and starts; its containers attach anew."""
        engine = self.mixed[self.rng.choice(("d1", "d2"))]
        engine.stop(number)
        engine.start()
        self.mixed.await_state(engine.host, types_pb2.NODE_STATE_READY)
        self._recovered("engine killed" if number == signal.SIGKILL else "engine restarted")

    def kill_engine(self) -> None:
        """As above, without a warning."""
        self.restart_engine(signal.SIGKILL)

    def _recovered(self, what: str) -> None:
        self.mixed.cluster.lab.await_ready("m1", 5)
        self.counts[what] += 1
        say(f"{what}; {dict(self.counts)}")
        for host in HOSTS:  # gossip has a moment to tell of the new addresses
            for name in (f"base-{other}" for other in HOSTS):
                self._reached_after(what, host, name)

    def _reached_after(self, what: str, host: str, name: str) -> None:
        wait_until(
            lambda: self.mixed.pings(host, f"base-{host}", name),
            seconds=30,
            what=lambda: (
                f"after '{what}': {name} not reached from {host}\n{self._picture(host, name)}"
            ),
            pause=0.2,
        )

    def _picture(self, host: str, name: str) -> str:
        """What every host believes, for a person."""
        identifier = self._network_id()
        lines = [f"{name} runs at {self.mixed.address(self.present[name], name, self.network)}"]
        for each in HOSTS:
            lines += [each, *(f"  {row}" for row in self.mixed.table(each, identifier))]
        ping = self.mixed.execute(host, f"base-{host}", "ping", "-c", "1", "-W", "1", name)
        return "\n".join([*lines, ping.stdout, ping.stderr])

    def _network_id(self) -> str:
        shown = json.loads(self.mixed.cluster.swarm("m1", "network", "inspect", self.network))
        return str(shown[0]["Id"])

    # -- the end ------------------------------------------------------------------------------

    def compare(self) -> None:
        """Equal tables on every host, everybody reaches everybody by name, one task a container."""
        mixed = self.mixed
        identifier = self._network_id()
        rows = mixed.await_equal_tables(identifier, HOSTS, set(self.present))
        self.counts["rows, equal on every host"] = len(rows)
        for host in HOSTS:
            for name in self.present:
                self.counts["final pings"] += 1
                if not mixed.pings(host, f"base-{host}", name):
                    self.failures.append(f"at the end {name} is not reached from {host}")
        wait_until(
            lambda: len(mixed.tasks(self.network)) == len(self.present),
            seconds=30,
            what=lambda: (
                f"{len(mixed.tasks(self.network))} tasks for {len(self.present)} containers"
            ),
        )


def main(seconds: float, seed: int, pause: float = 30.0) -> int:
    """Run on a lab of its own."""
    require_engine()
    lab = Lab("churn")
    lab.down()
    with tempfile.TemporaryDirectory(prefix="churn-") as folder:
        engines = {host: Engine(lab, host, Path(folder) / host) for host in ("d1", "d2")}
        try:
            lab.up(managers=1, workers=2)
            for host, engine in engines.items():
                lab.add_bare(host)
                engine.start()
                engine.docker(
                    "swarm", "join", "--token", lab.tokens("m1")["worker"],
                    f"{lab.state.require('m1').address}:2377",
                )  # fmt: skip
            lab.await_ready("m1", 5)
            mixed = Mixed(Cluster(lab), engines)
            mixed.cluster.network("churn")
            churn = Churn(mixed, "churn", random.Random(seed))
            churn.run(seconds, pause)
        finally:
            for engine in engines.values():
                engine.destroy()
            lab.down()
    for name, count in sorted(churn.counts.items()):
        say(f"{count:8} {name}")
    say(f"{len(churn.failures):8} failed names and pings")
    for failure in churn.failures:
        say("        ", failure)
    return int(bool(churn.failures))


if __name__ == "__main__":
    _, *given = sys.argv
    defaults = ("600", "1", "30")
    duration, number, interval = (*given, *defaults[len(given) :])
    sys.exit(main(float(duration), int(number), float(interval)))
