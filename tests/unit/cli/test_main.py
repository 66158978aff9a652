"""Errors and exit statuses of the command line, without a daemon."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from swarm.api.docker.swarmkit import types_pb2
from swarm.cli.main import invoke, swarm
from swarm.cli.network import ipam_configs
from swarm.cli.parse import Duration, filters, pairs


@pytest.fixture
def nobody(tmp_path: Path) -> str:
    """A daemon address where nothing listens."""
    return f"unix://{tmp_path}/none.sock"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["node", "ls"], 1, "cannot connect to the Swarm daemon"),
        (["run", "--network", "n", "--", "true"], 125, "cannot connect to the Swarm daemon"),
        (["exec", "c", "true"], 125, "cannot connect to the Swarm daemon"),
        (["node", "ls", "--frob"], 125, "No such option"),
        (["network", "create"], 1, "Missing argument"),
        (["frob"], 1, "No such command"),
        (["init", "--data-path-port", "80"], 125, "not between 1024 and 49151"),
        (["node", "ls", "--filter", "color=red"], 125, "no filter 'color'"),
        (["network", "create", "n", "--gateway", "10.0.0.1"], 125, "lies in no --subnet"),
        (["attach", "--network", "n"], 1, "give --netns or --pid"),
        (["node", "update", "n"], 1, "nothing to change"),
        (["node", "list"], 1, "cannot connect to the Swarm daemon"),
        (["network", "remove", "n"], 1, "cannot connect to the Swarm daemon"),
        (["network", "prune", "-f", "--filter", "until=soon"], 125, "is not a duration"),
        (["network", "prune", "-f", "--filter", "until=1h"], 1, "cannot connect to the Swarm"),
    ],
)
def test_one_line_and_a_status(
    arguments: list[str], status: int, words: str, nobody: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong is one line on standard error and docker's exit status."""
    assert invoke(["--host", nobody, *arguments]) == status
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.startswith("Error: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_host_must_be_a_unix_socket(capsys: pytest.CaptureFixture[str]) -> None:
    """An address of another kind is refused before anything is dialled."""
    assert invoke(["--host", "tcp://127.0.0.1:2375", "info"]) == 1
    assert "use unix:///path" in capsys.readouterr().err


def test_every_command_has_help() -> None:
    """Every command and subcommand explains itself."""
    context = click.Context(swarm)

    def check(command: click.Command) -> None:
        assert command.help, command.name
        for child in getattr(command, "commands", {}).values():
            check(child)

    for name in swarm.list_commands(context):
        found = swarm.get_command(context, name)
        assert found is not None
        check(found)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [("2160h0m0s", 7_776_000 * 10**9), ("1m30s", 90 * 10**9), ("1.5s", 1_500_000_000), ("0", 0)],
)
def test_durations(text: str, nanoseconds: int) -> None:
    """Go's duration form is understood."""
    assert Duration().convert(text, None, None) == nanoseconds


@pytest.mark.parametrize("text", ["", "90", "h", "1d", "-1s", "1s garbage"])
def test_bad_durations(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(click.BadParameter, match="not a duration"):
        Duration().convert(text, None, None)


def test_pairs_and_filters() -> None:
    """A key alone is allowed, an empty key is not; filters of one name are alternatives."""
    assert pairs(["encrypted", "mtu=1400", "a=b=c"], what="--opt") == {
        "encrypted": "",
        "mtu": "1400",
        "a": "b=c",
    }
    with pytest.raises(click.BadParameter):
        pairs(["=x"], what="--opt")
    assert filters(["name=a", "name=b"], known={"name"}) == {"name": ["a", "b"]}


def test_ipam_belongs_to_the_subnet_that_holds_it() -> None:
    """Ranges, gateways and reserved addresses find their subnet, of either family."""
    configs = ipam_configs(
        ["10.5.0.0/16", "2001:db8:5::/64"],
        ["10.5.1.0/24"],
        ["10.5.0.1", "2001:db8:5::1"],
        ["printer=10.5.0.9"],
    )
    first, second = configs
    assert (first.subnet, first.range, first.gateway) == ("10.5.0.0/16", "10.5.1.0/24", "10.5.0.1")
    assert dict(first.reserved) == {"printer": "10.5.0.9"}
    assert (second.family, second.gateway) == (types_pb2.IPAM_FAMILY_IPV6, "2001:db8:5::1")


@pytest.mark.parametrize(
    ("subnets", "ranges", "gateways", "complaint"),
    [
        (["10.0.0.0/24", "10.0.0.0/25"], [], [], "overlaps"),
        (["10.0.0.1/24"], [], [], "host bits set"),
        (["10.0.0.0/24"], ["10.0.1.0/28"], [], "lies in no --subnet"),
        (["10.0.0.0/24"], [], ["10.0.0.1", "10.0.0.2"], "two gateways"),
        (["10.0.0.0/24"], ["10.0.0.0/28", "10.0.0.32/28"], [], "two ranges"),
    ],
)
def test_ipam_refusals(
    subnets: list[str], ranges: list[str], gateways: list[str], complaint: str
) -> None:
    """What contradicts itself is refused before the daemon is asked."""
    with pytest.raises(click.BadParameter, match=complaint):
        ipam_configs(subnets, ranges, gateways, [])
