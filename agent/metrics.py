"""Figures of this node for Prometheus, off unless an address is given.

The library serves HTTP in threads of its own; each scrape asks the event loop for one consistent
reading. Names and meanings: ``docs/metrics.md``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from concurrent.futures import TimeoutError as ScrapeTimeoutError
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client import start_http_server as serve
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agent.dataplane import Dataplane
from agent.gossip.service import Gossip, State
from agent.node.member import Member
from agent.node.node import Node
from swarm.errors import HostError, NotFoundError
from swarm.identity.sockets import join_address

PREFIX: Final = "overswarm"
SCRAPE_TIMEOUT: Final = 5.0
_KEY_ROLES: Final = ("previous", "sending", "next")

log = structlog.get_logger(component="metrics")


class Metrics(Collector):
    """Serves the figures of one node.

    Args:
        node: whose figures.
        host: IP address to listen on.
        port: TCP port; 0 takes a free one (see ``port`` once ready).
    """

    def __init__(self, node: Node, host: str, port: int) -> None:
        self._node = node
        self._host = host
        self.port = port
        self.ready = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            HostError: the address cannot be bound.
        """
        self._loop = asyncio.get_running_loop()
        registry = CollectorRegistry()
        registry.register(self)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        try:
            server, _ = serve(self.port, self._host, registry)
        except OSError as error:
            raise HostError(
                f"cannot serve metrics on {join_address(self._host, self.port)}: {error.strerror}"
            ) from error
        self.port = server.server_port
        log.info("metrics.serving", address=join_address(self._host, self.port))
        self.ready.set()
        try:
            await self._loop.create_future()
        finally:
            self._loop = None
            # In a thread of its own: a scrape under way may wait for this loop.
            await asyncio.shield(asyncio.to_thread(_close, server))

    def collect(self) -> Iterable[Metric]:
        """Return every family; called in a thread of the server."""
        if self._loop is None:
            return ()
        reading = asyncio.run_coroutine_threadsafe(self._read(), self._loop)
        try:
            return reading.result(SCRAPE_TIMEOUT)
        except ScrapeTimeoutError:
            reading.cancel()
            log.warning("metrics.scrape.late")
            return ()

    def describe(self) -> Iterable[Metric]:
        """Return nothing: the names need no check at registration, when no loop answers."""
        return ()

    async def _read(self) -> list[Metric]:
        found = list(_node(self._node))
        member = self._node.member
        if member is not None:
            found += _session(member)
            if member.gossip is not None:
                found += _gossip(member.gossip)
            if member.dataplane is not None:
                found += await _dataplane(member, member.dataplane)
        return found


def _close(server: Any) -> None:
    server.shutdown()
    server.server_close()


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _gauges(
    name: str, text: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for place, value in values.items():
        family.add_metric(place, value)
    return family


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"{PREFIX}_{name}", text, value=value)


def _counters(
    name: str, text: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for place, value in values.items():
        family.add_metric(place, value)
    return family


def _node(node: Node) -> Iterator[Metric]:
    here = node.lifecycle
    yield _gauges(
        "node_lifecycle",
        "Where the node stands; 1 at the present state.",
        ("state",),
        {(each.value,): float(each is here) for each in type(here)},
    )


def _session(member: Member) -> Iterator[Metric]:
    yield _gauge(
        "session_active", "Whether a manager holds this node's session.", float(member.active)
    )
    yield _gauge("session_managers", "Managers known.", len(member.managers))
    yield _gauge("session_tasks", "Tasks assigned to this node.", len(member.session.tasks()))
    yield _counter(
        "session_opened", "Sessions a manager has accepted since the start.", member.sessions
    )


def _gossip(gossip: Gossip) -> Iterator[Metric]:
    stats, members = gossip.stats(), gossip.members()
    yield _gauges(
        "gossip_members",
        "Known nodes by state, this one included.",
        ("state",),
        {
            (state.name.lower(),): float(sum(each.state is state for each in members))
            for state in State
        },
    )
    yield _gauge("gossip_health_score", "Lifeguard's score; 0 is well.", stats.health)
    yield _gauges(
        "gossip_queue_messages",
        "Messages waiting.",
        ("queue",),
        {(name,): float(count) for name, count in stats.queues.items()},
    )
    yield _counters(
        "gossip_refused",
        "Input refused, by cause.",
        ("cause",),
        {(cause,): float(count) for cause, count in stats.refused.items()},
    )
    for name, text in (
        ("datagrams", "Datagrams."),
        ("datagram_bytes", "Bytes of datagrams."),
        ("stream_bytes", "Bytes of stream messages."),
    ):
        yield _counters(
            f"gossip_{name}",
            text,
            ("direction",),
            {(way,): stats.traffic.get(f"{name}_{way}", 0) for way in ("sent", "received")},
        )
    yield _counters(
        "gossip_streams",
        "Streams.",
        ("direction",),
        {(way,): stats.traffic.get(f"streams_{way}", 0) for way in ("dialled", "served")},
    )
    yield _counter("gossip_dropped_events", "Events no queue had room for.", stats.dropped)
    yield _counter(
        "gossip_stalled_seconds", "Seconds this process should have run and did not.", stats.stalled
    )
    yield _counter(
        "gossip_trimmed_exchanges",
        "Full exchanges that could not hold every attachment.",
        stats.trimmed,
    )
    yield _gauge("gossip_pending_syncs", "Bulk syncs whose reply is awaited.", stats.pending_syncs)
    yield _gauge(
        "gossip_largest_frame_bytes",
        "Largest stream message so far; every engine refuses above 20971520.",
        stats.largest_frame,
    )
    yield _gauges(
        "gossip_key_info",
        "1 for each key in use.",
        ("role", "fingerprint"),
        dict.fromkeys(zip(_KEY_ROLES, stats.keys, strict=True), 1.0),
    )
    yield from _gossip_networks(gossip)
    tables = gossip.tables()
    yield _gauges(
        "gossip_table_entries",
        "Entries by network, table and kind.",
        ("network", "table", "kind"),
        {
            (each.network, each.table, kind): float(count)
            for each in tables
            for kind, count in (
                ("own", each.own),
                ("other", each.visible - each.own),
                ("tombstone", each.tombstones),
                ("hidden", each.hidden),
            )
        },
    )
    compared = [each for each in members if each.compared is not None]
    yield _gauges(
        "gossip_peer_compared_seconds",
        "Seconds since own entries were compared with what a member holds.",
        ("peer",),
        {(each.name,): each.compared or 0.0 for each in compared},
    )
    yield _gauges(
        "gossip_peer_lacking_entries",
        "Own entries a member did not hold at that comparison.",
        ("peer",),
        {(each.name,): float(each.lacking) for each in compared},
    )


def _gossip_networks(gossip: Gossip) -> Iterator[Metric]:
    networks = gossip.network_states()
    yield _gauges(
        "gossip_network_peers",
        "Active nodes on a network besides this one.",
        ("network",),
        {(each.id,): float(each.peers) for each in networks},
    )
    yield _gauges(
        "gossip_network_in_sync",
        "Whether the first bulk syncs of a network are done.",
        ("network",),
        {(each.id,): float(each.in_sync) for each in networks},
    )
    yield _counters(
        "gossip_network_syncs",
        "Bulk syncs that a peer has answered.",
        ("network",),
        {(each.id,): float(each.syncs) for each in networks},
    )
    yield _gauges(
        "gossip_network_queue_messages",
        "Events of a network that wait to be passed on.",
        ("network", "queue"),
        {
            (each.id, queue): float(count)
            for each in networks
            for queue, count in (("own", each.own_queue), ("relayed", each.relay_queue))
        },
    )


async def _dataplane(member: Member, dataplane: Dataplane) -> list[Metric]:
    stats = dataplane.stats()
    found: list[Metric] = [
        _gauge("dataplane_networks", "Networks carried.", stats.networks),
        _gauge("dataplane_endpoints", "Endpoints here.", stats.endpoints),
        _gauge("dataplane_peers", "Endpoints elsewhere that are programmed.", stats.peers),
        _counter("dataplane_operations", "Kernel operations executed.", stats.operations),
        _counter("dataplane_checks", "Comparisons of the kernel with the tables.", stats.checks),
        _counter("dataplane_drift", "Operations those found necessary.", stats.drift),
        _counter("dataplane_failures", "Calls that ended in an error.", stats.failures),
        _gauge("dataplane_attach_seconds", "What the latest attach took.", stats.attach_seconds),
    ]
    if member.mesh is not None:
        found.append(
            _counter(
                "balancer_drift", "Tables made anew after foreign edits.", member.mesh.foreign_edits
            )
        )
    coordinator = member.coordinator
    packets: dict[tuple[str, ...], float] = {}
    octets: dict[tuple[str, ...], float] = {}
    for overlay in () if coordinator is None else coordinator.overlays():
        try:
            counted = await dataplane.counters(overlay.network.id)
        except NotFoundError:
            continue  # it went meanwhile
        for way, each_packets, each_bytes in (
            ("received", counted.rx_packets, counted.rx_bytes),
            ("sent", counted.tx_packets, counted.tx_bytes),
        ):
            packets[overlay.network.id, way] = each_packets
            octets[overlay.network.id, way] = each_bytes
    labels = ("network", "direction")
    found.append(
        _counters("dataplane_vxlan_packets", "Packets through the tunnel.", labels, packets)
    )
    found.append(_counters("dataplane_vxlan_bytes", "Bytes through the tunnel.", labels, octets))
    return found
