"""The main job from start to end, as a person would do it, checked at every step.

Each step runs the ``swarm`` command on the lab's hosts, the way a person would type it, and fails with
one sentence when what it shows is not so.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from swarm.api.overswarm.v1 import local_pb2
from swarm.errors import SwarmError
from swarm.lab import processes
from swarm.lab.cluster import Lab
from swarm.lab.traces import observe

PROGRAM: Final = (sys.executable, "-m", "swarm.lab.workloads")
READY_SECONDS: Final = 30.0
SLOW_STARTS: Final = 4
TRANSFER_SECONDS: Final = 6.0
TRANSFER_PACKETS: Final = 50
"""So many have left when the transfer is certainly under way; the kernel counts large ones as one."""
TRANSFER_RATE: Final = 20_000_000
SILENCE_SECONDS: Final = 10.0
"""A transfer that is silent for so long has noticed."""


class DemoFailedError(SwarmError):
    """A step did not show what it had to."""


class Demo:
    """The six steps, on one lab."""

    done: ClassVar[str] = "The main job is done"

    def __init__(self, lab: Lab, console: Console) -> None:
        self._lab = lab
        self._console = console

    def steps(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """Return what is run in order, with titles."""
        return (
            ("three hosts form a cluster", self.form),
            ("a network for everybody", self.network),
            ("a container on one host, its client on another", self.across),
            ("what must not be reached is not reached", self.isolation),
            ("the agent dies during a transfer", self.restart),
            ("everything at a glance, then nothing", self.survey),
        )

    def run(self) -> None:
        """Run every step, each announced and timed.

        Raises:
            DemoFailedError: one did not show what it had to.
        """
        steps = self.steps()
        for number, (title, step) in enumerate(steps, start=1):
            self._console.print(f"\n[bold]{number}/{len(steps)} {title}[/]")
            began = time.monotonic()
            step()
            self._console.print(f"  [green]ok[/] ({time.monotonic() - began:.1f} s)")

    # -- steps --------------------------------------------------------------------------------

    def form(self) -> None:
        """Init on m1, join on w1 and w2, three Ready nodes."""
        state = self._lab.build(["m1", "w1", "w2"])
        manager = state.hosts["m1"].address
        self._init(manager)
        token = self.swarm("m1", "join-token", "-q", "worker", show=False).strip()
        for name in ("w1", "w2"):
            address = state.hosts[name].address
            self.swarm(
                name,
                "join",
                "--token",
                token,
                "--listen-addr",
                f"{address}:2377",
                "--advertise-addr",
                address,
                "--data-path-addr",
                address,
                f"{manager}:2377",
            )
        self._lab.await_ready("m1", 3)
        listed = self.swarm("m1", "node", "ls")
        self.expect(listed.count("Ready") == 3, "three Ready nodes", listed)

    def _init(self, manager: str) -> None:
        """Start the cluster; under emulation the manager may need a second start to be in time."""
        words = ["init", "--advertise-addr", manager, "--data-path-addr", manager]
        words += ["--listen-addr", f"{manager}:2377"]
        if processes.PATIENCE > 1:
            for _ in range(SLOW_STARTS):
                if self.try_swarm("m1", *words).returncode == 0:
                    return
        self.swarm("m1", *words, show=False)

    def network(self) -> None:
        """Create, list, inspect."""
        self.swarm("m1", "network", "create", "-d", "overlay", "--attachable", "net1")
        self.expect("net1" in self.swarm("m1", "network", "ls"), "net1 in the list")
        inspected = self.inspect("net1")
        config = inspected["IPAM"]["Config"][0]
        vni = inspected["Options"]["com.docker.network.driver.overlay.vxlanid_list"]
        self.say(f"net1 has subnet {config['Subnet']}, gateway {config['Gateway']}, VNI {vni}")
        self.expect(inspected["Attachable"] is True, "an attachable network")

    def across(self) -> None:
        """A page served on w1 is fetched by name on w2, over VXLAN on both."""
        self.serve("w1", "web", "net1")
        self.idle("w2", "client", "net1")
        self.await_name("w2", "client", "web")
        before = {name: self.counters(name, "net1") for name in ("w1", "w2")}
        page = self.once("w2", "net1", "fetch", "http://web:8080/")
        self.expect(page.startswith("hello from"), "the page of web", page)
        for name in ("w1", "w2"):
            after = self.counters(name, "net1")
            moved = [after[key] - before[name].get(key, 0) for key in ("rx", "tx")]
            self.say(f"{name}: {moved[0]} packets in and {moved[1]} out through the VXLAN device")
            self.expect(min(moved) > 0, f"traffic through the VXLAN device of {name}", str(moved))

    def isolation(self) -> None:
        """Attachable only where allowed; networks apart; two networks for one container."""
        self.swarm("m1", "network", "create", "-d", "overlay", "closed", show=False)
        refused = self.try_swarm("w2", "run", "--network", "closed", "--", "true")
        self.say(refused.stderr.strip())
        self.expect(
            refused.returncode != 0 and "attach" in refused.stderr,
            "a refusal with its reason",
            refused.stderr,
        )
        self.swarm("m1", "network", "create", "-d", "overlay", "--attachable", "net2")
        self.serve("w2", "db", "net2")
        address = self.address("w2", "db")
        for target in (address, "db"):
            lost = self.try_swarm(
                "w2",
                "exec",
                "client",
                *PROGRAM,
                "fetch",
                "--timeout",
                "1",
                f"http://{target}:8080/",
            )
            self.expect(lost.returncode == 1, f"no way from net1 to {target}", lost.stdout)
        self.say(f"client, which is on net1 only, reaches neither the name db nor {address}")
        self.idle("w1", "both", "net1", "net2")
        for target in ("web", "db"):
            self.await_name("w1", "both", target)
            page = self.swarm("w1", "exec", "both", *PROGRAM, "fetch", f"http://{target}:8080/")
            self.expect(page.startswith("hello from"), f"both reaches {target}", page)

    def restart(self) -> None:
        """Kill the agent of w1 in the middle of a transfer from w1 to w2, and start it again."""
        seconds = TRANSFER_SECONDS * processes.PATIENCE
        amount = ("--seconds", str(seconds), "--rate", str(TRANSFER_RATE))
        self.start("w1", "source", ("net1",), *PROGRAM, "give", "9000", *amount)
        self.await_name("w2", "client", "source")
        words = (
            "swarm",
            "run",
            "--rm",
            "--network",
            "net1",
            "--",
            *PROGRAM,
            "take",
            "source",
            "9000",
            "--timeout",
            str(SILENCE_SECONDS * processes.PATIENCE),
        )
        argv, environment = self._lab.argv("w2", words)
        with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as transfer:
            try:
                self._await_traffic("w1", "net1")
                time.sleep(TRANSFER_SECONDS / 3)
                killed = self._lab.kill("w1")
                self.say(
                    f"SIGKILL to the agent of w1 (pid {killed[0]}) with the transfer under way"
                )
                time.sleep(0.5)
                self._lab.start("w1")
                self.say("the agent of w1 is back")
                output, _ = transfer.communicate(timeout=60 * processes.PATIENCE)
            finally:
                transfer.kill()
        received, digest, pause = output.split()
        sent, expected = self.swarm("w1", "logs", "source", show=False).split()
        self.say(
            f"{int(received) / 1e6:.0f} MB received of {int(sent) / 1e6:.0f} MB sent, "
            f"longest pause {pause} ms"
        )
        self.expect((received, digest) == (sent, expected), "every byte, in order", output)
        self._lab.await_ready("m1", 3)

    def _await_traffic(self, host: str, network: str) -> None:
        """Wait until more leaves a host on a network than a few names and pages."""
        before = self.counters(host, network)["tx"]
        processes.wait_until(
            lambda: self.counters(host, network)["tx"] - before > TRANSFER_PACKETS,
            seconds=READY_SECONDS,
            what=lambda: "the transfer does not begin",
        )

    def survey(self) -> None:
        """Print the tree of nodes, networks and endpoints; remove all of it."""
        self._console.print(self.tree())
        for name, containers in (("w1", ("web", "both", "source")), ("w2", ("client", "db"))):
            self.swarm(name, "rm", "-f", *containers)
        self._await_unused()
        self.swarm("m1", "network", "rm", "net1", "net2", "closed")
        listed = self.swarm("m1", "network", "ls", "--format", "{{.Name}}", show=False).split()
        self.expect(listed == ["ingress"], "only the ingress network left", str(listed))

    # -- looking ------------------------------------------------------------------------------

    def tree(self) -> Tree:
        """Return nodes, networks and endpoints as a tree."""
        nodes = self.json_lines("m1", "node", "ls")
        tree = Tree(f"[bold]cluster of {len(nodes)} nodes[/]")
        for node in nodes:
            role = node["ManagerStatus"] or "Worker"
            branch = tree.add(
                f"{node['Hostname']} [dim]{role.lower()}, {node['Status'].lower()}[/]"
            )
            rows = self.json_lines(node["Hostname"], "endpoints")
            local = [row for row in rows if row["Local"]]
            for network in sorted({row["Network"] for row in local}):
                twig = branch.add(f"{network}")
                for row in local:
                    if row["Network"] == network:
                        twig.add(f"{row['Name']}  {row['Address']}  {row['Mac']}  on {row['Host']}")
            if not local:
                branch.add("[dim]no endpoints[/]")
        return tree

    def address(self, host: str, container: str) -> str:
        """Return the first address of a container."""
        with self._lab.client(host) as client:
            answer = client.local.ListContainers(
                local_pb2.ListContainersRequest(all=True, container=container), timeout=10
            )
        return answer.containers[0].endpoints[0].addresses[0].split("/")[0]

    def counters(self, host: str, network: str) -> dict[str, int]:
        """Return the packets that went through the VXLAN device of a network on ``host``."""
        with self._lab.client(host) as client:
            answer = client.local.ListLocalNetworks(
                local_pb2.ListLocalNetworksRequest(), timeout=10
            )
        for entry in answer.networks:
            if entry.network.spec.annotations.name == network:
                return {"rx": entry.rx_packets, "tx": entry.tx_packets}
        return {"rx": 0, "tx": 0}

    def inspect(self, network: str) -> dict[str, Any]:
        """Return ``swarm network inspect`` of one network."""
        found: list[dict[str, Any]] = json.loads(
            self.swarm("m1", "network", "inspect", network, show=False)
        )
        return found[0]

    def json_lines(self, host: str, *words: str) -> list[dict[str, Any]]:
        """Return the rows of a list command."""
        text = self.swarm(host, *words, "--format", "json", show=False)
        return [json.loads(line) for line in text.splitlines()]

    def await_name(self, host: str, container: str, name: str) -> None:
        """Wait until a container resolves a name: gossip takes a moment.

        Raises:
            DeadlineError: it never does.
        """

        def known() -> bool:
            result = self._lab.run(host, "swarm", "exec", container, *PROGRAM, "resolve", name)
            return result.returncode == 0

        processes.wait_until(
            known, seconds=READY_SECONDS, what=lambda: f"{container} does not learn {name}"
        )

    def _await_unused(self) -> None:
        def unused() -> bool:
            return not any(self.json_lines(name, "endpoints") for name in ("w1", "w2"))

        processes.wait_until(
            unused, seconds=READY_SECONDS, what=lambda: "endpoints stay after removal"
        )

    # -- running ------------------------------------------------------------------------------

    def swarm(self, host: str, *words: str, show: bool = True) -> str:
        """Run a ``swarm`` command that must succeed and return what it printed.

        Raises:
            DemoFailedError: it failed.
        """
        result = self.try_swarm(host, *words)
        if result.returncode != 0:
            raise DemoFailedError(
                f"'swarm {shlex.join(words)}' on {host} ended with {result.returncode}: "
                f"{result.stderr.strip() or result.stdout.strip()}"
            )
        if show:
            for line in result.stdout.splitlines():
                self._console.print(f"    {escape(line)}", style="dim")
        return result.stdout

    def try_swarm(self, host: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a ``swarm`` command and return how it ended."""
        shown = shlex.join(words).replace(shlex.join(PROGRAM), "demo-program")
        self._console.print(f"  [cyan]{host}$[/] swarm {escape(shown)}")
        return self._lab.run(host, "swarm", *words)

    def start(self, host: str, name: str, networks: Sequence[str], *argv: str) -> None:
        """Start a container that goes on in the background."""
        wishes = [word for network in networks for word in ("--network", network)]
        self.swarm(host, "run", "-d", "--name", name, *wishes, "--", *argv, show=False)

    def serve(self, host: str, name: str, *networks: str) -> None:
        """Start a container with a small web server."""
        self.start(host, name, networks, *PROGRAM, "serve", "8080")

    def idle(self, host: str, name: str, *networks: str) -> None:
        """Start a container that only keeps its place."""
        self.start(host, name, networks, "sleep", "600")

    def once(self, host: str, network: str, *words: str) -> str:
        """Run one of our programs in a fresh container to its end and return what it printed."""
        return self.swarm(host, "run", "--rm", "--network", network, "--", *PROGRAM, *words)

    def say(self, text: str) -> None:
        """Print one finding."""
        self._console.print(f"  {escape(text)}")

    def expect(self, condition: bool, what: str, seen: str = "") -> None:
        """Fail the demo unless ``condition`` holds.

        Raises:
            DemoFailedError: it does not.
        """
        if not condition:
            raise DemoFailedError(
                f"expected {what}" + (f", but saw: {seen.strip()}" if seen else "")
            )


def run_demo(name: str, kind: type[Demo] = Demo) -> int:
    """Run a demo in a lab of its own; returns the exit status and leaves nothing behind."""
    console = Console(highlight=False, soft_wrap=True)
    before = observe(name)
    began = time.monotonic()
    lab = Lab(name)
    try:
        kind(lab, console).run()
    finally:
        lab.down()
    left = before.left_behind(observe(name))
    if left:
        raise DemoFailedError("the demo left something behind: " + "; ".join(left))
    console.print(
        "  nothing is left on this machine: no namespace, link, rule, mount, process or file"
    )
    console.print(f"[bold green]{kind.done}[/] in {time.monotonic() - began:.1f} s.")
    return 0
