"""The lab itself: hosts come up, form a cluster, suffer, and go without a trace."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from swarm import client
from swarm.api.docker.swarmkit import control_pb2, types_pb2
from swarm.api.overswarm.v1 import local_pb2
from swarm.errors import (
    ConflictError,
    HostError,
    InvalidArgumentError,
    PreconditionError,
    SwarmError,
)
from swarm.lab import faults, hosts, processes
from swarm.lab.state import DEFAULT_NAME, Host, LabState, check_host_name, exclusive, load

MAX_MANAGERS: Final = 7
DAEMON_SECONDS: Final = 30.0
"""How long a daemon may take to answer after its start; a loaded machine starts Python slowly."""
READY_SECONDS: Final = 60.0
"""How long a cluster may take until every node is Ready."""

Progress = Callable[[str], None]


def _silent(_: str) -> None:
    """Say nothing."""


class Lab:
    """One lab by name; every method works on what is really there, whoever made it.

    Args:
        name: which lab; ``SWARM_LAB``, then ``lab``, when empty.
        progress: called with one sentence before each step that takes time.
    """

    def __init__(self, name: str = "", *, progress: Progress = _silent) -> None:
        self.name = name or os.environ.get("SWARM_LAB") or DEFAULT_NAME
        self._say = progress
        load(self.name)

    @property
    def state(self) -> LabState:
        """What the lab is made of at this moment."""
        return load(self.name)

    # -- life ---------------------------------------------------------------------------------

    def up(self, *, managers: int = 1, workers: int = 2, mtu: int = 1500) -> LabState:
        """Make the hosts, form the cluster, and wait until every node is Ready.

        A failure on the way takes everything down again.

        Raises:
            InvalidArgumentError: the numbers make no cluster.
            ConflictError: this lab is up already.
            HostError: not root, or the kernel lacks something.
        """
        if not 1 <= managers <= MAX_MANAGERS:
            raise InvalidArgumentError(f"--managers must be 1 to {MAX_MANAGERS}, not {managers}")
        if workers < 0:
            raise InvalidArgumentError(f"--workers must not be negative, it is {workers}")
        names = [f"m{number}" for number in range(1, managers + 1)]
        names += [f"w{number}" for number in range(1, workers + 1)]
        self.build(names, mtu=mtu)
        try:
            self.form(names)
        except BaseException:
            self.down()
            raise
        return self.state

    def build(self, names: Sequence[str], *, mtu: int = 1500) -> LabState:
        """Make hosts with running daemons that belong to no cluster yet.

        Raises:
            ConflictError: this lab is up already.
            HostError: not root, or the kernel lacks something.
        """
        hosts.require_root()
        with exclusive(self.name):
            if self.state.hosts:
                raise ConflictError(
                    f"the lab {self.name!r} is up already; 'swarm lab status' shows it, "
                    "'swarm lab down' removes it"
                )
            lab = LabState(self.name, mtu=mtu)
            try:
                self._say(f"making {len(names)} hosts on {lab.underlay_netns.name}")
                hosts.make_underlay(lab)
                for name in names:
                    role = "manager" if name.startswith("m") else "worker"
                    self._add(lab, name, role)
                for name in names:
                    self._launch(lab, name)
                for name in names:
                    self._await_daemon(lab, name)
            except BaseException:
                self._remove(lab)
                raise
            return lab

    def down(self) -> bool:
        """Remove the lab: processes, namespaces, links, rules, files.

        Returns:
            Whether there was anything to remove.
        """
        hosts.require_root()
        previous = _ignore_interrupts()
        try:
            with exclusive(self.name):
                lab = self.state
                existed = bool(lab.hosts) or lab.underlay_netns.exists() or lab.run_root.exists()
                self._remove(lab)
                return existed
        finally:
            _restore_interrupts(previous)

    def add_bare(self, name: str) -> Host:
        """Add a host on the same underlay where nothing of ours runs.

        Raises:
            ConflictError: the name is taken.
            InvalidArgumentError: it is no host name, or the lab is full.
            PreconditionError: the lab is not up.
        """
        hosts.require_root()
        check_host_name(name)
        with exclusive(self.name):
            lab = self.state
            if not lab.hosts:
                raise PreconditionError("the lab is not up: start it with 'swarm lab up'")
            if name in lab.hosts:
                raise ConflictError(f"the lab has a host {name!r} already")
            return self._add(lab, name, "bare")

    def remove_bare(self, name: str) -> None:
        """Remove a bare host again, with whatever runs on it.

        Raises:
            NotFoundError: no such host.
            InvalidArgumentError: it is a host of the cluster.
        """
        hosts.require_root()
        with exclusive(self.name):
            lab = self.state
            if lab.require(name).role != "bare":
                raise InvalidArgumentError(
                    f"{name} is part of the cluster; 'swarm lab down' removes it"
                )
            processes.end_all(lab, name)
            hosts.remove_host(lab, name)
            del lab.hosts[name]
            lab.save()

    # -- use ----------------------------------------------------------------------------------

    def argv(self, host: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Return argument list and environment that run ``argv`` on ``host``.

        Raises:
            NotFoundError: no such host.
        """
        lab = self.state
        lab.require(host)
        return processes.command(lab, host, argv), processes.environment(lab, host)

    def run(
        self, host: str, *argv: str, timeout: float = 60.0, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on ``host`` to its end and return what it printed; a failure is no error here.

        Raises:
            NotFoundError: no such host.
            subprocess.TimeoutExpired: it took longer than ``timeout`` seconds (times the lab's
                patience); it was killed.
        """
        command, environment = self.argv(host, argv)
        return subprocess.run(
            command,
            env=environment,
            text=True,
            capture_output=True,
            timeout=timeout * processes.PATIENCE,
            check=False,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
        )

    @contextmanager
    def client(self, host: str) -> Iterator[client.Client]:
        """Open the local API of the daemon on ``host``."""
        lab = self.state
        lab.require(host)
        with client.connect(lab.socket(host)) as opened:
            yield opened

    # -- faults -------------------------------------------------------------------------------

    def start(self, host: str) -> None:
        """Start the daemon of ``host`` again and wait until it answers.

        Raises:
            NotFoundError: no such host.
            ConflictError: it runs already.
            DeadlineError: it does not answer.
        """
        with exclusive(self.name):
            lab = self.state
            entry = lab.require(host)
            if entry.role == "bare":
                raise InvalidArgumentError(
                    f"{host} is a bare host: no daemon of ours belongs there"
                )
            if processes.alive(entry.pid, entry.started):
                raise ConflictError(f"the daemon of {host} runs already (pid {entry.pid})")
            self._launch(lab, host)
            self._await_daemon(lab, host)

    def kill(
        self, host: str, *, number: int = signal.SIGKILL, manager_only: bool = False
    ) -> list[int]:
        """Send a signal to the daemon and manager of ``host`` (or to the manager alone).

        Containers are left alone: their host did not die, its control plane did.

        Returns:
            The process ids that were signalled.

        Raises:
            NotFoundError: no such host.
            PreconditionError: no such process runs.
        """
        lab = self.state
        lab.require(host)
        found = processes.matching(lab, host, "-m", "manager")
        if not manager_only:
            # The daemon first: it must not start a new manager in between.
            found = processes.matching(lab, host, "-m", "agent") + found
        if not found:
            raise PreconditionError(
                f"{'no manager' if manager_only else 'no daemon'} runs on {host}"
            )
        processes.send(found, number)
        if number == signal.SIGKILL:
            self._await_gone(found, host)
        return found

    def pause(self, host: str) -> None:
        """Stop the processes of a host's control plane in their tracks (SIGSTOP)."""
        self.kill(host, number=signal.SIGSTOP)

    def resume(self, host: str) -> None:
        """Let a paused host go on (SIGCONT)."""
        self.kill(host, number=signal.SIGCONT)

    def break_underlay(self, broken: Sequence[faults.Fault]) -> None:
        """Make the underlay suffer from exactly these faults; none heals it.

        Raises:
            NotFoundError: a fault names a host that does not exist.
        """
        lab = self.state
        if not lab.hosts:
            raise PreconditionError("the lab is not up: start it with 'swarm lab up'")
        for fault in broken:
            names = (
                (fault.host,) if isinstance(fault, faults.Loss) else fault.sources + fault.targets
            )
            for name in names:
                lab.require(name)
        faults.apply(lab, broken)

    # -- inside -------------------------------------------------------------------------------

    def _add(self, lab: LabState, name: str, role: str) -> Host:
        host = Host(name=name, role=role, number=lab.next_number())
        lab.hosts[name] = host
        lab.save()
        hosts.make_host(lab, host)
        return host

    def _launch(self, lab: LabState, name: str) -> None:
        pid = processes.start_daemon(lab, name)
        lab.hosts[name] = dataclasses.replace(
            lab.hosts[name], pid=pid, started=processes.start_time(pid)
        )
        lab.save()

    def _await_daemon(self, lab: LabState, name: str) -> None:
        entry = lab.hosts[name]

        def answers() -> bool:
            processes.reap()
            if not processes.alive(entry.pid, entry.started):
                raise HostError(f"the daemon of {name} ended: {_last_line(lab.log(name))}")
            try:
                with client.connect(lab.socket(name)) as opened:
                    opened.local.Info(local_pb2.InfoRequest(), timeout=2)
            except SwarmError:
                return False
            return True

        processes.wait_until(
            answers,
            seconds=DAEMON_SECONDS,
            what=lambda: f"the daemon of {name} does not answer; its log is {lab.log(name)}",
        )

    def _await_gone(self, pids: Sequence[int], host: str) -> None:
        def gone() -> bool:
            processes.reap()
            return not any(processes.start_time(pid) for pid in pids)

        processes.wait_until(gone, seconds=10, what=lambda: f"processes of {host} do not end")

    def form(self, names: Sequence[str]) -> None:
        """Init on the first of ``names``, join the others, wait until all are Ready."""
        lab = self.state
        first = lab.hosts[names[0]]
        self._say(f"{first.name} starts the cluster")
        with self.client(first.name) as opened:
            opened.local.Init(
                local_pb2.InitRequest(
                    listen_addr=f"{first.address}:2377",
                    advertise_addr=first.address,
                    data_path_addr=first.address,
                ),
                timeout=READY_SECONDS,
            )
        tokens = self.tokens(first.name)
        for name in names[1:]:
            self._say(f"{name} joins")
            self.join(name, first.address, tokens[lab.hosts[name].role])
        self._say("waiting until every node is Ready")
        self.await_ready(first.name, len(names))

    def tokens(self, manager: str) -> dict[str, str]:
        """Return the join tokens, by role, as the manager on host ``manager`` tells them."""
        with self.client(manager) as opened:
            answer = opened.control.ListClusters(control_pb2.ListClustersRequest(), timeout=10)
        tokens = answer.clusters[0].root_ca.join_tokens
        return {"worker": tokens.worker, "manager": tokens.manager}

    def join(self, name: str, manager_address: str, token: str) -> None:
        """Join ``name`` to the cluster of the manager at ``manager_address``."""
        host = self.state.require(name)
        with self.client(name) as opened:
            opened.local.Join(
                local_pb2.JoinRequest(
                    remote_addrs=[f"{manager_address}:2377"],
                    token=token,
                    listen_addr=f"{host.address}:2377",
                    advertise_addr=host.address,
                    data_path_addr=host.address,
                ),
                timeout=READY_SECONDS,
            )

    def await_ready(self, manager: str, count: int) -> None:
        """Wait until ``count`` nodes are Ready in the eyes of the manager on host ``manager``.

        Raises:
            DeadlineError: they are not; the text names the states seen last.
        """
        seen: dict[str, str] = {}

        def ready() -> bool:
            try:
                with self.client(manager) as opened:
                    nodes = opened.control.ListNodes(
                        control_pb2.ListNodesRequest(), timeout=5
                    ).nodes
            except SwarmError as error:
                seen["error"] = str(error)
                return False
            seen.clear()
            for node in nodes:
                seen[node.description.hostname or node.id] = types_pb2.NodeState.Name(
                    node.status.state
                )
            good = sum(node.status.state == types_pb2.NODE_STATE_READY for node in nodes)
            return good >= count

        processes.wait_until(
            ready, seconds=READY_SECONDS, what=lambda: f"not every node became Ready: {seen}"
        )

    def _remove(self, lab: LabState) -> None:
        # From the file, so that a lab whose making was cut short goes too.
        known = {**self.state.hosts, **lab.hosts}
        for name in known:
            processes.send(processes.matching(lab, name, "-m", "agent"), signal.SIGKILL)
        for name in known:
            processes.end_all(lab, name)
        for name in known:
            hosts.remove_host(lab, name)
        hosts.remove_underlay(lab)


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "it left no log"
    return lines[-1] if lines else "it said nothing"


def _ignore_interrupts() -> list[tuple[int, object]]:
    """Let nothing interrupt the removal; returns what to restore."""
    try:
        return [
            (number, signal.signal(number, signal.SIG_IGN))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        ]
    except ValueError:  # not the main thread: signals do not arrive here anyway
        return []


def _restore_interrupts(previous: list[tuple[int, object]]) -> None:
    for number, handler in previous:
        signal.signal(number, handler)  # type: ignore[arg-type]  # came from signal.signal
