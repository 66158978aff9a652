"""Labs whose root certificate is replaced, and what their tests wait for."""

from __future__ import annotations

import json

from support.cluster import Cluster
from swarm.lab.processes import wait_until


def tls(cluster: Cluster, host: str) -> dict[str, str]:
    """What ``node ls`` says of each node's certificate."""
    rows = cluster.swarm(host, "node", "ls", "--format", "json").splitlines()
    return {row["Hostname"]: row["TLSStatus"] for row in map(json.loads, rows)}


def await_root(cluster: Cluster, host: str, old: str) -> str:
    """Wait until a rotation has ended and every node says so; the new root."""
    seen: list[str] = []

    def ended() -> bool:
        shown = cluster.attempt(host, "ca")
        listed = cluster.attempt(host, "node", "ls", "--format", "{{.Hostname}} {{.TLSStatus}}")
        seen[:] = [shown.stdout, listed.stdout + listed.stderr + shown.stderr]
        if shown.returncode or listed.returncode or shown.stdout == old:
            return False
        return all(line.endswith(" Ready") for line in listed.stdout.splitlines())

    wait_until(ended, seconds=60, what=lambda: f"the rotation does not end: {seen[1]}", pause=0.3)
    return seen[0]
