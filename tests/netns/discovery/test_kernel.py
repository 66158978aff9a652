"""The kernel helpers under real namespaces and a real nftables."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from swarm.errors import InvalidArgumentError, NotFoundError
from swarm.kernel.netns import in_netns, loopback_up, open_netns
from swarm.kernel.nft import Nft, NftError

TABLE = {"family": "ip", "name": "t"}


def here() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_thread_enters_and_comes_back(netns: str) -> None:
    home = here()
    with in_netns(netns):
        assert here() == Path(netns).stat().st_ino != home
        assert (1, "lo") in socket.if_nameindex()
    assert here() == home


def test_thread_comes_back_after_an_error(netns: str) -> None:
    home = here()
    with pytest.raises(ZeroDivisionError), in_netns(netns):
        raise ZeroDivisionError
    assert here() == home


def test_other_threads_stay_where_they_are(netns: str) -> None:
    home = here()
    seen: list[int] = []
    entered, looked = threading.Event(), threading.Event()

    def outside() -> None:
        entered.wait(5)
        seen.append(here())
        looked.set()

    thread = threading.Thread(target=outside)
    thread.start()
    with in_netns(netns):
        entered.set()
        looked.wait(5)
    thread.join()
    assert seen == [home]


def test_descriptor_works_too_and_stays_open(netns: str) -> None:
    descriptor = open_netns(netns)
    with in_netns(descriptor):
        pass
    with in_netns(descriptor):
        assert here() == os.fstat(descriptor).st_ino
    os.close(descriptor)


def test_no_descriptor_is_leaked(netns: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = descriptors()
    for path in (netns, "/proc/0/ns/net", str(tmp_path / "file"), "/proc/self/ns/uts"):
        try:
            with in_netns(path):
                pass
        except (NotFoundError, InvalidArgumentError):
            continue
    assert descriptors() == before


@pytest.mark.parametrize("path", ["/proc/0/ns/net", "/run/netns/nosuchnamespace"])
def test_missing_namespace_is_not_found(path: str) -> None:
    with pytest.raises(NotFoundError):
        open_netns(path)


@pytest.mark.parametrize("path", ["/proc/self/ns/uts", "/etc/passwd"])
def test_other_files_are_no_network_namespace(path: str) -> None:
    with pytest.raises(InvalidArgumentError):
        open_netns(path)


def test_loopback_comes_up_and_staying_up_is_fine(netns: str) -> None:
    with in_netns(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        with pytest.raises(OSError, match="unreachable"):
            probe.connect(("127.0.0.1", 9))
        loopback_up()
        loopback_up()
        probe.connect(("127.0.0.1", 9))


def test_transaction_is_applied_in_the_namespace_only(netns: str) -> None:
    with in_netns(netns), Nft() as nft:
        nft.run([{"add": {"table": TABLE}}])
        listed = nft.run([{"list": {"tables": {}}}])
    assert [item["table"]["name"] for item in listed] == ["t"]
    with Nft() as nft, pytest.raises(NftError):
        nft.run([{"list": {"table": TABLE}}])


def test_context_keeps_the_namespace_in_which_it_was_made(netns: str) -> None:
    with in_netns(netns):
        nft = Nft()
    nft.run([{"add": {"table": TABLE}}])
    nft.close()
    nft.close()
    with in_netns(netns), Nft() as again:
        assert again.run([{"list": {"table": TABLE}}])


def test_refused_transaction_leaves_nothing_behind(netns: str) -> None:
    with in_netns(netns), Nft() as nft:
        chain = {"family": "ip", "table": "nosuchtable", "name": "c"}
        with pytest.raises(NftError, match="No such file"):
            nft.run([{"add": {"table": TABLE}}, {"add": {"chain": chain}}])
        assert nft.run([{"list": {"tables": {}}}]) == []


def test_nonsense_is_refused_with_a_reason(netns: str) -> None:
    with in_netns(netns), Nft() as nft, pytest.raises(NftError, match=r"refused the change: .+"):
        nft.run([{"add": {"nonsense": {}}}])
