"""A stock Docker engine and our daemons under a kernel with ESP and IPVS: what the ordinary kernel cannot show.

Our manager m1 has the engine d1 as its worker; in the end d1 makes a swarm and m1 becomes its worker. Python starts
slowly under emulation: besides the daemons hardly anything here runs it, our containers hold busybox like the
engine's.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.cluster import Cluster
from support.mixed import engine_lab, engines_in
from support.services import Service, make, process, scheduler

from swarm.api.docker.swarmkit import control_pb2, specs_pb2, types_pb2
from swarm.api.overswarm.v1 import local_pb2, scheduler_pb2
from swarm.errors import SwarmError
from swarm.lab import processes
from swarm.lab.capture import Capture
from swarm.lab.cluster import Lab
from swarm.lab.engine import BUSYBOX, IMAGE, Engine
from swarm.lab.processes import wait_until

pytestmark = pytest.mark.timeout(1200)

PATIENCE = 15.0
"""How many times slower than usual things may be under emulation."""
CALL_SECONDS = 20 * PATIENCE
CGROUPS = Path("/sys/fs/cgroup")
MODPROBE = Path("/proc/sys/kernel/modprobe")
IPVS = ("ip_vs", "ip_vs_rr", "xt_ipvs")
PROGRESS = Path("/run/out/engine.progress")
PUBLISHED = 30288
PAGE = "hostname > /www/index.html && exec httpd -f -p 8080 -h /www"
OUR_PAGE = "d=$(mktemp -d) && hostname > $d/index.html && exec busybox httpd -f -p 8080 -h $d"


def show(text: str) -> None:
    """Say how far it is, where somebody outside the guest can read it."""
    if PROGRESS.parent.is_dir():
        with PROGRESS.open("a") as file:
            file.write(f"{time.monotonic():.0f} {text}\n")


@dataclass
class Sides:
    """The lab, and how things are done on either side of it."""

    lab: Lab
    engines: dict[str, Engine]

    def run(self, host: str, name: str, network: str, script: str) -> None:
        """Start a container that runs a shell script."""
        if host in self.engines:
            words = ("run", "-d", "--stop-timeout", "1", "--name", name, "--network", network)

            self.engines[host].docker(*words, IMAGE, "sh", "-c", script, timeout=CALL_SECONDS)
        else:
            request = local_pb2.CreateContainerRequest(
                name=name,
                argv=["sh", "-c", script],
                networks=[local_pb2.NetworkWish(network=network)],
            )
            with self.lab.client(host) as client:
                client.local.CreateContainer(request, timeout=CALL_SECONDS)
                client.local.StartContainer(
                    local_pb2.StartContainerRequest(container=name), timeout=CALL_SECONDS
                )
        show(f"{name} runs on {host}")

    def attempt(
        self, host: str, name: str, *argv: str, timeout: float = CALL_SECONDS
    ) -> subprocess.CompletedProcess[str]:
        """Run one of busybox's programs in a container."""
        if host in self.engines:
            return self.engines[host].attempt("exec", name, *argv, timeout=timeout)
        with self.lab.client(host) as client:
            query = local_pb2.ListContainersRequest(all=True, container=name)
            (found,) = client.local.ListContainers(query, timeout=CALL_SECONDS).containers
        enter = ("nsenter", "--target", str(found.pid), "--mount", "--net", "--uts")
        return subprocess.run(
            [*enter, str(BUSYBOX), *argv],
            capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip

    def address(self, host: str, name: str, network: str) -> str:
        """The address of a container of an engine."""
        shown = json.loads(self.engines[host].docker("inspect", name))[0]
        return str(shown["NetworkSettings"]["Networks"][network]["IPAddress"])

    def reach(self, host: str, name: str, target: str) -> None:
        """Ping until it is answered."""
        wait_until(
            lambda: self.attempt(host, name, "ping", "-c1", "-W5", target).returncode == 0,
            seconds=10,
            what=lambda: f"{name} on {host} does not reach {target}",
        )
        show(f"{name} on {host} reaches {target}")

    def page(self, host: str, name: str, url: str) -> str:
        """Fetch a page from inside a container."""
        result = self.attempt(host, name, "wget", "-q", "-O", "-", url)
        return result.stdout + result.stderr

    def sees(self, host: str, name: str, url: str, word: str) -> None:
        """Fetch a page until it says what it has to."""
        seen = [""]

        def there() -> bool:
            seen[0] = self.page(host, name, url)
            return word in seen[0]

        wait_until(there, seconds=10, what=lambda: f"{url} from {host} is {seen[0]!r}, not {word}")
        show(f"{name} on {host} has {url}")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """An empty lab that waits long, in a machine with control groups."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "PATIENCE", PATIENCE)
        patch.setenv("SWARM_LAB_PATIENCE", str(PATIENCE))
        if not (CGROUPS / "cgroup.controllers").exists():
            subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(CGROUPS)], check=True)
        prepare_kernel()
        with engine_lab("kern") as made:
            yield made


def prepare_kernel() -> None:
    """Make this machine what an engine makes of a machine that it has for itself.

    It loads IPVS with a modprobe that looks where nothing is here. And it forwards in its own namespace, which is
    the first one elsewhere: the kernel hands that one's setting to every namespace made later, to the sandboxes of
    virtual addresses, too, whose replies are forwarded.
    """
    subprocess.run([MODPROBE.read_text().strip(), "-a", *IPVS], check=True)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1", encoding="ascii")


@pytest.fixture(scope="module")
def ours(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sides]:
    """Our manager m1 with the engine d1 as its worker."""
    show("begin")
    lab.build(["m1"])
    show("m1 answers")
    address = lab.state.require("m1").address
    listen = f"{address}:2377"
    request = local_pb2.InitRequest(listen_addr=listen, advertise_addr=address)

    def initialized() -> bool:
        try:
            with lab.client("m1") as client:
                client.local.Init(request, timeout=CALL_SECONDS)
        except SwarmError as error:  # a manager has to start in time, which is hard here
            show(str(error))
            return False
        return True

    wait_until(initialized, seconds=20, what=lambda: "no cluster")
    show("cluster of ours")
    with engines_in(lab, ("d1",), tmp_path_factory.mktemp("ours")) as engines:
        show("d1 answers")
        token = lab.tokens("m1")["worker"]
        engines["d1"].docker("swarm", "join", "--token", token, listen, timeout=CALL_SECONDS)
        lab.await_ready("m1", 2)
        show("d1 joined")
        yield Sides(lab, engines)


def network(lab: Lab, name: str, **options: str) -> None:
    """Make an attachable network in our cluster."""
    spec = specs_pb2.NetworkSpec(
        annotations=types_pb2.Annotations(name=name),
        driver_config=types_pb2.Driver(name="overlay", options=options),
        attachable=True,
    )
    with lab.client("m1") as client:
        client.control.CreateNetwork(
            control_pb2.CreateNetworkRequest(spec=spec), timeout=CALL_SECONDS
        )


def hold(lab: Lab, host: str, name: str) -> None:
    """Let an engine make its side of a network for a service's task, which may take its time.

    `docker run` gives an attachment 20 s. An engine that does not have the network yet makes it within them, with a
    sandbox for virtual addresses and some forty calls of iptables: 20 to 30 s here, of which our managers take 0.2.
    When the 20 s are over it takes all of it away, so a second try starts from nothing.
    """
    service = make(Cluster(lab), f"hold{name}", name, task=image("sleep 10000"))
    (task,) = place(lab, ((service, node_ids(lab)[host]),))
    service.reach("RUNNING", task, seconds=40)
    show(f"{host} has {name}")


def image(script: str) -> specs_pb2.TaskSpec:
    """Return the spec of a task that runs a shell script in a container."""
    spec = specs_pb2.TaskSpec()
    spec.container.image = IMAGE
    spec.container.command.extend(("sh", "-c", script))
    return spec


def node_ids(lab: Lab) -> dict[str, str]:
    """Return the ids of our cluster's nodes by their host names."""
    with lab.client("m1") as client:
        nodes = client.control.ListNodes(control_pb2.ListNodesRequest(), timeout=CALL_SECONDS).nodes
    return {node.description.hostname: node.id for node in nodes}


def both_ways(sides: Sides, us: str, them: str, name: str) -> None:
    """Pages and pings by name between a host of ours and an engine; nothing but ESP on the cable."""
    pairs = ((us, "we", "they"), (them, "they", "we"))
    sides.run(us, "we", name, OUR_PAGE)
    sides.run(them, "they", name, PAGE)
    for host, own, other in pairs:
        sides.reach(host, own, other)
    address = sides.address(them, "they", name)
    with Capture(sides.lab.state, them) as capture:
        for host, own, other in pairs:
            assert "can't" not in sides.page(host, own, f"http://{other}:8080/")
        # A full packet: 1500 less 50 of VXLAN and 26 of ESP, rounded down to 4, as every engine does it.
        big = sides.attempt(us, "we", "ping", "-c1", "-W20", "-s", str(1424 - 28), address)
        assert big.returncode == 0, big.stdout
    show(f"{name}: {capture.sight}")
    assert capture.sight.esp > 8
    assert not capture.sight.vxlan
    assert not capture.sight.fragments
    assert len(capture.sight.spis) == 2, "one association each way"


def test_encrypted_with_an_engine_in_our_cluster(ours: Sides) -> None:
    """Our keys, Docker's key derivation: names, pages and full packets both ways inside ESP; keys rotate."""
    network(ours.lab, "secret", encrypted="")
    hold(ours.lab, "d1", "secret")
    both_ways(ours, "m1", "d1", "secret")
    with Capture(ours.lab.state, "d1") as capture:

        def moved(keys: int) -> bool:
            ours.reach("d1", "they", "we")
            return len(capture.sight.spis) >= 2 * keys  # each way has its own

        for keys in (1, 2, 3):
            if keys > 1:
                # Managers give nodes the time to take over one generation before the next.
                wait_until(
                    lambda: ours.lab.run("m1", "swarm", "rotate-keys", timeout=60).returncode == 0,
                    seconds=20,
                    what=lambda: "the keys cannot be rotated",
                    pause=2,
                )
            wait_until(
                lambda keys=keys: moved(keys),  # type: ignore[misc]
                seconds=10,
                what=lambda: f"still under {capture.sight.spis}",
            )
            show(f"{keys} keys used: {len(capture.sight.spis)} associations")
    assert not capture.sight.vxlan


def test_virtual_addresses_and_published_ports_on_an_engine(ours: Sides) -> None:
    """Docker's IPVS leads its containers and outside clients to our task, and ours lead to its task."""
    lab = ours.lab
    network(lab, "mall")
    port = types_pb2.PortConfig(target_port=8080, published_port=PUBLISHED)
    bakery = make(
        Cluster(lab), "bakery", "mall", task=process(("sh", "-c", OUR_PAGE)), ports=(port,)
    )
    port = types_pb2.PortConfig(target_port=8080, published_port=PUBLISHED + 1)
    shop = make(Cluster(lab), "shop", "mall", task=image(PAGE), ports=(port,))
    ids = node_ids(lab)
    our_task, their_task = place(lab, ((bakery, ids["m1"]), (shop, ids["d1"])))
    bakery.reach("RUNNING", our_task, seconds=40)
    shop.reach("RUNNING", their_task, seconds=40)
    show("both services run")
    shown = json.loads(ours.engines["d1"].docker("inspect", f"shop.1.{their_task}"))[0]
    words = {"bakery": our_task, "shop": shown["Config"]["Hostname"]}
    ours.run("d1", "visitor", "mall", "sleep 1000")
    ours.run("m1", "guest", "mall", "sleep 1000")
    for host, name in (("d1", "visitor"), ("m1", "guest")):
        for service, word in words.items():
            ours.sees(host, name, f"http://{service}:8080/", word)
    outside = lab.add_bare("out")
    for host in ("m1", "d1"):
        address = lab.state.require(host).address
        for number, word in ((PUBLISHED, words["bakery"]), (PUBLISHED + 1, words["shop"])):
            fetch = (str(BUSYBOX), "wget", "-q", "-O", "-", f"http://{address}:{number}/")
            wait_until(
                lambda f=fetch, w=word: w in lab.run(outside.name, *f).stdout,  # type: ignore[misc]
                seconds=10,
                what=lambda f=fetch: f"{f[-1]}: {lab.run(outside.name, *f)}",  # type: ignore[misc]
            )
            show(f"port {number} of {host} leads to {word}")


def place(lab: Lab, wishes: Sequence[tuple[Service, str]]) -> Sequence[str]:
    """Make a task of each service on a node; their ids."""
    placements = [
        scheduler_pb2.Placement(node_id=node, service_id=service.id, slot=1)
        for service, node in wishes
    ]
    with scheduler(Cluster(lab)) as stub:
        answer = stub.CreateTasks(
            scheduler_pb2.CreateTasksRequest(placements=placements, atomic=True),
            timeout=CALL_SECONDS,
        )
    assert answer.committed, answer
    return [result.placed.task_id for result in answer.results]


@pytest.fixture(scope="module")
def theirs(ours: Sides) -> Sides:
    """The other way round: d1 makes a swarm of its own, and our host joins it as a worker."""
    boss, lab = ours.engines["d1"], ours.lab
    boss.docker("swarm", "leave", timeout=CALL_SECONDS)
    boss.docker("swarm", "init", "--advertise-addr", boss.address, timeout=CALL_SECONDS)
    token = boss.docker("swarm", "join-token", "-q", "worker").strip()
    address = lab.state.require("m1").address
    with lab.client("m1") as client:
        client.local.Leave(local_pb2.LeaveRequest(force=True), timeout=CALL_SECONDS)
        show("left")
        client.local.Join(
            local_pb2.JoinRequest(
                remote_addrs=[f"{boss.address}:2377"], token=token, advertise_addr=address
            ),
            timeout=CALL_SECONDS,
        )
    show("joined")

    def ready() -> bool:
        rows = boss.docker("node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines()
        return sorted(rows) == ["d1 Ready", "m1 Ready"]

    wait_until(ready, seconds=20, what=lambda: boss.docker("node", "ls"), pause=3)
    return ours


def test_encrypted_on_an_engines_network(theirs: Sides) -> None:
    """Docker's keys: our worker on an encrypted network of a swarm that an engine made."""
    boss = theirs.engines["d1"]
    boss.attempt("rm", "-f", "they", "visitor")
    boss.docker(
        "network", "create", "-d", "overlay", "--attachable", "-o", "encrypted", "theirsecret"
    )
    # For the reason that hold() gives.
    boss.docker(
        "service", "create", "--detach", "--no-resolve-image", "--name", "hold", "--network", "theirsecret",
        "--constraint", "node.hostname==d1", IMAGE, "sleep", "10000",
    )  # fmt: skip
    wait_until(
        lambda: boss.docker("service", "ls", "--format", "{{.Replicas}}").strip() == "1/1",
        seconds=20,
        what=lambda: boss.docker("service", "ps", "--no-trunc", "hold"),
        pause=3,  # the client takes a second of what the engine needs
    )
    show("d1 has theirsecret")
    both_ways(theirs, "m1", "d1", "theirsecret")
