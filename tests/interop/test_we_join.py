"""Our daemons as workers in a swarm that ``docker swarm init`` made."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mixed import Mixed

from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]

HOSTS = ("w1", "w2", "d1")


@pytest.fixture
def theirs(guests: Mixed) -> Iterator[Mixed]:
    """The engine's swarm with our daemons in it; containers of the test are removed after it."""
    yield guests
    guests.clear()


@pytest.fixture
def overlay(theirs: Mixed, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh attachable overlay network made by the engine."""
    name = f"net{abs(hash(request.node.nodeid)) % 1_000_000}"
    boss = theirs["d1"]
    boss.docker("network", "create", "-d", "overlay", "--attachable", name)
    yield name
    theirs.clear()
    wait_until(
        lambda: boss.attempt("network", "rm", name).returncode == 0,
        seconds=20,
        what=lambda: f"{name} stays: {boss.attempt('network', 'rm', name).stderr}",
        pause=0.3,
    )


def node_rows(theirs: Mixed) -> dict[str, dict[str, str]]:
    """``docker node ls`` by host name."""
    lines = theirs["d1"].docker("node", "ls", "--format", "{{json .}}").splitlines()
    return {row["Hostname"]: row for row in map(json.loads, lines)}


def await_ready(theirs: Mixed) -> None:
    """Wait until the engine sees all three nodes Ready."""
    wait_until(
        lambda: [row["Status"] for row in node_rows(theirs).values()] == ["Ready"] * 3,
        seconds=40,
        what=lambda: f"not every node is Ready: {node_rows(theirs)}",
        pause=0.3,
    )


def test_our_nodes_are_ready_with_a_truthful_description(theirs: Mixed) -> None:
    """``docker node ls`` and ``inspect`` show our daemons: Ready, our version, this machine, the overlay plugin."""
    rows = node_rows(theirs)
    own = subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()
    total = json.loads(theirs["d1"].docker("info", "--format", "{{json .}}"))["MemTotal"]
    for host in ("w1", "w2"):
        assert (rows[host]["Status"], rows[host]["Availability"], rows[host]["TLSStatus"]) == (
            "Ready", "Active", "Ready",
        )  # fmt: skip
        info = json.loads(theirs.cluster.swarm(host, "info", "--format", "json"))[0]
        assert rows[host]["ID"] == info["NodeID"]
        assert rows[host]["EngineVersion"] == info["Version"]
        (shown,) = json.loads(theirs["d1"].docker("node", "inspect", host))
        description = shown["Description"]
        assert description["Platform"] == {"Architecture": own, "OS": "linux"}
        assert description["Resources"]["MemoryBytes"] == total
        assert description["Engine"]["Plugins"] == [{"Type": "Network", "Name": "overlay"}]
        assert shown["Status"]["Addr"] == theirs.cluster.lab.state.require(host).address
        assert shown["Spec"]["Role"] == "worker"


def test_names_pages_and_tables_across(theirs: Mixed, overlay: str) -> None:
    """Containers of both kinds on Docker's network find and reach each other; all tables are equal."""
    given = [theirs.serve(host, f"on-{host}", overlay) for host in HOSTS]
    assert len(set(given)) == 3
    for host in HOSTS:
        for other in HOSTS:
            theirs.eventually_pings(host, f"on-{host}", f"on-{other}")
            page = theirs.page(host, f"on-{host}", f"http://on-{other}:8080/")
            assert page.startswith("hello from"), page
    (shown,) = json.loads(theirs["d1"].docker("network", "inspect", overlay))
    theirs.await_equal_tables(shown["Id"], HOSTS, {f"on-{host}" for host in HOSTS})
    assert {peer["IP"] for peer in shown["Peers"]} == {
        theirs.cluster.lab.state.require(host).address for host in HOSTS
    }
    theirs.remove("w2", "on-w2")
    theirs.await_equal_tables(shown["Id"], ("w1", "d1"), {"on-w1", "on-d1"})


def test_a_plain_namespace_on_dockers_network(theirs: Mixed, overlay: str) -> None:
    """``swarm attach`` puts a namespace made by somebody else on the engine's network, by name; ``detach`` ends it."""
    theirs.idle("d1", "host", overlay)
    lab = theirs.cluster.lab
    argv, environment = lab.argv("w1", ("unshare", "--net", "sleep", "1000"))
    with subprocess.Popen(argv, env=environment) as foreign:
        try:
            own = lab.state.netns("w1").stat().st_ino
            home = Path("/proc/self/ns/net").stat().st_ino
            wait_until(
                lambda: Path(f"/proc/{foreign.pid}/ns/net").stat().st_ino not in {own, home},
                seconds=10,
                what=lambda: "unshare does not happen",
            )
            theirs.cluster.swarm(
                "w1", "attach", "--pid", str(foreign.pid), "--network", overlay, "--name", "bare"
            )
            theirs.eventually_pings("d1", "host", "bare")
            theirs.cluster.swarm("w1", "detach", "bare")
            wait_until(
                lambda: not theirs.resolves("d1", "host", "bare"),
                seconds=20,
                what=lambda: "the name of a detached namespace stays",
            )
        finally:
            foreign.kill()


def test_what_a_worker_may_not_do(theirs: Mixed) -> None:
    """Orders to the cluster are refused on our worker in the words of a real worker; a closed network as well."""
    words = (
        "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. "
        "Please run this command on a manager node or promote the current node to a manager."
    )
    for command in (
        ("node", "ls"),
        ("join-token", "worker"),
        ("network", "create", "x"),
        ("node", "rm", "w2"),
    ):
        assert words in theirs.cluster.refused("w1", *command)
    boss = theirs["d1"]
    boss.docker("network", "create", "-d", "overlay", "shut")
    try:
        error = theirs.cluster.refused("w1", "run", "--network", "shut", "--", "true", status=125)
        assert "network shut not manually attachable" in error
        error = theirs.cluster.refused("w1", "run", "--network", "nosuch", "--", "true", status=125)
        assert "network nosuch not found" in error
    finally:
        boss.docker("network", "rm", "shut")


def test_the_engine_restarts_and_we_follow(theirs: Mixed, overlay: str) -> None:
    """Docker's only manager goes and comes: our containers keep their traffic, our nodes are Ready by themselves."""
    target = theirs.idle("w1", "left", overlay)
    theirs.idle("w2", "right", overlay)
    theirs.eventually_pings("w2", "right", "left")
    argv, environment = theirs.cluster.lab.argv(
        "w2", ("swarm", "exec", "right", "ping", "-i", "0.2", "-W", "1", "-w", "6", target)
    )
    with subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, text=True) as pings:
        theirs["d1"].stop()
        theirs["d1"].start()
        output, _ = pings.communicate(timeout=60)
    summary = next(line for line in output.splitlines() if "packets transmitted" in line).split()
    assert summary[0] == summary[3], output
    await_ready(theirs)
    theirs.idle("d1", "again", overlay)
    theirs.idle("w1", "later", overlay)
    for name in ("again", "later"):
        theirs.eventually_pings("w2", "right", name)


def test_the_root_is_replaced_and_we_follow(theirs: Mixed, overlay: str) -> None:
    """``docker swarm ca --rotate``: our workers renew under the new root, which ends the rotation; work goes on."""
    theirs.idle("w1", "old-guard", overlay)
    # The engine calls a node "pending" again after any update; that must not keep it from renewing.
    theirs["d1"].docker("node", "update", "--label-add", "seen=yes", "w1")
    folders = [theirs.cluster.lab.state.state_dir(host) / "certificates" for host in ("w1", "w2")]
    before = [(folder / "swarm-node.crt").read_bytes() for folder in folders]
    previous = theirs["d1"].docker("swarm", "ca")
    theirs["d1"].docker("swarm", "ca", "--rotate", "--detach")
    # The new root is the only one as soon as every node has a certificate of it.
    wait_until(
        lambda: theirs["d1"].docker("swarm", "ca") != previous,
        seconds=30,
        what=lambda: (
            f"the rotation does not end: {node_rows(theirs)}\n{_log(theirs, 'w1')}\n{_log(theirs, 'w2')}"
        ),
        pause=0.3,
    )
    root = theirs["d1"].docker("swarm", "ca")
    wait_until(
        lambda: all(
            (folder / "swarm-root-ca.crt").read_text().strip() == root.strip() for folder in folders
        ),
        seconds=20,
        what=lambda: "our nodes do not take the new root",
    )
    assert all(
        (folder / "swarm-node.crt").read_bytes() != old
        for folder, old in zip(folders, before, strict=True)
    )
    await_ready(theirs)
    assert {row["TLSStatus"] for row in node_rows(theirs).values()} == {"Ready"}
    theirs.idle("w2", "new-guard", overlay)
    theirs.eventually_pings("w2", "new-guard", "old-guard")
    # And a restarted agent finds its way with what it stored.
    theirs.cluster.lab.kill("w1")
    theirs.cluster.lab.start("w1")
    await_ready(theirs)
    theirs.eventually_pings("w2", "new-guard", "old-guard")


def _log(theirs: Mixed, host: str) -> str:
    return "\n".join(theirs.cluster.lab.state.log(host).read_text().splitlines()[-15:])


def test_drain_and_labels_of_our_node(theirs: Mixed, overlay: str) -> None:
    """``docker node update`` works on our node: drained it takes no attachment, active it does."""
    boss = theirs["d1"]
    boss.docker("node", "update", "--availability", "drain", "--label-add", "kind=ours", "w1")
    try:
        assert boss.docker("node", "ls", "-q", "--filter", "node.label=kind=ours").split() == [
            node_rows(theirs)["w1"]["ID"]
        ]
        assert node_rows(theirs)["w1"]["Availability"] == "Drain"
    finally:
        boss.docker("node", "update", "--availability", "active", "--label-rm", "kind", "w1")
    theirs.idle("w1", "open", overlay)


def test_leave_and_come_again(theirs: Mixed, overlay: str) -> None:
    """``swarm leave`` is seen by the engine as Down; the node can be removed, and joins anew under another id."""
    boss = theirs["d1"]
    old = node_rows(theirs)["w2"]["ID"]
    theirs.idle("w1", "stays", overlay)
    assert theirs.cluster.swarm("w2", "leave") == "Node left the swarm.\n"
    try:
        assert theirs.cluster.swarm("w2", "info", "--format", "{{.Swarm}}").strip() == "inactive"
        refused = theirs.cluster.attempt("w2", "run", "--network", overlay, "--", "true")
        assert refused.returncode == 125
        assert theirs.page("w1", "stays", "http://stays:9/") != "", "the others are not disturbed"
        boss.docker("node", "rm", "--force", old)
    finally:
        token = boss.docker("swarm", "join-token", "-q", "worker").strip()
        theirs.cluster.lab.join("w2", boss.address, token)
    await_ready(theirs)
    assert node_rows(theirs)["w2"]["ID"] != old
    theirs.serve("w2", "returned", overlay)
    theirs.eventually_pings("w1", "stays", "returned")
    assert theirs.program("w1", "stays", "fetch", "http://returned:8080/").stdout.startswith(
        "hello"
    )
