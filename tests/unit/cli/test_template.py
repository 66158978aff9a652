"""The Go-style templates of ``--format``."""

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.cli.template import MAX_TEXT, TemplateError, fields, render

VALUE = {
    "Name": "web",
    "Labels": {"tier": "front"},
    "Ports": [{"Port": 80}, {"Port": 443}],
    "Up": True,
    "Empty": [],
    "Nothing": None,
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{.Name}}", "web"),
        ("name={{ .Name }}!", "name=web!"),
        ("{{.Labels.tier}}", "front"),
        ("{{json .Labels}}", '{"tier":"front"}'),
        ("{{.Labels}}", "map[tier:front]"),
        ("{{range .Ports}}<{{.Port}}>{{end}}", "<80><443>"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{if .Up}}yes{{else}}no{{end}}", "yes"),
        ("{{if .Empty}}yes{{else}}no{{end}}", "no"),
        ("{{with .Labels}}{{.tier}}{{end}}", "front"),
        ("{{len .Ports}}", "2"),
        ('{{index .Labels "tier"}}', "front"),
        ("{{index .Ports 1 | json}}", '{"Port":443}'),
        ("{{upper .Name}} {{.Name | title}} {{lower .Name}}", "WEB Web web"),
        ('{{join .Empty ", "}}', ""),
        ("{{.Up}} {{.Nothing}}", "true <no value>"),
        ("a {{- .Name -}} b", "awebb"),
        ("{{/* a comment */}}x", "x"),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}};{{end}}", "tier=front;"),
        ("{{range $i, $p := .Ports}}{{$i}}:{{$p.Port}} {{end}}", "0:80 1:443 "),
        ("{{range $p := .Ports}}{{$.Name}}{{$p.Port}}{{.Port}}{{end}}", "web8080web443443"),
        ("{{$n := .Name}}{{with .Labels}}{{$n}}-{{.tier}}{{end}}", "web-front"),
        ('{{if eq .Name "db" "web"}}one{{else}}other{{end}}', "one"),
        ('{{if eq .Name "db"}}a{{else if .Up}}b{{else}}c{{end}}!', "b!"),
        ('{{if and .Up (ne .Name "db")}}both{{end}}', "both"),
        ("{{if not .Empty}}none{{end}}{{if or .Empty .Up}}some{{end}}", "nonesome"),
        ("{{(index .Ports 0).Port}}", "80"),
        ('{{printf "%-5s|%3d|%q|%%" .Name 7 .Name}}', 'web  |  7|"web"|%'),
        ('{{index .Labels "absent"}}', ""),
        ('{{range split "a,b" ","}}<{{.}}>{{end}}', "<a><b>"),
        ("{{truncate .Name 2}}{{pad .Name 1 2}}.{{slice .Name 1}}", "we web  .eb"),
        ("{{if gt (len .Ports) 1}}many{{end}}", "many"),
        ("{{.Name | printf `%s!`}}", "web!"),
    ],
)
def test_renders(template: str, text: str) -> None:
    """Every action that the documentation names does what Go's does."""
    assert render(template, VALUE) == text


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{.Nmae}}", "no field 'Nmae'"),
        ("{{.Name", "without its }}"),
        ("{{end}}", "too many"),
        ("{{range .Ports}}", "lacks an {{end}}"),
        ("{{else}}", "place of its own"),
        ("{{frobnicate .Name}}", "unknown function 'frobnicate'"),
        ("{{len .Up}}", "does not work here"),
        ("{{Name}}", "neither a field"),
        ("{{}}", "empty step"),
        ("{{$x}}", "undefined variable"),
        ("{{range .Up}}{{end}}", "iterate"),
        ("{{(.Up}}", "without its"),
        ("{{.Up)}}", "out of place"),
        ("{{" + "(" * 40 + ".Up" + ")" * 40 + "}}", "parentheses"),
        ("{{if .Up}}" * 70 + "{{end}}" * 70, "blocks"),
        ("{{.Name .Up}}", "is no function"),
        ('{{printf "%y" .Up}}', "not understood"),
        ("{{$a, $b := .Up}}", "two names"),
        ("x" * (MAX_TEXT + 1), "longer than"),
    ],
)
def test_refuses(template: str, complaint: str) -> None:
    """What cannot be rendered is one sentence that names the place."""
    with pytest.raises(TemplateError, match=re.escape(complaint)):
        render(template, VALUE)


def test_fields_are_listed_in_order() -> None:
    """A table template's headings come from the fields it uses."""
    assert fields("{{.ID}}\t{{upper .Name}}\t{{json .Labels.tier}}") == ["ID", "Name", "Labels"]


@given(st.text(alphabet='{}.|"abN -\t()$:=,`%', max_size=40))
def test_any_text_renders_or_is_refused(template: str) -> None:
    """No template makes the command crash."""
    with contextlib.suppress(TemplateError):
        render(template, VALUE)
