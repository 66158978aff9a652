"""The engine's part that opens, closes, adopts and checks ways out of the overlay."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from agent.dataplane.executor import Check, Executor
from agent.dataplane.exits import HOME, IFNAME, Exits, versions
from agent.dataplane.model import Endpoint, Failure, Settings
from agent.dataplane.planner import NetworkState, plan
from swarm.errors import SwarmError


class Ways:
    """The ways out of one node. See :mod:`agent.dataplane.exits` for what they are.

    Args:
        settings: of the node.
        run: executes plans.
        under: tells the underlay's MTU.
    """

    def __init__(self, settings: Settings, run: Executor, under: Callable[[], int | None]) -> None:
        self._settings = settings
        self._run = run
        self._under = under
        self.exits = Exits(settings=settings)

    def open(self, state: NetworkState, endpoint: Endpoint) -> None:
        """Give a plugged endpoint its way out, if it wants one."""
        if not _wants_exit(state, endpoint):
            return
        before = self.exits.objects()
        if not before:
            self.exits.closed = frozenset()
            self.exits.recall(self._run.kernel.observe(HOME, {}))
            self.exits.mtu = self._under() or self.exits.mtu
        self._add(endpoint)
        after = self.exits.objects()
        try:
            self._run.apply(HOME, plan(after, before))
        except SwarmError as error:
            self.exits.discard(endpoint.id)
            left = self.exits.objects()
            if left:
                self._run.undo(error, lambda: self._run.apply(HOME, plan(left, after)))
            else:
                self._run.undo(error, self._run.kernel.drop_exits)
            raise

    def _add(self, endpoint: Endpoint) -> None:
        """Note one more, and what the host did before the first of its kind."""
        for version in versions(endpoint):
            if version not in self.exits.versions() and not self._run.kernel.forwarding(version):
                self.exits.closed |= {version}
        self.exits.add(endpoint)

    def close(self, endpoint_id: str) -> None:
        """Take an endpoint's way out, if it has one."""
        if endpoint_id not in self.exits.endpoints:
            return
        before = self.exits.objects()
        number = self.exits.numbers[endpoint_id]
        endpoint = self.exits.endpoints[endpoint_id]
        self.exits.discard(endpoint_id)
        try:
            if self.exits.endpoints:
                self._run.apply(HOME, plan(self.exits.objects(), before))
            else:
                self._run.kernel.drop_exits()
                self._run.operations += 1
        except SwarmError:
            self.exits.numbers[endpoint_id] = number
            self.exits.endpoints[endpoint_id] = endpoint
            raise

    def _adopt(self) -> tuple[int, list[str]]:
        """Set the ways out right; returns the number of operations and what failed."""
        observed = self._run.kernel.observe(HOME, self.exits.objects())
        wanted = self.exits.objects()
        if not wanted:
            if observed:
                self._run.kernel.drop_exits()
                self._run.operations += 1
            return len(observed), []
        ops = plan(wanted, self._run.kernel.observe(HOME, wanted))
        return len(ops), self._run.repair(HOME, ops)

    def check(self, known: Container[str]) -> Check:
        """Compare the ways out with what is wanted of them, and set them right."""
        for endpoint_id in [one for one in self.exits.endpoints if one not in known]:
            self.exits.discard(endpoint_id)
        self.exits.mtu = self._under() or self.exits.mtu
        drift, failures = self._adopt()
        return Check(drift=drift, failures=tuple(failures))

    def recall(self) -> None:
        """Forget all, but for the addresses that legs in the kernel have."""
        self.exits = Exits(settings=self._settings)
        self.exits.recall(self._run.kernel.observe(HOME, {}))
        self.exits.mtu = self._under() or self.exits.mtu

    def restore(self, states: Iterable[NetworkState]) -> list[Failure]:
        """Bring all ways out into the state these networks want."""
        failed: list[Failure] = []
        for state in states:
            for endpoint in state.endpoints.values():
                if not _wants_exit(state, endpoint):
                    continue
                try:
                    self._add(endpoint)
                except SwarmError as error:
                    failed.append(Failure(kind="endpoint", id=endpoint.id, text=str(error)))
        for endpoint_id in self.exits.numbers.keys() - self.exits.endpoints.keys():
            self.exits.discard(endpoint_id)
        _, texts = self._adopt()
        return failed + [Failure(kind="endpoint", id=IFNAME, text=text) for text in texts]

    def destroy(self) -> None:
        """Remove all ways out, known or not."""
        self._run.kernel.drop_exits()
        self.exits = Exits(settings=self._settings)


def _wants_exit(state: NetworkState, endpoint: Endpoint) -> bool:
    return endpoint.default_route and not state.network.internal
