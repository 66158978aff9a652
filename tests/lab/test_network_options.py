"""Every option of ``network create`` and of attaching has the effect that it promises, end to end."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.cluster import Cluster
from support.labs import clean_lab

from swarm.lab.processes import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.slow]

VNIS = "com.docker.network.driver.overlay.vxlanid_list"
MTU = "com.docker.network.driver.mtu"


class Net:
    """One network and its containers; both are gone afterwards."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self._made: list[tuple[str, str]] = []

    def create(self, *flags: str) -> dict[str, Any]:
        """Create it; what inspect shows."""
        self.cluster.network(self.name, *flags)
        (shown,) = json.loads(self.cluster.swarm("m1", "network", "inspect", self.name))
        found: dict[str, Any] = shown
        return found

    def run(self, host: str, name: str, *flags: str) -> list[dict[str, Any]]:
        """Start a container that waits; its addresses on eth0."""
        name = f"{self.name}-{name}"
        self._made.append((host, name))
        self.cluster.swarm(
            host, "run", "-d", "--name", name, "--network", self.name, *flags, "--", "sleep", "600"
        )
        return self.addresses(host, name)

    def addresses(self, host: str, name: str, interface: str = "eth0") -> list[dict[str, Any]]:
        """The addresses of a container's interface."""
        text = self.inside(host, name, "ip", "-j", "addr", "show", "dev", interface)
        (link,) = json.loads(text)
        return [
            each | {"mtu": link["mtu"]} for each in link["addr_info"] if each["scope"] == "global"
        ]

    def inside(self, host: str, name: str, *words: str) -> str:
        """Run a command in a container."""
        return self.cluster.swarm(host, "exec", name, *words)

    def pings(self, host: str, name: str, target: str, *flags: str) -> None:
        """Wait until a container gets an answer from an address or name."""
        words = ("exec", f"{self.name}-{name}", "ping", "-n", "-c1", "-W1", *flags, target)

        def answered() -> bool:
            return self.cluster.attempt(host, *words).returncode == 0

        wait_until(answered, seconds=20, what=lambda: f"{target} does not answer {name} on {host}")

    def close(self) -> None:
        """Remove all of it."""
        for host, name in self._made:
            self.cluster.remove(host, name)
        self.cluster.remove_network(self.name)


@pytest.fixture
def net(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Net]:
    """A network named after the test."""
    made = Net(
        cluster, "opt-" + request.node.name.split("[")[0][5:25].replace("_", "-").rstrip("-")
    )
    try:
        yield made
    finally:
        made.close()


def local(found: list[dict[str, Any]], family: str = "inet") -> str:
    """The first address of a family."""
    return next(each["local"] for each in found if each["family"] == family)


def test_several_subnets_are_one_network(net: Net) -> None:
    """Each has its VNI; containers of both reach each other on two hosts, through either gateway."""
    shown = net.create(
        "--subnet", "10.71.0.0/24", "--subnet", "10.72.0.0/24", "--gateway", "10.72.0.9"
    )
    assert [each["Subnet"] for each in shown["IPAM"]["Config"]] == ["10.71.0.0/24", "10.72.0.0/24"]
    assert [each["Gateway"] for each in shown["IPAM"]["Config"]] == ["10.71.0.1", "10.72.0.9"]
    assert len(set(shown["Options"][VNIS].split(","))) == 2
    assert local(net.run("w1", "a")).startswith("10.71.0.")
    assert local(net.run("w2", "b", "--ip", "10.72.0.40")) == "10.72.0.40"
    net.pings("w1", "a", "10.72.0.40")
    net.pings("w2", "b", "10.72.0.9")
    net.pings("w2", "b", "10.71.0.1")


def test_an_ip_range_bounds_what_is_given(net: Net) -> None:
    """Addresses come from the range; one outside of it but inside the subnet may be asked for."""
    shown = net.create("--subnet", "10.73.0.0/16", "--ip-range", "10.73.5.0/29")
    assert shown["IPAM"]["Config"][0]["IPRange"] == "10.73.5.0/29"
    part = ipaddress.ip_network("10.73.5.0/29")
    assert ipaddress.ip_address(local(net.run("w1", "a"))) in part
    assert ipaddress.ip_address(local(net.run("w2", "b"))) in part
    assert local(net.run("w2", "c", "--ip", "10.73.9.9")) == "10.73.9.9"


def test_an_auxiliary_address_is_never_given(net: Net) -> None:
    """Not even when it is asked for: the text says who has it."""
    net.create(
        "--subnet",
        "10.74.0.0/29",
        "--aux-address",
        "router=10.74.0.2",
        "--aux-address",
        "x=10.74.0.4",
    )
    assert local(net.run("w1", "a")) not in {"10.74.0.2", "10.74.0.4"}
    error = net.cluster.refused(
        "w1", "run", "--rm", "--network", net.name, "--ip", "10.74.0.2", "--", "true", status=125
    )
    assert "10.74.0.2" in error
    assert "router" in error or "reserved" in error


def test_an_internal_network_has_no_way_out(net: Net, cluster: Cluster) -> None:
    """No default route and no second leg; others have both, and the world answers them."""
    net.create("--internal", "--subnet", "10.75.0.0/24")
    net.run("w1", "in")
    assert "default" not in net.inside("w1", f"{net.name}-in", "ip", "route")
    assert "gw0" not in net.inside("w1", f"{net.name}-in", "ip", "link")
    open_ = Net(cluster, "opt-open")
    try:
        open_.create()
        open_.run("w1", "out")
        assert "default via" in open_.inside("w1", "opt-open-out", "ip", "route")
        # The lab's own bridge is beyond the host: only the way out leads there.
        open_.pings("w1", "out", "192.0.2.254")
    finally:
        open_.close()


def test_ipv6_beside_ipv4(net: Net) -> None:
    """A /64 of the cluster's own, or the one given; both families cross hosts, by name too."""
    shown = net.create("--ipv6", "--subnet", "10.76.0.0/24", "--subnet", "fd00:76::/64")
    assert shown["EnableIPv6"] is True
    first = net.run("w1", "a", "--ip6", "fd00:76::77")
    assert local(first, "inet6") == "fd00:76::77"
    net.run("w2", "b")
    net.pings("w2", "b", "fd00:76::77", "-6")
    net.pings("w2", "b", f"{net.name}-a", "-6")
    net.pings("w2", "b", f"{net.name}-a", "-4")
    # The lab's own bridge is beyond the host: only the way out leads there.
    net.pings("w1", "a", "2001:db8::fe", "-6")
    net.pings("w1", "a", "192.0.2.254", "-4")


def test_the_mtu_is_the_underlays(net: Net) -> None:
    """As in Docker, the option names the underlay's MTU; containers get 50 bytes less."""
    net.create("--opt", f"{MTU}=1400")
    assert net.run("w1", "a")[0]["mtu"] == 1350
    wrong = net.cluster.refused("m1", "network", "create", "--opt", f"{MTU}=fast", "opt-never")
    assert "leave the option out" in wrong


def test_a_vni_may_be_chosen_once(net: Net) -> None:
    """It names the tunnel's device; a second network is refused it, by the first one's name."""
    assert net.create("--opt", f"{VNIS}=70001")["Options"][VNIS] == "70001"
    net.run("w1", "a")
    routers = net.cluster.lab.state.run_dir("w1") / "netns"
    links = "".join(
        net.cluster.lab.run("w1", "nsenter", f"--net={path}", "ip", "-d", "link").stdout
        for path in routers.iterdir()
    )
    assert "vxlan id 70001 local 192.0.2.2" in links
    taken = net.cluster.refused("m1", "network", "create", "--opt", f"{VNIS}=70001", "opt-never")
    assert "70001" in taken


def test_encrypted_is_a_value_and_not_a_presence(net: Net) -> None:
    """``encrypted=false`` is not encrypted; on a kernel without ESP the true one is refused to the letter."""
    shown = net.create("--opt", "encrypted=false")
    assert "encrypted" not in shown["Options"]
    net.run("w1", "a")


def test_dsr_is_taken_and_explained(net: Net) -> None:
    """It asks for what is the case anyway; who types it is told."""
    result = net.cluster.attempt(
        "m1", "network", "create", "--attachable", "--opt", "dsr", net.name
    )
    assert result.returncode == 0, result.stderr
    assert "their clients' own addresses" in result.stderr
    net.run("w1", "a")


def test_addresses_and_aliases_on_attach(net: Net) -> None:
    """On run and on connect; a taken address names its holder, a foreign one the network's subnets."""
    net.create("--subnet", "10.77.0.0/24")
    assert (
        local(net.run("w1", "a", "--ip", "10.77.0.50", "--network-alias", "front")) == "10.77.0.50"
    )
    second = Net(net.cluster, "opt-second")
    try:
        second.create("--subnet", "10.78.0.0/24")
        second.run("w2", "b")
        name = f"{second.name}-b"
        connect = ("network", "connect", net.name, name)
        taken = net.cluster.refused("w2", *connect, "--ip", "10.77.0.50")
        assert "10.77.0.50" in taken
        assert "in use by" in taken
        assert "10.77.0.0/24" in net.cluster.refused("w2", *connect, "--ip", "10.99.0.1")
        net.cluster.swarm("w2", *connect, "--ip", "10.77.0.60", "--alias", "back")
        assert local(net.addresses("w2", name, "eth1")) == "10.77.0.60"
        second.pings("w2", "b", "front")
        net.pings("w1", "a", "back")
        net.cluster.swarm("w2", "network", "disconnect", net.name, name)
    finally:
        second.close()


def test_the_data_path_port_is_the_clusters() -> None:
    """Given at init, every node that joins uses it; a port outside of 1024 to 49151 is refused."""
    with clean_lab("port") as lab:
        lab.build(["m1", "w1"])
        cluster = Cluster(lab)
        init = ("init", "--advertise-addr", "192.0.2.1", "--listen-addr", "192.0.2.1:2377")
        wrong = cluster.refused("m1", *init, "--data-path-port", "500", status=125)
        assert "1024 and 49151" in wrong
        cluster.swarm("m1", *init, "--data-path-port", "4799")
        token = cluster.swarm("m1", "join-token", "-q", "worker").strip()
        cluster.swarm("w1", "join", "--token", token, "--advertise-addr", "192.0.2.2", "192.0.2.1")
        lab.await_ready("m1", 2)
        assert cluster.swarm("w1", "info", "--format", "{{.DataPathPort}}").strip() == "4799"
        cluster.network("net")
        cluster.serve("m1", "web", "net")
        assert cluster.eventually_fetches("w1", "net", "http://web:8080/").startswith("hello")
        sockets = lab.run("w1", "ss", "-Hlnu").stdout
        assert ":4799" in sockets
        assert ":4789" not in sockets
