"""nftables contexts of containers' namespaces: open for a block, closed without anybody waiting."""

from __future__ import annotations

import threading

import pytest

from agent.discovery import tables as tables_module
from agent.discovery.tables import Tables
from swarm.kernel.nft import Nft


class Slow(Nft):
    """A context that the kernel lets wait before it closes."""

    may_close = threading.Event()
    closed: int = 0

    def close(self) -> None:
        assert self.may_close.wait(30)
        super().close()
        type(self).closed += 1


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "Nft", Slow)
    monkeypatch.setattr(Slow, "may_close", threading.Event())
    monkeypatch.setattr(Slow, "closed", 0)


def test_a_block_ends_before_its_context_is_closed_and_the_end_waits_for_all() -> None:
    with Tables() as tables:
        for _ in range(3):
            with tables.here() as nft:
                assert nft.run([{"list": {"tables": {}}}]) is not None
        assert Slow.closed == 0
        Slow.may_close.set()
    assert Slow.closed == 3


def test_a_block_that_fails_leaves_no_context_behind() -> None:
    Slow.may_close.set()
    with Tables() as tables, pytest.raises(ZeroDivisionError), tables.here():
        raise ZeroDivisionError
    assert Slow.closed == 1


def test_after_the_end_a_block_closes_its_context_itself() -> None:
    Slow.may_close.set()
    with Tables() as tables:
        pass
    with tables.here():
        assert Slow.closed == 0
    assert Slow.closed == 1
