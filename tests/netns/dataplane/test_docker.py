"""The other end as Docker's engine builds it: a bridge and a VXLAN device that learns.

Source of its settings: moby ``daemon/libnetwork/drivers/overlay`` (proxy, learning, exclusive
adds, no ``local``).
"""

from __future__ import annotations

from typing import Any

import pytest

from agent.dataplane import Wanted

pytestmark = [pytest.mark.netns, pytest.mark.slow]


class Engine:
    """One network on a Docker-like node."""

    def __init__(self, world: Any, node: Any, net: Any) -> None:
        self.world, self.node, self.net = world, node, net
        self.router = world.box()
        pid = self.router.process.pid
        self.router.sh("ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward")
        for i, subnet in enumerate(net.subnets):
            node.sh(
                f"ip link add vxlan{i} mtu 1450 netns {pid} type vxlan id {subnet.vni} "
                "dstport 4789 learning proxy l2miss l3miss"
            )
            self.router.sh(
                f"ip link add br{i} mtu 1450 type bridge; ip link set vxlan{i} master br{i} up; "
                f"ip addr add {subnet.gateway}/{subnet.cidr.prefixlen} dev br{i}; "
                f"ip link set br{i} up"
            )
        self.ports = 0

    def container(self, address: str) -> Any:
        """Attach a container as Docker does; returns it and its endpoint record."""
        box = self.world.box()
        endpoint = self.world.endpoint(self.net, box, address)
        i = next(
            i for i, subnet in enumerate(self.net.subnets) if endpoint.addresses[0] in subnet.cidr
        )
        self.router.sh(
            f"ip link add veth{self.ports} mtu 1450 type veth peer name eth0 mtu 1450 "
            f"netns {box.process.pid}; ip link set veth{self.ports} master br{i} up"
        )
        self.ports += 1
        box.sh(
            f"ip link set lo up; ip link set eth0 address {endpoint.mac}; ip link set eth0 up; "
            f"ip addr add {address} dev eth0"
        )
        for subnet in self.net.subnets:
            if subnet is not self.net.subnets[i]:
                box.sh(f"ip route add {subnet.cidr} via {self.net.subnets[i].gateway}")
        self.world.endpoints[endpoint.id] = (self.node, endpoint)
        return box

    def peer(self, ip: object, mac: str, vtep: object, verb: str = "add") -> None:
        """Program a remote endpoint: neighbour, then forwarding entry; exclusive adds."""
        i = next(i for i, subnet in enumerate(self.net.subnets) if ip in subnet.cidr)
        steps = [
            f"ip neigh {verb} {ip} lladdr {mac} dev vxlan{i} nud permanent",
            f"bridge fdb {verb} {mac} dev vxlan{i} dst {vtep} self permanent",
        ]
        self.router.sh("; ".join(steps if verb == "add" else reversed(steps)))


def connected(world: Any, net: Any) -> tuple[Any, Any, Engine]:
    """Return our node, the other node, and the network on the other."""
    ours, theirs = world.pair(planes=1)
    ours.plane("put_network", net)
    engine = Engine(world, theirs, net)
    return ours, theirs, engine


def introduce(world: Any, ours: Any, engine: Engine) -> None:
    """Tell both sides about each other's endpoints."""
    for owner, endpoint in world.endpoints.values():
        for peer in world.peers_of(owner, endpoint):
            if owner is ours:
                engine.peer(peer.ip, peer.mac, peer.vtep)
            else:
                ours.plane("set_peer", peer)


def test_both_ways_with_full_frames_tcp_and_restarts(world: Any, network: Any) -> None:
    """Docker's node accepts our frames (no spoof drop) and ours takes in frames to endpoint MACs."""
    net = network(1)
    ours, _, engine = connected(world, net)
    a = world.plug(ours, net, "10.0.1.2/24")
    b = world.plug(ours, net, "10.0.1.3/24")
    c = engine.container("10.0.1.4/24")
    introduce(world, ours, engine)
    assert a.ping("10.0.1.4", size=1450) == 1
    assert c.ping("10.0.1.2", size=1450) == 1
    assert c.ping("10.0.1.3", count=50) == 50
    c.call("serve", "10.0.1.4")
    b.call("serve", "10.0.1.3")
    assert a.call("fetch", "10.0.1.4", 2_000_000) == ("10.0.1.2", 2_000_000)
    assert c.call("fetch", "10.0.1.3", 2_000_000) == ("10.0.1.4", 2_000_000)
    c.call("ping_start", "10.0.1.2")
    mine = tuple(endpoint for owner, endpoint in world.endpoints.values() if owner is ours)
    peers = [p for o, e in world.endpoints.values() if o is not ours for p in world.peers_of(o, e)]
    ours.restart()
    wanted = Wanted(networks=(net,), endpoints=mine, peers=tuple(peers))
    assert ours.plane("reconcile", wanted).operations == 0
    sent, got = c.call("ping_stop")
    assert sent == got > 5


def test_docker_routes_between_subnets_at_the_sender(world: Any, network: Any) -> None:
    """A frame of one subnet arrives on the other's VNI; a strict reverse path would drop it."""
    net = network(1, "10.0.1.0/24", "10.0.2.0/24")
    ours, _, engine = connected(world, net)
    a = world.plug(ours, net, "10.0.1.2/24")
    c = engine.container("10.0.2.4/24")
    introduce(world, ours, engine)
    assert c.ping("10.0.1.2", count=5) == 5
    assert a.ping("10.0.2.4", count=5) == 5


def test_records_may_come_and_go_many_times(world: Any, network: Any) -> None:
    """Our side replaces; after a hundred withdrawals and returns traffic passes at once."""
    net = network(1)
    ours, _, engine = connected(world, net)
    a = world.plug(ours, net, "10.0.1.2/24")
    c = engine.container("10.0.1.4/24")
    introduce(world, ours, engine)
    owner, endpoint = list(world.endpoints.values())[1]
    (peer,) = world.peers_of(owner, endpoint)
    c.call("ping_start", "10.0.1.2")
    for _ in range(100):
        ours.plane("remove_peer", net.id, peer.ip)
        ours.plane("set_peer", peer)
    c.call("ping_stop")
    assert ours.plane("check").drift == 0
    assert a.ping("10.0.1.4", count=10) == 10
