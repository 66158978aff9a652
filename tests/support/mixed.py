"""Clusters of our daemons and stock Docker engines, and what every test does with them."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from support.cluster import PROGRAM, Cluster
from support.labs import clean_lab
from swarm.api.docker.swarmkit import control_pb2, objects_pb2
from swarm.api.networkdb.endpoint_pb2 import EndpointRecord
from swarm.api.networkdb.peer_pb2 import PeerRecord
from swarm.api.overswarm.v1 import local_pb2
from swarm.errors import SwarmError
from swarm.lab.cluster import Lab
from swarm.lab.engine import DIAGNOSTIC_PORT, IMAGE, PACKAGES, Engine, missing
from swarm.lab.processes import wait_until

GOSSIP_SECONDS = 30
READY_SECONDS = 40


@contextmanager
def engine_lab(purpose: str) -> Iterator[Lab]:
    """A lab for engines, where they can be installed."""
    lacking = missing()
    if lacking:
        pytest.skip(
            f"no Docker engine: {', '.join(lacking)} missing (apt-get install {' '.join(PACKAGES)})"
        )
    with clean_lab(purpose) as lab:
        yield lab


@contextmanager
def engines_in(
    lab: Lab, hosts: tuple[str, ...], folder: Path, program: str = "dockerd"
) -> Iterator[dict[str, Engine]]:
    """Engines on new bare hosts of a lab, started at the same time; nothing of them stays."""
    engines = {host: Engine(lab, host, folder / host, program=program) for host in hosts}
    try:
        for host, engine in engines.items():
            lab.add_bare(host)
            engine.launch()
        with ThreadPoolExecutor() as pool:
            list(pool.map(Engine.await_ready, engines.values()))
        yield engines
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Engine.destroy, engines.values()))


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Row:
    """One endpoint of a network as a node's tables have it; what every node must agree on.

    ``name`` and ``names`` are empty where there is a peer record only (a balancer's).
    """

    key: str
    name: str
    address: str
    mac: str
    vtep: str
    owner: str


@dataclass(slots=True)
class Mixed:
    """Our cluster with engines in it (or the other way round)."""

    cluster: Cluster
    engines: dict[str, Engine]
    made: list[tuple[str, str]] = field(default_factory=list)
    """Containers to remove after the test: host, name."""

    def __getitem__(self, host: str) -> Engine:
        return self.engines[host]

    # -- containers on either side ------------------------------------------------------------

    def run(
        self, host: str, name: str, network: str, *argv: str, flags: tuple[str, ...] = ()
    ) -> str:
        """Start a container on ``host``, whoever runs there; its address on ``network``."""
        self.made.append((host, name))
        if host in self.engines:
            self.engines[host].docker(
                "run", "-d", "--stop-timeout", "1", "--name", name, "--network", network, *flags, IMAGE, *argv
            )  # fmt: skip
        else:
            self.cluster.swarm(
                host, "run", "-d", "--name", name, "--network", network, *flags, "--", *argv
            )
        return self.address(host, name, network)

    def idle(self, host: str, name: str, network: str, flags: tuple[str, ...] = ()) -> str:
        """Start a container that only keeps its place."""
        return self.run(host, name, network, "sleep", "1000", flags=flags)

    def serve(self, host: str, name: str, network: str, flags: tuple[str, ...] = ()) -> str:
        """Start a web server on port 8080."""
        if host in self.engines:
            return self.run(
                host, name, network, "httpd", "-f", "-p", "8080", "-h", "/www", flags=flags
            )
        return self.run(host, name, network, *PROGRAM, "serve", "8080", flags=flags)

    def address(self, host: str, name: str, network: str) -> str:
        """The address of a container on a network, as its own host says."""
        if host in self.engines:
            shown = json.loads(self.engines[host].docker("inspect", name))[0]
            return str(shown["NetworkSettings"]["Networks"][network]["IPAddress"])
        with self.cluster.lab.client(host) as client:
            answer = client.local.ListContainers(
                local_pb2.ListContainersRequest(all=True, container=name)
            )
        endpoints = {each.network_name: each for each in answer.containers[0].endpoints}
        return endpoints[network].addresses[0].split("/")[0]

    def execute(self, host: str, container: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside a container."""
        if host in self.engines:
            return self.engines[host].attempt("exec", container, *argv)
        return self.cluster.attempt(host, "exec", container, *argv)

    def program(self, host: str, container: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of our programs in the network of a container; names do not resolve on engines there."""
        if host in self.engines:
            return self.engines[host].run_in(container, *PROGRAM, *words)
        return self.cluster.attempt(host, "exec", container, *PROGRAM, *words)

    def remove(self, host: str, name: str) -> None:
        """Remove a container by force; one that is gone already is fine."""
        if host in self.engines:
            if self.engines[host].running:
                self.engines[host].attempt("rm", "-f", name)
        else:
            self.cluster.attempt(host, "rm", "-f", name)
        self.made = [entry for entry in self.made if entry != (host, name)]

    def clear(self) -> None:
        """Remove every container that :meth:`run` made, on all hosts at once."""
        names: dict[str, list[str]] = {}
        for host, name in self.made:
            names.setdefault(host, []).append(name)
        self.made = []
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._remove_all, names.items()))

    def _remove_all(self, entry: tuple[str, list[str]]) -> None:
        host, names = entry
        if host not in self.engines:
            self.cluster.attempt(host, "rm", "-f", *names)
        elif self.engines[host].running:
            self.engines[host].attempt("rm", "-f", *names)

    # -- reaching -----------------------------------------------------------------------------

    def pings(self, host: str, container: str, target: str) -> bool:
        """Whether a ping by name (or address) is answered."""
        result = self.execute(host, container, "ping", "-c", "1", "-W", "1", target)
        return result.returncode == 0

    def page(self, host: str, container: str, url: str) -> str:
        """The page, fetched from inside a container; the error when it cannot be had."""
        if host in self.engines:
            words: tuple[str, ...] = ("wget", "-q", "-O", "-", url)  # busybox crashes on -T
        else:
            words = (*PROGRAM, "fetch", "--timeout", "3", url)
        result = self.execute(host, container, *words)
        return result.stdout if result.returncode == 0 else result.stderr

    def eventually_pings(self, host: str, container: str, target: str) -> None:
        """Ping until it is answered."""
        wait_until(
            lambda: self.pings(host, container, target),
            seconds=GOSSIP_SECONDS,
            what=lambda: f"{container} on {host} does not reach {target}",
            pause=0.2,
        )

    def eventually_echoes(self, host: str, container: str, target: str, port: str) -> None:
        """Ask an echo until it answers: its container is on the network before its program listens."""
        said: list[str] = []

        def answered() -> bool:
            result = self.program(host, container, "ask", target, port, "--size", "1")
            said.append(result.stderr)
            return result.returncode == 0

        wait_until(answered, seconds=GOSSIP_SECONDS, what=lambda: said[-1], pause=0.2)

    @contextmanager
    def steady_ping(self, host: str, container: str, target: str) -> Iterator[list[str]]:
        """Ping five times a second from an engine's container; afterwards the list holds sent and received."""
        engine = self.engines[host]
        pid = engine.docker("inspect", "--format", "{{.State.Pid}}", container).strip()
        ping = ["nsenter", "--target", pid, "--net", "ping", "-i", "0.2", "-W", "1", target]
        words, environment = self.cluster.lab.argv(host, engine.within(ping))
        result: list[str] = []
        with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield result
            finally:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
                for child in children.split():
                    os.kill(int(child), signal.SIGINT)
                output, _ = process.communicate(timeout=10)
                summary = next(line for line in output.splitlines() if "transmitted" in line)
                result += [summary.split()[0], summary.split()[3]]

    def resolves(self, host: str, container: str, name: str) -> bool:
        """Whether a name has an address inside a container."""
        if host in self.engines:
            found = self.execute(host, container, "nslookup", "-type=a", name, "127.0.0.11")
            return found.returncode == 0
        return self.program(host, container, "resolve", name).returncode == 0

    # -- managers -----------------------------------------------------------------------------

    def nodes(self, manager: str = "m1") -> dict[str, objects_pb2.Node]:
        """The nodes by host name, as our manager has them; the newest of those with one name."""
        with self.cluster.lab.client(manager) as client:
            found = client.control.ListNodes(control_pb2.ListNodesRequest(), timeout=10).nodes
        ordered = sorted(found, key=lambda node: node.meta.created_at.ToNanoseconds())
        return {node.description.hostname: node for node in ordered}

    def tasks(self, network: str) -> list[objects_pb2.Task]:
        """The attachment tasks of a network."""
        with self.cluster.lab.client("m1") as client:
            found = client.control.ListTasks(control_pb2.ListTasksRequest(), timeout=10).tasks
        return [
            task
            for task in found
            if any(each.network.spec.annotations.name == network for each in task.networks)
        ]

    def await_state(self, host: str, state: int, manager: str = "m1") -> None:
        """Wait until our manager sees a node in a state."""
        seen: dict[str, int] = {}

        def reached() -> bool:
            nodes = self.nodes(manager).items()
            seen.update({name: int(node.status.state) for name, node in nodes})
            return seen.get(host) == state

        wait_until(
            reached, seconds=READY_SECONDS, what=lambda: f"{host} is not {state}: {seen}", pause=0.2
        )

    def sessions(self, node_id: str) -> int:
        """How many sessions a node has opened at our manager so far."""
        count = 0
        for line in self.cluster.lab.state.log("m1").read_text().splitlines():
            if '"session.opened"' in line and node_id in line and '"component"' not in line:
                count += 1
        return count

    # -- gossip tables ------------------------------------------------------------------------

    def diagnose(self, host: str, path: str) -> str:
        """What the engine's diagnostic server says."""
        result = self.cluster.lab.run(
            host, *PROGRAM, "fetch", f"http://127.0.0.1:{DIAGNOSTIC_PORT}/{path}"
        )
        if result.returncode != 0:
            # It listens only after a reload of the configuration.
            self.engines[host].signal(1)
            wait_until(
                lambda: (
                    self.cluster.lab.run(
                        host, *PROGRAM, "fetch", f"http://127.0.0.1:{DIAGNOSTIC_PORT}/ready"
                    ).returncode
                    == 0
                ),
                seconds=20,
                what=lambda: f"the diagnostic server of {host} does not answer",
                pause=0.2,
            )
            result = self.cluster.lab.run(
                host, *PROGRAM, "fetch", f"http://127.0.0.1:{DIAGNOSTIC_PORT}/{path}"
            )
        return result.stdout

    def _entries(self, host: str, table: str, network_id: str) -> dict[str, tuple[str, bytes]]:
        text = self.diagnose(host, f"gettable?nid={network_id}&tname={table}&json")
        found: dict[str, Any] = json.loads(text)
        return {
            entry["key"]: (entry["owner"], base64.b64decode(entry["value"]))
            for entry in found["details"].get("entries") or ()
        }

    def engine_table(self, host: str, network_id: str) -> list[Row]:
        """A network's endpoints as an engine's gossip tables have them, own ones included."""
        names = {
            key: EndpointRecord.FromString(value)
            for key, (_, value) in self._entries(host, "endpoint_table", network_id).items()
        }
        rows = []
        for key, (owner, value) in self._entries(host, "overlay_peer_table", network_id).items():
            peer = PeerRecord.FromString(value)
            record = names.pop(key, EndpointRecord())
            rows.append(
                Row(
                    key=key, name=record.name, address=peer.endpoint_ip.split("/")[0], mac=peer.endpoint_mac,
                    vtep=peer.tunnel_endpoint_ip, owner=owner,
                )
            )  # fmt: skip
        # A name without its peer record would be an address that nobody can reach.
        rows += [
            Row(key=key, name=record.name, address=record.endpoint_ip, mac="", vtep="", owner="")
            for key, record in names.items()
        ]
        return sorted(rows)

    def our_table(self, host: str, network_id: str) -> list[Row]:
        """A network's endpoints as our daemon on ``host`` has them, own ones included.

        The ways to a node that died without a word are kept for a while, in case only its agent died;
        they are no part of the gossip tables and left out here.
        """
        with self.cluster.lab.client(host) as client:
            known = client.local.ListEndpoints(local_pb2.ListEndpointsRequest(), timeout=10)
            status = client.local.GossipStatus(local_pb2.GossipStatusRequest(), timeout=10)
        own = status.self_name
        dead = {member.name for member in status.members if member.state == "dead"}
        vtep = self.cluster.lab.state.require(host).address
        rows = [
            Row(
                key=each.endpoint_id, name=each.container_name, address=each.addresses[0].split("/")[0],
                mac=each.mac, vtep=vtep, owner=own,
            )
            for each in known.local
            if each.network_id == network_id
        ]  # fmt: skip
        rows += [
            Row(
                key=each.endpoint_id, name=each.name, address=each.address.split("/")[0], mac=each.mac,
                vtep=each.vtep, owner=each.gossip_node,
            )
            for each in known.remote
            if each.network_id == network_id and each.gossip_node not in dead
        ]  # fmt: skip
        return sorted(rows)

    def table(self, host: str, network_id: str) -> list[Row]:
        """A network's endpoints as ``host`` has them, whoever runs there."""
        if host in self.engines:
            return self.engine_table(host, network_id)
        return self.our_table(host, network_id)

    def await_equal_tables(
        self, network_id: str, hosts: tuple[str, ...], names: set[str] | None = None
    ) -> list[Row]:
        """Wait until all hosts have the same table (with exactly these names in it); that table."""
        seen: dict[str, list[Row]] = {}

        def equal() -> bool:
            try:
                seen.update({host: self.table(host, network_id) for host in hosts})
            except SwarmError:
                return False  # a daemon that was just started
            first = seen[hosts[0]]
            return all(rows == first for rows in seen.values()) and (
                names is None or {row.name for row in first if row.name} == names
            )

        def differences() -> str:
            lines = [f"the tables of {network_id} differ (wanted names: {names}):"]
            for host, rows in seen.items():
                lines += [host, *(f"  {row}" for row in rows)]
            return "\n".join(lines)

        wait_until(equal, seconds=GOSSIP_SECONDS, what=differences, pause=0.3)
        return seen[hosts[0]]
