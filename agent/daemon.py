"""The node process: everything put together, once.

Who owns whom: this module's task group runs the name service, the containers' runtime, the node (which runs
what belongs to a membership) and the local API. A failure of any of them is a failure of the daemon: it
ends with one clear line, whoever supervises it starts it again, and the kernel state carries traffic
meanwhile. Ending on SIGTERM leaves containers, networks and their traffic alone, too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import os
import random
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog
import uvloop

from agent.api.server import DEFAULT_GROUP, ApiServer
from agent.api.workloads import Workloads
from agent.discovery.names import NameTable
from agent.discovery.service import Discovery
from agent.gossip.config import LAN, LOCAL
from agent.metrics import Metrics
from agent.node.describe import version
from agent.node.node import Node
from agent.node.options import NodeSettings
from agent.workload.runtime import Runtime
from swarm.errors import HostError, PreconditionError, SwarmError
from swarm.identity.sockets import private_directory, split_target
from swarm.kernel.descriptors import allow_many
from swarm.log import LEVELS, configure

STATE_DIR: Final = Path("/var/lib/swarm")
RUN_DIR: Final = Path("/run/swarm")
SOCKET: Final = "swarm.sock"

log = structlog.get_logger(component="daemon")


def main(arguments: list[str] | None = None) -> int:
    """Run the daemon until SIGTERM or SIGINT; return the exit code."""
    options = _parser().parse_args(arguments)
    configure(level=options.log_level)
    try:
        if os.geteuid() != 0:
            raise HostError("the daemon needs root: it makes network namespaces and interfaces")
        allow_many()
        with _alone(options.run_dir):
            uvloop.run(_until_signalled(options))
    except SwarmError as error:
        return _fail(error)
    except BaseExceptionGroup as group:
        ours, others = group.split(SwarmError)
        if others is not None or ours is None:
            log.exception("daemon.failed")
            return 1
        error_: BaseException = ours
        while isinstance(error_, BaseExceptionGroup):
            error_ = error_.exceptions[0]
        return _fail(error_)
    return 0


async def serve(options: argparse.Namespace) -> None:
    """Run every part until cancelled.

    Raises:
        SwarmError: a part failed for good (in an exception group).
    """
    run_dir, state_dir = options.run_dir.absolute(), options.state_dir.absolute()
    discovery = Discovery(NameTable(), rng=random.SystemRandom())
    runtime = Runtime(run_dir)
    node = Node(
        NodeSettings(
            state_dir=state_dir,
            run_dir=run_dir,
            hostname=options.hostname or socket.gethostname(),
            log_level=options.log_level,
            timing=LOCAL if options.gossip_timing == "local" else LAN,
        ),
        discovery=discovery,
        runtime=runtime,
    )
    workloads = Workloads(runtime, node, random.SystemRandom())
    api = ApiServer(
        options.host_socket or run_dir / SOCKET,
        node=node,
        workloads=workloads,
        run_dir=run_dir,
        group=options.socket_group,
    )
    metrics = None
    if options.metrics_addr:
        host, port = split_target(options.metrics_addr)
        metrics = Metrics(node, host, port)
    await runtime.recover()
    async with asyncio.TaskGroup() as group:
        group.create_task(discovery.run())
        group.create_task(node.run())
        await node.started()
        group.create_task(runtime.run())
        if metrics is not None:
            group.create_task(metrics.run())
        group.create_task(api.run())
        await api.ready.wait()
        log.info("daemon.started", version=version(), pid=os.getpid(), hostname=options.hostname)
        _notify("READY=1")


async def _until_signalled(options: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101  # a coroutine runs in a task
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:
            stopping = True
            log.info("daemon.stopping")
            _notify("STOPPING=1")
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await serve(options)
    except asyncio.CancelledError:
        if not stopping:
            raise
    log.info("daemon.stopped")


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the run directory's lock: two daemons on one directory would undo each other's work.

    Raises:
        PreconditionError: another daemon holds it.
        HostError: the directory cannot be used.
    """
    private = private_directory(run_dir)
    private.chmod(0o711)  # the socket in it has its own permissions
    path = run_dir / "daemon.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            raise PreconditionError(
                f"another daemon (process {holder}) uses {run_dir}: stop it, or choose another --run-dir"
            ) from error
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        yield
    finally:
        os.close(fd)


def _notify(text: str) -> None:
    """Tell a service manager (sd_notify(3)), if one started this process."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    target = "\0" + address[1:] if address.startswith("@") else address
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender,
    ):
        sender.sendto(text.encode(), target)


def _fail(error: BaseException) -> int:
    log.error("daemon.failed", reason=str(error))
    print(f"swarm daemon: {error}", file=sys.stderr)  # noqa: T201  # the one line a person reads
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m agent", description="Run a swarm node.")
    parser.add_argument("--state-dir", type=Path, default=STATE_DIR, help="what survives a reboot")
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR, help="sockets and running state")
    parser.add_argument(
        "--host-socket", type=Path, help="the local API (default: swarm.sock in the run directory)"
    )
    parser.add_argument(
        "--socket-group", default=DEFAULT_GROUP, help="group that may use the local API"
    )
    parser.add_argument("--hostname", default="", help="name of this node (default: the host's)")
    parser.add_argument(
        "--gossip-timing",
        choices=("lan", "local"),
        default="lan",
        help="local is faster, for hosts that share one machine",
    )
    parser.add_argument(
        "--metrics-addr", default="", help="serve Prometheus metrics at this IP:PORT (default: off)"
    )
    parser.add_argument("--log-level", choices=LEVELS, default="info")
    return parser
