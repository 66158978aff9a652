"""The asynchronous face of the data plane: one worker thread, one slow loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ParamSpec, TypeVar

import structlog

from agent.dataplane import preflight
from agent.dataplane.engine import Engine
from agent.dataplane.executor import Check
from agent.dataplane.kernel import Kernel
from agent.dataplane.model import (
    Encryption,
    Endpoint,
    Failure,
    Finding,
    IPAddress,
    IpsecKey,
    Network,
    Peer,
    Report,
    Settings,
    Stats,
    VxlanCounters,
    Wanted,
)
from agent.dataplane.monitor import Monitor
from agent.dataplane.mtu import VXLAN_OVERHEAD
from agent.dataplane.nft import Nft
from agent.dataplane.prober import Prober
from swarm.errors import PreconditionError, SwarmError

P = ParamSpec("P")
T = TypeVar("T")

SLICE = 32
"""Endpoints whose inside is compared in one step of the worker: an attach waits no longer than that."""

PROBE_PAUSE = 5.0
"""Seconds between two looks for nodes whose path was not tried yet."""

PROBE_INTERVAL = 600.0
"""Seconds after which a path is tried again."""

CALM = 0.1
"""Seconds between two comparisons because of disturbances; doubled, up to the interval of the slow
one, while each finds something: a bound on a fight over the tables."""

log = structlog.get_logger(component="agent.dataplane")


class Dataplane:
    """Carries the networks of one node. See the package's manual.

    Args:
        settings: of the node.
        gone: called in the event loop with the ids of endpoints whose containers have ended
            without being unplugged, after they are forgotten.
    """

    def __init__(
        self, settings: Settings, *, gone: Callable[[tuple[str, ...]], None] | None = None
    ) -> None:
        self._settings = settings
        self._gone = gone
        self._ready = asyncio.Event()
        self._worker: ThreadPoolExecutor | None = None
        self._engine: Engine | None = None
        self._stats = Stats()
        self._disturbed = asyncio.Event()
        self._prober: Prober | None = None
        self._probing = asyncio.Lock()
        self._destroying = False
        self._tried: dict[IPAddress, float] = {}

    # --- life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until cancelled; the kernel's state stays.

        Raises:
            HostError: the process may not open its namespace or netlink.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="dataplane") as worker:
            loop = asyncio.get_running_loop()
            kernel = await loop.run_in_executor(worker, Kernel, self._settings)
            if self._settings.shortcuts:
                await loop.run_in_executor(worker, kernel.shortcuts)  # tried now, not at an attach
            monitor = await loop.run_in_executor(worker, Monitor)
            self._worker, self._engine = worker, Engine(self._settings, kernel)
            try:
                for descriptor in monitor.descriptors:
                    loop.add_reader(descriptor, self._hear, monitor, descriptor)
                self._ready.set()
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._check_slowly())
                    group.create_task(self._check_when_disturbed())
                    group.create_task(self._probe_slowly())
            finally:
                self._ready.clear()
                self._stop_probing()
                self._worker = self._engine = None
                for descriptor in monitor.descriptors:
                    loop.remove_reader(descriptor)
                monitor.close()
                # Not awaited: a cancelled task must not wait in its finally. Leaving the
                # executor does, and by then every call begun before has ended.
                worker.submit(kernel.close)

    async def _check_slowly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.check_interval)
            await self.check()

    async def _check_when_disturbed(self) -> None:
        """Put guards of encrypted networks back as soon as somebody takes them away."""
        pause = CALM
        while True:
            await self._disturbed.wait()
            self._disturbed.clear()
            found = await self._step(self._served().check_shield, time.monotonic())
            self._note(found)
            quiet = not (found.drift or found.failures)
            pause = CALM if quiet else min(2 * pause, self._settings.check_interval)
            await asyncio.sleep(pause)

    async def _probe_slowly(self) -> None:
        """Try the paths to other nodes: soon after one is heard of, and again from time to time."""
        while True:
            await asyncio.sleep(PROBE_PAUSE)
            try:
                await self.probe_paths(again=PROBE_INTERVAL)
            except SwarmError as error:
                log.warning("paths.untried", reason=str(error))
                await asyncio.sleep(PROBE_INTERVAL)

    async def probe_paths(self, again: float = 0.0) -> int:
        """Try what arrives at each other node, adapt MTU and checksums; returns how many answered.

        Args:
            again: seconds; paths tried since are left out. A node that said nothing is asked again
                after a tenth of that.

        Raises:
            HostError: there is no way to try.
        """
        async with self._probing:
            return await self._probe(again)

    async def _probe(self, again: float) -> int:
        engine = self._served()
        chamber = await self._call(engine.open_chamber)
        if chamber is None or self._destroying:
            return 0
        if self._prober is None:
            self._prober = Prober(chamber)
            self._prober.open()
        prober = self._prober
        tunnels = await self._call(engine.tunnels)
        self._tried = {peer: when for peer, when in self._tried.items() if peer in tunnels}
        answered = 0
        for peer in sorted(tunnels, key=lambda ip: ip.packed):
            now = time.monotonic()
            if again and now - self._tried.get(peer, -again) < again:
                continue
            verdict = await prober.measure(peer)
            if self._prober is not prober:
                break  # everything goes
            self._tried[peer] = now if verdict is not None else now - 0.9 * again
            if verdict is None:
                continue
            answered += 1
            mtu = verdict.mtu + VXLAN_OVERHEAD[peer.version]
            if await self._call(engine.set_path, peer, mtu, sums=verdict.sums):
                log.warning("path.changed", peer=str(peer), mtu=mtu, checksums=verdict.sums)
                await self.check()
        return answered

    def _hear(self, monitor: Monitor, descriptor: int) -> None:
        if monitor.heard(descriptor) and self._engine is not None and self._engine.guarding():
            self._disturbed.set()

    async def ready(self) -> None:
        """Wait until calls are served."""
        await self._ready.wait()

    async def _call(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._worker is None:
            raise PreconditionError("the data plane is not running")
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._worker, lambda: step(*args, **kwargs))
        except SwarmError:
            self._stats = replace(self._stats, failures=self._stats.failures + 1)
            raise

    def _served(self) -> Engine:
        if self._engine is None:
            raise PreconditionError("the data plane is not running")
        return self._engine

    # --- questions ---------------------------------------------------------------------------

    async def preflight(self) -> tuple[Finding, ...]:
        """Check what the host has and raise (or name) its limits.

        Raises:
            HostError: a feature without which nothing works is missing; the text says what helps.
        """
        self._served()
        return await self._call(preflight.run, self._settings)

    async def path_mtu(self, *, encrypted: bool = False) -> int:
        """Return the MTU in bytes that a container gets by default on this node."""
        return await self._call(self._served().path_mtu, encrypted=encrypted)

    async def encryption(self) -> Encryption:
        """Return what carries the encrypted networks, and what was dropped to keep them so."""
        return await self._call(self._served().encryption)

    async def counters(self, network_id: str) -> VxlanCounters:
        """Return a network's traffic through this node's tunnel.

        Raises:
            NotFoundError: the network is not on this node.
        """
        return await self._call(self._served().counters, network_id)

    def stats(self) -> Stats:
        """Return counters of this object."""
        if self._engine is None:
            return self._stats
        held = self._engine.stats()
        return replace(
            self._stats,
            networks=held.networks,
            endpoints=held.endpoints,
            peers=held.peers,
            operations=held.operations,
            path_mtu=held.path_mtu,
            software_checksums=held.software_checksums,
        )

    # --- wanted state ------------------------------------------------------------------------

    async def put_network(self, network: Network) -> None:
        """Make a network's router, or change it into what the network is now.

        Raises:
            ConflictError: its VNI is taken on this host.
            HostError: the host cannot carry it: its kernel lacks what encryption needs, or the
                underlay's MTU is too small.
            UnimplementedError: it asks for layer 2.
        """
        await self._call(self._served().put_network, network)
        log.info("network.put", network=network.id, name=network.name)

    async def set_keys(self, keys: Iterable[IpsecKey]) -> None:
        """Replace the IPsec keys of encrypted networks; packets under way are not lost.

        Until the first call, associations that an earlier agent has left stay as they are, and no
        new peer can be talked to. An empty list cuts encrypted networks off.

        Args:
            keys: at most three, in any order; the middle one by lamport time transmits.

        Raises:
            InvalidArgumentError: too many keys, or two with one lamport time.
            HostError: the kernel refused; the former keys are in force.
        """
        given = tuple(keys)
        await self._call(self._served().set_keys, given, time.monotonic())
        log.info("ipsec.rekeyed", lamport=sorted(key.lamport for key in given))

    async def remove_network(self, network_id: str) -> None:
        """Remove a network's router; one that is not there is no error.

        Raises:
            PreconditionError: endpoints are still plugged into it.
        """
        await self._call(self._served().remove_network, network_id)
        log.info("network.removed", network=network_id)

    async def plug(self, endpoint: Endpoint) -> None:
        """Connect a container; returns when packets pass. Nothing stays when it fails.

        Raises:
            NotFoundError: the network is not here, or the container's namespace is gone.
            InvalidArgumentError: an address is not of the network.
            ConflictError: address, MAC or interface name are taken.
            HostError: the kernel refused.
        """
        start = time.perf_counter()
        await self._call(self._served().plug, endpoint)
        took = time.perf_counter() - start
        self._stats = replace(self._stats, attach_seconds=took)
        log.info(
            "endpoint.plugged",
            endpoint=endpoint.id[:12],
            network=endpoint.network_id,
            container=endpoint.container,
            milliseconds=round(took * 1000, 1),
        )

    async def unplug(self, endpoint_id: str) -> None:
        """Disconnect a container; one that is not there is no error."""
        await self._call(self._served().unplug, endpoint_id)
        log.info("endpoint.unplugged", endpoint=endpoint_id[:12])

    async def set_peer(self, peer: Peer) -> None:
        """Put one remote endpoint.

        Raises:
            NotFoundError: its network is not on this node.
            InvalidArgumentError: the record cannot be of that network.
        """
        await self._call(self._served().set_peer, peer)

    async def remove_peer(self, network_id: str, ip: IPAddress) -> None:
        """Forget one remote endpoint; one that is not there is no error."""
        await self._call(self._served().remove_peer, network_id, ip)

    async def set_peers(self, network_id: str, peers: Iterable[Peer]) -> tuple[Failure, ...]:
        """Replace all remote endpoints of a network in one batch.

        Returns:
            The records that cannot be of that network; all others took effect.

        Raises:
            NotFoundError: the network is not on this node.
            HostError: the kernel refused; the former peers are back.
        """
        refused = await self._call(self._served().set_peers, network_id, tuple(peers))
        if refused:
            log.warning(
                "peers.refused", network=network_id, count=len(refused), first=refused[0].text
            )
        return refused

    async def set_vips(self, network_id: str, vips: Iterable[IPAddress]) -> None:
        """Replace the service addresses that a network's router answers for."""
        await self._call(self._served().set_vips, network_id, tuple(vips))

    async def change_vips(
        self, network_id: str, add: Collection[IPAddress], drop: Collection[IPAddress]
    ) -> None:
        """Change the service addresses that a network's router answers for.

        Raises:
            NotFoundError: the network is not on this node.
            InvalidArgumentError: an address is in no subnet of it.
        """
        await self._call(self._served().change_vips, network_id, tuple(add), tuple(drop))

    async def within(self, network_id: str, step: Callable[[Nft], T]) -> T:
        """Run a step in a network's router namespace, in the worker thread.

        Args:
            network_id: of a network on this node; empty for the daemon's own namespace.
            step: gets the namespace's nftables; must not block. Tables and objects of the data
                plane are not for it.

        Raises:
            NotFoundError: the network is not on this node.
            HostError: the host failed.
        """
        return await self._call(self._served().within, network_id, step)

    async def exit_addresses(self, endpoint_id: str) -> tuple[IPAddress, ...]:
        """Return the addresses of an endpoint's leg to the outside, IPv4 first; none without one."""
        return await self._call(self._served().exit_addresses, endpoint_id)

    async def reconcile(self, wanted: Wanted) -> Report:
        """Take over the node: adopt what runs, attach what is missing, remove what is unwanted."""
        report = await self._call(self._served().reconcile, wanted)
        log.info(
            "dataplane.reconciled",
            adopted=len(report.adopted),
            attached=len(report.attached),
            gone=len(report.gone),
            removed=len(report.removed),
            failed=len(report.failed),
            operations=report.operations,
        )
        return report

    async def destroy(self) -> None:
        """Remove everything of ours on this host."""
        self._destroying = True
        try:
            self._stop_probing()
            async with self._probing:  # whose chamber goes
                await self._call(self._served().destroy)
        finally:
            self._destroying = False
        log.info("dataplane.destroyed")

    def _stop_probing(self) -> None:
        if self._prober is not None:
            self._prober.close()
            self._prober = None

    # --- the slow comparison -----------------------------------------------------------------

    async def check(self) -> Check:
        """Compare the kernel with the wanted state once, set it right, and say what was wrong."""
        engine = self._served()
        steps = [await self._step(engine.check_shield, time.monotonic())]
        for network_id in await self._call(engine.networks):
            steps.append(await self._step(engine.check_router, network_id))
            ids = await self._call(engine.endpoints_of, network_id)
            for start in range(0, len(ids), SLICE):
                part = ids[start : start + SLICE]
                steps.append(await self._step(engine.check_insides, network_id, part))
        steps.append(await self._step(engine.check_exits))
        found = Check(
            drift=sum(step.drift for step in steps),
            gone=tuple(one for step in steps for one in step.gone),
            failures=tuple(one for step in steps for one in step.failures),
        )
        self._note(found)
        return found

    async def _step(self, step: Callable[P, Check], *args: P.args, **kwargs: P.kwargs) -> Check:
        """Do one step of a comparison; one that cannot be done must not keep the others from it."""
        try:
            return await self._call(step, *args, **kwargs)
        except SwarmError as error:
            return Check(failures=(str(error),))

    def _note(self, found: Check) -> None:
        self._stats = replace(
            self._stats, checks=self._stats.checks + 1, drift=self._stats.drift + found.drift
        )
        if found.drift or found.failures:
            log.warning("dataplane.drifted", operations=found.drift, failures=found.failures)
        if found.gone:
            log.info("endpoints.gone", endpoints=[endpoint[:12] for endpoint in found.gone])
            if self._gone is not None:
                self._gone(found.gone)
