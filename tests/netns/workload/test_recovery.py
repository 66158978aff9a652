"""The agent dies and comes back; the shim dies; nothing is forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.workload.folder import Folder
from agent.workload.runtime import Runtime
from agent.workload.spec import State, WorkloadSpec
from swarm.errors import NotFoundError, UnavailableError

MakeSpec = Callable[..., WorkloadSpec]


def shim_of(netns_path: str) -> int:
    return int(netns_path.split("/")[2])


async def end_of(pid: int, number: int) -> None:
    """Send a signal to a process and wait until it has ended, without touching it otherwise."""
    process = os.pidfd_open(pid)
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(process, ended.set)
    signal.pidfd_send_signal(process, number)
    await asyncio.wait_for(ended.wait(), 10)
    asyncio.get_running_loop().remove_reader(process)
    os.close(process)


async def test_running_workload_is_found_again_and_usable(
    node: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec(
        "sh",
        "-c",
        "echo before; read line; echo $line; exit 5",
        stdin_open=True,
        labels={"a": "b"},
        networks=("n1",),
    )
    await node.runtime.create(spec)
    before = await node.runtime.start(spec.id)
    await node.crash()
    again = type(node)(tmp_path)
    runtime = await again.up()
    (found,) = runtime.list()
    assert found.state is State.RUNNING
    assert (found.pid, found.netns_path) == (before.pid, before.netns_path)
    assert (found.spec.labels, found.spec.networks) == ({"a": "b"}, ("n1",))
    async with await runtime.attach(spec.id) as session:
        await session.write_stdin(b"after\n")
        assert await session.wait() == 5
    assert [e.data async for e in runtime.logs(spec.id)] == [b"before\n", b"after\n"]
    await again.settled.wait()
    assert [w.exit_code for w in again.ended] == [5]
    await again.crash()


async def test_created_workload_is_found_again_and_can_be_started(
    node: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("echo", "hello")
    await node.runtime.create(spec)
    await node.crash()
    again = type(node)(tmp_path)
    runtime = await again.up()
    assert runtime.get(spec.id).state is State.CREATED
    await runtime.start(spec.id)
    assert await runtime.wait(spec.id) == 0
    await again.crash()


async def test_end_while_the_agent_was_away_is_reported_once(
    node: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("sh", "-c", "echo bye; exit 6")
    await node.runtime.create(spec)
    await node.crash()
    bystander = Runtime(tmp_path)
    await bystander.recover()
    await bystander.start(spec.id)
    await bystander.wait(spec.id)

    second = type(node)(tmp_path)
    await second.up()
    await second.settled.wait()
    (ended,) = second.ended
    assert (ended.state, ended.exit_code) == (State.EXITED, 6)
    await second.runtime.remove(spec.id)
    await second.crash()


async def test_settled_workload_is_not_reported_again(
    node: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("true")
    await node.runtime.create(spec)
    await node.runtime.start(spec.id)
    while node.runtime.get(spec.id).netns_path:  # noqa: ASYNC110  # only the outside is looked at
        await asyncio.sleep(0.01)
    await node.crash()
    again = type(node)(tmp_path)
    runtime = await again.up()
    assert runtime.get(spec.id).state is State.EXITED
    assert runtime.get(spec.id).netns_path == ""
    await runtime.remove(spec.id)
    assert again.ended == []
    await again.crash()


@pytest.mark.slow
async def test_kill_of_the_shim_is_noticed_and_takes_the_command_along(
    node: Any, make_spec: MakeSpec
) -> None:
    spec = make_spec("sleep", "600")
    await node.runtime.create(spec)
    workload = await node.runtime.start(spec.id)
    command = os.pidfd_open(workload.pid)
    session = await node.runtime.attach(spec.id)
    os.kill(shim_of(workload.netns_path), signal.SIGKILL)
    assert await node.runtime.wait(spec.id) == 137
    await node.settled.wait()
    assert [w.state for w in node.ended] == [State.DEAD]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(command, ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    asyncio.get_running_loop().remove_reader(command)
    os.close(command)
    with pytest.raises(UnavailableError):
        await session.wait()
    await session.close()
    await node.runtime.remove(spec.id)


async def test_kill_of_the_shim_while_the_agent_was_away_is_found(
    node: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("sleep", "600")
    await node.runtime.create(spec)
    workload = await node.runtime.start(spec.id)
    await node.crash()
    await end_of(shim_of(workload.netns_path), signal.SIGKILL)
    again = type(node)(tmp_path)
    runtime = await again.up()
    assert runtime.get(spec.id).state is State.DEAD
    await again.settled.wait()
    assert [w.exit_code for w in again.ended] == [137]
    await again.crash()


async def test_polite_end_of_the_shim_is_passed_on_to_the_command(
    node: Any, make_spec: MakeSpec
) -> None:
    spec = make_spec("sleep", "600")
    await node.runtime.create(spec)
    workload = await node.runtime.start(spec.id)
    os.kill(shim_of(workload.netns_path), signal.SIGTERM)
    assert await node.runtime.wait(spec.id) == 128 + signal.SIGTERM


async def test_polite_end_of_an_idle_shim_ends_it(node: Any, make_spec: MakeSpec) -> None:
    spec = make_spec("true")
    workload = await node.runtime.create(spec)
    await end_of(shim_of(workload.netns_path), signal.SIGTERM)
    assert await node.runtime.wait(spec.id) == 137
    assert node.runtime.get(spec.id).state is State.DEAD


async def test_half_created_workload_is_cleaned_up(
    node: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("true")
    directory = tmp_path / "workloads" / spec.id
    Folder(directory).lay(spec)
    again = Runtime(tmp_path)
    assert await again.recover() == ()
    assert not directory.exists()


async def test_unreadable_workload_does_not_hide_the_others(
    node: Any, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("true")
    await node.runtime.create(spec)
    broken = tmp_path / "workloads" / "broken"
    broken.mkdir()
    (broken / "spec.json").write_text("{")
    again = Runtime(tmp_path)
    assert [w.spec.id for w in await again.recover()] == [spec.id]
    (broken / "spec.json").unlink()
    broken.rmdir()


AGENT = """
import asyncio, sys
from pathlib import Path
from agent.workload.runtime import Runtime
from agent.workload.spec import WorkloadSpec

async def main():
    runtime = Runtime(Path(sys.argv[1]))
    async with asyncio.TaskGroup() as group:
        group.create_task(runtime.run())
        spec = WorkloadSpec(id="ab" * 32, name="survivor", created_at=1.0, stdin_open=True,
            argv=("sh", "-c", "read line; echo got $line"))
        await runtime.create(spec)
        await runtime.start(spec.id)
        print("up", file=sys.stderr, flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_workload_survives_kill_9_of_the_agent_process(node: Any, tmp_path: Path) -> None:
    agent = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        AGENT,
        str(tmp_path),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    )
    assert agent.stderr is not None
    assert await agent.stderr.readline() == b"up\n"
    os.killpg(agent.pid, signal.SIGKILL)
    await agent.communicate()
    await node.runtime.recover()
    async with await node.runtime.attach("survivor") as session:
        await session.write_stdin(b"it\n")
        assert [data async for _, data in session] == [b"got it\n"]
    assert session.exit_code == 0
    await node.runtime.remove("survivor")
    with pytest.raises(NotFoundError):
        node.runtime.get("survivor")
