"""A stock Docker engine on a bare host of a lab.

``dockerd`` runs in the network namespace of the host, in mount and process namespaces of its own with a
private ``/run``: several engines live side by side on one machine, and when the first process of such
a namespace ends, the kernel ends every engine, containerd, shim and container in it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from swarm.errors import HostError, SwarmError
from swarm.lab.cluster import Lab
from swarm.lab.processes import wait_until

IMAGE: Final = "overswarm/busybox"
"""The image that every engine here has: made from this machine's static busybox, no registry needed."""
BUSYBOX: Final = Path("/bin/busybox")
PACKAGES: Final = ("docker.io", "iptables", "busybox-static")
"""Debian packages that bring everything an engine needs."""
DIAGNOSTIC_PORT: Final = 2000
"""Port on the engine's own loopback where it shows its gossip tables once it was told to reload."""

_PROGRAMS: Final = (
    "dockerd", "containerd", "runc", "docker", "iptables", "unshare", "nsenter", "mount",
)  # fmt: skip
_APPLETS: Final = (
    "sh", "cat", "echo", "grep", "head", "hostname", "httpd", "ip", "ls", "nslookup", "ping", "sha256sum", "sleep",
    "wget",
)  # fmt: skip
_START_SECONDS: Final = 90.0
_STOP_SECONDS: Final = 60.0
_INIT: Final = (
    'mount --bind "$1" /etc/resolv.conf && '
    "mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/lock && : >/run/ready && "
    "while :; do sleep 3600 & wait $!; done"
)
"""First process of the engine's namespaces: resolv.conf ($1) and /run of its own, then wait, which also
collects orphans."""


def missing() -> list[str]:
    """Return what this machine lacks for running an engine; empty when it can."""
    lacking = [name for name in _PROGRAMS if shutil.which(name) is None]
    if not BUSYBOX.exists() or _is_dynamic(BUSYBOX):
        lacking.append(f"a static {BUSYBOX}")
    return lacking


def _is_dynamic(program: Path) -> bool:
    """Say whether a program needs libraries: ``ldd`` fails for one that does not."""
    return (
        subprocess.run(
            ["ldd", str(program)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )


def require_engine() -> None:
    """Refuse to go on where no engine can run.

    Raises:
        HostError: programs are missing; the text names them and the packages that bring them.
    """
    lacking = missing()
    if lacking:
        raise HostError(
            f"a real Docker engine cannot run here, this machine lacks {', '.join(lacking)}: "
            f"apt-get install {' '.join(PACKAGES)}"
        )


class Engine:
    """One ``dockerd``.

    Args:
        lab: the lab that has the host.
        host: a bare host of it (:meth:`swarm.lab.cluster.Lab.add_bare`).
        folder: where the engine keeps its data, log and socket; removed by :meth:`destroy`.
        program: the ``dockerd`` to run.
    """

    def __init__(self, lab: Lab, host: str, folder: Path, *, program: str = "dockerd") -> None:
        self.lab = lab
        self.host = host
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.log = folder / "dockerd.log"
        self._program = program
        self._init: subprocess.Popen[bytes] | None = None
        self._dockerd: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """IPv4 address of the engine on the underlay."""
        return self.lab.state.require(self.host).address

    @property
    def running(self) -> bool:
        """Whether the engine's process runs."""
        return self._dockerd is not None and self._dockerd.poll() is None

    # -- life ---------------------------------------------------------------------------------

    def launch(self, *flags: str) -> None:
        """Start the engine without waiting for it.

        Raises:
            HostError: it runs already, or its namespaces cannot be made.
        """
        if self.running:
            raise HostError(f"the engine of {self.host} runs already")
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "daemon.json").write_text(
            json.dumps({"network-diagnostic-port": DIAGNOSTIC_PORT})
        )
        dockerd = [
            self._program, "--config-file", str(self.folder / "daemon.json"),
            "--data-root", str(self.folder / "data"), "--exec-root", "/run/docker",
            "--pidfile", "/run/docker.pid", "-H", f"unix://{self.socket}",
            "--storage-driver", "vfs", *flags,
        ]  # fmt: skip
        self._dockerd = self._spawn(self.within(dockerd))

    def start(self, *flags: str) -> None:
        """Start the engine and wait until it answers and has its image.

        Raises:
            HostError: it ended; the text shows the end of its log.
            DeadlineError: it does not answer.
        """
        self.launch(*flags)
        self.await_ready()

    def await_ready(self) -> None:
        """Wait until the engine answers and has its image.

        Raises:
            HostError: it ended; the text shows the end of its log.
            DeadlineError: it does not answer.
        """

        def answers() -> bool:
            if not self.running:
                raise HostError(f"dockerd of {self.host} ended:\n{self.log.read_text()[-2000:]}")
            return self.attempt("version").returncode == 0

        wait_until(
            answers,
            seconds=_START_SECONDS,
            what=lambda: f"dockerd of {self.host} does not answer; its log is {self.log}",
            pause=0.2,
        )
        if IMAGE not in self.docker("images", "--format", "{{.Repository}}").split():
            self._load_image()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the engine with a signal and wait until it is gone; SIGKILL leaves its containers running."""
        if self._dockerd is None:
            return
        self.signal(number)
        self._dockerd.wait(timeout=_STOP_SECONDS)
        self._dockerd = None

    def signal(self, number: int) -> None:
        """Send a signal to ``dockerd`` itself."""
        if self._dockerd is not None:
            for pid in _children(self._dockerd.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)

    def destroy(self) -> None:
        """End the engine and everything it started; remove its files. Safe in every state."""
        try:
            if self.running:
                with contextlib.suppress(SwarmError, OSError, subprocess.SubprocessError):
                    containers = self.attempt("ps", "-aq").stdout.split()
                    if containers:
                        self.attempt("rm", "-f", *containers)
                    self.stop()
        finally:
            if self._init is not None:
                self._init.kill()
                self._init.wait(timeout=_STOP_SECONDS)
                self._init = None
            if self._dockerd is not None:
                self._dockerd.kill()
                self._dockerd.wait(timeout=_STOP_SECONDS)
                self._dockerd = None
            shutil.rmtree(self.folder, ignore_errors=True)

    # -- use ----------------------------------------------------------------------------------

    def attempt(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a docker command, however it ends.

        Raises:
            subprocess.TimeoutExpired: it took longer than ``timeout`` seconds; it was killed.
        """
        return subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *words],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def docker(self, *words: str, timeout: float = 60) -> str:
        """Run a docker command that must succeed and return what it printed.

        Raises:
            HostError: it failed; the text holds what it said.
        """
        result = self.attempt(*words, timeout=timeout)
        if result.returncode != 0:
            raise HostError(
                f"'docker {' '.join(words)}' on {self.host} ended with {result.returncode}: "
                f"{result.stderr.strip()}"
            )
        return result.stdout

    def version(self) -> str:
        """Return the engine's version as it says itself."""
        return self.docker("version", "--format", "{{.Server.Version}}").strip()

    def within(self, argv: Sequence[str]) -> list[str]:
        """Return the argument list that runs ``argv`` where the engine runs."""
        return ["nsenter", "--target", str(self._first_process()), "--mount", "--pid", *argv]

    def run_in(
        self, container: str, *argv: str, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a program of this machine in the network namespace of a container.

        Names are resolved as on this machine, not as in the container.
        """
        pid = self.docker("inspect", "--format", "{{.State.Pid}}", container).strip()
        words, environment = self._on_host(
            self.within(["nsenter", "--target", pid, "--net", *argv])
        )
        return subprocess.run(
            words,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    # -- inside -------------------------------------------------------------------------------

    def _on_host(self, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        return self.lab.argv(self.host, argv)

    def _spawn(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        words, environment = self._on_host(argv)
        with self.log.open("ab") as log:
            return subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd="/",
            )

    def _first_process(self) -> int:
        """Return the process that holds the engine's namespaces; it is made when there is none."""
        if self._init is None or self._init.poll() is not None:
            # Nobody answers there, and says so at once: an engine asks a registry before every task, and a
            # name that no container has is asked of this server; either would wait long for one out of reach.
            resolver = self.folder / "resolv.conf"
            resolver.write_text(f"nameserver {self.address}\n")
            self._init = self._spawn(
                ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                 "sh", "-c", _INIT, "sh", str(resolver)]
            )  # fmt: skip
        init = self._init

        def made() -> bool:
            if init.poll() is not None:
                raise HostError(f"no namespaces for an engine: {self.log.read_text()[-500:]}")
            return any(Path(f"/proc/{pid}/root/run/ready").exists() for pid in _children(init.pid))

        wait_until(made, seconds=20, what=lambda: "the engine's namespaces are not made")
        return _children(init.pid)[0]

    def _load_image(self) -> None:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(BUSYBOX, "bin/busybox")
            for name in _APPLETS:
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
            page = b"hello from docker\n"
            index = tarfile.TarInfo("www/index.html")
            index.size = len(page)
            archive.addfile(index, io.BytesIO(page))
        subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", "import", "-", IMAGE],
            input=content.getvalue(),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )


def _children(pid: int) -> list[int]:
    """Return the children of a process that has one thread."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
