"""The routing mesh: two nodes of ours, an engine's task, and a client that neither of them owns."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any

import pytest

from agent.dataplane import Peer
from agent.dataplane.names import vxlan_mac
from agent.gossip.records import Balancing, EndpointRecord, PortConfig, Protocol

pytestmark = [pytest.mark.netns, pytest.mark.slow]

CLIENT = "198.51.100.9"
SCTP = PortConfig(protocol=Protocol.SCTP, target_port=3868, published_port=30868)
PORTS = (
    SCTP,
    PortConfig(protocol=Protocol.TCP, target_port=8000, published_port=30080),
    PortConfig(protocol=Protocol.UDP, target_port=8000, published_port=30080),
)


def six(address: str) -> str:
    """The IPv6 address of an endpoint, beside its IPv4 one."""
    return f"fd00:1::{address.rpartition('.')[2]}"


class Ingress:
    """Both nodes on the ingress network 10.0.1.0/24 with addresses .3 and .4."""

    def __init__(self, mesh: Any) -> None:
        self.mesh, self.net, self.world = mesh, mesh.net, mesh.world
        self.nodes = {"10.0.1.3": mesh.one, "10.0.1.4": mesh.two}
        vni = self.net.subnets[0].vni
        for text, node in self.nodes.items():
            node.call("mesh_start", node.settings.run_dir, node.vtep)
            node.call("mesh_enter", self.net, f"{text}/24", f"fd00:1::{text[-1]}/64")
        for text, node in self.nodes.items():
            peer = Peer(
                network_id=self.net.id,
                ip=ipaddress.ip_address(text),
                prefixlen=24,
                mac=vxlan_mac(node.vtep, vni),
                vtep=node.vtep,
            )
            self.other(node).call("mesh_peer", peer)
        # The client's only way to node one is a link of its own, and the same to node two.
        self.client = self.world.box()
        pid = self.client.process.pid
        for name, node, net in (("c1", mesh.one, "198.51.100"), ("c2", mesh.two, "203.0.113")):
            node.sh(f"ip link add {name} type veth peer name {name} netns {pid}")
            node.sh(f"ip addr add {net}.1/24 dev {name}; ip link set {name} up")
            self.client.sh(f"ip addr add {net}.9/24 dev {name}; ip link set {name} up")
            node.sh(f"ip addr add 2001:db8:{name[1]}::1/64 dev {name} nodad")
            self.client.sh(f"ip addr add 2001:db8:{name[1]}::9/64 dev {name} nodad")
        self.client.sh("ip link set lo up")

    def other(self, node: Any) -> Any:
        return self.mesh.two if node is self.mesh.one else self.mesh.one

    def task(self, node: Any, address: str, word: str, *, port: int = 8000) -> Any:
        """Run a backend on a node and tell both of it."""
        box = self.world.plug(node, self.net, f"{address}/24", f"{six(address)}/64")
        box.call("answer", address, word, port)
        box.call("answer", six(address), word, port)
        _, endpoint = list(self.world.endpoints.values())[-1]
        for peer in self.world.peers_of(node, endpoint):
            self.other(node).call("mesh_peer", peer)
        return box

    def record(
        self,
        node: Any,
        address: str,
        *,
        disabled: bool = False,
        only: Any = None,
        balancing: Balancing | None = None,
    ) -> None:
        for each in (address, six(address)):
            record = EndpointRecord(
                name=address,
                service_id="s",
                service_name="web",
                endpoint_ip=each,
                ingress_ports=PORTS,
                service_disabled=disabled,
                balancing=balancing,
            )
            for other in self.nodes.values() if only is None else (only,):
                other.call("mesh", "put", self.net.id, each, record, local=other is node)


@pytest.fixture
def ingress(mesh: Any) -> Ingress:
    return Ingress(mesh)


def test_any_node_answers_and_backends_see_the_client(ingress: Ingress) -> None:
    """Both nodes, tasks on both, by TCP and UDP; a process on a node itself, too."""
    for node, address, word in (
        (ingress.mesh.one, "10.0.1.11", "a"),
        (ingress.mesh.two, "10.0.1.12", "b"),
    ):
        box = ingress.task(node, address, word)
        box.call("steer", "eth0", address, "10.0.1.1")
        ingress.record(node, address)
    for entry, source in (("198.51.100.1", CLIENT), ("203.0.113.1", "203.0.113.9")):
        answers = [ingress.client.call("ask", entry, 30080) for _ in range(24)]
        assert {word for word, _ in answers} == {"a", "b"}, entry
        assert {seen for _, seen in answers} == {source}
        datagrams = Counter(ingress.client.call("ask_udp", entry, 30080) for _ in range(16))
        assert set(datagrams) == {f"a {source}", f"b {source}"}
    assert {ingress.mesh.one.call("ask", "192.0.2.1", 30080)[1] for _ in range(8)} == {"192.0.2.1"}
    assert ingress.client.call("refused", "198.51.100.1", 30081)[0] == "ConnectionRefusedError"


def test_any_node_answers_by_ipv6_and_backends_see_the_client(ingress: Ingress) -> None:
    """TCP and UDP, to a backend on the node asked and on the other one."""
    for node, address, word in (
        (ingress.mesh.one, "10.0.1.11", "a"),
        (ingress.mesh.two, "10.0.1.12", "b"),
    ):
        box = ingress.task(node, address, word)
        box.call("steer", "eth0", six(address), "fe80::1")
        ingress.record(node, address)
    for number in (1, 2):
        entry, source = f"2001:db8:{number}::1", f"2001:db8:{number}::9"
        answers = [ingress.client.call("ask", entry, 30080) for _ in range(24)]
        assert {word for word, _ in answers} == {"a", "b"}, entry
        assert {seen for _, seen in answers} == {source}
        datagrams = Counter(ingress.client.call("ask_udp", entry, 30080) for _ in range(16))
        assert set(datagrams) == {f"a {source}", f"b {source}"}
    assert ingress.client.call("refused", "2001:db8:1::1", 30081)[0] == "ConnectionRefusedError"


def test_a_published_sctp_port_leads_to_the_target_port(ingress: Ingress) -> None:
    """An INIT by hand from the client outside: the backend sees its address; the rules name the protocol."""
    box = ingress.task(ingress.mesh.two, "10.0.1.12", "b")
    box.call("steer", "eth0", "10.0.1.12", "10.0.1.1")
    ingress.record(ingress.mesh.two, "10.0.1.12")
    elements = ingress.mesh.one.sh("nft list map inet overswarm-ports vips4")
    assert "sctp . 30868" in elements
    assert "tcp . 30080" in elements
    box.call("sctp_open")
    ingress.client.call("sctp_knock", "198.51.100.1", 30868)
    assert box.call("sctp_heard") == (CLIENT, 3868)


def test_flows_through_a_node_that_is_gone_are_forgotten(ingress: Ingress) -> None:
    """The backend's router lets go of them by the node's mark, and of no others."""
    box = ingress.task(ingress.mesh.two, "10.0.1.12", "b")
    box.call("steer", "eth0", "10.0.1.12", "10.0.1.1")
    ingress.record(ingress.mesh.two, "10.0.1.12")
    assert ingress.client.call("hold", "198.51.100.1", 30080) == "b"
    assert ingress.client.call("ask", "203.0.113.1", 30080)[0] == "b"
    two, backend = ingress.mesh.two, [ipaddress.ip_address("10.0.1.12")]
    assert ingress.mesh.balance(two, "flows", ingress.net.id, backend) == 1
    two.call("mesh_forget", "10.0.1.3")
    assert ingress.mesh.balance(two, "flows", ingress.net.id, backend) == 0


def test_leaving_the_ingress_network_takes_its_ports_and_coming_back_brings_them(
    ingress: Ingress,
) -> None:
    """As when the network is removed and made anew: nothing of the old one is left on the host."""
    box = ingress.task(ingress.mesh.one, "10.0.1.11", "a")
    box.call("steer", "eth0", "10.0.1.11", "10.0.1.1")
    ingress.record(ingress.mesh.one, "10.0.1.11")
    one = ingress.mesh.one
    assert ingress.client.call("ask", "198.51.100.1", 30080)[0] == "a"
    one.call("mesh", "leave")
    assert ingress.client.call("refused", "198.51.100.1", 30080)[0] == "ConnectionRefusedError"
    assert "ovmesh0" not in one.sh("ip -o link")
    one.call("mesh_enter", ingress.net, "10.0.1.3/24", "fd00:1::3/64")
    ingress.record(one, "10.0.1.11", only=one)
    assert ingress.client.call("ask", "198.51.100.1", 30080) == ("a", CLIENT)


def test_the_same_client_port_on_two_nodes_is_two_flows(ingress: Ingress) -> None:
    """Zones keep them apart at the backend, which sees the same address twice."""
    box = ingress.task(ingress.mesh.two, "10.0.1.12", "b")
    box.call("steer", "eth0", "10.0.1.12", "10.0.1.1")
    ingress.record(ingress.mesh.two, "10.0.1.12")
    ingress.client.sh("ip addr add 198.18.0.7/32 dev lo")
    for node, gateway in ((ingress.mesh.one, "198.51.100.9"), (ingress.mesh.two, "203.0.113.9")):
        node.sh(f"ip route add 198.18.0.7 via {gateway}")
    for entry in ("198.51.100.1", "203.0.113.1"):
        assert ingress.client.call("ask_from", "198.18.0.7", 4444, entry, 30080) == "b 198.18.0.7"


def test_a_client_keeps_its_backend_whichever_node_it_asks(ingress: Ingress) -> None:
    """A sticky service: the same address, other ports, two ways in; and local backends first where that is wished."""
    one, two = ingress.mesh.one, ingress.mesh.two
    places = ((one, "10.0.1.11", "a"), (two, "10.0.1.12", "b"))
    for node, address, word in places:
        box = ingress.task(node, address, word)
        box.call("steer", "eth0", address, "10.0.1.1")
        ingress.record(node, address, balancing=Balancing(sticky=True))
    sources = [f"198.18.0.{last}" for last in range(7, 15)]
    chosen = []
    for source in sources:
        ingress.client.sh(f"ip addr add {source}/32 dev lo")
        one.sh(f"ip route add {source} via 198.51.100.9")
        two.sh(f"ip route add {source} via 203.0.113.9")
        answers = {
            ingress.client.call("ask_from", source, port, entry, 30080).split()[0]
            for port in (4444, 4445, 4446)
            for entry in ("198.51.100.1", "203.0.113.1")
        }
        assert len(answers) == 1, source
        chosen += answers
    assert set(chosen) == {"a", "b"}, "the clients spread"
    for node, address, _ in places:
        ingress.record(node, address, balancing=Balancing(prefer_local=True))
    for entry, word in (("198.51.100.1", "a"), ("203.0.113.1", "b")):
        assert set(ingress.client.call("ask_many", entry, 12, 30080)) == {word}


def test_a_port_without_backends_refuses_and_a_draining_one_gets_no_new_flows(
    ingress: Ingress,
) -> None:
    box = ingress.task(ingress.mesh.one, "10.0.1.11", "a")
    box.call("steer", "eth0", "10.0.1.11", "10.0.1.1")
    ingress.record(ingress.mesh.one, "10.0.1.11")
    assert ingress.client.call("hold", "203.0.113.1", 30080) == "a"
    ingress.record(ingress.mesh.one, "10.0.1.11", disabled=True)
    for entry in ("198.51.100.1", "203.0.113.1"):
        error, seconds = ingress.client.call("refused", entry, 30080)
        assert (error, seconds < 0.5) == ("ConnectionRefusedError", True)
    assert ingress.client.call("held")


def test_towards_an_engine_the_source_is_the_nodes_and_the_port_the_published(
    ingress: Ingress,
) -> None:
    """The task of a node that is none of ours is asked on the published port, by our address."""
    # Node two stands in for the engine: nothing of ours runs there for this service.
    ingress.mesh.one.call("mesh_forget", "10.0.1.4")
    ingress.task(ingress.mesh.two, "10.0.1.12", "engine", port=30080)
    ingress.record(ingress.mesh.two, "10.0.1.12", only=ingress.mesh.one)
    assert ingress.client.call("ask", "198.51.100.1", 30080) == ("engine", "10.0.1.3")


def test_an_engines_way_in_reaches_our_task_on_its_target_port(ingress: Ingress) -> None:
    """A packet from another node's ingress address to the published port is translated here."""
    ingress.task(ingress.mesh.one, "10.0.1.11", "a")
    ingress.record(ingress.mesh.one, "10.0.1.11")
    engine = ingress.world.plug(ingress.mesh.two, ingress.net, "10.0.1.60/24")
    ingress.world.gossip()
    assert engine.call("ask", "10.0.1.11", 30080) == ("a", "10.0.1.60")


def test_a_users_drop_holds_for_published_ports(ingress: Ingress) -> None:
    """Their chain sees addresses and ports as the client sent them, and survives a new agent."""
    box = ingress.task(ingress.mesh.two, "10.0.1.12", "b")
    box.call("steer", "eth0", "10.0.1.12", "10.0.1.1")
    ingress.record(ingress.mesh.two, "10.0.1.12")
    one = ingress.mesh.one
    assert ingress.client.call("ask", "198.51.100.1", 30080)[0] == "b"
    one.sh(f"nft add rule inet overswarm-ports user ip saddr {CLIENT} tcp dport 30080 drop")
    assert ingress.client.call("ask_udp", "198.51.100.1", 30080) == f"b {CLIENT}"
    one.call("balance", "open", "")
    error, _ = ingress.client.call("refused", "198.51.100.1", 30080)
    assert error == "TimeoutError"
    assert one.call("drifts") == (0, 0), "what is theirs is no drift"
    assert ingress.client.call("ask", "203.0.113.1", 30080)[0] == "b"


EDITS = (
    "nft flush table inet overswarm-mesh",
    "nft flush map netdev overswarm-mesh macs",
    "nft delete table netdev overswarm-mesh",
)


def test_foreign_edits_of_the_meshs_rules_are_mended(ingress: Ingress) -> None:
    """In the router; and those of the host's table."""
    box = ingress.task(ingress.mesh.two, "10.0.1.12", "b")
    box.call("steer", "eth0", "10.0.1.12", "10.0.1.1")
    ingress.record(ingress.mesh.two, "10.0.1.12")
    one, two = ingress.mesh.one, ingress.mesh.two
    assert ingress.client.call("ask", "198.51.100.1", 30080) == ("b", CLIENT)
    for count, edit in enumerate(EDITS, 1):
        ingress.mesh.inside(two, edit)
        ingress.mesh.await_drift(two, 1, count)
        two.call("mesh", "touch", ingress.net.id)
        assert ingress.client.call("ask", "198.51.100.1", 30080) == ("b", CLIENT), edit
    one.sh("nft flush chain inet overswarm-ports prerouting")
    ingress.mesh.await_drift(one, 0)
    assert ingress.client.call("ask", "198.51.100.1", 30080) == ("b", CLIENT)


def test_a_host_that_did_not_forward_does_not_start_to(ingress: Ingress) -> None:
    """Only the mesh passes; leaving puts everything back as it was."""
    one = ingress.mesh.one
    ingress.client.sh("ip route add 192.0.2.2 via 198.51.100.1")
    ingress.mesh.two.sh("ip route add 198.51.100.0/24 via 192.0.2.1")
    assert ingress.client.ping("192.0.2.2", timeout=0.3) == 0
    assert one.call("read", "/proc/sys/net/ipv4/ip_forward") == "1"
    one.call("mesh", "destroy")
    assert one.call("read", "/proc/sys/net/ipv4/ip_forward") == "0"
    assert "overswarm-ports" not in one.sh("nft list tables")
    assert "ovmesh0" not in one.sh("ip -o link")
