"""A runtime over a fresh directory, and a guarantee that no workload outlives its test."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent.workload.runtime import Runtime
from agent.workload.spec import Workload, WorkloadSpec

MakeSpec = Callable[..., WorkloadSpec]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.netns)
            item.add_marker(pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))


@pytest.fixture
def make_spec() -> MakeSpec:
    """Return a function that makes a spec of a command line."""

    def make(*argv: str, **fields: Any) -> WorkloadSpec:
        identity = secrets.token_hex(32)
        defaults: dict[str, Any] = {"id": identity, "name": f"w{identity[:8]}", "created_at": 1.0}
        return WorkloadSpec(argv=argv, **(defaults | fields))

    return make


class Running:
    """A runtime whose ``run()`` runs; :meth:`crash` is what a kill of the agent does to it."""

    def __init__(self, run_dir: Path) -> None:
        self.ended: list[Workload] = []
        self.settled = asyncio.Event()
        self.runtime = Runtime(run_dir, on_exit=self._on_exit)
        self._task: asyncio.Task[None] | None = None

    async def _on_exit(self, workload: Workload) -> None:
        self.ended.append(workload)
        self.settled.set()

    async def up(self) -> Runtime:
        await self.runtime.recover()
        self._task = asyncio.ensure_future(self.runtime.run())
        return self.runtime

    async def crash(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Running]:
    """Yield a runtime that runs; all its workloads are removed afterwards."""
    running = Running(tmp_path)
    await running.up()
    yield running
    await running.crash()
    last = Running(tmp_path)
    await last.runtime.recover()
    for workload in last.runtime.list():
        await last.runtime.remove(workload.spec.id, force=True)
    assert list((tmp_path / "workloads").iterdir()) == []


@pytest.fixture
async def runtime(node: Running) -> Runtime:
    """Return a runtime that runs."""
    return node.runtime
