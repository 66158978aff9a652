"""Keeps the routers' rules in line with the tables: one loop, a transaction per network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol, TypeVar

import structlog

from agent.balancer import audit, conntrack, published, ruleset
from agent.balancer.planner import Applied, Rules, plan, texts
from agent.balancer.table import Back, Backend, Front, IPAddress, Table, Target
from agent.dataplane.nft import Nft
from swarm.errors import NotFoundError, SwarmError

T = TypeVar("T")

HOST: Final = ""
"""In the place of a network's id: the daemon's own namespace, with the published ports."""

RETRY: Final = 1.0
"""Seconds after which a refused change is tried again."""

AUDIT: Final = 60.0
"""Seconds between two comparisons of all tables with what they should be; other people have hands, too."""

log = structlog.get_logger(component="balancer")


class DataplanePort(Protocol):
    """Of :class:`agent.dataplane.Dataplane`."""

    async def within(self, network_id: str, step: Callable[[Nft], T]) -> T:
        """Run a step in a network's router namespace."""

    async def change_vips(
        self, network_id: str, add: Collection[IPAddress], drop: Collection[IPAddress]
    ) -> None:
        """Change the service addresses that the router answers for."""


@dataclass(slots=True)
class _Network:
    rules: Rules = ruleset
    table: Table = field(default_factory=Table)
    applied: Applied | None = None
    hairpins: dict[IPAddress, IPAddress] = field(default_factory=dict)
    moved: set[IPAddress] = field(default_factory=set)
    """Local backends whose hairpin may have changed."""
    routed: set[IPAddress] = field(default_factory=set)
    """Virtual addresses that the router answers for."""
    unflushed: set[Back] = field(default_factory=set)
    open: bool = False
    unsure: bool = False
    """Nobody knows what the router's table holds."""

    @property
    def dirty(self) -> bool:
        table = self.table
        changes = (table.changed, self.moved, self.unflushed, table.dead)
        return self.open and (self.unsure or any(changes))

    def doubt(self) -> None:
        """Have everything made anew."""
        self.applied, self.unsure = None, True
        self.table.changed.update(self.table.pools)
        self.moved.update(self.hairpins)


class Balancer:
    """The virtual addresses of all networks here.

    Args:
        dataplane: has the routers.
        audit: seconds between two comparisons of all tables.
    """

    def __init__(self, dataplane: DataplanePort, *, audit: float = AUDIT) -> None:
        self._dataplane = dataplane
        self._every = audit
        self.drift = 0
        """Tables that somebody else had changed, and that were made anew."""
        self._networks: dict[str, _Network] = {HOST: _Network(rules=published)}
        self._dirty = asyncio.Event()

    # -- what there is ---------------------------------------------------------------------

    def put(self, network_id: str, key: str, backend: Backend) -> None:
        """Take an endpoint's record, new or changed."""
        network = self._networks.setdefault(network_id, _Network())
        network.table.put(key, backend, _now())
        self._touch(network)

    def remove(self, network_id: str, key: str) -> None:
        """Forget an endpoint's record; an unknown one is fine."""
        network = self._networks.get(network_id)
        if network is not None:
            network.table.remove(key, _now())
            self._touch(network)

    def set_local(self, network_id: str, ip: IPAddress, router: IPAddress | None) -> None:
        """Say that a backend is on this node, with the address it meets itself under; None: gone."""
        network = self._networks.setdefault(network_id, _Network())
        if router is None:
            network.hairpins.pop(ip, None)
        else:
            network.hairpins[ip] = router
        network.moved.add(ip)
        network.table.reuse(ip)
        self._touch(network)

    def open(self, network_id: str, vips: Collection[IPAddress] = ()) -> None:
        """Say that a network's router exists now.

        Args:
            network_id: of the network.
            vips: the virtual addresses it answers for already.
        """
        network = self._networks.setdefault(network_id, _Network())
        network.open, network.routed = True, set(vips)
        network.table.changed.update(vips)
        network.doubt()
        self._touch(network)

    def ensure(self, network_id: str) -> None:
        """Say that a table may be made, if nobody has yet."""
        if not self._networks.setdefault(network_id, _Network()).open:
            self.open(network_id)

    def serves(self, network_id: str, front: Front) -> bool:
        """Tell whether a virtual address, or a port, has backends."""
        network = self._networks.get(network_id)
        slots = None if network is None else network.table.slots(front)
        return slots is not None and bool(slots.backs)

    def close(self, network_id: str) -> None:
        """Say that a network's router, or the host's table, is not to be touched any more."""
        network = self._networks.get(network_id)
        if network is not None:
            network.open = False

    def forget(self, network_id: str) -> None:
        """Say that a network's router is gone, and its records with it."""
        self._networks.pop(network_id, None)

    def vips(self, network_id: str) -> tuple[IPAddress, ...]:
        """Return a network's virtual addresses."""
        network = self._networks.get(network_id)
        return () if network is None else tuple(_addresses(network.table.pools))

    async def flows(self, network_id: str, backends: Collection[IPAddress]) -> int:
        """Count the live TCP connections that lead to backends on this node; 0 without a router."""
        wanted = tuple(backends)
        try:
            return await self._dataplane.within(network_id, lambda _: conntrack.count(wanted))
        except NotFoundError:
            return 0

    # -- the loop --------------------------------------------------------------------------

    async def run(self) -> None:
        """Apply changes until cancelled; the rules stay."""
        due = _now() + self._every
        while True:
            await self._pause(due)
            self._dirty.clear()
            if _now() >= due:
                await self._audit()
                due = _now() + self._every
            failed = False
            for network_id, network in tuple(self._networks.items()):
                network.table.expire(_now())
                if not network.dirty:
                    continue
                try:
                    await self._apply(network_id, network)
                except NotFoundError:
                    network.open = False  # the router went meanwhile; open() comes with the next
                except SwarmError as error:
                    failed = True
                    network.doubt()
                    log.warning("balancer.failed", network=network_id, reason=str(error))
            if failed:
                await asyncio.sleep(RETRY)
                self._dirty.set()

    async def _audit(self) -> None:
        """Compare every table with what it should be; one that differs is made anew by the next step."""
        for network_id, network in tuple(self._networks.items()):
            if not network.open or network.unsure or network.applied is None:
                continue
            try:
                wrong = await self._look(network_id, network.rules, network.applied)
            except SwarmError as error:
                log.warning("balancer.audit.failed", network=network_id, reason=str(error))
                continue
            if wrong:
                self.drift += 1
                log.warning("balancer.drifted", network=network_id, what=wrong)
                network.doubt()

    async def _look(self, network_id: str, rules: Rules, applied: Applied) -> str:
        commands, elements = texts(rules, applied)
        return await self._dataplane.within(
            network_id,
            lambda nft: audit.differs(nft, rules.table_name(), rules=commands, elements=elements),
        )

    async def _pause(self, until: float) -> None:
        deadlines = (network.table.deadline() for network in self._networks.values())
        due = min((each for each in deadlines if each is not None), default=until)
        try:
            async with asyncio.timeout_at(min(due, until)):
                await self._dirty.wait()
        except TimeoutError:
            return

    async def _apply(self, network_id: str, network: _Network) -> None:
        table = network.table
        network.unflushed |= table.take_dead()
        changed, table.changed = table.changed, set()
        moved, network.moved = network.moved, set()
        gone = {vip for vip in _addresses(changed) if vip not in table.pools} & network.routed
        if gone:
            await self._dataplane.change_vips(network_id, (), gone)
            network.routed -= gone
        if table.pools:
            change = plan(
                network.rules,
                network.applied,
                {vip: table.slots(vip) for vip in changed},
                {ip: network.hairpins.get(ip) for ip in moved},
            )
            if change.commands:
                await self._dataplane.within(network_id, lambda nft: nft.run(change.commands))
            network.applied = network.applied or Applied()
            network.applied.take(change)
            # The rules first: an address that is answered for is also translated.
            if fresh := set(_addresses(change.appeared)) - network.routed:
                await self._dataplane.change_vips(network_id, fresh, ())
                network.routed |= fresh
        elif network.unsure or network.applied is not None:
            # With the last virtual address the table goes: it costs every packet a look.
            await self._dataplane.within(network_id, lambda nft: nft.run(network.rules.destroy()))
            network.applied = None
        network.unsure = False
        await self._flush(network_id, network)
        log.debug("balancer.applied", network=network_id, changed=len(changed))

    async def _flush(self, network_id: str, network: _Network) -> None:
        dead = tuple(network.unflushed)
        if not dead:
            return
        ips = {each.ip if isinstance(each, Target) else each for each in dead}
        count = await self._dataplane.within(network_id, lambda _: conntrack.forget(ips))
        network.unflushed.difference_update(dead)
        log.info("backends.gone", network=network_id, backends=len(dead), flows=count)

    def _touch(self, network: _Network) -> None:
        if network.dirty:
            self._dirty.set()


def _addresses(fronts: Iterable[Front]) -> Iterator[IPAddress]:
    """Return those that are addresses: a router answers for them."""
    return (each for each in fronts if isinstance(each, IPv4Address | IPv6Address))


def _now() -> float:
    return asyncio.get_running_loop().time()
