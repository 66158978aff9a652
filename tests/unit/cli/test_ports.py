"""Published ports in docker's two forms, both ways."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.cli.ports import matches, service_ports, shown
from swarm.model import PortConfig, PortProtocol, PublishMode

TCP, UDP, SCTP = PortProtocol.TCP, PortProtocol.UDP, PortProtocol.SCTP


def port(
    target: int,
    published: int = 0,
    protocol: PortProtocol = TCP,
    mode: PublishMode = PublishMode.INGRESS,
) -> PortConfig:
    return PortConfig(
        target_port=target, published_port=published, protocol=protocol, publish_mode=mode
    )


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("80", [port(80)]),
        ("8080:80", [port(80, 8080)]),
        (":80", [port(80)]),
        ("53:53/udp", [port(53, 53, UDP)]),
        ("5000:5000/SCTP", [port(5000, 5000, SCTP)]),
        ("8000-8002:80-82", [port(80, 8000), port(81, 8001), port(82, 8002)]),
        ("80-81/udp", [port(80, 0, UDP), port(81, 0, UDP)]),
        ("target=80", [port(80)]),
        (
            "published=8080,target=80,protocol=udp,mode=host",
            [port(80, 8080, UDP, PublishMode.HOST)],
        ),
        ("target=80,mode=ingress", [port(80)]),
    ],
)
def test_both_forms(text: str, ports: list[PortConfig]) -> None:
    assert list(service_ports([text])) == ports


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "0",
        "65536",
        "80/icmp",
        "1-2:80",
        "2-1",
        "1-2000",
        "127.0.0.1:80:80",
        "[::1]:80:80",
        "published=80",
        "target=80,target=81",
        "target=80,colour=red",
        "target=80,mode=mesh",
        "target=²",
    ],
)
def test_what_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        service_ports([text])


def test_lists_show_neighbours_as_a_range() -> None:
    ports = service_ports(["8000-8002:80-82", "53:53/udp", "target=9,published=9,mode=host"])
    assert shown(ports, PublishMode.INGRESS) == "*:8000-8002->80-82/tcp,*:53->53/udp"
    assert shown(ports, PublishMode.HOST) == "*:9->9/tcp"
    assert shown((), PublishMode.HOST) == ""


def test_removal_names_the_target() -> None:
    assert matches(port(80, 8080), "80")
    assert matches(port(80, 8080), "80/tcp")
    assert not matches(port(80, 8080), "8080")
    assert not matches(port(80, 8080), "80/udp")


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        ports = service_ports([text])
    except click.BadParameter:
        return
    assert ports
    assert all(1 <= each.target_port <= 65535 for each in ports)
