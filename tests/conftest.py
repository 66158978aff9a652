"""What every test may rely on: skips say why, and a lab is made once for all who only look at it."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

EMULATED_SECONDS = 1800
"""Time limit of a test under emulation, where Python runs ten to twenty times slower."""


# A busy machine makes any example slow now and then; that is no failure.
settings.register_profile("overswarm", deadline=None)
settings.load_profile("overswarm")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give emulation its time; skip, with the reason, what needs privileges that this run does not have."""
    for item in items:
        if item.get_closest_marker("kernel"):
            item.add_marker(pytest.mark.timeout(EMULATED_SECONDS))
    if os.geteuid() == 0:
        return
    reason = "needs root: makes network namespaces"
    for item in items:
        if any(item.get_closest_marker(name) for name in ("netns", "lab", "interop", "kernel")):
            item.add_marker(pytest.mark.skip(reason=reason))
