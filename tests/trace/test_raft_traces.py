"""Recorded conversations of raft members, one file per behaviour or bug.

``pytest tests/trace --rewrite`` records anew what the members do; the difference is then read
like code. The commands are documented in ``raft_trace.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from raft_trace import COMMANDS, Group, parse, render

TRACES = sorted((Path(__file__).parent / "testdata").glob("raft_*.txt"))


@pytest.mark.parametrize("path", TRACES, ids=lambda path: path.stem)
def test_members_do_what_was_recorded(path: Path, request: pytest.FixtureRequest) -> None:
    """Every command of the trace prints what the file says."""
    steps = parse(path.read_text())
    group = Group()
    for step in steps:
        if step.command is not None:
            step.output = group.execute(step.command)
    played = render(steps)
    if request.config.getoption("--rewrite", default=False):
        path.write_text(played)
    assert played.splitlines() == path.read_text().splitlines()


def test_every_command_is_used() -> None:
    """No command of the interpreter is without a trace that shows it."""
    words = {
        step.command.split()[0]
        for path in TRACES
        for step in parse(path.read_text())
        if step.command is not None
    }
    assert words == set(COMMANDS)
