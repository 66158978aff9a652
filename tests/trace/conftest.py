"""Lets the trace tests import their interpreter, and adds ``--rewrite``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that records what happens instead of checking it."""
    parser.addoption(
        "--rewrite",
        action="store_true",
        help="rewrite the expected output of trace files; review the difference",
    )
