"""Which addresses a node takes."""

from __future__ import annotations

import ipaddress

import pytest

from agent.node.address import HostAddress, resolve, split_wish
from agent.node.host import addresses, name_servers, route_to
from swarm.errors import InvalidArgumentError, PreconditionError


def _host(*entries: str) -> list[HostAddress]:
    """Addresses as ``eth0=192.0.2.1``; a leading ``-`` means never advertised unasked."""
    return [
        HostAddress(
            interface=entry.lstrip("-").partition("=")[0],
            ip=ipaddress.ip_address(entry.partition("=")[2]),
            candidate=not entry.startswith("-"),
        )
        for entry in entries
    ]


ONE = _host("-lo=127.0.0.1", "eth0=192.0.2.1", "eth0=2001:db8::1", "-gw0=172.18.0.1")


def test_defaults_of_a_host_with_one_address() -> None:
    """Listen everywhere, advertise the only IPv4 address, send VXLAN from there."""
    found = resolve(host=ONE)
    assert (found.listen, found.advertise, found.advertise_port, found.data_path) == (
        "0.0.0.0:2377",
        "192.0.2.1",
        2377,
        "192.0.2.1",
    )


def test_interfaces_stand_for_their_address() -> None:
    """Every option takes an interface's name."""
    host = _host("eth0=192.0.2.1", "eth1=198.51.100.1")
    found = resolve(listen="eth0:4000", advertise="eth0", data_path="eth1", host=host)
    assert found.listen == "192.0.2.1:4000"
    assert (found.advertise, found.advertise_port) == ("192.0.2.1", 4000)
    assert found.data_path == "198.51.100.1"


def test_a_join_advertises_the_address_that_leads_to_the_manager() -> None:
    """Several addresses are no problem when the route decides."""
    host = _host("eth0=192.0.2.1", "eth1=198.51.100.1")
    found = resolve(host=host, route=ipaddress.ip_address("198.51.100.1"))
    assert found.advertise == found.data_path == "198.51.100.1"


def test_a_specific_listen_address_is_advertised() -> None:
    """Whoever listens on one address only means that one."""
    host = _host("eth0=192.0.2.1", "eth1=198.51.100.1")
    assert resolve(listen="198.51.100.1", host=host).advertise == "198.51.100.1"


def test_ipv6_alone_is_fine() -> None:
    """A host without IPv4 advertises IPv6, in brackets where a port follows."""
    found = resolve(listen="[2001:db8::1]:2377", host=_host("eth0=2001:db8::1"))
    assert found.listen == "[2001:db8::1]:2377"
    assert found.advertise == "2001:db8::1"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"advertise": "192.0.2.9"}, "advertise address 192.0.2.9 is not an address of this host"),
        ({"listen": "192.0.2.9"}, "listen address 192.0.2.9 is not an address of this host"),
        ({"data_path": "192.0.2.9"}, "data path address 192.0.2.9 is not an address of this host"),
        ({"advertise": "eth7"}, "'eth7' is neither"),
        ({"advertise": "0.0.0.0"}, "non-zero"),
        ({"advertise": "192.0.2.1:99999"}, "no valid port"),
        ({"listen": "[2001:db8::1"}, "is not an address"),
        ({"listen": "a:b:c"}, "is not an address"),
        ({"listen": "x" * 300}, "too long"),
    ],
)
def test_what_makes_no_sense_is_named(options: dict[str, str], words: str) -> None:
    """The message names the address, so that the person sees the typing mistake."""
    with pytest.raises(InvalidArgumentError, match=words.replace("[", r"\[")):
        resolve(host=ONE, **options)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (_host("eth0=192.0.2.1", "eth0=192.0.2.2"), "on interface eth0"),
        (_host("eth0=192.0.2.1", "eth1=192.0.2.2"), "on different interfaces"),
        (_host("-lo=127.0.0.1"), "could not find the system's IP address"),
    ],
)
def test_a_choice_is_left_to_the_person(host: list[HostAddress], words: str) -> None:
    """The text is the one docker's users know, and names the option to give."""
    with pytest.raises(PreconditionError, match=words) as error:
        resolve(host=host)
    assert "--advertise-addr" in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ("192.0.2.1", 2377)),
        ("192.0.2.1:80", ("192.0.2.1", 80)),
        ("2001:db8::1", ("2001:db8::1", 2377)),
        ("[2001:db8::1]", ("2001:db8::1", 2377)),
        ("[2001:db8::1]:80", ("2001:db8::1", 80)),
        ("eth0", ("eth0", 2377)),
        ("host.example:80", ("host.example", 80)),
    ],
)
def test_forms_of_an_address(text: str, expected: tuple[str, int]) -> None:
    """All forms people type."""
    assert split_wish(text) == expected


def test_this_host_has_loopback_which_is_no_candidate() -> None:
    """The real kernel's answer is understood."""
    loopback = [entry for entry in addresses() if str(entry.ip) == "127.0.0.1"]
    assert [entry.candidate for entry in loopback] == [False]
    assert str(route_to("127.0.0.1", 2377)) == "127.0.0.1"


def test_name_servers_are_the_first_three() -> None:
    """As resolv.conf(5) has it; a missing file means none."""
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        path = Path(directory) / "resolv.conf"
        path.write_text("# c\nnameserver 192.0.2.1\nsearch x\n" + "nameserver 192.0.2.2\n" * 4)
        assert name_servers(path) == ("192.0.2.1", "192.0.2.2", "192.0.2.2")
    assert name_servers(path) == ()
