"""All workloads of this node: create, start, watch, stop, remove, and find again after a restart."""

from __future__ import annotations

import asyncio
import json
import signal as signals
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import structlog

from agent.workload import frames, shims
from agent.workload.folder import Folder
from agent.workload.logfile import LogReader
from agent.workload.session import AttachSession, Link, ShimGoneError, connect
from agent.workload.spec import (
    CommandError,
    State,
    Workload,
    WorkloadSpec,
    validate,
)
from swarm.errors import (
    ConflictError,
    DeadlineError,
    InvalidArgumentError,
    NotFoundError,
    PreconditionError,
    SwarmError,
    UnavailableError,
)

RETRY: Final = 0.2
"""Seconds between attempts to reach a shim that is there but has no room for another caller."""
KILL: Final = 30.0
"""Seconds to wait for the end after SIGKILL; only a process stuck in the kernel takes so long."""
KILLED: Final = 128 + signals.SIGKILL
DAEMON_ERROR: Final = 125

_STREAMS: Final = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}

OnExit = Callable[[Workload], Awaitable[None]]

log = structlog.get_logger(component="workload")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """A piece of a workload's output, as it was written."""

    stream: str
    """``"stdout"`` or ``"stderr"``."""
    at: float
    """Seconds since the epoch."""
    data: bytes


@dataclass(slots=True)
class _Entry:
    folder: Folder
    workload: Workload
    watcher: asyncio.Task[None] | None = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """on_exit has returned and the namespaces are released."""
    removing: bool = False


class Runtime:
    """The node's workloads.

    Everything is kept under ``run_dir/workloads/ID``, so another Runtime over the same directory finds
    it all again. ``run()`` must be running for ``on_exit`` to be called and ``auto_remove`` to work.

    Args:
        run_dir: the daemon's run-time directory.
        on_exit: called once a command has ended (also one that could not be started, and one whose
            shim was killed), while its namespaces still exist unless the state is DEAD. It may be
            called again after a restart of the agent in the middle of it. It may call any method.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        on_exit: OnExit | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.on_exit = on_exit
        self._clock = clock
        self._home = run_dir / "workloads"
        self._entries: dict[str, _Entry] = {}
        self._reserved: set[str] = set()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Watch all workloads until cancelled; the workloads themselves go on."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for entry in tuple(self._entries.values()):
                    self._start_watching(entry)
                await asyncio.get_running_loop().create_future()
        finally:
            self._group = None

    async def recover(self) -> tuple[Workload, ...]:
        """Find the workloads that an earlier agent left, in whatever state they are now."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in sorted(self._home.iterdir()):
            if directory.name in self._entries:
                continue
            try:
                entry = await self._recover_one(directory)
            except (SwarmError, OSError) as error:
                log.warning("workload.unreadable", directory=str(directory), error=str(error))
                continue
            if entry is None:
                Folder(directory).remove()
                continue
            self._entries[entry.workload.spec.id] = entry
            self._start_watching(entry)
        log.info("workloads.recovered", count=len(self._entries))
        return self.list()

    def list(self) -> tuple[Workload, ...]:
        """Return all workloads, the oldest first."""
        found = (entry.workload for entry in self._entries.values())
        return tuple(sorted(found, key=lambda w: (w.spec.created_at, w.spec.id)))

    def get(self, reference: str) -> Workload:
        """Return a workload by id, name, or unambiguous beginning of its id.

        Raises:
            NotFoundError: there is none.
            InvalidArgumentError: several ids begin like that.
        """
        return self._entry(reference).workload

    async def create(self, spec: WorkloadSpec) -> Workload:
        """Make a workload's namespaces; its command does not run yet.

        Raises:
            InvalidArgumentError: the spec makes no sense.
            ConflictError: the name or the id is taken.
            HostError: the namespaces cannot be made here.
        """
        validate(spec)
        taken = {entry.workload.spec.name: key for key, entry in self._entries.items()}
        if spec.id in self._entries or spec.id in self._reserved:
            raise ConflictError(f"workload id {spec.id} is taken")
        if spec.name in taken or spec.name in self._reserved:
            owner = taken.get(spec.name, "another one")
            raise ConflictError(f'the name "{spec.name}" is in use by workload {owner[:12]}')
        self._reserved |= {spec.id, spec.name}
        try:
            folder = Folder(self._home / spec.id)
            folder.lay(spec)
            try:
                status = await shims.spawn(folder.path)
            except BaseException:
                folder.remove()
                raise
            entry = _Entry(folder, _merge(Workload(spec=spec, state=State.CREATED), status))
            self._entries[spec.id] = entry
        finally:
            self._reserved -= {spec.id, spec.name}
        self._start_watching(entry)
        log.info("workload.created", workload=spec.id, name=spec.name)
        return entry.workload

    async def set_addresses(self, reference: str, addresses: Iterable[str]) -> None:
        """Put the workload's own addresses into its hosts file, replacing earlier ones.

        Raises:
            NotFoundError: there is no such workload.
        """
        entry = self._entry(reference)
        entry.folder.set_addresses(entry.workload.spec, addresses)

    async def start(self, reference: str) -> Workload:
        """Run the command.

        Raises:
            NotFoundError: there is no such workload.
            PreconditionError: it was started before.
            CommandError: the command cannot be executed; the workload is EXITED then.
            UnavailableError: the shim was killed.
        """
        entry = self._entry(reference)
        reply = await shims.ask(entry.folder.path, "start")
        if reply["ok"]:
            entry.workload = _merge(entry.workload, reply["status"])
            log.info("workload.started", workload=entry.workload.spec.id, pid=entry.workload.pid)
            return entry.workload
        if not reply["code"]:
            raise PreconditionError(str(reply["error"]))
        await self._refresh(entry)
        raise CommandError(str(reply["error"]), int(reply["code"]))

    async def wait(self, reference: str) -> int:
        """Wait for the command's end and return its exit code.

        Raises:
            NotFoundError: there is no such workload.
        """
        entry = self._entry(reference)
        await self._observe(entry)
        return _exit_code(entry.workload)

    async def stop(
        self, reference: str, *, signal: int = signals.SIGTERM, grace: float = 10.0
    ) -> int:
        """Ask the command to end, kill it if it does not, and return its exit code.

        A workload that was not started stays as it is, with exit code 0.

        Args:
            reference: the workload.
            signal: what to ask with.
            grace: seconds until SIGKILL.

        Raises:
            NotFoundError: there is no such workload.
            DeadlineError: it does not end even when killed.
        """
        entry = self._entry(reference)
        if entry.workload.state is State.CREATED:
            await self._refresh(entry)
        if entry.workload.state is State.CREATED:
            return 0
        for number, patience in ((signal, grace), (int(signals.SIGKILL), KILL)):
            with suppress(PreconditionError, UnavailableError):  # it ended just now
                await self.kill(reference, number)
            try:
                async with asyncio.timeout(patience):
                    return await self.wait(reference)
            except TimeoutError:
                continue
        raise DeadlineError(f"workload {entry.workload.spec.name} does not end even when killed")

    async def kill(self, reference: str, signal: int) -> None:
        """Send a signal to the command.

        Raises:
            NotFoundError: there is no such workload.
            PreconditionError: its command is not running.
            InvalidArgumentError: there is no such signal.
        """
        if signal not in signals.valid_signals():
            raise InvalidArgumentError(f"there is no signal {signal}")
        entry = self._entry(reference)
        try:
            reply = await shims.ask(entry.folder.path, "signal", signal=int(signal))
        except ShimGoneError as error:
            raise PreconditionError("the command is not running") from error
        if not reply["ok"]:
            raise PreconditionError(str(reply["error"]))

    async def remove(self, reference: str, *, force: bool = False) -> None:
        """Remove a workload with its log; its namespaces go, unless somebody else holds them.

        Args:
            reference: the workload.
            force: kill the command if it runs.

        Raises:
            NotFoundError: there is no such workload.
            PreconditionError: its command runs, and ``force`` is not set.
        """
        entry = self._entry(reference)
        await self._refresh(entry)
        if entry.workload.state is State.RUNNING:
            if not force:
                raise PreconditionError(
                    f"workload {entry.workload.spec.name} is running: stop it first, or force"
                )
            await self.stop(reference, signal=signals.SIGKILL)
        watcher = entry.watcher
        if (
            entry.workload.state.over
            and watcher is not None
            and watcher is not asyncio.current_task()
        ):
            # Let on_exit have its namespaces until it is done with them.
            waiter = asyncio.ensure_future(entry.settled.wait())
            await asyncio.wait({watcher, waiter}, return_when=asyncio.FIRST_COMPLETED)
            waiter.cancel()
        await self._forget(entry)

    async def attach(self, reference: str) -> AttachSession:
        """Attach to a workload's command: one that runs, or that is to be started.

        Raises:
            NotFoundError: there is no such workload.
            PreconditionError: its command has ended.
        """
        entry = self._entry(reference)
        link, _ = await _begin(entry, "attach")
        return AttachSession(link)

    async def exec(
        self,
        reference: str,
        argv: Sequence[str],
        *,
        tty: bool = False,
        stdin: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        size: tuple[int, int] = (0, 0),
    ) -> AttachSession:
        """Run a further command inside a running workload.

        Args:
            reference: the workload.
            argv: the command.
            tty: give it a terminal.
            stdin: give it an input.
            env: laid over the workload's environment.
            cwd: where it starts; the workload's own directory if empty.
            size: rows and columns of the terminal.

        Raises:
            NotFoundError: there is no such workload.
            PreconditionError: it is not running, or too many commands run in it.
            CommandError: the command cannot be executed.
        """
        if not argv or not argv[0]:
            raise InvalidArgumentError("no command given")
        entry = self._entry(reference)
        link, reply = await _begin(
            entry,
            "exec",
            argv=list(argv),
            tty=tty,
            stdin=stdin,
            env={**({"TERM": "xterm"} if tty else {}), **(env or {})},
            cwd=cwd,
            size=size,
        )
        if reply["ok"]:
            return AttachSession(link)
        link.close()
        if reply["code"]:
            raise CommandError(str(reply["error"]), int(reply["code"]))
        raise PreconditionError(str(reply["error"]))

    async def logs(self, reference: str, *, follow: bool = False) -> AsyncIterator[LogEntry]:
        """Yield what the command has written, as far as it is kept.

        Args:
            reference: the workload.
            follow: go on until the command ends. A reader too slow to keep up with the bounded log
                misses a part of it; the command never waits for it.

        Raises:
            NotFoundError: there is no such workload.
        """
        entry = self._entry(reference)
        reader = LogReader(entry.folder.path)
        link: Link | None = None
        try:
            if follow:
                with suppress(UnavailableError):
                    link = await connect(entry.folder.path)
                    await link.request("follow")
            ended = link is None
            while True:
                while records := reader.read():
                    for stream, at, data in records:
                        yield LogEntry(stream=_STREAMS[stream], at=at / 1e9, data=data)
                if ended or link is None:
                    return
                frame = await link.receive()
                ended = frame is None or frame[0] == frames.EXIT
        finally:
            reader.close()
            if link is not None:
                link.close()

    def _entry(self, reference: str) -> _Entry:
        if entry := self._entries.get(reference):
            return entry
        for entry in self._entries.values():
            if entry.workload.spec.name == reference:
                return entry
        matching = [key for key in self._entries if reference and key.startswith(reference)]
        if len(matching) > 1:
            raise InvalidArgumentError(f"several workloads have ids that begin with {reference}")
        if not matching:
            raise NotFoundError(f"no such workload: {reference}")
        return self._entries[matching[0]]

    def _start_watching(self, entry: _Entry) -> None:
        if self._group is not None and not entry.settled.is_set():
            entry.watcher = self._group.create_task(self._watch(entry))

    async def _watch(self, entry: _Entry) -> None:
        """Follow a workload to its end, and see to what has to be done then."""
        await self._observe(entry)
        spec = entry.workload.spec
        if entry.removing:
            return  # before it was started
        log.info(
            "workload.ended",
            workload=spec.id,
            state=entry.workload.state.value,
            exit_code=entry.workload.exit_code,
        )
        if self.on_exit is not None:
            try:
                await self.on_exit(entry.workload)
            except Exception:  # the callback's trouble must not end the watch over all others
                log.exception("workload.on_exit_failed", workload=spec.id)
        if spec.id not in self._entries:
            return  # the callback has removed it
        with suppress(OSError):  # without the mark, on_exit is called again after a restart
            entry.folder.settle()
        await self._release(entry)
        entry.settled.set()
        if spec.auto_remove:
            await self._forget(entry)

    async def _observe(self, entry: _Entry) -> None:
        """Wait until the workload is over, or its shim is gone: then find out how it ended."""
        while not entry.workload.state.over:
            try:
                async with await connect(entry.folder.path) as link:
                    reply = await link.request("watch")
                    entry.workload = _merge(entry.workload, reply["status"])
                    while not entry.workload.state.over and (frame := await link.receive()):
                        entry.workload = _merge(entry.workload, json.loads(frame[1]))
            except ShimGoneError:
                self._bury(entry)
            except UnavailableError as error:
                log.warning("shim.unreachable", workload=entry.workload.spec.id, error=str(error))
                await asyncio.sleep(RETRY)

    def _bury(self, entry: _Entry) -> None:
        """Settle the state of a workload whose shim is gone."""
        status = entry.folder.status()
        if status is None or not State(status["state"]).over:
            status = (status or {}) | {
                "state": State.DEAD.value,
                "pid": 0,
                "exit_code": KILLED,
                "finished_at": self._clock(),
                "message": "the workload's shim was killed",
            }
            with suppress(OSError):  # removed meanwhile
                entry.folder.set_status(status)
        entry.workload = replace(_merge(entry.workload, status), netns_path="")

    async def _refresh(self, entry: _Entry) -> None:
        """Ask the shim for the present state."""
        if entry.workload.state.over:
            return
        try:
            reply = await shims.ask(entry.folder.path, "status")
            entry.workload = _merge(entry.workload, reply["status"])
        except ShimGoneError:
            self._bury(entry)

    async def _release(self, entry: _Entry) -> None:
        """Have the shim end, and with it the namespaces."""
        await shims.release(entry.folder.path)
        entry.workload = replace(entry.workload, netns_path="")

    async def _forget(self, entry: _Entry) -> None:
        spec = entry.workload.spec
        entry.removing = True
        await self._release(entry)
        entry.folder.remove()
        if self._entries.pop(spec.id, None) is not None:
            log.info("workload.removed", workload=spec.id, name=spec.name)

    async def _recover_one(self, directory: Path) -> _Entry | None:
        folder = Folder(directory)
        entry = _Entry(folder, Workload(spec=folder.spec(), state=State.CREATED))
        status = folder.status()
        if status is None:
            return None  # the agent died while creating it; nobody has been told of it
        entry.workload = _merge(entry.workload, status)
        if folder.settled:
            entry.settled.set()
            entry.workload = replace(entry.workload, netns_path="")
        else:
            # One that cannot be asked now is kept as it was last known; the watch will find out.
            with suppress(UnavailableError, DeadlineError):
                await self._refresh(entry)
        return entry


async def _begin(entry: _Entry, operation: str, **arguments: object) -> tuple[Link, dict[str, Any]]:
    """Begin a session with the shim of a workload that has to be running."""
    try:
        return await shims.begin(entry.folder.path, operation, **arguments)
    except ShimGoneError as error:
        name = entry.workload.spec.name
        raise PreconditionError(f"workload {name} is not running") from error


def _merge(workload: Workload, status: Mapping[str, Any]) -> Workload:
    shim = status.get("shim_pid")
    return replace(
        workload,
        state=State(status["state"]),
        pid=status["pid"],
        exit_code=status["exit_code"],
        started_at=status.get("started_at"),
        finished_at=status.get("finished_at"),
        message=status.get("message", ""),
        netns_path=f"/proc/{shim}/ns/net" if shim else "",
    )


def _exit_code(workload: Workload) -> int:
    return DAEMON_ERROR if workload.exit_code is None else workload.exit_code
