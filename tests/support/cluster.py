"""A lab cluster and the few things every test does with it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from dataclasses import dataclass

from swarm.lab.cluster import Lab
from swarm.lab.processes import wait_until

PROGRAM = (sys.executable, "-m", "swarm.lab.workloads")


@dataclass(frozen=True, slots=True)
class Cluster:
    """A lab and the few things every test does with it."""

    lab: Lab

    def swarm(self, host: str, *words: str) -> str:
        """Run a ``swarm`` command that must succeed; its standard output."""
        result = self.attempt(host, *words)
        assert result.returncode == 0, f"swarm {shlex.join(words)} on {host}: {result.stderr}"
        return result.stdout

    def attempt(self, host: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a ``swarm`` command, however it ends."""
        return self.lab.run(host, "swarm", *words)

    def refused(self, host: str, *words: str, status: int = 1) -> str:
        """Run a ``swarm`` command that must be refused in one clear line; that line."""
        result = self.attempt(host, *words)
        assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
        assert result.stderr.startswith("Error: "), result.stderr
        assert result.stderr.count("\n") == 1, result.stderr
        assert "Traceback" not in result.stderr
        return result.stderr

    def network(self, name: str, *flags: str) -> str:
        """Create an attachable network; its id."""
        return self.swarm("m1", "network", "create", "--attachable", *flags, name).strip()

    def serve(self, host: str, name: str, *networks: str) -> str:
        """Start a small web server as a container; its address on the first network."""
        wishes = [word for network in networks for word in ("--network", network)]
        self.swarm(host, "run", "-d", "--name", name, *wishes, "--", *PROGRAM, "serve", "8080")
        return self.address(host, name)

    def address(self, host: str, container: str) -> str:
        """The first address of a container."""
        text = self.swarm(
            host, "ps", "--no-trunc", "--filter", f"name={container}", "--format", "{{.Networks}}"
        )
        return text.split("(")[1].split(")")[0].split(",")[0]

    def fetch(
        self, host: str, network: str, url: str, timeout: float = 3
    ) -> subprocess.CompletedProcess[str]:
        """Fetch a page from a fresh container on ``network``."""
        return self.attempt(
            host,
            "run",
            "--rm",
            "--network",
            network,
            "--",
            *PROGRAM,
            "fetch",
            "--timeout",
            str(timeout),
            url,
        )

    def eventually_fetches(self, host: str, network: str, url: str) -> str:
        """Fetch a page, allowing for the moment that gossip takes; its text."""
        pages: list[str] = []

        def fetched() -> bool:
            result = self.fetch(host, network, url)
            pages.append(result.stdout or result.stderr)
            return result.returncode == 0

        wait_until(fetched, seconds=20, what=lambda: f"{url} from {host}: {pages[-1]}")
        return pages[-1]

    def remove(self, host: str, *containers: str) -> None:
        """Remove containers by force."""
        self.swarm(host, "rm", "-f", *containers)

    def remove_network(self, *names: str) -> None:
        """Remove networks as soon as nothing uses them any more."""
        seen: list[str] = []

        def gone() -> bool:
            result = self.attempt("m1", "network", "rm", *names)
            seen.append(result.stderr)
            return result.returncode == 0 or "not found" in result.stderr

        wait_until(gone, seconds=20, what=lambda: f"networks {names} stay: {seen[-1]}")
