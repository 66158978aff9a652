"""``swarm service`` against a real manager: docker's words, columns and JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from swarm.api.docker.swarmkit import dispatcher_pb2, dispatcher_pb2_grpc, types_pb2
from swarm.scheduler import Placement, connect_local

pytestmark = pytest.mark.slow

Cli = Callable[..., Awaitable[str]]


@pytest.fixture
def attempt(swarm: Any) -> Callable[..., Awaitable[tuple[int, str, str]]]:
    """Run ``swarm service ...``; its status and output."""

    async def run(*words: str) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "swarm.cli.main"),
            *("--host", f"unix://{swarm.run_dir}/manager/control.sock", "service", *words),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    return run


@pytest.fixture
def cli(attempt: Callable[..., Awaitable[tuple[int, str, str]]]) -> Cli:
    """Run ``swarm service ...``, which must succeed; its output."""

    async def run(*words: str) -> str:
        status, out, err = await attempt(*words)
        assert status == 0, err
        return out

    return run


async def test_create_show_change_and_remove(swarm: Any, cli: Cli) -> None:
    made = await cli(
        *("create", "--name", "web", "--replicas", "3", "-p", "8080:80", "-p", "53/udp"),
        *("-p", "target=22,published=2222,mode=host", "-e", "A=1", "-l", "team=blue"),
        *("--workdir", "/srv", "--hostname", "box", "--", "sleep", "60"),
    )
    service_id = made.strip()
    assert (await cli("ls")).splitlines() == [
        f"{'ID':<15}{'NAME':<7}{'MODE':<13}{'REPLICAS':<11}{'IMAGE':<8}PORTS",
        (
            f"{service_id[:12]:<15}{'web':<7}{'replicated':<13}{'0/3':<11}{'sleep':<8}"
            "*:8080->80/tcp,*:30000->53/udp"
        ),
    ]
    assert (await cli("ls", "-q", "--filter", "label=team=blue")).strip() == service_id[:12]
    assert (await cli("ls", "-q", "--filter", "mode=global")) == ""
    (shown,) = json.loads(await cli("inspect", "web"))
    assert shown["ID"] == service_id
    spec = shown["Spec"]
    assert (spec["Name"], spec["Labels"]) == ("web", {"team": "blue"})
    assert spec["Mode"] == {"Replicated": {"Replicas": 3}}
    assert spec["TaskTemplate"]["ProcessSpec"] == {
        "Args": ["sleep", "60"],
        "Env": ["A=1"],
        "Dir": "/srv",
        "Hostname": "box",
    }
    assert spec["EndpointSpec"]["Mode"] == "vip"
    assert spec["EndpointSpec"]["Ports"][1] == {
        "Protocol": "udp",
        "TargetPort": 53,
        "PublishMode": "ingress",
    }
    assert [each["PublishedPort"] for each in shown["Endpoint"]["Ports"]] == [8080, 30000, 2222]
    (address,) = shown["Endpoint"]["VirtualIPs"]
    assert address["Addr"].startswith("10.0.0.")
    assert "Published on hosts: *:2222->22/tcp" in await cli("inspect", "--pretty", "web")

    assert await cli("scale", "web=5") == "web scaled to 5\n"
    changes = ("--publish-rm", "80", "--publish-add", "81", "--env-add", "A=2", "--env-rm", "B")
    assert await cli("update", *changes, "--args", "sleep '1 2'", "web") == "web\n"
    (shown,) = json.loads(await cli("inspect", "web"))
    assert [each["PublishedPort"] for each in shown["Endpoint"]["Ports"]] == [30000, 2222, 30000]
    process = shown["Spec"]["TaskTemplate"]["ProcessSpec"]
    assert (process["Args"], process["Env"]) == (["sleep", "1 2"], ["A=2"])
    assert shown["Spec"]["Mode"] == {"Replicated": {"Replicas": 5}}
    assert shown["Endpoint"]["SourceAddress"] == {"Client": "kept"}
    assert await cli("rollback", "--detach", "web") == "web\n"
    (shown,) = json.loads(await cli("inspect", "web"))
    assert shown["Spec"]["TaskTemplate"]["ProcessSpec"]["Args"] == ["sleep", "60"]
    assert await cli("rm", "web") == "web\n"
    assert len((await cli("ls")).splitlines()) == 1


async def test_tasks_are_listed_with_their_past(swarm: Any, cli: Cli) -> None:
    engine = await swarm.worker("w7")
    session = await engine.register()
    service_id = (
        await cli(
            "create",
            "--name",
            "web",
            "--image",
            "nginx:1",
            "-p",
            "target=80,published=80,mode=host",
        )
    ).strip()
    stub = dispatcher_pb2_grpc.DispatcherStub(engine.conn)
    async with connect_local(swarm.run_dir / "manager" / "control.sock") as client:
        for state, err in (
            (types_pb2.TASK_STATE_FAILED, "x" * 40),
            (types_pb2.TASK_STATE_RUNNING, ""),
        ):
            answer = await client.create_tasks(
                [Placement(node_id=engine.node_id, service_id=service_id, slot=1)]
            )
            request = dispatcher_pb2.UpdateTaskStatusRequest(session_id=session.id)
            update = request.updates.add(task_id=answer.placed[0].task_id)
            update.status.state, update.status.err = state, err
            update.status.timestamp.GetCurrentTime()
            await stub.UpdateTaskStatus(request)
    heading, now, past = (await cli("ps", "web")).splitlines()
    assert heading.split("  ")[0] == "ID"
    for word in ("web.1", "nginx:1", "w7", "Running", "ago", "*:80->80/tcp"):
        assert word in now
    for word in (" \\_ web.1", "Failed", f'"{"x" * 29}…"'):
        assert word in past
    assert "x" * 40 in await cli("ps", "--no-trunc", "web")
    assert "1/1" in await cli("ls")
    await session.close()


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (("create", "--name", "x"), 1, "give a command"),
        (("create", "--mode", "global", "--replicas", "2", "--", "true"), 1, "replicated mode"),
        (("create", "-p", "1.2.3.4:80:80", "--", "true"), 125, "not on one address"),
        (("create", "--endpoint-mode", "dnsrr", "-p", "80", "--", "true"), 1, "dnsrr"),
        (("create", "--constraint", "nonsense", "--", "true"), 125, "key==value"),
        (("create", "-e", "=1", "--", "true"), 125, "KEY=VALUE"),
        (("create", "-l", "overswarm.weight=99", "--", "true"), 1, "a number from 1 to 16"),
        (("inspect", "nothing"), 1, "service nothing not found"),
        (("rm", "nothing"), 1, "service nothing not found"),
        (("scale", "nothing"), 1, "SERVICE=REPLICAS"),
        (("update", "nothing"), 1, "nothing to change"),
    ],
)
async def test_refusals_are_one_line(
    attempt: Callable[..., Awaitable[tuple[int, str, str]]],
    words: tuple[str, ...],
    status: int,
    text: str,
) -> None:
    returned, out, err = await attempt(*words)
    assert (returned, out) == (status, "")
    assert err.startswith("Error: ")
    assert text in err
    assert err.count("\n") == 1
