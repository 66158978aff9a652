"""Safety and recovery of the group under every fault at once, many seeds."""

from __future__ import annotations

import os

import pytest
from support.managers.register import simulate

SEEDS = int(os.environ.get("OVERSWARM_SEEDS", "400"))
FIRST = int(os.environ.get("OVERSWARM_FIRST_SEED", "0"))
BLOCK = 25


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, BLOCK))
def test_group_survives_everything(first: int) -> None:
    """No seed breaks an invariant; everything acknowledged is there when the faults end."""
    for seed in range(first, min(first + BLOCK, FIRST + SEEDS)):
        try:
            simulate(seed)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
