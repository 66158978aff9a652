"""A stock Docker engine on a bare host of a lab."""

from __future__ import annotations

import io
import shutil
import signal
import subprocess
import tarfile
from pathlib import Path

from swarm.lab.cluster import Lab
from swarm.lab.processes import wait_until

IMAGE = "overswarm/busybox"
MISSING = [
    name
    for name in ("dockerd", "containerd", "runc", "docker", "iptables", "unshare", "nsenter")
    if shutil.which(name) is None
]
"""Programs an engine needs that this machine lacks; ``apt-get install docker.io iptables`` brings them."""
BUSYBOX = Path("/bin/busybox")


class Engine:
    """``dockerd`` in the network namespace of a bare lab host, with private state and a private /run.

    The namespace is entered without a new /sys (which would hide the cgroups); the mount namespace is the
    engine's own with a fresh tmpfs on /run.
    """

    def __init__(self, lab: Lab, host: str, folder: Path) -> None:
        self.lab = lab
        self.host = host
        self.folder = folder
        self.socket = folder / "docker.sock"
        self.log = folder / "dockerd.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """IPv4 address of the engine on the underlay."""
        return self.lab.state.require(self.host).address

    def start(self, *flags: str) -> None:
        """Start the engine and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        dockerd = [
            "dockerd", "--data-root", str(self.folder / "data"), "--exec-root", "/run/docker",
            "--pidfile", "/run/docker.pid", "-H", f"unix://{self.socket}", "--storage-driver", "vfs",
            *flags,
        ]  # fmt: skip
        script = 'mount -t tmpfs tmpfs /run && exec "$@"'
        argv, environment = self.lab.argv(
            self.host, ["unshare", "--mount", "sh", "-c", script, "engine", *dockerd]
        )
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, cwd="/",
            )  # fmt: skip
        process = self._process

        def answers() -> bool:
            assert process.poll() is None, f"dockerd ended:\n{self.log.read_text()[-2000:]}"
            return self.attempt("version").returncode == 0

        wait_until(
            answers, seconds=60, what=lambda: f"dockerd does not answer: {self.log}", pause=0.2
        )
        if IMAGE not in self.docker("images", "--format", "{{.Repository}}").split():
            self._load_image()

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Stop the engine; its containers go on only if the engine was told so."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout=60)
            self._process = None

    def destroy(self) -> None:
        """Remove the engine's containers, stop it, remove its files."""
        if self._process is not None:
            ids = self.attempt("ps", "-aq").stdout.split()
            if ids:
                self.attempt("rm", "-f", *ids)
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def attempt(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a docker command, however it ends."""
        return subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *words],
            capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def docker(self, *words: str, timeout: float = 60) -> str:
        """Run a docker command that must succeed; its standard output."""
        result = self.attempt(*words, timeout=timeout)
        assert result.returncode == 0, f"docker {' '.join(words)}: {result.stderr}"
        return result.stdout

    def _load_image(self) -> None:
        """Make an image from this machine's static busybox: no registry is needed."""
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as archive:
            archive.add(BUSYBOX, "bin/busybox")
            for name in (
                "sh",
                "ping",
                "sleep",
                "wget",
                "httpd",
                "nslookup",
                "cat",
                "ip",
                "nc",
                "echo",
            ):
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
            page = b"hello from docker\n"
            index = tarfile.TarInfo("www/index.html")
            index.size = len(page)
            archive.addfile(index, io.BytesIO(page))
        subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", "import", "-", IMAGE],
            input=content.getvalue(), check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
