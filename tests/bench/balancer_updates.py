"""What one changed service costs a node, with 10, 1000 and 5000 services on the network.

A backend of one service drains and another takes its place: two records, the plan, and its
transaction in a real namespace. The floor is the smallest transaction there is: one element of one
set, in a table with nothing else. The cost must not grow with the number of services.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import statistics
import threading
import time
from collections.abc import Callable

from agent.balancer import ruleset
from agent.balancer.planner import Applied, plan
from agent.balancer.table import Backend, IPAddress, Table
from agent.dataplane.nft import Nft
from bench.table import Row

SIZES = (10, 1000, 5000)
BACKENDS = 3
ROUNDS = 40
GOAL_MS = 2.0
CLONE_NEWNET = 0x40000000
_VIPS = int(ipaddress.ip_address("10.0.0.0"))
_BACKENDS = int(ipaddress.ip_address("10.64.0.0"))


def run() -> list[Row]:
    """Measure in a namespace of its own, on a thread that ends with it."""
    if os.geteuid() != 0:
        return []  # a network namespace needs root
    rows: list[Row] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")  # noqa: TRY301  # caught for the caller
            rows.extend(_measure())
        except BaseException as error:  # noqa: BLE001  # raised in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return rows


def _measure() -> list[Row]:
    floor = _floor()
    rows = []
    for size in SIZES:
        made, changed = _services(size)
        rows.append(
            Row(
                what=f"all rules anew, {size} services of {BACKENDS} backends",
                value=made,
                unit="ms",
            )
        )
        rows.append(
            Row(
                what=f"one backend replaced among {size} services",
                value=changed,
                unit="ms",
                floor=floor,
                floor_name="one element, empty table",
                goal=f"< {GOAL_MS:g} ms",
            )
        )
    return rows


def _floor() -> float:
    nft = Nft()
    nft.run("add table inet floor\nadd set inet floor s { type ipv4_addr; }")

    def change(number: int) -> None:
        nft.run(f"add element inet floor s {{ 10.0.0.{number + 1} }}")

    took = _median(change)
    nft.run("delete table inet floor")
    nft.close()
    return took


def _services(size: int) -> tuple[float, float]:
    """Return milliseconds for all rules anew, and for one change after that."""
    nft, table, applied = Nft(), Table(), Applied()
    for number in range(size):
        for slot in range(BACKENDS):
            table.put(f"{number} {slot}", _backend(number, slot), 0.0)
    start = time.perf_counter()
    change = plan(ruleset, None, {vip: table.slots(vip) for vip in table.changed}, {})
    nft.run(change.commands)
    applied.take(change)
    took = 1000 * (time.perf_counter() - start)
    table.changed.clear()

    def replace(number: int) -> None:
        service = number % size
        vip = _vip(service)
        table.put(f"{service} new", _backend(service, BACKENDS + number), 0.0)
        table.put(f"{service} 0", _backend(service, 0, serving=False), 0.0)
        step = plan(ruleset, applied, {vip: table.slots(vip)}, {})
        nft.run(step.commands)
        applied.take(step)

    each = _median(replace)
    nft.close()
    return took, each


def _median(step: Callable[[int], None]) -> float:
    took = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        step(number)
        took.append(1000 * (time.perf_counter() - start))
    return statistics.median(took)


def _vip(service: int) -> IPAddress:
    return ipaddress.ip_address(_VIPS + 1 + service)


def _backend(service: int, slot: int, *, serving: bool = True) -> Backend:
    ip = ipaddress.ip_address(_BACKENDS + 64 * service + slot)
    return Backend(vip=_vip(service), ip=ip, serving=serving)
