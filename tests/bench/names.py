"""Questions a container's name server answers, per second and how fast, with 10 and 10,000 names.

The server as it is in the agent, with a container of its own; one client process beside it in the same
namespace asks by UDP, and then one by one for the time of an answer. The floor is a server that sends
every datagram back, in the same process and loop, asked by the same client.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import socket
import statistics
import subprocess
import time
from collections.abc import Sequence
from ipaddress import ip_address
from multiprocessing.connection import Connection
from typing import Any

import dns.message
import uvloop

from agent.discovery.names import NameRecord, NameTable
from agent.discovery.service import Discovery
from bench.table import Row, SkippedError, progress
from swarm.kernel.netns import in_netns

SIZES = (10, 10_000)
SECONDS = 2.0
SINGLE = 2000
WINDOW = 32
"""Questions on the way at once, for the rate."""

GOAL_MS = 1.0


def run() -> Sequence[Row]:
    """Measure in a namespace of its own."""
    if os.geteuid() != 0:
        raise SkippedError("makes a network namespace: needs root")
    name = f"bench-dns{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)  # iproute2
    try:
        return uvloop.run(_measure(f"/run/netns/{name}"))
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)  # iproute2


async def _measure(netns: str) -> list[Row]:
    rows: list[Row] = []
    for size in SIZES:
        discovery = Discovery(_table(size), rng=random.Random(1))
        task = asyncio.ensure_future(discovery.run())
        await discovery.ready.wait()
        await discovery.serve("c", netns, networks=("n",), upstreams=())
        floor = await _echo(netns)
        question = dns.message.make_query(f"c{size // 2}", "A").to_wire()
        try:
            rate, took = await asyncio.to_thread(_ask, netns, ("127.0.0.11", 53), question)
            bare_rate, bare_took = await asyncio.to_thread(
                _ask, netns, floor.get_extra_info("sockname"), question
            )
        finally:
            floor.close()
            await discovery.stop("c")
            task.cancel()
            await asyncio.wait([task])
        progress(f"{size} names: {rate:.0f}/s, {took[0] * 1000:.3f} ms")
        rows += [
            Row(
                what=f"questions, {size} names",
                value=rate,
                unit="/s",
                floor=bare_rate,
                floor_name="an echo in the same loop",
            ),
            Row(
                what=f"time of an answer, {size} names",
                value=took[0] * 1000,
                best=took[1] * 1000,
                worst=took[2] * 1000,
                count=SINGLE,
                unit="ms",
                floor=bare_took[0] * 1000,
                floor_name="an echo in the same loop",
                goal=f"<= {GOAL_MS:g}",
            ),
        ]
    return rows


def _table(size: int) -> NameTable:
    table = NameTable()
    table.set_network("n", "net")
    for number in range(size):
        record = NameRecord(name=f"c{number}", addresses=(ip_address((10 << 24) + number),))
        table.put("n", f"e{number}", record)
    return table


class _Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self._transport.sendto(data, addr)


async def _echo(netns: str) -> asyncio.DatagramTransport:
    def bound() -> socket.socket:
        with in_netns(netns):
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            made.bind(("127.0.0.1", 0))
            return made

    listener = await asyncio.to_thread(bound)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(_Echo, sock=listener)
    return transport


def _ask(
    netns: str, server: tuple[str, int], question: bytes
) -> tuple[float, tuple[float, float, float]]:
    """Ask from a process of its own: rate, and (median, shortest, longest) time of an answer."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_client, args=(there, netns, server, question))
    process.start()
    try:
        if not here.poll(60):
            raise TimeoutError("the client does not come back")
        found: tuple[float, tuple[float, float, float]] = here.recv()
    finally:
        process.join()
    return found


def _client(out: Connection, netns: str, server: tuple[str, int], question: bytes) -> None:
    with in_netns(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        channel.settimeout(5)
        channel.connect(server)
        times = []
        for _ in range(SINGLE):
            began = time.perf_counter()
            channel.send(question)
            channel.recv(512)
            times.append(time.perf_counter() - began)
        for _ in range(WINDOW):
            channel.send(question)
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            channel.recv(512)
            channel.send(question)
            count += 1
        rate = count / (time.perf_counter() - began)
    out.send((rate, (statistics.median(times), min(times), max(times))))
