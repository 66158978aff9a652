"""Wanted state is validated where it is made; names come from ids alone."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.dataplane import names
from agent.dataplane.model import Network, Settings, Subnet
from swarm.errors import InvalidArgumentError


@pytest.mark.parametrize(
    "change",
    [
        {"mac": "01:42:0a:00:00:02"},
        {"mac": "00:00:00:00:00:00"},
        {"mac": "02:42:0A:00:00:02"},
        {"ifname": "much-too-long-a-name"},
        {"ifname": "a/b"},
        {"ifname": ".."},
        {"ifname": "lo"},
        {"ifname": ""},
        {"id": "short"},
        {"addresses": ()},
        {"addresses": (ipaddress.ip_interface("10.0.1.2/24"),) * 2},
    ],
)
def test_an_endpoint_that_no_kernel_takes_is_refused(make: Any, change: dict[str, Any]) -> None:
    """Names, MACs and addresses that would be cut or misread."""
    with pytest.raises(InvalidArgumentError):
        replace(make.endpoint(1, 2), **change)


@pytest.mark.parametrize(
    "change",
    [
        {"id": "../../etc"},
        {"id": ""},
        {"subnets": ()},
        {"mtu": 100},
        {"mtu": 70000},
    ],
)
def test_a_network_that_cannot_be_is_refused(make: Any, change: dict[str, Any]) -> None:
    """Among others an id that would lead out of the run directory."""
    with pytest.raises(InvalidArgumentError):
        replace(make.network(1), **change)


def test_subnets_are_apart_and_have_vnis(make: Any) -> None:
    """No overlap, no VNI twice, at least one VNI; an IPv6 network needs 1280 bytes."""
    one = make.network(1).subnets[0]
    net = ipaddress.ip_network
    ip = ipaddress.ip_address
    inner = Subnet(cidr=net("10.0.1.128/25"), gateway=ip("10.0.1.129"), vni=9)
    for subnets in ((one, inner), (one, replace(make.network(2).subnets[0], vni=one.vni))):
        with pytest.raises(InvalidArgumentError):
            replace(make.network(1), subnets=subnets)
    with pytest.raises(InvalidArgumentError):
        replace(make.network(1), subnets=(replace(one, vni=None),))
    with pytest.raises(InvalidArgumentError):
        replace(make.network(1, v6=True), mtu=1200)
    for bad in ({"vni": 0}, {"vni": 1 << 24}, {"gateway": ip("10.0.2.1")}):
        with pytest.raises(InvalidArgumentError):
            replace(one, **bad)


def test_ipv6_rides_on_the_first_vni(make: Any) -> None:
    """A range without a VNI of its own shares the tunnel of the IPv4 one."""
    network: Network = make.network(1, v6=True)
    assert network.vni_of(network.subnets[1]) == network.subnets[0].vni


@given(st.ip_addresses(), st.integers(1, (1 << 24) - 1))
def test_tunnel_macs_are_stable_local_and_not_dockers(vtep: Any, vni: int) -> None:
    """The same after a restart, unicast, locally administered, outside 02:42."""
    mac = names.vxlan_mac(vtep, vni)
    assert mac == names.vxlan_mac(vtep, vni)
    assert int(mac[:2], 16) & 3 == 2
    assert not mac.startswith("02:42")


def test_names_fit_the_kernel() -> None:
    """Interface names hold 15 bytes; two nodes never share a tunnel MAC."""
    assert names.vxlan_name((1 << 24) - 1) == "vx-ffffff"
    assert len(names.port_name("f" * 64)) <= 15
    assert len(names.exit_name("f" * 64)) <= 15
    vteps = [ipaddress.ip_address(f"192.0.2.{i}") for i in range(1, 255)]
    assert len({names.vxlan_mac(vtep, 4096) for vtep in vteps}) == 254


def test_settings_are_checked(settings: Settings) -> None:
    """A port outside the range or an interval of nothing is refused."""
    for bad in ({"port": 0}, {"port": 65536}, {"check_interval": 0.0}):
        with pytest.raises(InvalidArgumentError):
            replace(settings, **bad)
