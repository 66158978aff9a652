"""The main job on an encrypted network, with a capture on the wire, checked at every step.

The first network is encrypted, so that everything the main demo does with it (names, pages, a transfer
that outlives its agent) happens inside ESP; a second one is not, and shows that the capture sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from rich.console import Console

from swarm.lab import processes
from swarm.lab.capture import Capture, Sight
from swarm.lab.cluster import Lab
from swarm.lab.demo import PROGRAM, READY_SECONDS, Demo, DemoFailedError

VNI_OPTION: Final = "com.docker.network.driver.overlay.vxlanid_list"
ROTATIONS: Final = 3
"""As many as it takes until a key is withdrawn that was in use at the start."""
KNOCK_SECONDS: Final = 600
"""How long traffic goes on at most while keys rotate; it is stopped when they have."""
STOP_SECONDS: Final = 60
NO_ESP: Final = (
    "run the demo under Debian's stock kernel instead, in an emulated machine: make demo-encrypted"
)


class EncryptedDemo(Demo):
    """The main demo's steps with the first network encrypted, watched on the wire of w1."""

    done: ClassVar[str] = "The main job is done, encrypted"

    def __init__(self, lab: Lab, console: Console) -> None:
        super().__init__(lab, console)
        self._secret = self._plain = 0

    def steps(self) -> Sequence[tuple[str, Callable[[], None]]]:
        """Return what is run in order, with titles."""
        return (
            ("three hosts form a cluster", self.form),
            ("an encrypted network and a plain one", self.network),
            ("a container on one host, its client on another, both ways", self.across),
            ("frames in clear from a host that has no key", self.intruder),
            ("keys rotate under traffic", self.rotate),
            ("the agent dies during a transfer", self.watched_restart),
            ("everything at a glance, then nothing", self.survey),
        )

    def network(self) -> None:
        """Create both networks; the kernel must be able to carry the encrypted one."""
        self.swarm("m1", "network", "create", "--attachable", "--opt", "encrypted", "net1")
        self.swarm("m1", "network", "create", "--attachable", "net2")
        self.swarm("m1", "network", "create", "closed", show=False)
        self._secret, self._plain = (
            int(self.inspect(name)["Options"][VNI_OPTION]) for name in ("net1", "net2")
        )
        self.say(f"net1 is encrypted and has VNI {self._secret}; net2 is not: VNI {self._plain}")
        tried = self.try_swarm("w1", "run", "--rm", "--network", "net1", "--", "true")
        if tried.returncode:
            raise DemoFailedError(f"{tried.stderr.strip().removeprefix('Error: ')}; {NO_ESP}")

    def across(self) -> None:
        """Pages and a transfer on both networks; the wire shows ESP for the one, VXLAN for the other."""
        self.serve("w1", "web", "net1")
        self.serve("w1", "shop", "net2")
        self.idle("w2", "client", "net1", "net2")
        with Capture(self._lab.state, "w1") as capture:
            for target in ("web", "shop"):
                self.await_name("w2", "client", target)
                page = self.swarm(
                    "w2", "exec", "client", *PROGRAM, "fetch", f"http://{target}:8080/"
                )
                self.expect(page.startswith("hello from"), f"the page of {target}", page)
        self.judge(capture.sight)
        self.expect(
            capture.sight.vxlan[self._plain] > 0,
            "net2 in clear: else nothing was watched",
            str(capture.sight.vxlan),
        )

    def intruder(self) -> None:
        """Forged VXLAN frames from a host outside: a plain network takes them, an encrypted one never."""
        host = self._lab.add_bare("eve")
        target = self._lab.state.hosts["w1"].address
        self.say(f"eve ({host.address}) sends 20 forged VXLAN packets for each network to w1")
        before = {name: self.counters("w1", name)["rx"] for name in ("net1", "net2")}
        for vni in (self._secret, self._plain):
            argv = (*PROGRAM, "forge", target, str(vni), "20")
            result = self._lab.run("eve", *argv)
            self.expect(result.returncode == 0, "packets sent", result.stderr)

        def arrived() -> bool:
            return self.counters("w1", "net2")["rx"] - before["net2"] >= 20

        processes.wait_until(
            arrived, seconds=READY_SECONDS, what=lambda: "net2 does not take the packets"
        )
        taken = {name: self.counters("w1", name)["rx"] - before[name] for name in before}
        self.say(f"taken in: net1 {taken['net1']}, net2 {taken['net2']}")
        self.expect(taken["net1"] == 0, "nothing let into net1", str(taken))
        self._lab.remove_bare("eve")

    def rotate(self) -> None:
        """Datagrams both ways while every key in use is replaced: none lost, none in clear."""
        self.start("w1", "echo", ("net1",), *PROGRAM, "echo", "9001")
        self.await_name("w2", "client", "echo")
        with Capture(self._lab.state, "w1") as capture:
            self.start(
                "w2", "knock", ("net1",), *PROGRAM, "knock", "echo", "9001", str(KNOCK_SECONDS)
            )
            self._await_keys_in_use(capture.sight, 1)
            for number in range(ROTATIONS):
                self._rotate_once()
                self._await_keys_in_use(capture.sight, number + 2)
            self.swarm("w2", "stop", "--timeout", str(STOP_SECONDS), "knock", show=False)
            words = self._finished("w2", "knock")
        sent, answered = (int(word) for word in words.split()[:2])
        self.judge(capture.sight)
        self.say(
            f"{ROTATIONS} rotations: {sent} datagrams sent, {answered} answered, "
            f"under {len(capture.sight.spis)} associations"
        )
        self.expect(sent == answered and sent > 0, "every datagram answered", words)

    def _rotate_once(self) -> None:
        def rotated() -> bool:
            # Managers give nodes the time to take over one generation before the next.
            return self._lab.run("m1", "swarm", "rotate-keys").returncode == 0

        processes.wait_until(
            rotated, seconds=READY_SECONDS, what=lambda: "the keys cannot be rotated"
        )
        self._console.print("  [cyan]m1$[/] swarm rotate-keys")

    def _await_keys_in_use(self, sight: Sight, keys: int) -> None:
        """Wait until packets have gone under so many keys: the first, and one for each rotation.

        Nodes that hear late of two rotations go straight to the newer one, so each is waited for.
        """

        def used() -> bool:
            return len(sight.spis) >= 2 * keys  # each way has its own

        processes.wait_until(
            used,
            seconds=READY_SECONDS,
            what=lambda: f"only {len(sight.spis)} associations were used",
        )

    def _finished(self, host: str, container: str) -> str:
        seen: list[str] = []

        def done() -> bool:
            seen.append(self._lab.run(host, "swarm", "logs", container).stdout)
            return bool(seen[-1].strip())

        processes.wait_until(
            done, seconds=READY_SECONDS, what=lambda: f"{container} does not come to an end"
        )
        return seen[-1]

    def watched_restart(self) -> None:
        """Kill the agent of w1 in the middle of a transfer; nothing is lost, nothing in clear."""
        self.serve("w2", "db", "net2")
        self.idle("w1", "both", "net1", "net2")
        with Capture(self._lab.state, "w1") as capture:
            self.restart()
        self.judge(capture.sight)

    def survey(self) -> None:
        """Take down what this demo made beside the main one's, then look and remove the rest."""
        self.swarm("w1", "rm", "-f", "shop", "echo", show=False)
        self.swarm("w2", "rm", "-f", "knock", show=False)
        super().survey()

    def judge(self, sight: Sight) -> None:
        """Say what was on the wire, and insist that nothing of net1 was in clear."""
        self.say(
            f"on the wire of w1: {sight.esp} ESP packets, VXLAN of net1 {sight.vxlan[self._secret]}, "
            f"VXLAN of net2 {sight.vxlan[self._plain]}"
        )
        seen = str(dataclasses.asdict(sight))
        self.expect(sight.esp > 0, "ESP on the wire", seen)
        self.expect(sight.vxlan[self._secret] == 0, "nothing of net1 in clear", seen)
        self.expect(sight.fragments == 0, "no packet in pieces", seen)
