"""The device under the tunnel, while devices come and go."""

from __future__ import annotations

import errno
import ipaddress
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from agent.dataplane import underlay
from agent.dataplane.channel import KernelError
from agent.dataplane.underlay import Underlay

VTEP = ipaddress.ip_address("192.0.2.7")


class Row(dict[str, Any]):
    """What pyroute2 returns of one address."""

    def get_attr(self, name: str) -> Any:
        return self.get(name)


class Gone:
    """A kernel that lists the address, and then says ``code`` of its device."""

    code = errno.ENODEV

    def get_addr(self, *, family: int) -> list[Row]:
        return [Row(index=9, IFA_LOCAL=str(VTEP))]

    def get_links(self, index: int) -> list[Row]:
        raise NetlinkError(self.code, "refused")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[Gone]:
    monkeypatch.setattr(underlay, "IPRoute", Gone)
    return Gone


def test_a_device_that_goes_while_it_is_looked_at_is_no_device(kernel: type[Gone]) -> None:
    assert Underlay().device(VTEP) is None
    assert Underlay().mtu(VTEP) is None


def test_another_refusal_is_an_error(kernel: type[Gone], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "code", errno.EPERM)
    with pytest.raises(KernelError, match="cannot look at the underlay"):
        Underlay().device(VTEP)
