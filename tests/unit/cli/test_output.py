"""Tables, JSON lines, ids only: what lists look like."""

from __future__ import annotations

import json

import pytest

from swarm.cli.output import ago, natural, print_list, print_objects, rfc3339

ROWS = [{"ID": "abc", "Name": "w2", "Up": True}, {"ID": "d", "Name": "w10", "Up": False}]
COLUMNS = {"ID": "NETWORK ID", "Name": "NAME"}


def test_table_aligns_under_headings(capsys: pytest.CaptureFixture[str]) -> None:
    """The default is docker's table: headings, three spaces between columns, no trailing blanks."""
    print_list(ROWS, COLUMNS, form="table")
    assert capsys.readouterr().out == "NETWORK ID   NAME\nabc          w2\nd            w10\n"


def test_quiet_prints_one_field(capsys: pytest.CaptureFixture[str]) -> None:
    """-q prints ids and nothing else."""
    print_list(ROWS, COLUMNS, form="table", quiet="ID")
    assert capsys.readouterr().out == "abc\nd\n"


def test_json_prints_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """--format json is one object a line, every field."""
    print_list(ROWS, COLUMNS, form="json")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_template_and_table_template(capsys: pytest.CaptureFixture[str]) -> None:
    """A template prints its text a row; with 'table' in front it has headings."""
    print_list(ROWS, COLUMNS, form="{{.Name}}={{.Up}}")
    assert capsys.readouterr().out == "w2=true\nw10=false\n"
    print_list(ROWS, COLUMNS, form=r"table {{.Name}}\t{{.ID}}")
    assert capsys.readouterr().out == "NAME   NETWORK ID\nw2     abc\nw10    d\n"


def test_objects_are_a_json_array(capsys: pytest.CaptureFixture[str]) -> None:
    """Inspect prints an indented array unless a template asks for parts."""
    print_objects(ROWS, form="")
    assert json.loads(capsys.readouterr().out) == ROWS
    print_objects(ROWS, form="{{.ID}}")
    assert capsys.readouterr().out == "abc\nd\n"


def test_natural_order() -> None:
    """Numbers inside names count as numbers."""
    assert sorted(["w10", "w2", "m1"], key=natural) == ["m1", "w2", "w10"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (61, "About a minute"),
        (600, "10 minutes"),
        (3700, "About an hour"),
        (7300, "2 hours"),
        (86_400 * 3, "3 days"),
        (86_400 * 20, "2 weeks"),
        (86_400 * 100, "3 months"),
        (86_400 * 800, "2 years"),
    ],
)
def test_durations_in_words(seconds: float, text: str) -> None:
    """Durations read as docker's do."""
    assert ago(seconds) == text


def test_times_as_docker_writes_them() -> None:
    """Nanoseconds become RFC 3339 with as many digits as they need."""
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_500_000_000) == "1970-01-01T00:00:01.5Z"
    assert rfc3339(None) == "0001-01-01T00:00:00Z"
