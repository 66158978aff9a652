"""Elements of the mesh's rules, and what the host's ports lead to."""

from __future__ import annotations

import ipaddress
import re

from hypothesis import given
from hypothesis import strategies as st

from agent.balancer import steering
from agent.balancer.mesh import _elements, _fronts
from agent.balancer.table import SILENT, Port, Target
from agent.gossip.records import EndpointRecord, PortConfig, Protocol

maps = st.dictionaries(
    st.sampled_from(["nodes", "macs", "foreign"]),
    st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(["1", "2", ""]), max_size=6),
    max_size=3,
)


@given(maps, maps)
def test_changes_lead_from_one_state_to_the_other(
    before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]
) -> None:
    """Nothing is added that is there, nothing deleted that is not; no change, no command."""
    held = {name: dict(elements) for name, elements in before.items()}
    for line in steering.changes(before, after):
        found = re.fullmatch(r"(add|delete) element (\w+) overswarm-mesh (\w+) \{ (.*) \}", line)
        assert found is not None
        verb, family, name, text = found.groups()
        assert family == ("netdev" if name == "macs" else "inet")
        for item in text.split(", "):
            key, _, value = item.partition(" : ")
            if verb == "delete":
                del held[name][key]
            else:
                assert key not in held.setdefault(name, {})
                held[name][key] = value
    assert {k: v for k, v in held.items() if v} == {k: v for k, v in after.items() if v}
    assert steering.changes(after, after) == []


def test_a_nodes_number_is_the_end_of_its_address() -> None:
    """In every table of every node the same, without asking anybody."""
    elements = steering.node_elements({"6e:00:00:00:00:01": ipaddress.ip_address("10.0.1.4")})
    assert elements == {
        "nodes": {"6e:00:00:00:00:01": "0x10104"},
        "zones": {"6e:00:00:00:00:01": "260"},
        "macs": {"0x10104": "6e:00:00:00:00:01"},
    }


def record(ip: str, *, disabled: bool = False) -> EndpointRecord:
    port = PortConfig(protocol=Protocol.UDP, target_port=53, published_port=30053)
    return EndpointRecord(
        name="x", endpoint_ip=ip, ingress_ports=(port,), service_disabled=disabled
    )


def test_an_engines_task_gets_the_published_port_and_ours_the_target() -> None:
    """One whose place nobody knows yet gets nothing; a draining one no new flows."""
    ips = {name: ipaddress.ip_address(f"10.0.1.{i}") for i, name in enumerate("abcd", 10)}
    records = {name: record(str(ip), disabled=name == "c") for name, ip in ips.items()}
    kinds = {ips["a"]: "ours", ips["b"]: "engine", ips["c"]: "local"}
    fronts = _fronts(records, kinds, {"a"})
    assert {each.ip: each.tier for each in fronts.values()}[Target(ips["a"], 53)] == SILENT
    assert {each.vip for each in fronts.values()} == {Port(4, "udp", 30053)}
    assert {each.ip: each.serving for each in fronts.values()} == {
        Target(ips["a"], 53): True,
        Target(ips["b"], 30053): True,
        Target(ips["c"], 53): False,
    }
    assert _elements(records, kinds) == {
        "foreign4": {"10.0.1.11": ""},
        "targets4": {"10.0.1.12 . udp . 30053": "10.0.1.12 . 53"},
        "foreign6": {},
        "targets6": {},
    }
