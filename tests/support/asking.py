"""A client outside of the cluster that asks all the time, and programs on hosts beside it."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from support.cluster import Cluster

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "examples" / "spread.py"
"""The scheduler to read."""

ASK = """
import itertools, json, socket, sys, time
port, *hosts = sys.argv[1:]
for host in itertools.cycle(hosts):
    began, words, error = time.time(), [], ""
    try:
        with socket.create_connection((host, int(port)), timeout=3) as channel:
            channel.settimeout(3)
            channel.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
            words = b"".join(iter(lambda: channel.recv(4096), b"")).split()
    except OSError as failure:
        error = repr(failure)
    who, seen = (words[-3].decode(), words[-1].decode()) if words else ("", "")
    print(json.dumps([began, host, who, seen, error or ("" if words else "empty")]), flush=True)
    time.sleep(0.02)
"""
"""Asks one host after the other, for ever; a line a request."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a client outside of the cluster."""

    began: float
    host: str
    task: str
    seen: str
    error: str


def asked(path: Path, since: float = 0.0) -> list[Asked]:
    """The requests that began after a moment; the last line may be half written."""
    lines = path.read_text().split("\n")[:-1]
    made = [Asked(*json.loads(line)) for line in lines]
    return [each for each in made if each.began > since]


@contextlib.contextmanager
def asking(
    cluster: Cluster, client: str, path: Path, port: int, hosts: Sequence[str]
) -> Iterator[None]:
    """Have a host ask others all the time, into a file, while the block runs."""
    addresses = [cluster.lab.state.hosts[host].address for host in hosts]
    command, environment = cluster.lab.argv(
        client, (sys.executable, "-c", ASK, str(port), *addresses)
    )
    with (
        path.open("w") as output,
        subprocess.Popen(command, env=environment, stdout=output) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def running(cluster: Cluster, host: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program on a host while the block runs."""
    command, environment = cluster.lab.argv(host, argv)
    with subprocess.Popen(
        command,
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
