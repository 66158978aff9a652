"""Gossip beside stock engines: one cluster, one truth, whatever happens to either side.

The tables of each side are read where it shows them: the engine's through its diagnostic server, ours
through the local API. They have to be equal entry by entry, owners, addresses and tunnels included.
"""

from __future__ import annotations

import json
import signal
import time

import pytest
from support.mixed import Mixed, Row

from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

ALL = ("m1", "w1", "d1", "d2")


def fill(mixed: Mixed, network: str, prefix: str, hosts: tuple[str, ...] = ALL) -> set[str]:
    """Start one container per host; their names."""
    for host in hosts:
        mixed.idle(host, f"{prefix}-{host}", network)
    return {f"{prefix}-{host}" for host in hosts}


def network_id(mixed: Mixed, network: str) -> str:
    """The id of a network."""
    (shown,) = json.loads(mixed.cluster.swarm("m1", "network", "inspect", network))
    return str(shown["Id"])


def side_by_side(rows: dict[str, list[Row]]) -> str:
    """The tables of several hosts, one column each, as text."""
    keys = sorted({row.key for table in rows.values() for row in table})
    columns = []
    for host, table in rows.items():
        by_key = {row.key: row for row in table}
        shown = [
            f"{row.key[:12]} {row.name or '-':10} {row.address:10} {row.vtep:10} {row.owner}"
            if row
            else ""
            for row in map(by_key.get, keys)
        ]
        width = max(map(len, shown), default=0)
        columns.append([line.ljust(width) for line in (host, *shown)])
    return "\n".join(" | ".join(line).rstrip() for line in zip(*columns, strict=True))


def decryption_failures(mixed: Mixed) -> dict[str, int]:
    """How many gossip messages each node could not decrypt so far."""
    failures = {}
    for host in ("m1", "w1"):
        (status,) = json.loads(mixed.cluster.swarm(host, "gossip", "--format", "json"))
        failures[host] = int(status["Counters"].get("refused.undecryptable", 0))
    for host, engine in mixed.engines.items():
        failures[host] = engine.log.read_text(errors="replace").count(
            "No installed keys could decrypt"
        )
    return failures


def test_tables_are_equal_after_churn(mixed: Mixed, network: str) -> None:
    """Containers come and go on all four nodes, then all four tables hold the same rows."""
    identifier = network_id(mixed, network)
    names = fill(mixed, network, "stay")  # a node without any leaves the network, and its table
    names |= fill(mixed, network, "first")
    mixed.await_equal_tables(identifier, ALL, names)
    for round_ in range(3):
        for host in ALL:
            mixed.remove(host, f"first-{host}" if round_ == 0 else f"churn{round_ - 1}-{host}")
            mixed.idle(host, f"churn{round_}-{host}", network)
    mixed.remove("d1", "churn2-d1")
    mixed.remove("w1", "churn2-w1")
    table = mixed.await_equal_tables(
        identifier, ALL, {f"stay-{host}" for host in ALL} | {"churn2-m1", "churn2-d2"}
    )
    assert table
    print(side_by_side({host: mixed.table(host, identifier) for host in ALL}))  # noqa: T201  # with -s


def test_tables_are_equal_after_our_daemon_was_killed(mixed: Mixed, network: str) -> None:
    """What changed while our daemon was dead is there soon after its restart; its own entries too."""
    identifier = network_id(mixed, network)
    names = fill(mixed, network, "k") | fill(mixed, network, "short", ("d1", "m1"))
    mixed.await_equal_tables(identifier, ALL, names)
    mixed.cluster.lab.kill("w1")
    mixed.remove("d1", "short-d1")
    mixed.remove("m1", "short-m1")
    mixed.idle("d2", "born-apart", network)
    mixed.cluster.lab.start("w1")
    wanted = names - {"short-d1", "short-m1"} | {"born-apart"}
    mixed.await_equal_tables(identifier, ALL, wanted)


def test_tables_are_equal_after_an_engine_was_killed(mixed: Mixed, network: str) -> None:
    """An engine that dies takes its entries along everywhere; back again, it agrees with all."""
    identifier = network_id(mixed, network)
    names = fill(mixed, network, "e")
    mixed.await_equal_tables(identifier, ALL, names)
    mixed["d2"].stop(signal.SIGKILL)
    survivors = ("m1", "w1", "d1")
    mixed.await_equal_tables(identifier, survivors, names - {"e-d2"})
    mixed.idle("w1", "meanwhile", network)
    mixed["d2"].start()
    mixed.idle("d2", "after-all", network)
    wanted = names - {"e-d2"} | {"meanwhile", "after-all"}
    mixed.await_equal_tables(identifier, ALL, wanted)


def test_tables_are_equal_after_key_rotations(mixed: Mixed, network: str) -> None:
    """Two rotations on demand: everybody changes over, nothing stays undecryptable, entries go on."""
    identifier = network_id(mixed, network)
    names = fill(mixed, network, "r")
    mixed.await_equal_tables(identifier, ALL, names)
    for round_ in range(2):

        def rotated() -> bool:
            return mixed.cluster.attempt("m1", "rotate-keys").returncode == 0

        wait_until(rotated, seconds=30, what=lambda: "the keys cannot be rotated", pause=1.0)
        names |= fill(mixed, network, f"after{round_}")
        mixed.await_equal_tables(identifier, ALL, names)
    before = decryption_failures(mixed)
    names |= fill(mixed, network, "calm")
    mixed.await_equal_tables(identifier, ALL, names)
    time.sleep(3)  # enough rounds of probes and gossip to see a failure, were there any
    assert decryption_failures(mixed) == before
    for host in ("m1", "w1"):
        (status,) = json.loads(mixed.cluster.swarm(host, "gossip", "--format", "json"))
        for cause in ("malformed", "truncated", "replayed", "version", "overflow"):
            assert f"refused.{cause}" not in status["Counters"], "engines send nothing of the kind"
        assert {member["State"] for member in status["Members"] if member["State"] != "left"} <= {
            "alive",
            "dead",
        }
