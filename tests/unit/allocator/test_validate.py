"""What a network may be asked to be, row by row."""

from __future__ import annotations

from dataclasses import replace

import pytest

from manager.allocator import check_platform, validate_network_spec
from manager.allocator.validate import MAX_LABELS, MAX_RESERVED, MAX_SUBNETS
from swarm.errors import (
    InvalidArgumentError,
    PermissionDeniedError,
    PreconditionError,
    SwarmError,
    UnimplementedError,
)
from swarm.model import (
    Annotations,
    Driver,
    IPAMConfig,
    IPAMFamily,
    IPAMOptions,
    Network,
    NetworkSpec,
    Node,
    NodeDescription,
    Platform,
)

VXLANS = "com.docker.network.driver.overlay.vxlanid_list"


def named(name: str, **labels: str) -> NetworkSpec:
    """A plain spec."""
    return NetworkSpec(annotations=Annotations(name=name, labels=labels))


def ipam(*configs: IPAMConfig) -> NetworkSpec:
    """A spec with subnets."""
    return replace(named("web"), ipam=IPAMOptions(configs=configs))


def sub(subnet: str, **more: object) -> NetworkSpec:
    """A spec with one subnet."""
    return ipam(IPAMConfig(subnet=subnet, **more))  # type: ignore[arg-type]  # test shorthand


@pytest.mark.parametrize(
    "spec",
    [
        named("a"),
        named("A" * 63),
        named("my_net-1"),
        named("a__b--c"),
        replace(named("web"), attachable=True, internal=True, ipv6_enabled=True),
        replace(named("ingress2"), ingress=True),
        replace(named("web"), driver_config=Driver(name="overlay", options={"encrypted": ""})),
        replace(named("web"), driver_config=Driver(name="macvlan", options={"parent": "eth0"})),
        replace(named("web"), driver_config=Driver(name="overlay", options={VXLANS: "4096, 5000"})),
        replace(named("web"), ipam=IPAMOptions(driver=Driver(name="default"))),
        ipam(IPAMConfig()),
        ipam(IPAMConfig(family=IPAMFamily.IPV6)),
        sub("10.1.0.0/16", range="10.1.5.0/24", gateway="10.1.5.254", reserved={"r": "10.1.0.9"}),
        sub("10.1.0.0/30"),
        sub("fd00:1::/64", gateway="fd00:1::ffff"),
        sub("0.0.0.0/20"),
        ipam(IPAMConfig(subnet="0.0.0.0/24"), IPAMConfig(subnet="0.0.0.0/24")),
        ipam(IPAMConfig(subnet="10.1.0.0/24"), IPAMConfig(subnet="10.1.1.0/24")),
        ipam(IPAMConfig(subnet="10.1.0.0/24"), IPAMConfig(subnet="fd00:1::/64")),
    ],
)
def test_right_specs_pass(spec: NetworkSpec) -> None:
    """Nothing is raised."""
    validate_network_spec(spec)


MTU = "com.docker.network.driver.mtu"


def opt(key: str, value: str, **more: object) -> NetworkSpec:
    """A spec with one driver option."""
    driver = Driver(name="overlay", options={key: value})
    return replace(named("web"), driver_config=driver, **more)


@pytest.mark.parametrize(
    "spec",
    [
        opt(MTU, ""),
        opt(MTU, "0"),
        opt(MTU, "652"),
        opt(MTU, "9000"),
        opt("overswarm.l2", "false"),
        opt("dsr", ""),
        opt("com.example.own", "anything"),
    ],
)
def test_right_options_pass(spec: NetworkSpec) -> None:
    """What this driver does not know is somebody else's matter."""
    validate_network_spec(spec)


def node(system: str) -> Node:
    """A node that runs a system."""
    platform = Platform(architecture="x86_64", os=system)
    return Node(id="n1", description=NodeDescription(hostname="box", platform=platform))


def test_windows_is_refused_an_encrypted_network_and_nothing_else() -> None:
    """The text names node and network and says what to do."""
    spec = opt("encrypted", "")
    plain = Network(id="p", spec=spec, driver_state=Driver(name="overlay"))
    secret = replace(plain, driver_state=Driver(name="overlay", options={"encrypted": ""}))
    for network, system in ((plain, "windows"), (secret, "linux"), (secret, "")):
        check_platform(network, node(system))
    check_platform(secret, Node(id="n2"))
    with pytest.raises(PreconditionError, match=r"box runs Windows.*network web: use a Linux node"):
        check_platform(secret, node("windows"))


BAD: list[tuple[NetworkSpec, type[SwarmError], str]] = [
    (named(""), InvalidArgumentError, "name must be provided"),
    (named("a" * 64), InvalidArgumentError, "63 characters"),
    (named("-a"), InvalidArgumentError, "DNS name"),
    (named("a-"), InvalidArgumentError, "DNS name"),
    (named("a.b"), InvalidArgumentError, "DNS name"),
    (named("a b"), InvalidArgumentError, "DNS name"),
    (named("web\n"), InvalidArgumentError, "DNS name"),
    (named("n\u00e9t"), InvalidArgumentError, "DNS name"),
    (named("web", **{"com.docker.swarm.predefined": "true"}), PermissionDeniedError, "predefined"),
    (named("web", **{f"l{n}": "" for n in range(MAX_LABELS + 1)}), InvalidArgumentError, "labels"),
    (named("web", big="x" * 70_000), InvalidArgumentError, "labels"),
    (replace(named("i"), ingress=True, attachable=True), InvalidArgumentError, "attachable"),
    (replace(named("i"), ingress=True, driver_config=Driver(name="bridge")), UnimplementedError, "ingress network driver"),
    (replace(named("w"), driver_config=Driver(options={"a": "b"})), InvalidArgumentError, "driver name"),
    (replace(named("w"), driver_config=Driver(name="weave")), InvalidArgumentError, "weave not found"),
    (replace(named("w"), driver_config=Driver(name="overlay", options={"o": "x" * 70_000})), InvalidArgumentError, "driver options"),
    (replace(named("w"), driver_config=Driver(name="overlay", options={VXLANS: "12"})), InvalidArgumentError, "VNI 12"),
    (replace(named("w"), driver_config=Driver(name="overlay", options={VXLANS: "16777216"})), InvalidArgumentError, "VNI"),
    (replace(named("w"), driver_config=Driver(name="overlay", options={VXLANS: "4100,"})), InvalidArgumentError, "decimal"),
    (replace(named("w"), driver_config=Driver(name="overlay", options={VXLANS: ",".join(map(str, range(5000, 5300)))})), InvalidArgumentError, "more than"),
    (replace(named("w"), ipam=IPAMOptions(driver=Driver(name="infoblox"))), InvalidArgumentError, "ipam driver infoblox"),
    (opt(MTU, "-1"), InvalidArgumentError, "-1 is not an MTU"),
    (opt(MTU, "big"), InvalidArgumentError, "not an MTU"),
    (opt(MTU, "651"), InvalidArgumentError, "652-65535"),
    (opt(MTU, "1355", ipv6_enabled=True), InvalidArgumentError, "1356-65535"),
    (opt(MTU, "65536"), InvalidArgumentError, "not an MTU"),
    (opt(MTU, "1" * 5000), InvalidArgumentError, "not an MTU"),
    (opt("overswarm.l2", "true"), UnimplementedError, "bridge"),
    (opt("overswarm.l2", ""), UnimplementedError, "bridge"),
    (sub("10.1.0.0"), InvalidArgumentError, "invalid CIDR"),
    (sub("10.1.0.0/33"), InvalidArgumentError, "invalid CIDR"),
    (sub("10.1.0.1/24"), InvalidArgumentError, "host bits"),
    (sub("ten"), InvalidArgumentError, "invalid CIDR"),
    (sub("10.1.0.0/31"), InvalidArgumentError, "too small"),
    (sub("fd00::/127"), InvalidArgumentError, "too small"),
    (sub("0.0.0.0/0"), InvalidArgumentError, "everything"),
    (sub("224.1.0.0/16"), InvalidArgumentError, "multicast"),
    (sub("127.1.0.0/16"), InvalidArgumentError, "loopback"),
    (sub("ff02::/16"), InvalidArgumentError, "multicast"),
    (sub("0.0.0.0/24", gateway="10.0.0.1"), InvalidArgumentError, "any subnet"),
    (sub("", gateway="10.0.0.1"), InvalidArgumentError, "needs its subnet"),
    (sub("", range="10.0.0.0/25"), InvalidArgumentError, "needs its subnet"),
    (sub("10.1.0.0/24", range="10.2.0.0/25"), InvalidArgumentError, "not inside"),
    (sub("10.1.0.0/24", range="10.1.0.0/23"), InvalidArgumentError, "not inside"),
    (sub("10.1.0.0/24", range="fd00::/25"), InvalidArgumentError, "not inside"),
    (sub("10.1.0.0/24", range="x"), InvalidArgumentError, "invalid CIDR"),
    (sub("10.1.0.0/24", gateway="10.2.0.1"), InvalidArgumentError, "not inside"),
    (sub("10.1.0.0/24", gateway="fd00::1"), InvalidArgumentError, "not inside"),
    (sub("10.1.0.0/24", gateway="10.1.0.1/24"), InvalidArgumentError, "without a prefix"),
    (sub("10.1.0.0/24", gateway="x"), InvalidArgumentError, "not an IP"),
    (sub("10.1.0.0/24", gateway="10.1.0.0"), InvalidArgumentError, "network or broadcast"),
    (sub("10.1.0.0/24", gateway="10.1.0.255"), InvalidArgumentError, "network or broadcast"),
    (sub("10.1.0.0/24", reserved={"r": "10.2.0.1"}), InvalidArgumentError, "reserved address r"),
    (sub("10.0.0.0/16", reserved={f"r{n}": f"10.0.{n // 200}.{n % 200 + 1}" for n in range(MAX_RESERVED + 1)}), InvalidArgumentError, "reserved addresses"),
    (ipam(IPAMConfig(subnet="10.1.0.0/24"), IPAMConfig(subnet="10.1.0.128/25")), InvalidArgumentError, "overlap"),
    (ipam(*[IPAMConfig()] * (MAX_SUBNETS + 1)), InvalidArgumentError, "subnets"),
]  # fmt: skip


@pytest.mark.parametrize(("spec", "error", "text"), BAD)
def test_wrong_specs_say_what_is_wrong(
    spec: NetworkSpec, error: type[SwarmError], text: str
) -> None:
    """The error's class is the caller's code, its text names the fault."""
    with pytest.raises(error, match=text):
        validate_network_spec(spec)
