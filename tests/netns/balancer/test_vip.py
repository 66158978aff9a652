"""Virtual addresses on two nodes: spread, addresses seen, hairpin, refusal, draining, flushing."""

from __future__ import annotations

import ipaddress
from collections import Counter
from typing import Any

import pytest

from agent.balancer import Backend

pytestmark = [pytest.mark.netns, pytest.mark.slow]

VIP, VIP6 = "10.0.1.200", "fd00:1::200"


def three(mesh: Any) -> tuple[Any, list[Any]]:
    """Return a client on one node, and backends a (same node), b and c (the other)."""
    client = mesh.box(mesh.one, "10.0.1.2/24", "fd00:1::2/64")
    boxes = [
        mesh.box(node, f"10.0.1.{last}/24", f"fd00:1::{last}/64")
        for node, last in ((mesh.one, 11), (mesh.two, 12), (mesh.two, 13))
    ]
    for word, last, box in zip("abc", (11, 12, 13), boxes, strict=True):
        box.call("answer", f"10.0.1.{last}", word)
        box.call("answer", f"fd00:1::{last}", word)
    return client, boxes


def chi_square(counts: Counter[str], kinds: int) -> float:
    expected = counts.total() / kinds
    return sum((counts[each] - expected) ** 2 for each in counts) / expected


@pytest.mark.parametrize(("vip", "base"), [(VIP, "10.0.1."), (VIP6, "fd00:1::")])
def test_flows_spread_evenly_and_backends_see_the_client(mesh: Any, vip: str, base: str) -> None:
    """Every backend gets its share, sees the client's own address, on any port and by UDP and echo."""
    client, boxes = three(mesh)
    mesh.service(vip, *(f"{base}{last}" for last in (11, 12, 13)))
    counts = Counter(client.call("ask_many", vip, 300))
    assert set(counts) == set("abc")
    assert chi_square(counts, 3) < 13.8, counts  # 2 degrees of freedom, p = 0.001
    assert {client.call("ask", vip)[1] for _ in range(12)} == {f"{base}2"}
    seen = {client.call("ask_udp", vip) for _ in range(20)}
    assert {text.split()[1] for text in seen} == {f"{base}2"}
    assert len(seen) > 1
    for word, last, box in zip("xyz", (11, 12, 13), boxes, strict=True):
        box.call("answer", f"{base}{last}", word, 8443)
    assert set(client.call("ask_many", vip, 40, 8443)) == set("xyz")
    assert client.ping(vip, count=5) == 5


@pytest.mark.parametrize(("vip", "base"), [(VIP, "10.0.1."), (VIP6, "fd00:1::")])
def test_a_client_of_a_sticky_service_keeps_its_backend(mesh: Any, vip: str, base: str) -> None:
    """By TCP and UDP, on either node; when one backend goes, the clients of the others stay."""
    three(mesh)
    clients = [
        mesh.box(node, f"10.0.1.{last}/24", f"fd00:1::{last}/64")
        for last, node in ((41, mesh.one), (42, mesh.two), (43, mesh.one), (44, mesh.two))
    ]
    mesh.service(vip, *(f"{base}{last}" for last in (11, 12, 13)), sticky=True)
    chosen = []
    for client in clients:
        words = set(client.call("ask_many", vip, 12))
        assert len(words) == 1
        assert client.call("ask_udp", vip).split()[0] in words
        chosen += words
    gone = chosen[0]
    mesh.gone(vip, f"{base}{11 + 'abc'.index(gone)}")
    after = [client.call("ask", vip)[0] for client in clients]
    assert gone not in after
    moved = [new != old for old, new in zip(chosen, after, strict=True) if old != gone]
    assert sum(moved) <= 1, "a tenth of the table may change hands"


def test_flows_follow_weights_and_prefer_what_is_local(mesh: Any) -> None:
    """Three to one; then the better tier alone, until it has nobody."""
    client, _ = three(mesh)
    mesh.service(VIP, "10.0.1.12", weight=3)
    mesh.service(VIP, "10.0.1.13", weight=1)
    counts = Counter(client.call("ask_many", VIP, 400))
    assert set(counts) == {"b", "c"}
    assert (counts["b"] - 300) ** 2 / 300 + (counts["c"] - 100) ** 2 / 100 < 10.9, counts
    mesh.service(VIP, "10.0.1.12", "10.0.1.13", tier=1)
    mesh.service(VIP, "10.0.1.11")
    assert set(client.call("ask_many", VIP, 30)) == {"a"}
    mesh.service(VIP, "10.0.1.11", serving=False)
    assert set(client.call("ask_many", VIP, 30)) == {"b", "c"}


@pytest.mark.parametrize(("vip", "base"), [(VIP, "10.0.1."), (VIP6, "fd00:1::")])
def test_sctp_is_led_to_a_backend_like_anything_else(mesh: Any, vip: str, base: str) -> None:
    """An INIT by hand, for the kernel may not speak it: the backend sees the client, the port stays."""
    client, (_, b, _) = three(mesh)
    mesh.service(vip, f"{base}12")
    b.call("sctp_open", 6 if ":" in vip else 4)
    client.call("sctp_knock", vip, 3868)
    assert b.call("sctp_heard") == (f"{base}2", 3868)


def test_a_backend_reaches_itself_through_its_service(mesh: Any) -> None:
    """Hairpin: the only backend asks its own virtual address, by TCP and UDP."""
    _, (a, *_) = three(mesh)
    mesh.service(VIP, "10.0.1.11")
    mesh.service(VIP6, "fd00:1::11")
    assert a.call("refused", VIP, 8000)[0], "without the pair its own packets are not taken in"
    mesh.local(mesh.one, "10.0.1.11", "fd00:1::11")
    assert a.call("ask", VIP) == ("a", "10.0.1.1")
    assert a.call("ask_udp", VIP) == "a 10.0.1.1"
    assert a.call("ask", VIP6) == ("a", "fd00:1::1")


def test_no_backend_refuses_at_once(mesh: Any) -> None:
    """TCP gets a reset, UDP and echo an ICMP error, whether backends drain or have gone."""
    client, _ = three(mesh)
    mesh.service(VIP, "10.0.1.12")
    mesh.service(VIP6, "fd00:1::12")
    assert client.call("ask", VIP)[0] == "b"
    mesh.service(VIP, "10.0.1.12", serving=False)
    for _ in range(2):
        error, seconds = client.call("refused", VIP)
        assert (error, seconds < 0.5) == ("ConnectionRefusedError", True)
        assert client.call("ask_udp", VIP) == "ConnectionRefusedError"
        assert client.ping(VIP, timeout=0.2) == 0
        mesh.gone(VIP, "10.0.1.12")
    mesh.gone(VIP6, "fd00:1::12")
    error, seconds = client.call("refused", VIP6)
    assert (error, seconds < 0.5) == ("ConnectionRefusedError", True)


def test_a_draining_backend_keeps_its_flows_and_gets_no_new_ones(mesh: Any) -> None:
    """The held connection goes on, new ones go elsewhere, and the count falls to 0 with its end."""
    client, _ = three(mesh)
    mesh.service(VIP, "10.0.1.11")
    assert client.call("hold", VIP) == "a"
    mesh.service(VIP, "10.0.1.12")
    mesh.service(VIP, "10.0.1.11", serving=False)
    assert set(client.call("ask_many", VIP, 20)) == {"b"}
    assert client.call("held")
    backend = [ipaddress.ip_address("10.0.1.11")]
    assert mesh.balance(mesh.one, "flows", mesh.net.id, backend) == 1
    client.call("let_go")
    mesh.await_no_flows("10.0.1.11")


def test_udp_leaves_a_dead_backend_at_once(mesh: Any) -> None:
    """A client that keeps its port is led to a live backend as soon as its own is gone."""
    client, _ = three(mesh)
    mesh.service(VIP, "10.0.1.11")
    assert client.call("ask_udp", VIP, 8000, 5555) == "a 10.0.1.2"
    mesh.service(VIP, "10.0.1.12")
    assert client.call("ask_udp", VIP, 8000, 5555) == "a 10.0.1.2", "the flow stays"
    mesh.gone(VIP, "10.0.1.11")
    assert client.call("ask_udp", VIP, 8000, 5555) == "b 10.0.1.2"


def test_all_backends_are_replaced_under_load_without_a_failed_request(mesh: Any) -> None:
    """One by one: new in, old drained, flows ended, old out; nobody notices."""
    client, boxes = three(mesh)
    mesh.service(VIP, "10.0.1.11", "10.0.1.12", "10.0.1.13")
    heirs = [
        mesh.box(node, f"10.0.1.{last}/24")
        for node, last in ((mesh.two, 31), (mesh.one, 32), (mesh.one, 33))
    ]
    for word, last, box in zip("xyz", (31, 32, 33), heirs, strict=True):
        box.call("answer", f"10.0.1.{last}", word)
    client.call("load_start", VIP)
    for old, new, box in zip((11, 12, 13), (31, 32, 33), boxes, strict=True):
        mesh.service(VIP, f"10.0.1.{new}")
        mesh.service(VIP, f"10.0.1.{old}", serving=False)
        mesh.await_no_flows(f"10.0.1.{old}")
        box.call("unserve")
        mesh.gone(VIP, f"10.0.1.{old}")
    words, errors = client.call("finish", "load")
    assert errors == []
    assert {"x", "y", "z"} <= set(words)
    assert set(client.call("ask_many", VIP, 30)) == {"x", "y", "z"}


EDITS = (
    "flush chain inet overswarm-services prerouting",
    f"delete element inet overswarm-services vips4 {{ {VIP} }}",
    "add element inet overswarm-services known4 { 10.0.1.99 }",
    "insert rule inet overswarm-services prerouting drop",
    "delete table inet overswarm-services",
    "flush chain inet overswarm-services pick4-2",
)


def test_foreign_edits_are_mended_and_counted(mesh: Any) -> None:
    """Within the time between two looks; a table of somebody else stays as it is."""
    client, _ = three(mesh)
    mesh.service(VIP, "10.0.1.11", "10.0.1.12")
    mesh.service(VIP6, "fd00:1::11", sticky=True, weight=2)
    mesh.local(mesh.one, "10.0.1.11", "fd00:1::11")
    mesh.inside(mesh.one, "nft add table inet theirs")
    assert mesh.one.call("drifts") == (0, 0), "what we do ourselves is no drift"
    for count, edit in enumerate(EDITS, 1):
        mesh.inside(mesh.one, f'nft "{edit}"')
        mesh.await_drift(mesh.one, 0, count)
        assert set(client.call("ask_many", VIP, 20)) == {"a", "b"}, edit
    assert "10.0.1.99" not in mesh.inside(mesh.one, "nft list table inet overswarm-services")
    assert "theirs" in mesh.inside(mesh.one, "nft list tables")


def test_a_network_without_services_has_no_table(mesh: Any) -> None:
    """Connection tracking costs: the table comes with the first service and goes with the last."""
    three(mesh)
    assert "overswarm-services" not in mesh.inside(mesh.one, "nft list tables")
    mesh.service(VIP, "10.0.1.11")
    assert "overswarm-services" in mesh.inside(mesh.one, "nft list tables")
    assert f"local {VIP}" in mesh.inside(mesh.one, "ip route show table all")


def test_a_new_agent_takes_over_without_a_gap(mesh: Any) -> None:
    """Held connections and new ones pass while another balancer makes the rules anew."""
    client, _ = three(mesh)
    mesh.service(VIP, "10.0.1.11", "10.0.1.12")
    word = client.call("hold", VIP)
    client.call("load_start", VIP)
    mesh.one.call("balancer_start")
    for text in ("10.0.1.11", "10.0.1.12"):
        backend = Backend(vip=ipaddress.ip_address(VIP), ip=ipaddress.ip_address(text))
        mesh.balance(mesh.one, "put", mesh.net.id, text, backend)
    mesh.balance(mesh.one, "open", mesh.net.id, [ipaddress.ip_address(VIP)])
    assert client.call("held"), word
    _, errors = client.call("finish", "load")
    assert errors == []
