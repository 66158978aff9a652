"""Clusters mixed of our daemons and stock Docker engines, both ways round, checked at every step.

Everything is done as a person would do it, with ``swarm`` on our hosts and ``docker`` on theirs.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from swarm.errors import HostError
from swarm.lab import processes
from swarm.lab.cluster import Lab
from swarm.lab.demo import PROGRAM, READY_SECONDS, Demo, DemoFailedError
from swarm.lab.engine import IMAGE, Engine, require_engine
from swarm.lab.traces import observe

Ping = Callable[[], subprocess.CompletedProcess[str]]

ENGINES: Final = ("d1", "d2")
FAULT_PINGS: Final = 30
"""Pings, five a second, sent while the manager is killed and comes back."""


def run_demo(name: str) -> int:
    """Run the demo in a lab of its own; returns the exit status and leaves nothing behind.

    Raises:
        HostError: no engine can run on this machine; the text says what is missing.
        DemoFailedError: a step did not show what it had to.
    """
    require_engine()
    console = Console(highlight=False, soft_wrap=True)
    before = observe(name)
    began = time.monotonic()
    lab = Lab(name)
    with tempfile.TemporaryDirectory(prefix="swarm-demo-") as folder:
        demo = DockerDemo(lab, console, Path(folder))
        try:
            demo.run()
        finally:
            demo.end_engines()
            lab.down()
    left = [line for line in before.left_behind(observe(name)) if name in line]
    if left:
        raise DemoFailedError("the demo left something behind: " + "; ".join(left))
    console.print("  nothing is left on this machine: no namespace, mount, process or file of it")
    console.print(f"[bold green]Both mixes work[/] ({time.monotonic() - began:.1f} s).")
    return 0


class DockerDemo(Demo):
    """The steps, on one lab: m1, w1, w2 are ours, d1 and d2 are engines.

    Args:
        lab: a lab that is not up yet.
        console: where it is shown.
        folder: for the engines' files.
    """

    def __init__(self, lab: Lab, console: Console, folder: Path) -> None:
        super().__init__(lab, console)
        self._engines = {name: Engine(lab, name, folder / name) for name in ENGINES}

    def steps(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """Return what is run in order, with titles."""
        return (
            ("our cluster, and two stock engines beside it", self.prepare),
            ("the engines join our cluster", self.they_join),
            ("one network, containers of both kinds", self.mix),
            ("our manager is killed", self.kill_manager),
            ("an engine leaves and makes a swarm of its own", self.turn),
            ("our host joins Docker's swarm", self.we_join),
        )

    def end_engines(self) -> None:
        """End the engines with everything they run."""
        for engine in self._engines.values():
            engine.destroy()

    # -- steps --------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Init on m1, join on w1; w2 waits; two engines start on bare hosts."""
        self._lab.build(["m1", "w1", "w2"])
        self._lab.form(["m1", "w1"])
        for name, engine in self._engines.items():
            self._lab.add_bare(name)
            engine.launch()
        for name, engine in self._engines.items():
            engine.await_ready()
            self.say(f"{name}: dockerd {engine.version()} on {engine.address}")

    def they_join(self) -> None:
        """``docker swarm join`` with our token; both engines are Ready."""
        token = self._lab.tokens("m1")["worker"]
        target = f"{self._lab.state.require('m1').address}:2377"
        for name in ENGINES:
            self.docker(name, "swarm", "join", "--token", token, target)
        self._lab.await_ready("m1", 4)
        listed = self.swarm("m1", "node", "ls")
        self.expect(listed.count("Ready") == 4, "four Ready nodes", listed)

    def mix(self) -> None:
        """Ping and HTTP by name: engine to us, us to engine, engine to engine."""
        self.swarm("m1", "network", "create", "-d", "overlay", "--attachable", "net1")
        self.serve("w1", "ours", "net1")
        self.container("d1", "theirs", "net1", "httpd", "-f", "-p", "8080", "-h", "/www")
        self.container("d2", "third", "net1", "sleep", "600")
        self.swarm("m1", "network", "inspect", "--format", "{{json .IPAM.Config}}", "net1")
        self._reach("d1", "theirs", "ours")
        self._reach("w1", "ours", "theirs")
        self._reach("d2", "third", "theirs")
        self.swarm("w1", "endpoints")

    def kill_manager(self) -> None:
        """Pings from engine to us go on while our only manager dies and returns."""
        address = self.address("w1", "ours")
        words = ("docker", "-H", f"unix://{self._engines['d1'].socket}")
        ping = ("exec", "theirs", "ping", "-q", "-c", str(FAULT_PINGS), "-i", "0.2", address)
        with subprocess.Popen([*words, *ping], stdout=subprocess.PIPE, text=True) as pings:
            try:
                killed = self._lab.kill("m1", manager_only=True)
                self.say(f"SIGKILL to the manager on m1 (pid {killed[0]})")
                self._lab.await_ready("m1", 4)
                output, _ = pings.communicate(timeout=60)
            finally:
                pings.kill()
        summary = next((line for line in output.splitlines() if "transmitted" in line), output)
        self.say(f"d1 to w1 meanwhile: {summary}")
        self.expect(f"{FAULT_PINGS} packets received" in summary, "no ping lost", summary)
        self.swarm("m1", "node", "ls")
        self.container("d2", "after", "net1", "sleep", "600")
        self._reach("d2", "after", "ours")

    def turn(self) -> None:
        """``docker swarm leave`` on d2, then ``docker swarm init`` there."""
        self.docker("d2", "rm", "-f", "third", "after", show=False)
        self.docker("d2", "swarm", "leave")
        self.docker("d2", "swarm", "init", "--advertise-addr", self._engines["d2"].address)
        self.docker("d2", "network", "create", "-d", "overlay", "--attachable", "dockernet")

    def we_join(self) -> None:
        """``swarm join`` of w2 with Docker's token; names and pages both ways on Docker's network."""
        token = self.docker("d2", "swarm", "join-token", "-q", "worker", show=False).strip()
        address = self._lab.state.require("w2").address
        target = f"{self._engines['d2'].address}:2377"
        self.swarm("w2", "join", "--advertise-addr", address, "--token", token, target)
        self._await_docker_ready(2)
        self.docker("d2", "node", "ls")
        self.serve("w2", "ours", "dockernet")
        self.container("d2", "theirs", "dockernet", "httpd", "-f", "-p", "8080", "-h", "/www")
        self._reach("d2", "theirs", "ours")
        self._reach("w2", "ours", "theirs")
        refused = self.try_swarm("w2", "node", "ls")
        self.say(refused.stderr.strip())
        self.expect("not a swarm manager" in refused.stderr, "Docker's own words", refused.stderr)

    # -- running ------------------------------------------------------------------------------

    def docker(self, host: str, *words: str, show: bool = True) -> str:
        """Run a ``docker`` command that must succeed and return what it printed.

        Raises:
            DemoFailedError: it failed.
        """
        self._console.print(f"  [magenta]{host}$[/] docker {escape(' '.join(words))}")
        try:
            output = self._engines[host].docker(*words)
        except HostError as error:
            raise DemoFailedError(str(error)) from error
        if show:
            for line in output.splitlines():
                self._console.print(f"    {escape(line)}", style="dim")
        return output

    def container(self, host: str, name: str, network: str, *argv: str) -> None:
        """Start a container on an engine."""
        words = ("run", "-d", "--stop-timeout", "1", "--name", name, "--network", network)
        self.docker(host, *words, IMAGE, *argv, show=False)

    def _reach(self, host: str, container: str, target: str) -> None:
        """Ping a container by name and fetch its page, from either kind of host."""
        if host in self._engines:
            run, page = ("exec", container), ("wget", "-q", "-O", "-")
            pinged = self._await_ping(
                lambda: self._engines[host].attempt(*run, "ping", "-c1", "-W1", target)
            )
            text = self.docker(host, *run, *page, f"http://{target}:8080/")
        else:
            pinged = self._await_ping(
                lambda: self._lab.run(
                    host, "swarm", "exec", container, "ping", "-c1", "-W1", target
                )
            )
            text = self.swarm(host, "exec", container, *PROGRAM, "fetch", f"http://{target}:8080/")
        self.expect(text.startswith("hello from"), f"the page of {target}", text)
        self.say(f"{container} on {host} has the page of {target}, and pings it by name: {pinged}")

    def _await_ping(self, ping: Ping) -> str:
        """Ping until it is answered; the line of the answer."""
        seen: list[str] = [""]

        def answered() -> bool:
            result = ping()
            seen[0] = result.stdout + result.stderr
            return result.returncode == 0

        processes.wait_until(answered, seconds=READY_SECONDS, what=lambda: f"no answer: {seen[0]}")
        return next((line for line in seen[0].splitlines() if "bytes from" in line), "")

    def _await_docker_ready(self, count: int) -> None:
        def ready() -> bool:
            lines = self._engines["d2"].docker("node", "ls", "--format", "{{json .}}").splitlines()
            return [json.loads(line)["Status"] for line in lines] == ["Ready"] * count

        processes.wait_until(ready, seconds=READY_SECONDS, what=lambda: "not every node is Ready")
