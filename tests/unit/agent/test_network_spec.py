"""Assigned networks as the data plane wants them."""

from __future__ import annotations

import ipaddress

import pytest

from agent.node.records import mac_of, second_key
from agent.node.spec import network_of
from swarm.errors import InvalidArgumentError, UnimplementedError
from swarm.model import (
    Annotations,
    Driver,
    IPAMConfig,
    IPAMOptions,
    Network,
    NetworkSpec,
)

VNI = "com.docker.network.driver.overlay.vxlanid_list"


def _network(options: dict[str, str], *configs: IPAMConfig, driver: str = "overlay") -> Network:
    return Network(
        id="n1",
        spec=NetworkSpec(annotations=Annotations(name="backend")),
        driver_state=Driver(name=driver, options=options),
        ipam=IPAMOptions(configs=configs),
    )


V4 = IPAMConfig(subnet="10.0.1.0/24", gateway="10.0.1.1")
V6 = IPAMConfig(subnet="fd00:1::/64", gateway="fd00:1::1")


def test_an_ordinary_network() -> None:
    """Id, name, subnet, gateway and VNI arrive; the MTU is left to the underlay."""
    found = network_of(_network({VNI: "4097"}, V4))
    assert found.subnets[0].vni == 4097
    assert found.subnets[0].gateway == ipaddress.ip_address("10.0.1.1")
    assert (found.mtu, found.encrypted, found.internal, found.l2) == (0, False, False, False)


def test_vnis_belong_to_ipv4_subnets_in_order() -> None:
    """An IPv6 range between them takes none."""
    second = IPAMConfig(subnet="10.0.2.0/24", gateway="10.0.2.1")
    found = network_of(_network({VNI: "4097,4098"}, V4, V6, second))
    assert [subnet.vni for subnet in found.subnets] == [4097, None, 4098]


@pytest.mark.parametrize("value", ["", "true", "false"])
def test_encrypted_counts_by_presence(value: str) -> None:
    """As in every engine, ``encrypted=false`` encrypts."""
    assert network_of(_network({VNI: "1", "encrypted": value}, V4)).encrypted


@pytest.mark.parametrize(
    ("options", "family", "mtu"),
    [
        ({"com.docker.network.driver.mtu": "1500"}, 4, 1450),
        ({"com.docker.network.driver.mtu": "9000"}, 4, 8950),
        ({"com.docker.network.driver.mtu": "9000"}, 6, 8930),
        ({"com.docker.network.driver.mtu": "1500", "encrypted": ""}, 4, 1424),
        ({"com.docker.network.driver.mtu": "0"}, 4, 0),
    ],
)
def test_the_mtu_option_is_the_underlays(options: dict[str, str], family: int, mtu: int) -> None:
    """What containers get is what the tunnel leaves of it."""
    assert network_of(_network({VNI: "1", **options}, V4), family).mtu == mtu


@pytest.mark.parametrize(
    "network",
    [
        _network({}, V4),
        _network({VNI: "x"}, V4),
        _network({VNI: "1"}),
        _network({VNI: "1"}, IPAMConfig(subnet="nonsense")),
        _network({VNI: "1"}, IPAMConfig(subnet="10.0.1.0/24", gateway="x")),
        _network({VNI: "1"}, IPAMConfig(subnet="10.0.1.0/24", gateway="10.9.9.9")),
        _network({VNI: "1", "com.docker.network.driver.mtu": "big"}, V4),
        _network({VNI: "99999999"}, V4),
        Network(id="n1"),
    ],
)
def test_what_is_not_usable_is_refused(network: Network) -> None:
    """A manager's mistake is an error of this attach, never a crash."""
    with pytest.raises(InvalidArgumentError):
        network_of(network)


def test_other_drivers_are_refused() -> None:
    """This node only has overlay networks."""
    with pytest.raises(UnimplementedError, match="macvlan"):
        network_of(_network({VNI: "1"}, V4, driver="macvlan"))


def test_the_mac_follows_the_address() -> None:
    """02:42 and the IPv4 bytes, as engines make it."""
    assert mac_of("10.0.1.2/24") == "02:42:0a:00:01:02"
    assert mac_of("fd00::1/64").startswith("02:42:")
    assert second_key("a" * 64) != second_key("b" * 64)
