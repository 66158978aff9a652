"""Network namespaces for the tests of this folder: no process holds them, nothing is left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from swarm.kernel import libc

NewNetns = Callable[[], str]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = os.path.dirname(__file__)  # noqa: PTH120  # items of other folders pass here too
    for item in items:
        if str(item.path).startswith(here):
            item.add_marker(pytest.mark.netns)
            item.add_marker(pytest.mark.skipif(os.geteuid() != 0, reason="needs root"))


@pytest.fixture
def new_netns() -> Iterator[NewNetns]:
    """Return a function that makes a namespace and returns a path to it."""
    descriptors: list[int] = []

    def make() -> str:
        def work() -> None:
            libc.unshare(libc.CLONE_NEWNET)
            descriptors.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return f"/proc/{os.getpid()}/fd/{descriptors[-1]}"

    yield make
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.fixture
def netns(new_netns: NewNetns) -> str:
    """Return a path to a fresh network namespace, ``lo`` down."""
    return new_netns()
