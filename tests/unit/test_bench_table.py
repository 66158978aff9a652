"""Benchmarks are found and described, and their rows judged, without running any."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.table import Row, of_rates, of_times

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("value", "goal", "met"),
    [
        (1357.0, "<= 1500 (dockerd 16-22 s)", True),
        (1501.0, "<= 1500 ms", False),
        (4999.0, ">= 5,000", False),
        (5000.0, ">= 5000", True),
        (1.0, "as little as possible", None),
        (1.0, "", None),
    ],
)
def test_a_goal_that_begins_with_a_bound_is_judged(
    value: float, goal: str, met: bool | None
) -> None:
    assert Row(what="x", value=value, unit="ms", goal=goal).met is met


def test_a_ratio_says_how_many_times_worse_than_the_floor() -> None:
    assert of_times("x", [0.002, 0.004, 0.003], floor=0.001).ratio == pytest.approx(3)
    assert of_rates("x", [100, 400, 200], floor=800).ratio == pytest.approx(4)
    assert Row(what="x", value=1, unit="ms").ratio is None


def test_best_and_worst_are_what_they_are_called() -> None:
    times = of_times("x", [0.002, 0.004, 0.003])
    assert (times.best, times.value, times.worst, times.count) == (2, 3, 4, 3)
    rates = of_rates("x", [100, 400, 200])
    assert (rates.best, rates.value, rates.worst, rates.count) == (400, 200, 100, 3)
    assert json.loads(json.dumps(rates.plain))["ratio"] is None


def test_every_benchmark_is_listed_with_its_title() -> None:
    """Help imports none of them, and shows exactly the modules with a ``run``."""
    shown = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    listed = dict(
        line.strip().split(None, 1) for line in shown.split("benchmarks:\n")[1].splitlines()
    )
    for path in (ROOT / "tests" / "bench").glob("*.py"):
        tree = ast.parse(path.read_text())
        runs = any(isinstance(each, ast.FunctionDef) and each.name == "run" for each in tree.body)
        assert (path.stem in listed) is runs, path
        if runs:
            title = (ast.get_docstring(tree) or "").splitlines()[0]
            assert listed[path.stem] == title
            assert title.endswith(".")
