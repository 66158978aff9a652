"""Names from inside a workload: the C library's resolver against the agent's server."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from ipaddress import ip_address

import pytest

from agent.discovery.names import NameRecord, NameTable
from agent.discovery.service import Discovery
from agent.workload.runtime import Runtime
from agent.workload.spec import Workload, WorkloadSpec

MakeSpec = Callable[..., WorkloadSpec]

TCP = """
import socket, struct
query = bytes.fromhex("abcd01000001000000000000") + b"\\x02db\\x00\\x00\\x01\\x00\\x01"
with socket.create_connection(("127.0.0.11", 53), timeout=5) as s:
    s.sendall(struct.pack(">H", len(query)) + query)
    f = s.makefile("rb")
    print(f.read(int.from_bytes(f.read(2), "big"))[-4:].hex())
"""

OWN_SERVER = """
import socket, subprocess
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.bind(("0.0.0.0", 53))
t = socket.create_server(("0.0.0.0", 53))
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); c.sendto(b"mine", ("127.0.0.1", 53))
u.settimeout(5); print(u.recv(10).decode())
print(subprocess.run(["getent", "hosts", "db"], capture_output=True, text=True).stdout)
"""


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    names = NameTable()
    names.set_network("n1", "backend")
    address = (ip_address("10.0.1.9"),)
    names.put("n1", "e1", NameRecord(name="db", addresses=address, task_aliases=("a",)))
    made = Discovery(names, rng=random.Random(1))
    task = asyncio.ensure_future(made.run())
    await made.ready.wait()
    yield made
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.01)


@pytest.fixture
async def box(runtime: Runtime, discovery: Discovery, make_spec: MakeSpec) -> Workload:
    """Return a running workload whose names are served."""
    spec = make_spec("sleep", "600")
    workload = await runtime.create(spec)
    await discovery.serve(spec.id, workload.netns_path, networks=("n1",))
    return await runtime.start(spec.id)


async def inside(runtime: Runtime, box: Workload, *argv: str) -> tuple[int, str]:
    async with await runtime.exec(box.spec.id, argv) as session:
        text = b"".join([data async for _, data in session])
    assert session.exit_code is not None
    return session.exit_code, text.decode()


async def test_getent_finds_a_name_and_its_reverse(runtime: Runtime, box: Workload) -> None:
    assert (await inside(runtime, box, "getent", "hosts", "db"))[1].startswith("10.0.1.9 ")
    assert (await inside(runtime, box, "getent", "hosts", "DB.backend"))[1].startswith("10.0.1.9 ")
    assert (await inside(runtime, box, "getent", "hosts", "10.0.1.9"))[1].split() == [
        "10.0.1.9",
        "db.backend",
    ]


async def test_getent_is_told_at_once_that_a_name_does_not_exist(
    runtime: Runtime, box: Workload
) -> None:
    code, _ = await inside(runtime, box, "getent", "ahosts", "nosuch")
    assert code == 2


async def test_names_come_over_tcp_too(runtime: Runtime, box: Workload) -> None:
    assert await inside(runtime, box, "python3", "-c", TCP) == (0, "0a000109\n")


async def test_own_server_on_port_53_and_names_live_together(
    runtime: Runtime, box: Workload
) -> None:
    code, text = await inside(runtime, box, "python3", "-c", OWN_SERVER)
    assert code == 0
    assert text.startswith("mine\n10.0.1.9 ")


async def test_names_are_served_again_after_a_restart_of_the_agent(
    runtime: Runtime, box: Workload, discovery: Discovery
) -> None:
    again = Discovery(discovery.names, rng=random.Random(2))
    task = asyncio.ensure_future(again.run())
    await again.ready.wait()
    await discovery.stop(box.spec.id)
    await again.serve(box.spec.id, box.netns_path, networks=("n1",))
    assert (await inside(runtime, box, "getent", "hosts", "db"))[0] == 0
    task.cancel()
    await asyncio.wait([task])
    await asyncio.sleep(0.01)
