"""Five nodes with a container on each that asks for names and pings: what gossip has brought about."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from support.cluster import Cluster
from support.labs import clean_lab
from swarm.lab.processes import wait_until

HOSTS = ("m1", "w1", "w2", "w3", "w4")
NETWORK = "gossip-net"

RESOLVE = """
import json, sys
import dns.exception, dns.resolver
resolver = dns.resolver.Resolver(configure=False)
resolver.nameservers, resolver.lifetime = ["127.0.0.11"], 2.0
found = {}
for name in json.load(sys.stdin):
    try:
        found[name] = sorted(str(each) for each in resolver.resolve(name, "A"))
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        found[name] = []
    except dns.exception.DNSException as error:
        found[name] = [type(error).__name__]
print(json.dumps(found))
"""


@contextmanager
def five_nodes(purpose: str) -> Iterator[Cluster]:
    """Five nodes, on each a container ``probe-HOST`` on one network."""
    with clean_lab(purpose) as lab:
        lab.build(HOSTS)
        lab.form(HOSTS)
        cluster = Cluster(lab)
        cluster.network(NETWORK)
        for host in HOSTS:
            start_probe(cluster, host)
        yield cluster


def start_probe(cluster: Cluster, host: str) -> None:
    """Start the container ``probe-HOST``."""
    words = ("run", "-d", "--name", f"probe-{host}", "--network", NETWORK, "--", "sleep", "3600")
    cluster.swarm(host, *words)


def probes(cluster: Cluster, hosts: tuple[str, ...] = HOSTS) -> dict[str, list[str]]:
    """The addresses of the probes of some hosts by name."""
    return {f"probe-{host}": [cluster.address(host, f"probe-{host}")] for host in hosts}


def resolved(cluster: Cluster, host: str, names: list[str]) -> dict[str, list[str]]:
    """What the probe of a host gets for names, all asked by one process."""
    argv = ("swarm", "exec", "-i", f"probe-{host}", sys.executable, "-c", RESOLVE)
    result = cluster.lab.run(host, *argv, stdin=json.dumps(names), timeout=120)
    assert result.returncode == 0, result.stderr
    answers: dict[str, list[str]] = json.loads(result.stdout)
    return answers


def everywhere(
    cluster: Cluster, names: list[str], hosts: tuple[str, ...] = HOSTS
) -> dict[str, dict[str, list[str]]]:
    """What every probe gets for names."""
    with ThreadPoolExecutor(len(hosts)) as pool:
        found = pool.map(lambda host: resolved(cluster, host, names), hosts)
        return dict(zip(hosts, found, strict=True))


def pings(cluster: Cluster, host: str, address: str) -> bool:
    """Whether a probe reaches an address."""
    words = ("exec", f"probe-{host}", "ping", "-c", "1", "-W", "1", address)
    return cluster.attempt(host, *words).returncode == 0


def status(cluster: Cluster, host: str) -> dict[str, Any]:
    """``swarm gossip`` as JSON."""
    (shown,) = json.loads(cluster.swarm(host, "gossip", "--format", "json"))
    return dict(shown)


def await_names(
    cluster: Cluster, wanted: dict[str, list[str]], seconds: float, hosts: tuple[str, ...] = HOSTS
) -> float:
    """Wait until every probe gets exactly these answers; how long it took."""
    seen: dict[str, dict[str, list[str]]] = {}
    start = time.monotonic()

    def right() -> bool:
        seen.update(everywhere(cluster, sorted(wanted), hosts))
        return all(answers == wanted for answers in seen.values())

    def wrong() -> str:
        return str({
            host: {name: (got, wanted[name]) for name, got in answers.items() if got != wanted[name]}
            for host, answers in seen.items()
        })  # fmt: skip

    wait_until(right, seconds=seconds, what=wrong, pause=0.1)
    return time.monotonic() - start


def router(cluster: Cluster, host: str) -> str:
    """The namespace file of the network's router on a host."""
    (shown,) = json.loads(cluster.swarm("m1", "network", "inspect", NETWORK))
    held = cluster.lab.state.run_dir(host).rglob("netns/*")
    (found,) = [each for each in held if str(shown["Id"]).startswith(each.name)]
    return str(found)


def neighbour_device(netns: str, address: str) -> str:
    """The device of a neighbour entry."""
    shown = subprocess.run(
        ["nsenter", f"--net={netns}", "ip", "-j", "neigh", "show", address],
        check=True,
        capture_output=True,
        text=True,
    )
    return str(json.loads(shown.stdout)[0]["dev"])
