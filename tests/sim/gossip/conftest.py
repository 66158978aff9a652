"""Fixtures of the simulations: the maker, a brisk timing, and how many seeds."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

import pytest
from support.gossip import Simulation

from agent.gossip.config import LAN, Timing


@pytest.fixture
def simulate() -> Callable[..., Simulation]:
    """Return the maker of simulations."""
    return Simulation


@pytest.fixture
def brisk() -> Timing:
    """Return timing with shorter periods than an engine's, to see more of them."""
    return replace(LAN, push_pull_interval=10.0, bulk_sync_interval=8.0, rejoin_interval=10.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run seeded tests with two fixed seeds, or as many as OVERSWARM_SEEDS says."""
    if "seed" in metafunc.fixturenames:
        count = int(os.environ.get("OVERSWARM_SEEDS", "2"))
        metafunc.parametrize("seed", range(1, count + 1))
