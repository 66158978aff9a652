"""Real commands in real namespaces, driven as the agent drives them."""

# ruff: noqa: ASYNC240  # a look into /proc does not block

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agent.workload import runtime as runtime_module
from agent.workload import shims
from agent.workload.folder import Folder
from agent.workload.runtime import Runtime
from agent.workload.session import AttachSession, connect
from agent.workload.spec import CommandError, State, Workload, WorkloadSpec
from swarm.errors import (
    ConflictError,
    DeadlineError,
    HostError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    UnavailableError,
)

MakeSpec = Callable[..., WorkloadSpec]


async def collect(session: AttachSession) -> dict[str, bytes]:
    found = {"stdout": b"", "stderr": b""}
    async for stream, data in session:
        found[stream] += data
    return found


async def run(runtime: Runtime, spec: WorkloadSpec) -> tuple[int | None, dict[str, bytes]]:
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        return (await collect(session)), session.exit_code  # type: ignore[return-value]


async def output(runtime: Runtime, spec: WorkloadSpec) -> str:
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        return (await collect(session))["stdout"].decode()


async def started(runtime: Runtime, spec: WorkloadSpec) -> Workload:
    await runtime.create(spec)
    return await runtime.start(spec.id)


async def executed(runtime: Runtime, reference: str, *argv: str, **options: Any) -> str:
    async with await runtime.exec(reference, argv, **options) as session:
        return (await collect(session))["stdout"].decode()


async def expect(session: AttachSession, text: bytes) -> bytes:
    """Read until the output holds ``text``."""
    found = b""
    async for _, data in session:
        found += data
        if text in found:
            break
    assert text in found
    return found


async def test_output_and_exit_code_reach_who_attached_before_the_start(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "echo out; echo err >&2; exit 3")
    created = await runtime.create(spec)
    assert created.state is State.CREATED
    assert Path(created.netns_path).stat().st_ino != Path("/proc/self/ns/net").stat().st_ino
    async with await runtime.attach(spec.id) as session:
        assert (await runtime.start(spec.id)).state is State.RUNNING
        assert await collect(session) == {"stdout": b"out\n", "stderr": b"err\n"}
        assert session.exit_code == 3
    assert await runtime.wait(spec.id) == 3
    ended = runtime.get(spec.id)
    assert ended.state is State.EXITED
    assert ended.started_at is not None
    assert ended.finished_at is not None
    assert ended.finished_at >= ended.started_at


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("nosuchcommand",), 127, 'exec: "nosuchcommand": executable file not found in $PATH'),
        (("/no/such",), 127, 'exec: "/no/such": stat /no/such: no such file or directory'),
        (("/etc/hostname",), 126, 'exec: "/etc/hostname"'),
        (("/etc",), 126, 'exec: "/etc": permission denied'),
    ],
)
async def test_command_that_cannot_run_says_why_with_dockers_codes(
    node: Any, make_spec: MakeSpec, argv: tuple[str, ...], code: int, words: str
) -> None:
    spec = make_spec(*argv)
    await node.runtime.create(spec)
    with pytest.raises(CommandError) as caught:
        await node.runtime.start(spec.id)
    assert caught.value.exit_code == code
    if argv != ("/etc/hostname",) or not os.access("/etc/hostname", os.X_OK):
        assert words in str(caught.value)
    workload = node.runtime.get(spec.id)
    assert (workload.state, workload.exit_code) == (State.EXITED, code)
    assert workload.message == str(caught.value)
    await node.settled.wait()
    assert [w.spec.id for w in node.ended] == [spec.id]


async def test_missing_working_directory_is_named(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("true", cwd="/no/such")
    await runtime.create(spec)
    with pytest.raises(CommandError, match='chdir to "/no/such": no such file') as caught:
        await runtime.start(spec.id)
    assert caught.value.exit_code == 126


async def test_death_by_signal_is_128_plus_its_number(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "kill -SEGV $$")
    await started(runtime, spec)
    assert await runtime.wait(spec.id) == 128 + signal.SIGSEGV


async def test_stop_asks_first(runtime: Runtime, make_spec: MakeSpec) -> None:
    polite = make_spec("sleep", "600")
    await started(runtime, polite)
    assert await runtime.stop(polite.id, grace=30) == 128 + signal.SIGTERM
    assert await runtime.stop(polite.id, grace=30) == 128 + signal.SIGTERM


async def test_stop_kills_what_does_not_listen(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 600; done")
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        await expect(session, b"ready")
    assert await runtime.stop(spec.id, grace=0.05) == 137


async def test_stop_and_kill_of_what_does_not_run(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("true")
    await runtime.create(spec)
    assert await runtime.stop(spec.id) == 0
    assert runtime.get(spec.id).state is State.CREATED
    with pytest.raises(PreconditionError):
        await runtime.kill(spec.id, signal.SIGTERM)
    with pytest.raises(InvalidArgumentError):
        await runtime.kill(spec.id, 999)


async def test_second_start_is_refused(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    with pytest.raises(PreconditionError):
        await runtime.start(spec.id)


async def test_names_and_ids_are_unique_and_found_by_prefix(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    one = make_spec("true", name="one", id="ab" + "0" * 62)
    await runtime.create(one)
    with pytest.raises(ConflictError, match='"one" is in use'):
        await runtime.create(make_spec("true", name="one"))
    with pytest.raises(ConflictError):
        await runtime.create(make_spec("true", name="other", id=one.id))
    await runtime.create(make_spec("true", name="two", id="ab" + "1" * 62))
    assert runtime.get("one").spec.id == one.id
    assert runtime.get("ab0").spec.name == "one"
    assert [w.spec.name for w in runtime.list()] == ["one", "two"]
    with pytest.raises(InvalidArgumentError):
        runtime.get("ab")
    for unknown in ("three", "", "ff"):
        with pytest.raises(NotFoundError):
            runtime.get(unknown)


async def test_two_creations_at_once_cannot_share_a_name(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    results = await asyncio.gather(
        *(runtime.create(make_spec("true", name="same")) for _ in range(3)), return_exceptions=True
    )
    assert sum(isinstance(result, Workload) for result in results) == 1
    assert sum(isinstance(result, ConflictError) for result in results) == 2


async def test_remove_needs_force_while_running(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("sleep", "600")
    workload = await started(runtime, spec)
    with pytest.raises(PreconditionError, match="running"):
        await runtime.remove(spec.id)
    await runtime.remove(spec.id, force=True)
    with pytest.raises(NotFoundError):
        runtime.get(spec.id)
    with pytest.raises(ProcessLookupError):
        os.kill(workload.pid, 0)


async def test_workload_has_its_own_names_and_files(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec(
        "sh",
        "-c",
        "hostname; cat /etc/resolv.conf /etc/hostname; ls /sys/class/net; cat /etc/hosts;"
        " echo $PATH $HOSTNAME $EXTRA; pwd; cat /sys/class/net/lo/flags",
        hostname="box",
        env={"EXTRA": "yes"},
        cwd="/usr",
        dns_search=("example.org",),
        extra_hosts=(("192.0.2.9", "peer"),),
    )
    await runtime.create(spec)
    await runtime.set_addresses(spec.id, ("10.0.1.7", "fd00::7"))
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        lines = (await collect(session))["stdout"].decode().splitlines()
    assert lines[:6] == [
        "box",
        "nameserver 127.0.0.11",
        "search example.org",
        "options ndots:0",
        "box",
        "lo",
    ]
    assert {"192.0.2.9\tpeer", "10.0.1.7\tbox", "fd00::7\tbox"} < set(lines)
    assert lines[-3].endswith("/bin box yes")
    assert lines[-2] == "/usr"
    assert int(lines[-1], 16) & 1, "lo is up"
    assert socket.gethostname() != "box"
    assert "192.0.2.9" not in Path("/etc/hosts").read_text()


async def test_addresses_of_a_running_workload_change_in_place(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sleep", "600", hostname="box")
    await started(runtime, spec)
    await runtime.set_addresses(spec.id, ("10.0.1.7",))
    await runtime.set_addresses(spec.id, ("10.0.2.8",))
    text = await executed(runtime, spec.id, "cat", "/etc/hosts")
    assert "10.0.2.8\tbox" in text
    assert "10.0.1.7" not in text


async def test_everything_in_the_workload_ends_with_its_command(
    runtime: Runtime, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("sh", "-c", "setsid sleep 600 & echo $!; exit 0")
    await runtime.create(spec)
    netns = runtime.get(spec.id).netns_path
    inode = Path(netns).stat().st_ino
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        await collect(session)
    assert session.exit_code == 0
    holders = [
        process.name
        for process in Path("/proc").iterdir()
        if process.name.isdigit() and _netns_inode(process) == inode
    ]
    assert len(holders) <= 1, "only the shim may be left"


def _netns_inode(process: Path) -> int:
    try:
        return (process / "ns/net").stat().st_ino
    except OSError:
        return 0


async def test_orphans_are_reaped(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    await executed(runtime, spec.id, "sh", "-c", "for i in 1 2 3; do (sleep 0 &) ; done; sleep 0.1")
    states = await executed(
        runtime, spec.id, "sh", "-c", "cat /proc/[0-9]*/stat | cut -d' ' -f3 | sort | uniq -c"
    )
    assert "Z" not in states


async def test_signals_in_the_command_are_at_their_defaults(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    text = await output(runtime, make_spec("grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"))
    masks = [int(line.split()[1], 16) for line in text.splitlines()]
    of_glibc = 0b11 << 31  # signals 32 and 33: no program can unblock them through it
    assert [mask & ~of_glibc for mask in masks] == [0, 0]


async def test_no_descriptor_of_the_shim_leaks_into_the_command(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    text = await output(runtime, make_spec("sh", "-c", "ls /proc/self/fd"))
    assert text.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


@pytest.mark.slow
async def test_ten_megabytes_of_output_arrive_whole(runtime: Runtime, make_spec: MakeSpec) -> None:
    script = "import sys; sys.stdout.buffer.write(bytes(range(256)) * 40960)"
    found = await output_bytes(runtime, make_spec("python3", "-c", script))
    assert hashlib.sha256(found).digest() == hashlib.sha256(bytes(range(256)) * 40960).digest()


async def output_bytes(runtime: Runtime, spec: WorkloadSpec) -> bytes:
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        return (await collect(session))["stdout"]


@pytest.mark.slow
async def test_slow_reader_holds_the_command_back_and_loses_nothing(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "head -c 6000000 /dev/zero; echo end")
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        async with await runtime.attach(spec.id) as fast:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(fast.wait(), 0.3)  # the slow one holds up both
        assert runtime.get(spec.id).state is State.RUNNING
        assert (await collect(session))["stdout"] == bytes(6000000) + b"end\n"


async def test_reader_that_goes_away_lets_the_command_go_on(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "head -c 6000000 /dev/zero")
    await runtime.create(spec)
    session = await runtime.attach(spec.id)
    await runtime.start(spec.id)
    await session.close()
    assert await asyncio.wait_for(runtime.wait(spec.id), 20) == 0


@pytest.mark.slow
async def test_input_is_piped_through(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("cat", stdin_open=True)
    data = os.urandom(1 << 20) * 10
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)

        async def feed() -> None:
            await session.write_stdin(data)
            await session.close_stdin()

        async with asyncio.TaskGroup() as group:
            group.create_task(feed())
            found = await collect(session)
    assert found["stdout"] == data
    assert session.exit_code == 0


async def test_without_open_stdin_the_command_reads_nothing(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    assert await output(runtime, make_spec("cat")) == ""


async def test_input_to_a_command_that_closed_it_is_dropped(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "exec 0<&-; echo closed; sleep 0.2; echo done", stdin_open=True)
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        await expect(session, b"closed")
        await session.write_stdin(bytes(200_000))
        await session.close_stdin()
        assert await session.wait() == 0


async def test_terminal_echoes_resizes_and_interrupts(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", tty=True, stdin_open=True, env={"PS1": "$ "})
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        await session.resize(33, 101)
        await session.write_stdin(b"tty; stty size; echo $TERM; echo e'n'd\n")
        text = await expect(session, b"\r\nend\r\n")
        assert b"echo e'n'd\r\n" in text, "input is echoed"
        assert b"/dev/pts/" in text
        assert b"33 101" in text
        assert b"xterm" in text
        # Only once it says so does it own the terminal, and only then is it the one that ^C ends.
        script = b'trap \'echo e"n"ded; exit\' INT; echo rea"d"y; while :; do sleep 0.05; done'
        await session.write_stdin(b'sh -c "' + script.replace(b'"', b'\\"') + b'"\n')
        await expect(session, b"ready\r\n")
        await session.write_stdin(b"\x03")
        await expect(session, b"ended\r\n")
        await session.write_stdin(b"echo still-$((1+1))\n")
        await expect(session, b"still-2\r\n")
        await session.close_stdin()
        assert await session.wait() == 0


async def test_signals_reach_the_command(runtime: Runtime, make_spec: MakeSpec) -> None:
    script = "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    spec = make_spec("sh", "-c", script)
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        await expect(session, b"ready")
        await session.signal(signal.SIGUSR1)
        assert (await collect(session))["stdout"] == b"got it\n"
        assert session.exit_code == 9


async def test_exec_joins_all_namespaces(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec(
        "sh", "-c", "readlink /proc/self/ns/*; exec sleep 600", env={"A": "1", "B": "2"}
    )
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        inside = set((await expect(session, b"uts:[")).decode().split())
    joined = await executed(runtime, spec.id, "sh", "-c", "readlink /proc/self/ns/*")
    assert set(joined.split()) == inside
    text = await executed(
        runtime, spec.id, "sh", "-c", "echo $A $B; pwd", env={"B": "3"}, cwd="/usr"
    )
    assert text == "1 3\n/usr\n"


async def test_exec_passes_input_output_and_code(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    async with await runtime.exec(
        spec.id, ["sh", "-c", "cat; echo e >&2; exit 7"], stdin=True
    ) as session:
        await session.write_stdin(b"hello")
        await session.close_stdin()
        assert await collect(session) == {"stdout": b"hello", "stderr": b"e\n"}
        assert session.exit_code == 7
    assert runtime.get(spec.id).state is State.RUNNING


async def test_exec_with_a_terminal_has_the_asked_size(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    text = await executed(runtime, spec.id, "sh", "-c", "stty size; tty", tty=True, size=(24, 80))
    assert text.startswith("24 80\r\n/dev/pts/")


async def test_exec_errors(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("sleep", "600")
    await runtime.create(spec)
    with pytest.raises(PreconditionError):
        await runtime.exec(spec.id, ["true"])
    await runtime.start(spec.id)
    with pytest.raises(CommandError) as caught:
        await runtime.exec(spec.id, ["nosuchcommand"])
    assert caught.value.exit_code == 127
    with pytest.raises(InvalidArgumentError):
        await runtime.exec(spec.id, [])
    await runtime.stop(spec.id)
    with pytest.raises(PreconditionError):
        await runtime.exec(spec.id, ["true"])


async def test_exec_ends_with_the_workload(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    async with await runtime.exec(spec.id, ["sh", "-c", "echo up; exec sleep 600"]) as session:
        await expect(session, b"up")
        await runtime.stop(spec.id)
        assert await session.wait() == 137


async def test_exec_on_a_terminal_hangs_up_when_its_caller_leaves(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    session = await runtime.exec(spec.id, ["sleep", "321"], tty=True)
    await session.close()
    for _ in range(200):
        if "321" not in await executed(runtime, spec.id, "sh", "-c", "cat /proc/[0-9]*/cmdline"):
            break
    else:
        pytest.fail("the command was not hung up")


async def test_logs_keep_both_streams_and_outlive_the_command(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "echo one; sleep 0.05; echo two >&2")
    await started(runtime, spec)
    await runtime.wait(spec.id)
    entries = [entry async for entry in runtime.logs(spec.id)]
    assert [(e.stream, e.data) for e in entries] == [("stdout", b"one\n"), ("stderr", b"two\n")]
    assert entries[0].at < entries[1].at


async def test_followed_logs_come_while_the_command_runs_and_end_with_it(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "echo first; read line; echo second; exit 4", stdin_open=True)
    await runtime.create(spec)
    found = []
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        async for entry in runtime.logs(spec.id, follow=True):
            found.append(entry.data)
            if entry.data == b"first\n":
                await session.write_stdin(b"go\n")
    assert found == [b"first\n", b"second\n"]


@pytest.mark.slow
async def test_followed_logs_miss_nothing_of_a_burst(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("seq", "1", "200000")
    await started(runtime, spec)
    data = b"".join([entry.data async for entry in runtime.logs(spec.id, follow=True)])
    assert data == b"".join(b"%d\n" % number for number in range(1, 200001))


@pytest.mark.slow
async def test_namespaces_are_there_for_on_exit_and_gone_afterwards(
    tmp_path: Path, make_spec: MakeSpec
) -> None:
    seen: list[bool] = []
    spec = make_spec("true", auto_remove=True)

    async def on_exit(workload: Workload) -> None:
        seen.append(Path(workload.netns_path).exists())
        raise RuntimeError("trouble in the callback is logged, not fatal")

    runtime = Runtime(tmp_path, on_exit=on_exit)
    task = asyncio.ensure_future(runtime.run())
    workload = await started(runtime, spec)
    while runtime.list():  # noqa: ASYNC110  # only the outside is looked at
        await asyncio.sleep(0.01)
    assert seen == [True]
    assert not Path(workload.netns_path).exists()
    assert not list((tmp_path / "workloads").iterdir())
    assert not task.done()
    task.cancel()
    await asyncio.wait([task])


async def test_on_exit_may_remove_the_workload_itself(tmp_path: Path, make_spec: MakeSpec) -> None:
    removed = asyncio.Event()

    async def on_exit(workload: Workload) -> None:
        await runtime.remove(workload.spec.id)
        removed.set()

    runtime = Runtime(tmp_path, on_exit=on_exit)
    task = asyncio.ensure_future(runtime.run())
    await started(runtime, make_spec("true"))
    await asyncio.wait_for(removed.wait(), 10)
    assert runtime.list() == ()
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.slow
async def test_attached_callers_get_all_output_of_an_auto_removed_workload(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sh", "-c", "head -c 900000 /dev/zero", auto_remove=True)
    await runtime.create(spec)
    async with await runtime.attach(spec.id) as session:
        await runtime.start(spec.id)
        await asyncio.sleep(0.2)  # the command has ended by now, and its output waits for us
        assert len((await collect(session))["stdout"]) == 900000
        assert session.exit_code == 0


async def test_garbage_on_the_socket_does_not_harm_the_workload(
    runtime: Runtime, make_spec: MakeSpec, tmp_path: Path
) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    directory = tmp_path / "workloads" / spec.id
    for garbage in (
        os.urandom(500),
        b"\x01\0\0\0\x02{}",
        b"\x01\0\0\0\x0c[1,2,3,4,5,6",
        b'\x01\0\0\0\x0d{"op":"exec"}',
        b'\x01\0\0\0\x0f{"op":"attach"}\x05\0\0\0\x01x',
        b'\x01\0\0\0\x0f{"op":"attach"}\x06\0\0\0\x04\x7f\xff\xff\xff',
        b"\x03\xff\xff\xff\xff",
    ):
        async with await connect(directory) as link:
            link._writer.write(garbage)
            link._writer.write_eof()
            while await link.receive() is not None:
                pass
    assert (await executed(runtime, spec.id, "echo", "fine")) == "fine\n"


async def test_failed_creation_says_why_and_leaves_nothing(
    runtime: Runtime, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay = Folder.lay

    def without_hosts(self: Folder, spec: WorkloadSpec) -> None:
        lay(self, spec)
        (self.path / "hosts").unlink()

    monkeypatch.setattr(Folder, "lay", without_hosts)
    with pytest.raises(HostError, match="/etc/hosts: No such file"):
        await runtime.create(make_spec("true", name="again"))
    assert not list((tmp_path / "workloads").iterdir())
    monkeypatch.undo()
    await runtime.create(make_spec("true", name="again"))


@pytest.mark.slow
async def test_cancelled_creation_leaves_nothing(
    runtime: Runtime, make_spec: MakeSpec, tmp_path: Path
) -> None:
    for delay in (0.0, 0.01, 0.05):
        creating = asyncio.ensure_future(runtime.create(make_spec("true", name="again")))
        await asyncio.sleep(delay)
        creating.cancel()
        await asyncio.wait([creating])
        if not creating.cancelled():
            await runtime.remove("again")
        assert not list((tmp_path / "workloads").iterdir())
    assert runtime.list() == ()


@pytest.mark.slow
async def test_too_many_callers_do_not_make_a_workload_dead(
    runtime: Runtime, make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_module, "RETRY", 0.05)
    spec = make_spec("sh", "-c", "exit 8")
    await runtime.create(spec)
    directory = tmp_path / "workloads" / spec.id
    links = [await connect(directory) for _ in range(300)]
    again = Runtime(tmp_path)
    await again.recover()
    assert again.get(spec.id).state is State.CREATED
    waiting = asyncio.ensure_future(again.wait(spec.id))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    for link in links:
        link.close()
    async with asyncio.timeout(10):
        while runtime.get(spec.id).state is State.CREATED:
            with suppress(UnavailableError):  # the shim has not seen all of them leave yet
                await runtime.start(spec.id)
        assert await waiting == 8


async def test_command_line_too_long_for_anybody_is_refused(
    runtime: Runtime, make_spec: MakeSpec
) -> None:
    spec = make_spec("sleep", "600")
    await started(runtime, spec)
    with pytest.raises(InvalidArgumentError, match="too long"):
        await runtime.exec(spec.id, ["echo", "x" * 2_000_000])
    with pytest.raises(InvalidArgumentError, match="too long"):
        await runtime.create(make_spec("echo", "x" * 2_000_000))
    with pytest.raises(CommandError, match="argument list too long") as caught:
        await runtime.exec(spec.id, ["echo", "x" * 500_000])
    assert caught.value.exit_code == 126


async def test_hung_shim_is_reported_in_time(
    runtime: Runtime, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("true")
    workload = await runtime.create(spec)
    shim = int(workload.netns_path.split("/")[2])
    monkeypatch.setattr(shims, "ANSWER", 0.1)
    os.kill(shim, signal.SIGSTOP)
    try:
        with pytest.raises(DeadlineError):
            await runtime.start(spec.id)
    finally:
        os.kill(shim, signal.SIGCONT)


def test_it_works_under_uvloop(tmp_path: Path, make_spec: MakeSpec) -> None:
    async def main() -> None:
        runtime = Runtime(tmp_path)
        task = asyncio.ensure_future(runtime.run())
        spec = make_spec("cat", stdin_open=True)
        await runtime.create(spec)
        async with await runtime.attach(spec.id) as session:
            await runtime.start(spec.id)
            await session.write_stdin(b"through uvloop")
            await session.close_stdin()
            assert (await collect(session))["stdout"] == b"through uvloop"
        await runtime.remove(spec.id)
        task.cancel()
        await asyncio.wait([task])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
