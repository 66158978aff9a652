"""Parts of the kernel's side that other tests use without looking: removal of links, sysctls."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from agent.dataplane import netlink, sysctl
from agent.dataplane.channel import Channel, KernelError
from agent.dataplane.reaper import Reaper
from swarm.errors import HostError
from swarm.kernel import libc

pytestmark = [pytest.mark.netns]


def elsewhere(work: Callable[[], Any]) -> Any:
    """Run something in a network namespace of its own and return its result."""
    results: list[Any] = []

    def entered() -> None:
        try:
            libc.unshare(libc.CLONE_NEWNET)
            results.append(work())
        except BaseException as error:  # noqa: BLE001  # raised again by the caller
            results.append(error)

    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    thread = threading.Thread(target=entered)
    thread.start()
    thread.join()
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def test_a_removed_link_is_gone_when_the_call_returns() -> None:
    """Though the kernel has not answered yet; one that is not there is no error, one that stays is."""

    def work() -> list[bool]:
        reaper = Reaper()
        seen = []
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        with contextlib.closing(Channel()) as look:
            try:
                for number in range(40):
                    name = f"v{number}"
                    look.check([_veth(name, here)])
                    message = netlink.delete_link(name)
                    reaper.remove(message, Channel(), lambda name=name: look.link(name) is None)  # type: ignore[misc]
                    seen.append(look.link(name) is None)
                reaper.remove(netlink.delete_link("none"), Channel(), lambda: False)
                with pytest.raises(KernelError):
                    reaper.remove(netlink.delete_link("lo"), Channel(), lambda: False)
            finally:
                reaper.close()
                os.close(here)
        return seen

    assert elsewhere(work) == [True] * 40


def _veth(name: str, here: int) -> netlink.Message:
    return netlink.veth(
        name=name,
        mac="02:00:00:00:00:01",
        mtu=1500,
        group=1,
        peer=f"p{name}",
        peer_mac="02:00:00:00:00:02",
        peer_netns=here,
    )


@pytest.mark.parametrize("private", [True, False])
def test_sysctls_are_of_the_threads_own_namespace(
    monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    """Through a private procfs, and through the host's where that may not be made."""
    if not private:
        monkeypatch.setattr(sysctl, "_private_proc", sysctl._host_proc)
    source = sysctl.Source()

    def work() -> tuple[str | None, str | None, str | None]:
        tree = sysctl.Tree(source)
        try:
            before = tree.read("net/ipv4/conf/lo/proxy_arp")
            tree.write("net/ipv4/conf/lo/proxy_arp", "1")
            with pytest.raises(HostError):
                tree.write("net/ipv4/conf/none/proxy_arp", "1")
            assert tree.read("net/ipv4/conf/none/proxy_arp") is None
            return (
                before,
                tree.read("net/ipv4/conf/lo/proxy_arp"),
                sysctl.read("net/ipv4/conf/lo/proxy_arp"),
            )
        finally:
            tree.close()

    try:
        for _ in range(sysctl.USES + 2):
            assert elsewhere(work) == ("0", "1", "1")
    finally:
        source.close()
    assert sysctl.read("net/ipv4/conf/lo/proxy_arp") == "0", "the host's is as it was"
