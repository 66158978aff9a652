"""The process that holds one workload: ``python -m agent.workload.shim DIRECTORY``.

It makes the namespaces, says so in one line of JSON on standard output, and then serves
``attach.sock`` in the workload's directory until it is told to release the workload. It belongs to
nobody: it forks away from its starter, so that the agent may die and come back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time

from agent.workload import frames, sandbox
from agent.workload.logfile import LogWriter
from agent.workload.loop import READ, WRITE, Loop
from agent.workload.process import HANGUP, Process, SpawnError
from swarm.kernel import libc

SOCKET = "attach.sock"
SPEC = "spec.json"
STATUS = "status.json"

SETUP_SECONDS = 30
"""A set-up that takes longer ends the shim: its starter has given up by then."""
FLUSH_SECONDS = 5.0
"""How long a released shim goes on serving callers that have not read all output yet."""
UNSENT_HIGH = 1 << 20
"""Bytes that may wait for one caller before the command has to wait."""
MAX_CALLERS = 256
MAX_EXECS = 64

_BACKLOG = 128


class Caller:
    """One connection to the shim's socket."""

    __slots__ = ("_admitted", "_out", "_shim", "_socket", "_splitter", "process", "role")

    def __init__(self, shim: Shim, connection: socket.socket) -> None:
        self._shim = shim
        self._socket = connection
        self._splitter = frames.Splitter()
        self._out = bytearray()
        self._admitted = True
        self.process: Process | None = None
        self.role = ""
        shim.loop.add(connection.fileno(), READ, self._ready)

    def send(self, kind: int, payload: bytes) -> None:
        """Send a frame now or when the caller takes it."""
        if self.closed():
            return
        idle = not self._out
        self._out += frames.pack(kind, payload)
        if idle:
            self._flush()

    def full(self) -> bool:
        """Tell whether so much waits for the caller that the command must wait too."""
        return len(self._out) > UNSENT_HIGH

    def flushed(self) -> bool:
        """Tell whether the caller has been sent everything."""
        return not self._out

    def closed(self) -> bool:
        """Tell whether the connection is closed."""
        return self._socket.fileno() < 0

    def admit(self, *, more: bool) -> None:
        """Go on or stop reading from the caller."""
        if more != self._admitted and not self.closed():
            self._admitted = more
            self._wait()

    def close(self) -> None:
        """Close the connection; closing twice is fine."""
        if self.closed():
            return
        self._shim.loop.drop(self._socket.fileno())
        self._socket.close()
        self._shim.left(self)

    def _wait(self) -> None:
        events = (READ if self._admitted else 0) | (WRITE if self._out else 0)
        self._shim.loop.change(self._socket.fileno(), events)

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & READ and not self.closed():
            self._receive()
        elif events & HANGUP:
            self.close()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._out)
            del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        self._wait()
        if self.process is not None:
            self.process.regulate()
        self._shim.flushed()

    def _receive(self) -> None:
        try:
            data = self._socket.recv(frames.MAX_PAYLOAD)
            received = self._splitter.feed(data)
        except BlockingIOError:
            return
        except (OSError, frames.FrameError):
            data, received = b"", []
        if not data:
            self.close()
        for kind, payload in received:
            if self.closed():
                return
            try:
                self._handle(kind, payload)
            except Exception as error:  # noqa: BLE001  # one caller's nonsense must not end the workload
                self.refuse(f"malformed request: {error!r}")
                self.close()

    def _handle(self, kind: int, payload: bytes) -> None:
        process = self.process
        if kind == frames.REQUEST and not self.role:
            request = json.loads(payload)
            self.role = str(request["op"])
            self._shim.serve(self, request)
        elif process is None:
            return  # too late, the command has ended
        elif kind == frames.STDIN:
            process.write(payload)
        elif kind == frames.STDIN_CLOSE:
            process.end_input()
        elif kind == frames.RESIZE:
            process.resize(*frames.SIZE.unpack(payload))
        elif kind == frames.SIGNAL:
            process.signal(frames.CODE.unpack(payload)[0])

    def accept(self, **fields: object) -> None:
        """Reply that the request was carried out."""
        self.send(frames.REPLY, json.dumps({"ok": True, **fields}).encode())

    def refuse(self, text: str, code: int = 0) -> None:
        """Reply that it was not; a code tells that the command itself is at fault."""
        self.send(frames.REPLY, json.dumps({"ok": False, "error": text, "code": code}).encode())

    def finish(self, code: int) -> None:
        """Say how the command ended."""
        self.process = None
        self.send(frames.EXIT, frames.CODE.pack(code))


class Shim:
    """The state of one workload."""

    __slots__ = (
        "_callers",
        "_directory",
        "_execs",
        "_init",
        "_listener",
        "_log",
        "_main",
        "_path",
        "_releasing",
        "_spec",
        "_starter",
        "_status",
        "loop",
    )

    def __init__(self, path: str, directory: int, spec: dict[str, object]) -> None:
        self.loop = Loop()
        self._path = path
        self._directory = directory
        self._spec = spec
        self._callers: set[Caller] = set()
        self._execs: set[Process] = set()
        self._main: Process | None = None
        self._starter: Caller | None = None
        self._releasing = False
        self._init = -1
        self._status: dict[str, object] = {
            "state": "created",
            "shim_pid": os.getpid(),
            "pid": 0,
            "exit_code": None,
            "started_at": None,
            "finished_at": None,
            "message": "",
        }
        self._log = LogWriter(directory)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)

    def prepare(self) -> None:
        """Make the namespaces and everything else that can fail.

        Raises:
            sandbox.SandboxError: they cannot be made.
            OSError: the socket or a file cannot.
        """
        # Through the descriptor, because a Unix socket's path has room for 107 bytes only; and before
        # /proc shows the inner PID namespace, where this process does not exist.
        self._listener.bind(f"/proc/self/fd/{self._directory}/{SOCKET}")
        sandbox.enter(self._path, str(self._spec["hostname"]))
        self._init = sandbox.start_init()
        self._listener.listen(_BACKLOG)
        self.loop.add(self._listener.fileno(), READ, self._incoming)
        pidfd = os.pidfd_open(self._init)
        self.loop.add(pidfd, READ, lambda _: self._init_gone(pidfd))
        self._record()

    def status(self) -> dict[str, object]:
        """Return what status.json holds."""
        return dict(self._status)

    def listen_for_signals(self) -> None:
        """Have signals sent to the shim taken up by the loop.

        By way of a pipe: Python calls a handler between two rounds of the wait, and then waits on.
        """
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        self.loop.add(reader, READ, lambda _: self._signalled(os.read(reader, 64)))

    def _signalled(self, numbers: bytes) -> None:
        """Pass signals on to the command; without one they end the shim."""
        for number in numbers:
            if self._main is not None and self._main.exit_code is None:
                self._main.signal(number)
            else:
                self._release()

    def serve(self, caller: Caller, request: dict[str, object]) -> None:
        """Carry out what a caller asked for."""
        match request["op"]:
            case "status":
                caller.accept(status=self.status())
            case "watch":
                caller.accept(status=self.status())
            case "start":
                self._start(caller)
            case "signal":
                self._signal(caller, int(str(request["signal"])))
            case "attach":
                self._attach(caller)
            case "exec":
                self._exec(caller, request)
            case "follow":
                caller.accept()
                if self._over():
                    caller.finish(int(str(self._status["exit_code"])))
            case "release":
                if self._status["state"] == "running":
                    caller.refuse("the command is running")
                else:
                    caller.accept()
                    self._release()
            case _:
                caller.refuse("no such operation")

    def left(self, caller: Caller) -> None:
        """Forget a caller; a command it had started with ``exec`` loses its streams."""
        self._callers.discard(caller)
        process = caller.process
        if process is not None:
            process.listeners.discard(caller)
            if process is not self._main:
                process.hang_up()
            else:
                process.admit_all()
                process.regulate()
        self.flushed()

    def flushed(self) -> None:
        """End a released shim as soon as all callers have everything."""
        if self._releasing and all(caller.flushed() for caller in self._callers):
            self.loop.stop()

    def _over(self) -> bool:
        return self._status["state"] == "exited"

    def _incoming(self, events: int) -> None:
        del events
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._callers) >= MAX_CALLERS:
                connection.close()
                return
            connection.setblocking(False)
            self._callers.add(Caller(self, connection))

    def _start(self, caller: Caller) -> None:
        if self._status["state"] != "created" or self._starter is not None:
            caller.refuse("the command was started already")
            return
        spec = self._spec
        try:
            self._main = Process(
                self.loop,
                argv=[str(word) for word in _list(spec["argv"])],
                env=_strings(spec["env"]),
                cwd=str(spec["cwd"]),
                tty=bool(spec["tty"]),
                stdin=bool(spec["stdin_open"]),
                log=self._logged,
                on_exit=lambda _: self._end(),
            )
        except SpawnError as error:
            self._starter = caller
            self._status["message"] = str(error)
            self._status["exit_code"] = error.code
            self._end()
            return
        for waiting in self._callers:
            if waiting.role == "attach":
                self._join(waiting, self._main)
        self._status |= {"state": "running", "pid": self._main.pid, "started_at": time.time()}
        self._changed()
        caller.accept(status=self.status())

    def _end(self) -> None:
        """End everything that still runs in the workload; the end of its init tells when it is done."""
        if self._init > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init, signal.SIGKILL)
        else:
            self._ended()

    def _init_gone(self, pidfd: int) -> None:
        pid, _ = os.waitpid(self._init, os.WNOHANG)
        if pid == 0:
            return
        self.loop.drop(pidfd)
        os.close(pidfd)
        self._init = -1
        failed = self._main is None and self._status["exit_code"] is not None
        if failed or (self._main is not None and self._main.exit_code is not None):
            self._ended()

    def _ended(self) -> None:
        main = self._main
        if main is not None:
            main.drain()
            self._status["exit_code"] = main.exit_code
        self._status |= {"state": "exited", "pid": 0, "finished_at": time.time()}
        code = int(str(self._status["exit_code"]))
        self._changed()
        for caller in tuple(self._callers):
            if caller.role == "follow" or (caller.role == "attach" and caller.process is main):
                caller.finish(code)
        if self._starter is not None:
            self._starter.refuse(str(self._status["message"]), code)

    def _signal(self, caller: Caller, number: int) -> None:
        if self._main is None or self._main.exit_code is not None:
            caller.refuse("the command is not running")
            return
        self._main.signal(number)
        caller.accept()

    def _attach(self, caller: Caller) -> None:
        caller.accept(tty=bool(self._spec["tty"]))
        if self._over():
            caller.finish(int(str(self._status["exit_code"])))
        elif self._main is not None:
            self._join(caller, self._main)

    def _exec(self, caller: Caller, request: dict[str, object]) -> None:
        if self._status["state"] != "running":
            caller.refuse("the workload is not running")
            return
        if len(self._execs) >= MAX_EXECS:
            caller.refuse("too many commands run in this workload")
            return
        rows, columns = (int(str(side)) for side in _list(request["size"]))
        try:
            process = Process(
                self.loop,
                argv=[str(word) for word in _list(request["argv"])],
                env=_strings(self._spec["env"]) | _strings(request["env"]),
                cwd=str(request["cwd"] or self._spec["cwd"]),
                tty=bool(request["tty"]),
                stdin=bool(request["stdin"]),
                size=(rows, columns),
                on_exit=self._exec_ended,
            )
        except SpawnError as error:
            caller.refuse(str(error), error.code)
            return
        self._execs.add(process)
        caller.accept(pid=process.pid)
        self._join(caller, process)

    def _exec_ended(self, process: Process) -> None:
        self._execs.discard(process)
        process.drain()
        for caller in tuple(self._callers):
            if caller.process is process and process.exit_code is not None:
                caller.finish(process.exit_code)

    def _join(self, caller: Caller, process: Process) -> None:
        caller.process = process
        process.listeners.add(caller)

    def _logged(self, stream: int, data: bytes) -> None:
        self._log.write(stream, data)
        for caller in self._callers:
            # One notice that waits is enough: it is a hint to look, not a count.
            if caller.role == "follow" and caller.flushed():
                caller.send(frames.LOGGED, b"")

    def _changed(self) -> None:
        self._record()
        status = json.dumps(self._status).encode()
        for caller in tuple(self._callers):
            if caller.role == "watch":
                caller.send(frames.STATUS, status)

    def _record(self) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the command
            mode = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            descriptor = os.open(f"{STATUS}.new", mode, 0o600, dir_fd=self._directory)
            try:
                os.write(descriptor, json.dumps(self._status).encode())
            finally:
                os.close(descriptor)
            os.rename(
                f"{STATUS}.new", STATUS, src_dir_fd=self._directory, dst_dir_fd=self._directory
            )

    def _release(self) -> None:
        self._releasing = True
        self.loop.stop(within=FLUSH_SECONDS)
        self.flushed()


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError("a list is needed")
    return value


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError("a map is needed")
    return {str(name): str(text) for name, text in value.items()}


def _detach() -> None:
    """Leave the starter: its child ends at once, the grandchild belongs to init."""
    if os.fork():
        os._exit(0)
    os.setsid()
    libc.set_process_name("swarm-shim")


def _report(**fields: object) -> None:
    """Tell the starter, once, and let go of its pipe."""
    os.write(1, json.dumps(fields).encode())
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 0)
    os.close(nowhere)


def main() -> None:
    """Hold a workload until it is released."""
    # An event loop that leaves descriptors open in its children (uvloop does) must not tie us to them.
    os.closerange(3, sandbox.MAX_DESCRIPTOR)
    directory = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _detach()
    signal.alarm(SETUP_SECONDS)
    try:
        descriptor = os.open(SPEC, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with open(descriptor, encoding="utf-8") as file:  # noqa: PTH123  # by descriptor
            spec = json.load(file)
        shim = Shim(sys.argv[1], directory, spec)
        shim.prepare()
    except (OSError, ValueError, sandbox.SandboxError) as error:
        _report(error=str(error))
        sys.exit(1)
    signal.alarm(0)
    shim.listen_for_signals()
    _report(status=shim.status())
    shim.loop.run()


if __name__ == "__main__":
    main()
