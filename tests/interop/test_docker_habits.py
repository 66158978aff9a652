"""What people know from ``docker``: the same columns, keys and words from ``swarm``.

The engine's swarm (with our daemons in it) is looked at with the real client, our cluster (with engines in
it) with ours; shapes are compared, not values.
"""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from support.mixed import Mixed

from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.interop, pytest.mark.slow]


def shape(table: str) -> list[str]:
    """The headings of a table; docker separates columns by three spaces or more."""
    return re.split(r" {2,}", table.splitlines()[0].strip())


def keys(value: object, place: str = "") -> set[str]:
    """Every key of nested JSON as a dotted path; lists count as their first element."""
    if isinstance(value, dict):
        found = set()
        for key, inner in value.items():
            found |= {f"{place}.{key}"} | keys(inner, f"{place}.{key}")
        return found
    return keys(value[0], f"{place}[]") if isinstance(value, list) and value else set()


def test_node_ls(mixed: Mixed, guests: Mixed) -> None:
    """The same table, the same JSON fields, the star behind this node's id."""
    theirs = guests["d1"].docker("node", "ls")
    ours = mixed.cluster.swarm("m1", "node", "ls")
    assert shape(ours) == shape(theirs)
    star = re.compile(r"^[a-z0-9]{25} \* {3}\S", re.MULTILINE)
    assert len(star.findall(theirs)) == len(star.findall(ours)) == 1
    theirs_json = json.loads(
        guests["d1"].docker("node", "ls", "--format", "{{json .}}").splitlines()[0]
    )
    ours_json = json.loads(
        mixed.cluster.swarm("m1", "node", "ls", "--format", "{{json .}}").splitlines()[0]
    )
    assert set(ours_json) == set(theirs_json)
    for name, value in theirs_json.items():
        assert type(ours_json[name]) is type(value), name


def test_node_inspect(mixed: Mixed, guests: Mixed) -> None:
    """An engine's node has the same keys at our manager as at its own kind's."""
    (theirs,) = json.loads(guests["d1"].docker("node", "inspect", "self"))
    (ours,) = json.loads(mixed.cluster.swarm("m1", "node", "inspect", "d1"))
    for each in (theirs, ours):
        each["Spec"]["Labels"] = each["Description"]["Engine"]["Labels"] = {}
    theirs.pop("ManagerStatus")
    assert keys(ours) - keys(theirs) == {".Description.Engine.Labels"} - keys(theirs)
    assert keys(theirs) - keys(ours) == set()


def test_network_ls(mixed: Mixed, guests: Mixed) -> None:
    """The same table and JSON fields; ids of twelve characters."""
    theirs = guests["d1"].docker("network", "ls", "--filter", "driver=overlay")
    ours = mixed.cluster.swarm("m1", "network", "ls")
    assert shape(ours) == shape(theirs) == ["NETWORK ID", "NAME", "DRIVER", "SCOPE"]
    assert (
        ours.splitlines()[1].split()[1:]
        == theirs.splitlines()[1].split()[1:]
        == ["ingress", "overlay", "swarm"]
    )
    query = ("network", "ls", "--filter", "name=ingress", "--format", "{{json .}}")
    theirs_json = json.loads(guests["d1"].docker(*query))
    ours_json = json.loads(mixed.cluster.swarm("m1", *query))
    # Newer clients show IPv4 as well.
    assert set(ours_json) - set(theirs_json) <= {"IPv4"}
    assert set(theirs_json) - set(ours_json) == set()
    for name in set(ours_json) & set(theirs_json) - {"ID", "CreatedAt"}:
        if name != "IPv4":  # the old engine does not know it, and says false
            assert ours_json[name] == theirs_json[name], name


def test_network_inspect(mixed: Mixed, guests: Mixed, network: str) -> None:
    """A network with one container has the same keys, except for what only one side has on purpose."""
    boss = guests["d1"]
    boss.docker("network", "create", "-d", "overlay", "--attachable", "--label", "a=b", "habit")
    try:
        guests.idle("d1", "one", "habit")
        mixed.idle("m1", "two", network)
        (theirs,) = json.loads(boss.docker("network", "inspect", "habit"))
        (ours,) = json.loads(mixed.cluster.swarm("m1", "network", "inspect", network))
    finally:
        guests.remove("d1", "one")
        boss.attempt("network", "rm", "habit")
    mine = next(iter(ours["Containers"].values()))
    assert set(mine) == set(theirs["Containers"].popitem()[1])
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+/24", mine["IPv4Address"])
    for each in (theirs, ours):
        each["Containers"], each["Labels"] = {}, {}
    assert keys(theirs) - keys(ours) <= {".Peers", ".Peers[].Name", ".Peers[].IP", ".EnableIPv4"}
    assert keys(ours) - keys(theirs) <= {".EnableIPv4"}
    assert list(ours)[:6] == ["Name", "Id", "Created", "Scope", "Driver", "EnableIPv4"]


def words(text: str) -> str:
    """A message without what differs by nature: program, token, address, ids."""
    text = re.sub(r"SWMTKN-1-\w{50}-\w{25}", "TOKEN", text)
    text = re.sub(r"\d+\.\d+\.\d+\.\d+:2377", "MANAGER", text)
    text = re.sub(r"\b[a-z0-9]{25}\b", "ID", text)
    return text.replace("docker swarm", "swarm")


def test_join_token_and_rotation(mixed: Mixed, guests: Mixed) -> None:
    """The sentences around the tokens are Docker's, with our command in them."""
    for more in (("worker",), ("manager",), ("--rotate", "manager")):
        theirs = guests["d1"].docker("swarm", "join-token", *more)
        ours = mixed.cluster.swarm("m1", "join-token", *more)
        assert words(ours) == words(theirs), more
    assert re.fullmatch(
        r"SWMTKN-1-\w{50}-\w{25}\n", mixed.cluster.swarm("m1", "join-token", "-q", "worker")
    )


def test_init_join_and_leave_sentences(mixed: Mixed, guests: Mixed) -> None:
    """Second init, second join, leaving as the last manager: refused like docker does it."""
    boss, cluster = guests["d1"], mixed.cluster
    for ours, theirs in (
        (("init",), ("swarm", "init")),
        (
            ("join", "--token", "SWMTKN-1-x", "192.0.2.77"),
            ("swarm", "join", "--token", "SWMTKN-1-x", "192.0.2.77"),
        ),
    ):
        refused = boss.attempt(*theirs)
        assert refused.returncode == 1
        said = cluster.refused("m1", *ours)
        complaint = refused.stderr.strip().removeprefix("Error response from daemon: ")
        first = (
            complaint.replace('"docker swarm leave"', "'swarm leave'")
            .replace("docker ", "")
            .split(". ")[0]
        )
        assert first.rstrip(".") in said.replace('"swarm leave"', "'swarm leave'"), (
            said,
            complaint,
        )
    refused = boss.attempt("swarm", "leave")
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    assert "--force" in cluster.refused("m1", "leave")


def test_errors_about_networks_and_nodes(mixed: Mixed, guests: Mixed, network: str) -> None:
    """Unknown and taken names are told in Docker's words; the daemon is not named as the speaker."""
    boss, cluster = guests["d1"], mixed.cluster
    boss.docker("network", "create", "-d", "overlay", network)
    try:
        for query in (
            ("network", "inspect", "nosuch"),
            ("network", "rm", "nosuch"),
            ("node", "inspect", "nosuch"),
            ("node", "rm", "nosuch"),
            ("network", "create", "-d", "overlay", network),
        ):
            theirs, ours = boss.attempt(*query), cluster.attempt("m1", *query)
            assert ours.returncode == theirs.returncode == 1
            said = theirs.stderr.strip().splitlines()[0]
            words = said.removeprefix("Error response from daemon: ").removeprefix("Error: ")
            # Clients before 25 have words of their own for what the daemon did not find.
            words = re.sub(r"^.*No such (\w+): (\w+).*$", r"\1 \2 not found", words)
            assert ours.stderr == f"Error: {words}\n"
    finally:
        boss.attempt("network", "rm", network)


def test_an_overlap_is_told_at_once(mixed: Mixed, guests: Mixed) -> None:
    """On purpose: the engine takes an overlapping subnet and then never allocates it; we refuse it, with the reason."""
    query = ("network", "create", "-d", "overlay", "--subnet", "10.0.0.0/24", "lapping")
    guests["d1"].docker(*query)
    guests["d1"].docker("network", "rm", "lapping")
    assert "overlaps with 10.0.0.0/24 of network ingress" in mixed.cluster.refused("m1", *query)


def test_filters_choose_what_docker_chooses(mixed: Mixed, guests: Mixed, network: str) -> None:
    """Prefixes of ids and names, labels, roles, types, unused networks: the same rows by the same words."""
    boss, cluster = guests["d1"], mixed.cluster
    flags = ("--attachable", "--label", "team=red")
    boss.docker("network", "create", "-d", "overlay", *flags, "habits")
    cluster.swarm("m1", "network", "create", *flags, "habits")
    mixed.idle("w1", "user", network)
    try:
        (theirs,) = json.loads(boss.docker("network", "inspect", "habits"))
        (ours,) = json.loads(cluster.swarm("m1", "network", "inspect", "habits"))
        for wanted in (
            "name=habits", "name=nothing", "label=team", "label=team=red", "label=team=blue", "driver=overlay",
            "scope=swarm", "scope=local", "type=custom", "type=builtin",
            f"id={theirs['Id'][:5]}",
        ):  # fmt: skip
            query = ("network", "ls", "--format", "{{.Name}}", "--filter", wanted)
            said = set(boss.docker(*query).split())
            wish = wanted.replace(theirs["Id"][:5], ours["Id"][:5])
            told = set(cluster.swarm("m1", *query[:-1], wish).split())
            assert ("habits" in told) is ("habits" in said), wanted
        unused = cluster.swarm("m1", "network", "ls", "-q", "--filter", "dangling=true").split()
        assert ours["Id"][:12] in unused
        assert len(unused) < len(cluster.swarm("m1", "network", "ls", "-q").split())
        for wanted, count in (
            ("role=manager", 1),
            ("role=worker", 3),
            ("name=d", 2),
            ("name=m1", 1),
        ):
            rows = cluster.swarm("m1", "node", "ls", "-q", "--filter", wanted).split()
            assert len(rows) == count, wanted
    finally:
        boss.docker("network", "rm", "habits")
        cluster.swarm("m1", "network", "rm", "habits")


def test_prune_leaves_what_is_used(mixed: Mixed, guests: Mixed, network: str) -> None:
    """``network prune``: docker's question and words; a network with a container on an engine stays."""
    boss, cluster = guests["d1"], mixed.cluster
    mixed.idle("d1", "keeper", network)
    boss.docker("network", "create", "-d", "overlay", "prunable")
    cluster.swarm("m1", "network", "create", "prunable")
    theirs = ""

    def pruned() -> bool:
        nonlocal theirs
        theirs = boss.docker("network", "prune", "--force", "--filter", "until=0s")
        return bool(theirs)  # an engine counts in whole seconds

    wait_until(pruned, seconds=5, what=lambda: "the engine prunes nothing")
    ours = cluster.swarm("m1", "network", "prune", "--force", "--filter", "until=0s")
    assert ours == theirs == "Deleted Networks:\nprunable\n\n"
    assert network in cluster.swarm("m1", "network", "ls", "--format", "{{.Name}}").split()
    for word in ("WARNING! This will remove all custom networks", "want to continue? [y/N]"):
        assert word in cluster.attempt("m1", "network", "prune").stdout


def test_a_shell_completes_names(mixed: Mixed, network: str) -> None:
    """Networks and nodes are offered as the daemon knows them, and not twice."""

    def offered(*typed: str) -> set[str]:
        words = " ".join(("swarm", *typed))
        result = mixed.cluster.lab.run(
            "m1", "env", "_SWARM_COMPLETE=bash_complete", f"COMP_WORDS={words}",
            f"COMP_CWORD={len(typed)}", "swarm",
        )  # fmt: skip
        return {line.partition(",")[2] for line in result.stdout.splitlines()}

    assert network in offered("network", "inspect", network[:4])
    assert offered("node", "inspect", "d") == {"d1", "d2"}
    assert offered("node", "inspect", "d1", "d") == {"d2"}
    assert "prune" in offered("network", "p")


@pytest.mark.parametrize(
    "command",
    [
        ("network", "create"), ("network", "ls"), ("network", "inspect"), ("network", "rm"),
        ("network", "connect"), ("network", "disconnect"), ("network", "prune"), ("network", "list"),
        ("node", "ls"), ("node", "ps"), ("node", "inspect"), ("node", "update"), ("node", "rm"), ("node", "promote"),
        ("swarm", "init"), ("swarm", "join"), ("swarm", "leave"), ("swarm", "join-token"), ("swarm", "ca"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_flag_of_docker_is_known_or_left_out_on_purpose(
    mixed: Mixed, command: tuple[str, ...]
) -> None:
    """Each long flag of the real client exists in ours, unless it is listed here with its reason."""
    left_out = {
        "--external-ca": "no external certificate authorities",
        "--config-from": "networks of one host only",
        "--config-only": "networks of one host only",
        "--scope": "every network here has the scope swarm",
        "--ipv4": "every network here has IPv4",
        "--link": "deprecated since user-defined networks",
        "--link-local-ip": "never reaches a swarm network",
        "--driver-opt": "never reaches the manager",
        "--gw-priority": "which network gives the default route is fixed",
        "--help": "",
    }
    own = command[1:] if command[0] == "swarm" else command
    theirs = subprocess.run(
        ["docker", *command, "--help"], capture_output=True, text=True, check=True
    ).stdout
    ours = mixed.cluster.swarm("m1", *own, "--help")
    flags = set(re.findall(r"(?<!\S)--[a-z0-9-]+", theirs)) - set(left_out)
    assert flags - set(re.findall(r"--[a-z0-9-]+", ours)) == set()
