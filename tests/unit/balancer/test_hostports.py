"""Ports of one host: what is read, reserved, refused and given back."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator
from typing import Any

import click
import pytest

from agent.balancer.balancer import HOST, Balancer
from agent.balancer.hostports import HostPort, HostPorts, parse
from agent.balancer.table import Port, Target
from swarm.cli.parse import published, shown
from swarm.errors import ConflictError, InvalidArgumentError

ADDRESS = ipaddress.IPv4Address("172.30.0.2")
ADDRESS6 = ipaddress.IPv6Address("fd6f:7673:7761:726d::2")


def free(kind: socket.SocketKind = socket.SOCK_STREAM) -> tuple[socket.socket, int]:
    """Return a bound socket and its port."""
    holder = socket.socket(socket.AF_INET, kind)
    holder.bind(("", 0))
    return holder, holder.getsockname()[1]


@pytest.fixture
async def ports() -> AsyncIterator[tuple[HostPorts, Balancer]]:
    balancer = Balancer(None)  # type: ignore[arg-type]  # it only notes what it is told
    made = HostPorts(balancer, answer_loopback=lambda *_: None)
    running = asyncio.ensure_future(made.run())
    await asyncio.sleep(0)
    yield made, balancer
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


def slots(balancer: Balancer, port: HostPort, version: int = 4) -> Any:
    found = balancer._networks[HOST].table.slots(Port(version, port.protocol, port.published))
    return None if found is None else found.backs


async def test_a_port_leads_to_the_containers_leg_until_it_is_withdrawn(ports: Any) -> None:
    made, balancer = ports
    (port,) = made.publish("e", [parse("0:80/tcp")], (ADDRESS,))
    assert port.published > 0
    assert slots(balancer, port) == (Target(ADDRESS, 80),)
    assert made.holds("tcp", port.published)
    assert not made.holds("udp", port.published)
    made.withdraw("e")
    assert not slots(balancer, port)
    assert not made.holds("tcp", port.published)
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.bind(("", port.published))
    holder.close()


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
async def test_a_port_of_another_program_is_refused_and_nothing_stays(
    ports: Any, kind: socket.SocketKind
) -> None:
    made, balancer = ports
    holder, number = free(kind)
    protocol = "tcp" if kind is socket.SOCK_STREAM else "udp"
    with holder, pytest.raises(ConflictError, match=f"port {number}/{protocol} is in use"):
        made.publish("e", [parse("0:80/tcp"), parse(f"{number}:80/{protocol}")], (ADDRESS,))
    assert balancer._networks[HOST].table.pools == {}


async def test_nobody_else_can_take_a_published_port(ports: Any) -> None:
    made, _ = ports
    (port,) = made.publish("e", [parse("0:80/tcp")], (ADDRESS,))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as other, pytest.raises(OSError):  # noqa: PT011  # EADDRINUSE
        other.bind(("", port.published))
    with pytest.raises(ConflictError):
        made.publish("f", [parse(f"{port.published}:81/tcp")], (ADDRESS,))


async def test_a_port_bound_to_one_address_leaves_the_others(ports: Any) -> None:
    """Two containers may share a number on two addresses; all addresses at once meet each of them."""
    made, balancer = ports
    (one,) = made.publish("e", [parse("127.0.0.1:0:80/tcp")], (ADDRESS,))
    assert slots(balancer, one) is None
    assert balancer._networks[HOST].table.slots(one.front(4)) is not None
    (two,) = made.publish("f", [parse(f"127.0.0.2:{one.published}:80/tcp")], (ADDRESS,))
    assert (str(two.address), two.published) == ("127.0.0.2", one.published)
    for text in (f"{one.published}:80/tcp", f"127.0.0.1:{one.published}:80/tcp"):
        with pytest.raises(ConflictError):
            made.publish("g", [parse(text)], (ADDRESS,))


async def test_a_leg_with_both_ip_versions_has_its_port_in_both(ports: Any) -> None:
    """One number, reserved in both; either may be left out."""
    made, balancer = ports
    (port,) = made.publish("e", [parse("0:80/tcp")], (ADDRESS, ADDRESS6))
    assert slots(balancer, port) == (Target(ADDRESS, 80),)
    assert slots(balancer, port, 6) == (Target(ADDRESS6, 80),)
    for family, place in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family, socket.SOCK_STREAM) as other:
            if family == socket.AF_INET6:
                other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            with pytest.raises(OSError):  # noqa: PT011  # EADDRINUSE
                other.bind((place, port.published))
    made.withdraw("e")
    assert not slots(balancer, port)
    assert not slots(balancer, port, 6)
    (four,) = made.publish("e", [parse("0.0.0.0:0:80/tcp")], (ADDRESS, ADDRESS6))
    assert not slots(balancer, four, 6)
    (six,) = made.publish("f", [parse(f"[::]:{four.published}:80/tcp")], (ADDRESS, ADDRESS6))
    assert str(six) == f"[::]:{four.published}:80/tcp"
    assert slots(balancer, six) == (Target(ADDRESS, 80),), "e's"
    assert slots(balancer, six, 6) == (Target(ADDRESS6, 80),)
    for text in (f"{four.published}:80/tcp", f"[::1]:{four.published}:80/tcp"):
        with pytest.raises(ConflictError):
            made.publish("g", [parse(text)], (ADDRESS, ADDRESS6))


async def test_a_port_of_another_program_in_one_ip_version_is_refused(ports: Any) -> None:
    made, balancer = ports
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as other:
        other.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        other.bind(("::1", 0))
        number = other.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {number}/tcp is in use"):
            made.publish("e", [parse(f"{number}:80/tcp")], (ADDRESS, ADDRESS6))
    assert balancer._networks[HOST].table.pools == {}
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.bind(("", number))
    holder.close()


async def test_an_ipv6_address_needs_a_leg_with_ipv6(ports: Any) -> None:
    made, _ = ports
    with pytest.raises(InvalidArgumentError, match="has IPv4 alone"):
        made.publish("e", [parse("[::1]:8080:80/tcp")], (ADDRESS,))


@pytest.mark.parametrize(
    "text",
    [
        "host:80:80/tcp",
        "1.2.3:80:80/tcp",
        "[::1:80:80/tcp",
        "[1.2.3.4]:80:80/tcp",
        "[]:80:80/tcp",
        "[fe80::1%eth0]:80:80/tcp",
    ],
)
def test_an_address_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse(text)


async def test_an_address_of_another_host_is_refused(ports: Any) -> None:
    made, _ = ports
    with pytest.raises(InvalidArgumentError, match="not an address of this node"):
        made.publish("e", [parse("203.0.113.77:8080:80/tcp")], (ADDRESS,))


async def test_one_number_serves_tcp_and_udp(ports: Any) -> None:
    made, balancer = ports
    (tcp,) = made.publish("e", [parse("0:53/tcp")], (ADDRESS,))
    (udp,) = made.publish("f", [parse(f"{tcp.published}:53/udp")], (ADDRESS,))
    assert slots(balancer, tcp) == slots(balancer, udp) == (Target(ADDRESS, 53),)


@pytest.mark.parametrize(
    "text", ["", "80", "80:80", "a:80/tcp", "80:0/tcp", "80:80/icmp", "70000:80/tcp", "1:65536/udp"]
)
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse(text)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("80", ["0:80/tcp"]),
        ("8080:80", ["8080:80/tcp"]),
        ("53:53/udp", ["53:53/udp"]),
        ("[::1]:8080:80", ["[::1]:8080:80/tcp"]),
        ("8000-8002:80-82", ["8000:80/tcp", "8001:81/tcp", "8002:82/tcp"]),
    ],
)
def test_what_is_typed(typed: str, meant: list[str]) -> None:
    assert published(typed) == meant
    assert [str(parse(text)) for text in meant] == meant


@pytest.mark.parametrize("typed", ["", "x", "1-3:80", "127.0.0.1:80", "0:80", "90-80", "80/ip"])
def test_what_makes_no_sense_when_typed(typed: str) -> None:
    with pytest.raises(click.BadParameter):
        published(typed)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("8080:80/tcp", "0.0.0.0:8080->80/tcp"),
        ("127.0.0.1:53:5353/udp", "127.0.0.1:53->5353/udp"),
        ("[::1]:53:5353/udp", "[::1]:53->5353/udp"),
    ],
)
def test_ports_are_listed_as_docker_lists_them(text: str, line: str) -> None:
    assert shown(str(parse(text))) == line
