"""A client that writes without end and remembers what it was promised."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from swarm import client
from swarm.api.docker.swarmkit import control_pb2
from swarm.errors import NotFoundError, SwarmError
from swarm.lab.cluster import Lab

CALL_SECONDS = 20.0


@dataclass(slots=True)
class Ledger:
    """What was acknowledged.

    Attributes:
        created: name to id of networks whose creation was acknowledged and whose removal was not asked for.
        removed: names whose removal was acknowledged.
        times: when each write was acknowledged (monotonic seconds).
        failures: writes that ended in an error; they may have taken effect or not.
    """

    created: dict[str, str] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)
    times: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def longest_gap(self) -> float:
        """Return the longest time without an acknowledgement."""
        return max((b - a for a, b in itertools.pairwise(self.times)), default=0.0)


@dataclass(slots=True)
class Writer:
    """Creates networks, and removes every other one, through several managers in turn.

    Args:
        lab: where the managers are.
        hosts: whose local APIs to use.
        prefix: of the networks' names.
    """

    lab: Lab
    hosts: Sequence[str]
    prefix: str
    ledger: Ledger = field(default_factory=Ledger)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self) -> Iterator[Ledger]:
        """Write while the block runs."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield self.ledger
        finally:
            self._stop.set()
            thread.join()

    def _run(self) -> None:
        for number, host in zip(itertools.count(), itertools.cycle(self.hosts)):
            if self._stop.is_set():
                return
            name = f"{self.prefix}{number}"
            try:
                with self.lab.client(host) as opened:
                    self._write(opened, name, remove=number % 2 == 0)
            except SwarmError as error:
                self.ledger.failures.append(f"{host}: {error}")
                time.sleep(0.05)

    def _write(self, opened: client.Client, name: str, *, remove: bool) -> None:
        request = control_pb2.CreateNetworkRequest()
        request.spec.annotations.name = name
        request.spec.attachable = True
        made = opened.control.CreateNetwork(request, timeout=CALL_SECONDS).network
        self.ledger.times.append(time.monotonic())
        if not remove:
            self.ledger.created[name] = made.id
            return
        with contextlib.suppress(NotFoundError):
            opened.control.RemoveNetwork(
                control_pb2.RemoveNetworkRequest(network_id=made.id), timeout=CALL_SECONDS
            )
        self.ledger.times.append(time.monotonic())
        self.ledger.removed.add(name)


def check(lab: Lab, host: str, ledger: Ledger) -> None:
    """Check that everything acknowledged is there, as one manager sees it, and nothing twice."""
    with lab.client(host) as opened:
        networks = opened.control.ListNetworks(
            control_pb2.ListNetworksRequest(), timeout=CALL_SECONDS
        ).networks
    present = {each.spec.annotations.name: each.id for each in networks}
    lost = {name for name, known in ledger.created.items() if present.get(name) != known}
    assert not lost, f"acknowledged and lost: {sorted(lost)}"
    back = ledger.removed & present.keys()
    assert not back, f"removed and back: {sorted(back)}"
    subnets = [config.subnet for each in networks for config in each.ipam.configs]
    vnis = [
        each.driver_state.options["com.docker.network.driver.overlay.vxlanid_list"]
        for each in networks
    ]
    assert len(set(subnets)) == len(subnets)
    assert len(set(vnis)) == len(vnis)
