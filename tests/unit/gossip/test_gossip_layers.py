"""The cores stay free of input, output, clocks and logging."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import agent.gossip

ROOT = Path(agent.gossip.__file__).parent
SHELL = {"service.py", "streams.py"}
CORES = [path for path in ROOT.rglob("*.py") if path.name not in SHELL]
OUTSIDE = {
    "asyncio", "socket", "time", "os", "logging", "structlog", "threading", "secrets", "select",
    "subprocess", "datetime", "uvloop",
}  # fmt: skip


def imported(tree: ast.AST) -> set[str]:
    """Return the top-level modules a module imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("path", CORES, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_modules_import_nothing_from_outside(path: Path) -> None:
    """Time, randomness and bytes are passed in; only the shell talks to the system."""
    tree = ast.parse(path.read_text())
    assert not imported(tree) & OUTSIDE
    calls = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    assert not {c for c in calls if c.startswith("random.")} - {"random.Random"}
