"""The core stays free of I/O, clocks and randomness of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import manager.raft
from manager.raft.core import TRANSITIONS
from manager.raft.events import Role
from manager.raft.intake import HANDLERS

PACKAGE = Path(next(iter(manager.raft.__path__)))
SHELL = {
    "__init__.py",
    "codec.py",
    "database.py",
    "keys.py",
    "node.py",
    "report.py",
    "sealing.py",
    "storage.py",
    "transport.py",
    "waiting.py",
}
FORBIDDEN = {"asyncio", "logging", "os", "secrets", "socket", "sqlite3", "structlog", "time"}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
    return names


def test_core_modules_import_no_io() -> None:
    """Neither directly nor through the shell's modules."""
    cores = sorted(path for path in PACKAGE.glob("*.py") if path.name not in SHELL)
    assert len(cores) >= 14
    shell = {f"manager.raft.{name.removesuffix('.py')}" for name in SHELL - {"__init__.py"}}
    for path in cores:
        found = _imports(path)
        assert not {name.split(".")[0] for name in found} & FORBIDDEN, path
        assert not found & shell, path


def test_randomness_is_injected() -> None:
    """Nobody calls the process-wide generator."""
    for path in PACKAGE.glob("*.py"):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "random"
        ]
        assert {node.attr for node in calls} <= {"Random"}, path


def test_every_role_is_reachable_and_hears_votes() -> None:
    """The tables cover all roles."""
    assert set(HANDLERS) == set(Role)
    assert {to for _, to in TRANSITIONS} == set(Role)
    assert all((role, Role.FOLLOWER) in TRANSITIONS for role in Role)
