"""A host that leaves is as it was before: nothing of ours stays, nothing of others goes."""

from __future__ import annotations

import pytest
from support.cluster import PROGRAM, Cluster
from support.labs import clean_lab

pytestmark = [pytest.mark.lab, pytest.mark.slow]

FOREIGN = (
    "nft add table inet firewall; nft 'add chain inet firewall in { type filter hook input priority 0; }'; "
    "nft add rule inet firewall in udp dport 9 drop; nft add table ip overs; "
    "ip link add vxlan42 type vxlan id 42 dstport 4790 local 192.0.2.2 remote 192.0.2.9; "
    "ip link set vxlan42 up; ip addr add 10.250.0.1/24 dev vxlan42; ip link add epfoo type veth peer name gwfoo; "
    "ip route add 10.251.0.0/16 dev vxlan42 proto 84; ip rule add pref 77 lookup main"
)
INVENTORY = (
    "ip -o link | sed 's/^[0-9]*: //; s/@.*//; s/:.*//' | sort; ip -o addr | sed 's/^[0-9]*: //' | sort; "
    "ip route | sort; ip -6 route | sort; ip rule; nft -s list ruleset; cat /proc/sys/net/ipv4/ip_forward; "
    "grep -H . /proc/sys/net/ipv6/conf/*/forwarding /proc/sys/net/ipv6/conf/*/accept_ra; "
    "ss -Hlnu | awk '{print $4}' | sort"
)


def test_leaving_takes_ours_and_leaves_the_rest() -> None:
    """Networks, ways out, published ports, tunnels and rules go; another's, however alike, stay."""
    with clean_lab("gone") as lab:
        lab.build(["m1", "w1"])
        lab.form(["m1"])
        cluster = Cluster(lab)

        def inventory() -> str:
            return lab.run("w1", "sh", "-c", INVENTORY).stdout

        result = lab.run("w1", "sh", "-ec", FOREIGN)
        assert result.returncode == 0, result.stderr
        before = inventory()
        token = lab.tokens("m1")["worker"]
        lab.join("w1", "192.0.2.1", token)
        lab.await_ready("m1", 2)
        cluster.network("net", "--ipv6")
        cluster.network("more", "--subnet", "10.60.0.0/24", "--subnet", "10.61.0.0/24")
        cluster.swarm(
            "w1", "run", "-d", "--name", "web", "--network", "net", "--network", "more",
            "-p", "8080:8080", "--", *PROGRAM, "serve", "8080",
        )  # fmt: skip
        during = inventory()
        assert "table inet overswarm" in during
        assert "4789" in during
        cluster.swarm("w1", "leave")
        assert inventory() == before
        run_dir = lab.state.run_dir("w1")
        assert not (run_dir / "netns").exists()
