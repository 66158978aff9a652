"""The options that every list has."""

import click
from click.testing import CliRunner

from swarm.cli.listing import Listing, listing

ROWS = [{"ID": "1", "Name": "web"}, {"ID": "2", "Name": "db"}]
COLUMNS = {"ID": "ID", "Name": "NAME"}


@click.command()
@listing("id", "name", whole="Print whole ids.")
def full(asked: Listing) -> None:
    """List."""
    asked.show([*ROWS, {"ID": str(asked.whole), "Name": str(dict(asked.chosen))}], COLUMNS)


@click.command()
@listing(quiet="")
def bare(asked: Listing) -> None:
    """List."""
    asked.show(ROWS, COLUMNS)


def test_filters_of_one_name_are_alternatives() -> None:
    shown = CliRunner().invoke(full, ["-f", "name=a", "--filter", "name=b", "--no-trunc"])
    assert shown.output.splitlines()[-1].split(maxsplit=1) == ["True", "{'name': ['a', 'b']}"]


def test_an_unknown_filter_is_refused_with_those_there_are() -> None:
    shown = CliRunner().invoke(full, ["--filter", "colour=red"])
    assert shown.exit_code == 2
    assert "no filter 'colour' here: id, name" in shown.output


def test_ids_only_unless_a_format_is_asked_for() -> None:
    assert CliRunner().invoke(full, ["-q"]).output.split() == ["1", "2", "False"]
    shown = CliRunner().invoke(full, ["-q", "--format", "{{.Name}}"])
    assert shown.output.split()[:2] == ["web", "db"]


def test_a_list_has_only_the_options_it_names() -> None:
    assert CliRunner().invoke(bare, []).output.split() == ["ID", "NAME", "1", "web", "2", "db"]
    for flag in ("-q", "--no-trunc", "--filter"):
        assert CliRunner().invoke(bare, [flag]).exit_code == 2
    assert "id or name." in CliRunner().invoke(full, ["--help"]).output
