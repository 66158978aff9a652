"""Thousands of open files: low numbers stay free for libnftables, which aborts the process without them."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator

import pytest

from swarm.errors import HostError
from swarm.kernel.descriptors import FIRST_HIGH, MOST_FILES, allow_many, lifted, lowest_free
from swarm.kernel.nft import LAST_DESCRIPTOR, Nft


@pytest.fixture(autouse=True)
def many() -> Iterator[None]:
    """Let this process open 4096 files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip("this process may not open 4096 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_is_allowed_what_it_may_have_and_never_less() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    assert allow_many() == most
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
    assert allow_many() == most
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_lifted_socket_is_the_same_socket_under_a_high_number() -> None:
    low = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    low.setblocking(False)
    low.bind(("127.0.0.1", 0))
    number, where = low.fileno(), low.getsockname()
    with lifted(low) as high:
        assert high.fileno() >= FIRST_HIGH
        assert low.fileno() == -1
        assert not os.get_inheritable(high.fileno())
        assert (high.getsockname(), high.type, high.gettimeout()) == (where, low.type, 0.0)
        assert lowest_free() <= number
        assert lifted(high) is high


def test_where_no_high_number_is_allowed_a_socket_stays_as_it_is() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FIRST_HIGH, hard))
    with socket.socket() as low:
        assert lifted(low) is low
        assert low.fileno() >= 0


def test_without_a_low_number_nftables_is_refused_and_the_process_lives() -> None:
    taken = []
    try:
        while lowest_free() <= LAST_DESCRIPTOR:
            taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        with pytest.raises(HostError, match="too many open files for nftables"):
            Nft()
    finally:
        for number in taken:
            os.close(number)
    with Nft() as nft:
        assert nft.run([{"list": {"tables": {}}}]) is not None
