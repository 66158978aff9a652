"""Labs for tests: a name of their own in every process, and nothing left of them afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swarm.lab.cluster import Lab
from swarm.lab.traces import observe


@contextmanager
def clean_lab(purpose: str) -> Iterator[Lab]:
    """A lab named after ``purpose`` (5 letters at most) and this process, that must leave nothing behind.

    Other labs may come and go meanwhile: of what is seen afterwards only what carries its name counts.
    """
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    name = f"{purpose}{os.getpid()}"
    before = observe(name)
    lab = Lab(name)
    try:
        yield lab
    finally:
        lab.down()
    assert [line for line in before.left_behind(observe(name)) if name in line] == []
