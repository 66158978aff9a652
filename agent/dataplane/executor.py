"""What the engine needs of a kernel, and how it executes plans on one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from agent.dataplane.chamber import Chamber
from agent.dataplane.model import Encryption, IPAddress, IPNetwork, NetnsRef, VxlanCounters
from agent.dataplane.nft import Nft
from agent.dataplane.objects import Key, Object, Op, State
from swarm.errors import SwarmError

T = TypeVar("T")


class HomeRoute(NamedTuple):
    """A route of the daemon's namespace: what it leads to, by which device, and whether directly."""

    target: IPNetwork
    device: str
    direct: bool


class Machine(Protocol):
    """What the engine needs of a kernel; :class:`agent.dataplane.kernel.Kernel` is the real one."""

    def routers(self) -> tuple[str, ...]:
        """Return the routers that exist."""

    def make_router(self, name: str) -> bool:
        """Make a router unless it exists; returns whether it was made."""

    def drop_router(self, name: str) -> None:
        """Remove a router with everything in it."""

    def close_store(self) -> None:
        """Remove what keeps routers."""

    def drop_exits(self) -> None:
        """Remove all ways out."""

    def forwarding(self, version: int) -> bool:
        """Tell whether the daemon's namespace forwards an IP version."""

    def home_routes(self) -> tuple[HomeRoute, ...]:
        """Return the routes of the daemon's namespace that are not ours, default routes excepted."""

    def underlay_mtu(self) -> int | None:
        """Return the MTU under the tunnel."""

    def underlay_device(self) -> tuple[int, str] | None:
        """Return index and name of the device under the tunnel."""

    def shortcuts(self) -> bool:
        """Tell whether packets can be taken past a router's IP stack."""

    def prove_encryption(self) -> None:
        """Raise HostError when this kernel cannot carry encrypted networks."""

    def encryption(self) -> Encryption:
        """Return what carries encrypted networks."""

    def reachable(self, netns: NetnsRef) -> bool:
        """Tell whether a container's namespace exists."""

    def open_chamber(self, peers: Collection[IPAddress]) -> Chamber | None:
        """Return the place to try paths from, knowing these nodes; None without an underlay."""

    def close_chamber(self) -> None:
        """Remove the place to try paths from."""

    def observe(self, name: str, wanted: State) -> dict[Key, Object]:
        """Return what a router holds."""

    def observe_insides(self, name: str, wanted: State) -> dict[Key, Object]:
        """Return the containers' ends that ``wanted`` names."""

    def apply(self, name: str, ops: Sequence[Op]) -> None:
        """Execute operations, up to the first that fails."""

    def within(self, name: str, step: Callable[[Nft], T]) -> T:
        """Run a step in a router's namespace."""

    def counters(self, name: str, devices: Iterable[str]) -> VxlanCounters:
        """Return the sum of devices' counters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a slow comparison found.

    Attributes:
        drift: operations it had to execute.
        gone: endpoints whose container has ended.
        failures: what it could not set right.
    """

    drift: int = 0
    gone: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()


@dataclass(slots=True)
class Executor:
    """Executes plans and counts their operations.

    Attributes:
        kernel: that executes them.
        operations: executed so far.
        before: a fault point. Called before each operation, of which each is then a step of its own;
            tests end the process there. None: a plan goes to the kernel as a whole.
    """

    kernel: Machine
    operations: int = 0
    before: Callable[[str, Op], None] | None = None

    def apply(self, name: str, ops: Sequence[Op]) -> None:
        """Execute a plan, up to the first operation that fails."""
        if self.before is None:
            if ops:
                self.kernel.apply(name, ops)
        else:
            for op in ops:
                self.before(name, op)
                self.kernel.apply(name, (op,))
        self.operations += len(ops)

    def repair(self, name: str, ops: Sequence[Op]) -> list[str]:
        """Execute what can be executed; returns a sentence for each operation that cannot."""
        try:
            self.apply(name, ops)
        except SwarmError:
            failures: list[str] = []
            for op in ops:  # each is idempotent: those that took effect do so again
                try:
                    self.apply(name, (op,))
                except SwarmError as error:
                    failures.append(str(error))
            return failures
        return []

    @staticmethod
    def undo(error: SwarmError, step: Callable[[], None]) -> None:
        """Take back a half-done change; a failure of that too is noted on the first one."""
        try:
            step()
        except SwarmError as second:
            error.add_note(f"and it could not be taken back: {second}")
