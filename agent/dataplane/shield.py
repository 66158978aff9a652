"""The engine's part that keeps encrypted networks inside ESP.

Two layers, each enough alone, both in place before a device of an encrypted network is made and
until after it is removed: an IPsec policy that blocks what leaves from the source ports of
encrypted networks unless a policy for the very peer sends it through an association; and the
guards of :mod:`agent.dataplane.guards`. Without keys, without a peer's association, without this
process: nothing passes in clear.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from agent.dataplane import crypto, guards
from agent.dataplane.crypto import Keyring
from agent.dataplane.executor import Check, Executor
from agent.dataplane.model import Encryption, IPAddress, IpsecKey, Network, Settings
from agent.dataplane.objects import (
    Association,
    Cover,
    Key,
    Object,
    Op,
    Policy,
    Put,
)
from agent.dataplane.planner import keyed, plan_add_first
from swarm.errors import HostError, SwarmError

SHIELD = "/"
"""The place of all this, where a router's name is asked for; no router can be called so."""


class Shield:
    """Guards, policies and associations of one node.

    Args:
        settings: of the node.
        run: executes plans.
    """

    def __init__(self, settings: Settings, run: Executor) -> None:
        self._settings = settings
        self._run = run
        self._ring: Keyring | None = None
        self._proven = False
        self._device: tuple[int, str] | None = None
        self._held: dict[Key, Object] = {}
        # What an earlier process has left, until take_over: nobody has said yet whether its
        # networks are wanted, and their devices may be sending.
        self._left: frozenset[Key] | None = None
        self._parts: dict[IPAddress, tuple[Object, ...]] = {}
        self._clashes: tuple[str, ...] = ()

    # --- what is wanted ----------------------------------------------------------------------

    def wanted(self, vnis: Collection[int], peers: Collection[IPAddress]) -> dict[Key, Object]:
        """Return everything that carries these VNIs to these tunnel addresses."""
        if not vnis:
            return {}
        local, port = self._settings.vtep, self._settings.port
        devices = () if self._device is None else (self._device,)
        found = keyed([guards.wanted(port, devices), *(Cover(vni=vni) for vni in vnis)])
        block = crypto.block(port, local.version)
        found[block.key] = block
        clashes: list[str] = []
        for peer in sorted(peers, key=lambda ip: ip.packed):
            for item in self._part(peer):
                # Two peers may get one SPI (one node in a thousand with a thousand peers). Under
                # the same key one association serves both; else the first keeps it.
                first = found.setdefault(item.key, item)
                if first is not item and _differ(first, item):
                    clashes.append(f"the SPIs of two peers collide; {peer} may not reach us")
        self._clashes = tuple(clashes)
        return found

    def _part(self, peer: IPAddress) -> tuple[Object, ...]:
        if self._ring is None:
            return ()
        if peer not in self._parts:
            local = self._settings.vtep
            self._parts[peer] = (
                *crypto.associations(local, peer, self._ring),
                *crypto.allow(local, peer, self._settings.port, self._ring),
            )
        return self._parts[peer]

    def _exact(self, vnis: Collection[int], peers: Collection[IPAddress]) -> dict[Key, Object]:
        """Return what is wanted and, of what there is, what cannot be judged yet.

        That is everything before :meth:`take_over`, and what is keyed before the keys are known.
        """
        wanted = self.wanted(vnis, peers)
        unknown = self._ring is None and bool(vnis)
        for key, item in self._held.items():
            keyed_one = isinstance(item, Association) or (isinstance(item, Policy) and item.spi)
            if key in (self._left or ()) or (unknown and keyed_one):
                wanted.setdefault(key, item)
        return wanted

    # --- changes -----------------------------------------------------------------------------

    def require(self, network: Network) -> None:
        """Make sure that this kernel can carry an encrypted network; tried once, then known.

        Raises:
            HostError: it cannot, and why.
        """
        if self._proven:
            return
        try:
            self._run.kernel.prove_encryption()
        except HostError as error:
            raise HostError(f"network {network.name} is encrypted: {error}") from error
        self._proven = True

    def widen(self, vnis: Collection[int], peers: Collection[IPAddress]) -> None:
        """Put what these need beside what there is; before anything that depends on it."""
        self._look()
        if self._device is None:
            self._device = self._run.kernel.underlay_device()
        covered = {item.vni for item in self._held.values() if isinstance(item, Cover)}
        wanted = self.wanted(covered | set(vnis), peers)
        ops = [op for op in plan_add_first(wanted, self._held) if isinstance(op, Put)]
        held = {**self._held, **wanted}
        self._move(ops, held)

    def settle(self, vnis: Collection[int], peers: Collection[IPAddress]) -> None:
        """Keep what these need and nothing else; after everything that depended on it is gone."""
        if self._left is None and not vnis:
            return  # nothing encrypted was ever asked of this process
        self._look()
        wanted = self._exact(vnis, peers)
        self._move(plan_add_first(wanted, self._held), wanted)

    def _move(self, ops: Collection[Op], held: dict[Key, Object]) -> None:
        before = self._held
        try:
            self._run.apply(SHIELD, tuple(ops))
        except SwarmError as error:
            self._run.undo(error, lambda: self._run.apply(SHIELD, plan_add_first(before, held)))
            raise
        self._held = held

    def set_keys(
        self,
        keys: Collection[IpsecKey],
        vnis: Collection[int],
        peers: Collection[IPAddress],
        now: float,
    ) -> None:
        """Replace the keys: new associations first, then the policies, then the old ones go."""
        self._change_ring((self._ring or Keyring()).rotated(keys, now), vnis, peers)

    def _change_ring(
        self, ring: Keyring, vnis: Collection[int], peers: Collection[IPAddress]
    ) -> None:
        old = self._ring
        if ring == old:
            return
        self._ring = ring
        self._parts.clear()
        try:
            self._recall()
            self.settle(vnis, peers)
        except SwarmError:
            self._ring = old
            self._parts.clear()
            raise

    def take_over(self) -> None:
        """Know from here on which networks are wanted: what serves no other may go."""
        self._recall()
        self._left = frozenset()

    def _recall(self) -> None:
        """Take what the kernel holds for what there is."""
        self._held = self._run.kernel.observe(SHIELD, {})
        if self._left is None:
            self._left = frozenset(self._held)
        self._device = self._run.kernel.underlay_device() or self._device

    def _look(self) -> None:
        if self._left is None:
            self._recall()

    # --- the slow comparison, status, the end ------------------------------------------------

    def check(self, vnis: Collection[int], peers: Collection[IPAddress], now: float) -> Check:
        """Compare the kernel with what is wanted, and set it right."""
        if self._ring is not None:
            self._change_ring(self._ring.after(now), vnis, peers)
        self._recall()
        wanted = self._exact(vnis, peers)
        ops = plan_add_first(wanted, self._held)
        failures = self._run.repair(SHIELD, ops)
        worn = [
            f"{item.sent} packets went to {item.destination} under one key; at 2^32 it stops: "
            "rotate the keys"
            for item in self._held.values()
            if isinstance(item, Association)
            and item.sends
            and item.sent >= crypto.SEQUENCE_WARNING
            and item.key in wanted
        ]
        self._held = wanted
        return Check(drift=len(ops), failures=(*failures, *worn, *self._clashes))

    def status(self) -> Encryption:
        """Return what carries the encrypted networks."""
        found = self._run.kernel.encryption()
        return replace(found, keys=None if self._ring is None else len(self._ring.live))

    def destroy(self) -> None:
        """Remove everything of ours, known or not; the keys stay known."""
        self.take_over()
        self._move(plan_add_first({}, self._held), {})


def _differ(first: Object, second: Object) -> bool:
    return (
        isinstance(first, Association)
        and isinstance(second, Association)
        and first.material != second.material
    )
