"""Metrics: a real scrape over HTTP of a node whose gossip runs."""

from __future__ import annotations

import asyncio
import random
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.dataplane.model import Stats
from agent.gossip.service import LOCAL, Gossip, GossipConfig, GossipKey
from agent.metrics import Metrics
from agent.node.membership import Lifecycle
from swarm.errors import HostError

KEYS = [GossipKey(lamport=tag, key=bytes((tag,)) * 16) for tag in (1, 2, 3)]


def node_with(gossip: Gossip | None) -> Any:
    """Return what metrics read of a node; a member only if there is gossip."""
    dataplane = SimpleNamespace(stats=lambda: Stats(networks=2, drift=7, operations=40, checks=3))
    member = SimpleNamespace(
        active=True,
        managers=("a", "b"),
        session=SimpleNamespace(tasks=lambda: ("t",)),
        sessions=4,
        gossip=gossip,
        dataplane=dataplane,
        mesh=SimpleNamespace(foreign_edits=3),
        coordinator=None,
    )
    here = Lifecycle.INACTIVE if gossip is None else Lifecycle.ACTIVE
    return SimpleNamespace(lifecycle=here, member=None if gossip is None else member)


async def scrape(metrics: Metrics) -> dict[str, dict[tuple[str, ...], float]]:
    """Return every sample by name and label values, the labels in alphabetical order."""

    def fetch() -> str:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{metrics.port}/metrics", timeout=10
        ) as answer:
            return str(answer.read().decode())

    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(await asyncio.to_thread(fetch)):
        for sample in family.samples:
            found.setdefault(sample.name, {})[
                tuple(value for _, value in sorted(sample.labels.items()))
            ] = sample.value
    return found


async def serving(metrics: Metrics, group: asyncio.TaskGroup) -> asyncio.Task[None]:
    """Start the server and wait until it serves."""
    task = group.create_task(metrics.run())
    await metrics.ready.wait()
    return task


@pytest.mark.slow
async def test_a_scrape_shows_gossip_session_and_data_plane() -> None:
    """Every figure stands under its name with its labels."""
    gossip = Gossip(
        GossipConfig(
            advertise_host="127.0.0.1",
            bind_host="127.0.0.1",
            bind_port=0,
            node_name="abcdef012345",
            timing=LOCAL,
        ),
        keys=KEYS,
        rng=random.Random(1),
        on_change=lambda _: None,
    )
    metrics = Metrics(node_with(gossip), "127.0.0.1", 0)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(gossip.run())
        await gossip.ready()
        gossip.join_network("net-a")
        gossip.put("endpoint_table", "net-a", "k", b"v")
        served = await serving(metrics, group)
        found = await scrape(metrics)
        served.cancel()
        running.cancel()
    assert found["overswarm_node_lifecycle"][("active",)] == 1
    assert found["overswarm_session_active"] == {(): 1.0}
    assert found["overswarm_balancer_drift_total"] == {(): 3.0}
    assert found["overswarm_session_opened_total"] == {(): 4.0}
    assert found["overswarm_gossip_members"][("alive",)] == 1
    assert found["overswarm_gossip_table_entries"]["own", "net-a", "endpoint_table"] == 1
    assert {role for _, role in found["overswarm_gossip_key_info"]} == {
        "previous",
        "sending",
        "next",
    }
    assert set(found["overswarm_gossip_queue_messages"]) == {
        ("membership",), ("events",), ("own",), ("relayed",), ("early",)
    }  # fmt: skip
    assert found["overswarm_gossip_network_peers"] == {("net-a",): 0.0}
    assert found["overswarm_gossip_network_in_sync"] == {("net-a",): 1.0}
    assert found["overswarm_gossip_network_syncs_total"] == {("net-a",): 0.0}
    assert set(found["overswarm_gossip_network_queue_messages"]) == {
        ("net-a", "own"), ("net-a", "relayed")
    }  # fmt: skip
    assert found["overswarm_gossip_trimmed_exchanges_total"] == {(): 0.0}
    assert found["overswarm_gossip_datagrams_total"].keys() == {("sent",), ("received",)}
    assert found["overswarm_dataplane_drift_total"] == {(): 7.0}
    assert found["overswarm_dataplane_networks"] == {(): 2.0}
    assert "process_cpu_seconds_total" in found


@pytest.mark.slow
async def test_a_node_in_no_swarm_has_little_to_say() -> None:
    """Scrapes work before init and after leave."""
    metrics = Metrics(node_with(None), "127.0.0.1", 0)
    async with asyncio.TaskGroup() as group:
        served = await serving(metrics, group)
        found = await scrape(metrics)
        served.cancel()
    assert found["overswarm_node_lifecycle"][("inactive",)] == 1
    assert not any(name.startswith("overswarm_gossip") for name in found)


@pytest.mark.slow
async def test_a_taken_port_is_named() -> None:
    """The daemon ends with a sentence that says which address it could not have."""
    first = Metrics(node_with(None), "127.0.0.1", 0)
    async with asyncio.TaskGroup() as group:
        served = await serving(first, group)
        with pytest.raises(HostError, match=f"127.0.0.1:{first.port}"):
            await Metrics(node_with(None), "127.0.0.1", first.port).run()
        served.cancel()
