"""Whole managers under every fault at once: what they acknowledge stays, and nothing is given twice."""

from __future__ import annotations

import os

import pytest
from support.managers.scenario import simulate

SEEDS = int(os.environ.get("OVERSWARM_CLUSTER_SEEDS", "120"))
FIRST = int(os.environ.get("OVERSWARM_FIRST_SEED", "0"))
BLOCK = 10


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BLOCK))
def test_managers_survive_everything(first: int) -> None:
    """No seed breaks an invariant, loses what was acknowledged, or shows clients an impossible past."""
    for seed in range(first, min(first + BLOCK, FIRST + SEEDS)):
        try:
            simulate(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
